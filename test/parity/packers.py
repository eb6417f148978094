"""Writers of weights in few bits, element by element as the formats' authors describe them; they share no line with
the readers. Each gives the tensors of a module by their endings, and the weight that those stand for."""

import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Packed = tuple[dict[str, Tensor], Array]  # tensors by ending; float32 [rows, inputs]
Packer = Callable[[Array], Packed]
EIGHT = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ and Marlin: which of eight neighbours nibble i holds


def steps(w: Array, bits: int, size: int, sym: bool, group_of: Array) -> tuple[Array, Array, Array]:
    """Codes [rows, inputs]; scales (that float16 holds) and zeros [rows, groups]."""
    groups = int(group_of.max()) + 1
    top = 2**bits - 1
    q = np.zeros(w.shape, np.int64)
    s, z = np.zeros((len(w), groups), np.float32), np.zeros((len(w), groups), np.int64)
    for g in range(groups):
        part = w[:, group_of == g]
        if sym:
            s[:, g] = np.abs(part).max(1) * 2 / top
            z[:, g] = 2 ** (bits - 1)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            s[:, g] = (high - low) / top
            z[:, g] = np.clip(np.round(-low / np.maximum(s[:, g], 1e-8)), 0, top)
        s[:, g] = np.maximum(s[:, g], 1e-4).astype(np.float16)
        q[:, group_of == g] = np.clip(np.round(part / s[:, g : g + 1]) + z[:, g : g + 1], 0, top)
    return q, s, z


def value(q: Array, s: Array, z: Array, group_of: Array) -> Array:
    return ((q - z[:, group_of]) * s[:, group_of]).astype(np.float32)


def words(values: Array, bits: int) -> Array:
    """Along the last axis, lowest bits first, as one long number: int32."""
    n = values.shape[-1] * bits // 32
    out = np.zeros((*values.shape[:-1], n), np.uint32)
    for i in range(values.shape[-1]):
        for b in range(bits):
            at = i * bits + b
            out[..., at // 32] |= (((values[..., i] >> b) & 1) << (at % 32)).astype(np.uint32)
    return out.view(np.int32)


def plain(inputs: int, size: int) -> Array:
    return np.arange(inputs) // (inputs if size < 0 else size)


def shuffled(inputs: int, size: int) -> Array:
    """Act-order: columns of a group are anywhere."""
    return np.random.default_rng(inputs).permutation(plain(inputs, size))


def tensor(array: Array, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def awq(w: Array, size: int = 128) -> Packed:
    group_of = plain(w.shape[1], size)
    q, s, z = steps(w, 4, size, False, group_of)

    def packed(values: Array) -> Array:  # [n, rows] -> [n, rows / 8]
        out = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
        for i, column in enumerate(EIGHT):
            out |= (values[:, column::8] << (4 * i)).astype(np.uint32)
        return out.view(np.int32)

    found = {"qweight": tensor(packed(q.T)), "qzeros": tensor(packed(z.T)), "scales": tensor(s.T, torch.float16)}
    return found, value(q, s, z, group_of)


def gptq(
    w: Array, bits: int = 4, size: int = 128, sym: bool = True, act_order: bool = False, version: int = 1
) -> Packed:
    group_of = (shuffled if act_order else plain)(w.shape[1], size)
    q, s, z = steps(w, bits, size, sym, group_of)
    stored = (z - 1) % 2**bits if version == 1 else z
    found = {
        "qweight": tensor(words(q, bits).T),
        "qzeros": tensor(words(stored.T, bits)),
        "scales": tensor(s.T, torch.float16),
        "g_idx": tensor(group_of, torch.int32),
    }
    return found, value(q, s, z, group_of)


def marlin(w: Array, size: int = 128) -> Packed:
    group_of = plain(w.shape[1], size)
    q, s, z = steps(w, 4, size, True, group_of)
    rows, inputs = w.shape
    out = np.zeros((inputs // 16, rows * 2), np.uint32)
    nibble = [EIGHT.index(p) for p in range(8)]
    for r in range(16):  # input within a tile
        for c in range(64):  # row within four tiles
            thread = (c % 8) * 4 + (r % 8) // 2
            place = (c % 16) // 8 * 4 + r // 8 * 2 + r % 2
            column = thread * 4 + c // 16
            out[:, column::128] |= (q.T[r::16, c::64] << (4 * nibble[place])).astype(np.uint32)
    stored = np.empty_like(s.T)
    if s.shape[1] > 1:
        for i in range(8):
            for j in range(8):
                stored[:, 8 * i + j :: 64] = s.T[:, i + 8 * j :: 64]
    else:
        for i in range(4):
            for at, j in enumerate((0, 1, 8, 9, 16, 17, 24, 25)):
                stored[:, 8 * i + at :: 32] = s.T[:, 2 * i + j :: 32]
    return {"B": tensor(out.view(np.int32)), "s": tensor(stored, torch.float16)}, value(q, s, z, group_of)


def compressed_int4(w: Array, size: int = 128, sym: bool = True, act_order: bool = False) -> Packed:
    group_of = (shuffled if act_order else plain)(w.shape[1], size)
    q, s, z = steps(w, 4, size, sym, group_of)
    found = {
        "weight_packed": tensor(words(q, 4)),
        "weight_scale": tensor(s, torch.bfloat16 if size < 0 else torch.float16),
        "weight_shape": torch.tensor(w.shape),
    }
    s = found["weight_scale"].float().numpy()
    if not sym:
        found["weight_zero_point"] = tensor(words(z.T, 4).T)
    if act_order:
        found["weight_g_idx"] = tensor(group_of, torch.int32)
    return found, value(q, s, z, group_of)


def compressed_int8(w: Array, channel: bool = True) -> Packed:
    s = (np.abs(w).max(1, keepdims=True) if channel else np.abs(w).max(keepdims=True).reshape(1)) / 127
    s = s.astype(np.float16).astype(np.float32)
    q = np.clip(np.round(w / s), -128, 127)
    return {"weight": tensor(q, torch.int8), "weight_scale": tensor(s)}, (q * s).astype(np.float32)


def fp8(
    w: Array, by: str = "tensor", static: bool = False, inverse: bool = False, inputs: str = "input_scale"
) -> Packed:
    """by: tensor, channel, or block, of 128 x 128, the last of which may be smaller."""
    rows, columns = w.shape
    if by == "block":
        s = np.zeros((-(-rows // 128), -(-columns // 128)), np.float32)
        for i, j in np.ndindex(*s.shape):
            s[i, j] = np.abs(w[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]).max() / 448
        spread = np.repeat(np.repeat(s, 128, 0)[:rows], 128, 1)[:, :columns]
    else:
        s = np.abs(w).max(1, keepdims=True) / 448 if by == "channel" else np.array(np.abs(w).max() / 448)
        s = s.astype(np.float32)
        spread = s
    q = tensor(w / spread).to(torch.float8_e4m3fn)
    found = {"weight": q, "weight_scale_inv" if inverse else "weight_scale": tensor(s)}
    if static:
        found[inputs] = torch.tensor(0.05)
    return found, q.float().numpy() * spread


def ggml(w: Array, kind: str) -> tuple[bytes, Array]:
    """Blocks of llama.cpp, number by number. Returns a tensor's bytes and what they stand for."""
    rows, inputs = w.shape
    wide = 256 if kind.endswith("K") else 32
    out = bytearray()
    value = np.empty_like(w)
    for n in range(rows):
        for at in range(0, inputs, wide):
            packed, value[n, at : at + wide] = BLOCKS[kind](w[n, at : at + wide])
            out += packed
    return bytes(out), value


def _half(x: Any) -> Any:
    return np.float16(x).astype(np.float32)


def _q4_0(x: Array) -> tuple[bytes, Array]:
    d = _half(np.abs(x).max() / 8 + 1e-4)
    q = np.clip(np.round(x / d) + 8, 0, 15).astype(np.uint8)
    return np.float16(d).tobytes() + bytes(q[i] | q[i + 16] << 4 for i in range(16)), (q - 8.0) * d


def _q8_0(x: Array) -> tuple[bytes, Array]:
    d = _half(np.abs(x).max() / 127 + 1e-5)
    q = np.clip(np.round(x / d), -127, 127)
    return np.float16(d).tobytes() + q.astype(np.int8).tobytes(), q * d


def _k(x: Array, bits: int) -> tuple[bytes, Array, Array]:
    """Two scales, 8 groups of 6-bit factors of them in 12 bytes, codes, and what they stand for."""
    groups = x.reshape(8, 32)
    least = np.maximum(-groups.min(1), 0)
    step = (groups.max(1) + least).clip(1e-6) / (2**bits - 1)
    d, dmin = _half(step.max() / 63), _half(least.max() / 63)
    sc = np.round(step / d).astype(int)
    m = np.round(least / max(dmin, 1e-9)).clip(0, 63).astype(int)
    q = np.clip(np.round((groups + (dmin * m)[:, None]) / np.maximum(d * sc, 1e-9)[:, None]), 0, 2**bits - 1).astype(
        int
    )
    packed = [0] * 12
    for j in range(8):
        if j < 4:
            packed[j] |= sc[j]
            packed[j + 4] |= m[j]
        else:
            packed[j + 4] |= (sc[j] & 15) | (m[j] & 15) << 4
            packed[j - 4] |= (sc[j] >> 4) << 6
            packed[j] |= (m[j] >> 4) << 6
    head = np.float16(d).tobytes() + np.float16(dmin).tobytes() + bytes(packed)
    return head, q, (q * (d * sc)[:, None] - (dmin * m)[:, None]).reshape(-1)


def _q4_k(x: Array) -> tuple[bytes, Array]:
    head, q, value = _k(x, 4)
    return head + bytes(q[2 * c, i] | q[2 * c + 1, i] << 4 for c in range(4) for i in range(32)), value


def _q5_k(x: Array) -> tuple[bytes, Array]:
    head, q, value = _k(x, 5)
    high = [sum((q[g, i] >> 4) << g for g in range(8)) for i in range(32)]
    low = [(q[2 * c, i] & 15) | (q[2 * c + 1, i] & 15) << 4 for c in range(4) for i in range(32)]
    return head + bytes(high) + bytes(low), value


def _q6_k(x: Array) -> tuple[bytes, Array]:
    groups = x.reshape(16, 16)
    step = np.abs(groups).max(1) / 31 + 1e-7
    d = _half(step.max() / 127)
    sc = np.round(step / d).clip(1, 127).astype(int)
    q = np.clip(np.round(groups / (d * sc)[:, None]), -32, 31).astype(int)
    value = (q * (d * sc)[:, None]).reshape(-1)
    q = q.reshape(-1) + 32
    low, high = [0] * 128, [0] * 64
    for half in range(2):
        for i in range(32):
            for part in range(4):  # of 32 columns each
                code = q[128 * half + 32 * part + i]
                low[64 * half + 32 * (part % 2) + i] |= (code & 15) << (4 * (part // 2))
                high[32 * half + i] |= (code >> 4) << (2 * part)
    return bytes(low) + bytes(high) + sc.astype(np.int8).tobytes() + np.float16(d).tobytes(), value


def _five(q: Any) -> bytes:
    """32 codes of 5 bits: their highest, then the others two by two."""
    high = sum(int(code >> 4) << i for i, code in enumerate(q))
    return struct.pack("<I", high) + bytes((q[i] & 15) | (q[i + 16] & 15) << 4 for i in range(16))


def _q5_0(x: Array) -> tuple[bytes, Array]:
    d = _half(np.abs(x).max() / 16 + 1e-4)
    q = np.clip(np.round(x / d) + 16, 0, 31).astype(int)
    return np.float16(d).tobytes() + _five(q), (q - 16.0) * d


def _from_least(x: Array, bits: int) -> tuple[bytes, Any, Array]:
    least, d = _half(x.min()), _half((x.max() - x.min()) / (2**bits - 1) + 1e-4)
    q = np.clip(np.round((x - least) / d), 0, 2**bits - 1).astype(int)
    return np.float16(d).tobytes() + np.float16(least).tobytes(), q, q * d + least


def _q4_1(x: Array) -> tuple[bytes, Array]:
    head, q, value = _from_least(x, 4)
    return head + bytes(q[i] | q[i + 16] << 4 for i in range(16)), value


def _q5_1(x: Array) -> tuple[bytes, Array]:
    head, q, value = _from_least(x, 5)
    return head + _five(q), value


BLOCKS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1}
BLOCKS |= {"Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
GGML = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "IQ3_S": 21, "Q4_K": 12}
GGML |= {"Q5_K": 13, "Q6_K": 14}


def gguf(keys: dict[str, Any], tensors: dict[str, tuple[str, Array, bytes]]) -> bytes:
    """A file, version 3. keys: str, float, int, bool or lists of one of these; tensors: name -> type, array, bytes."""

    def text(s: str) -> bytes:
        return struct.pack("<Q", len(s.encode())) + s.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, v in keys.items():
        out += text(key)
        if isinstance(v, str):
            out += struct.pack("<I", 8) + text(v)
        elif isinstance(v, bool):
            out += struct.pack("<I?", 7, v)
        elif isinstance(v, list):
            kind = 8 if isinstance(v[0], str) else 6 if isinstance(v[0], float) else 5
            out += struct.pack("<IIQ", 9, kind, len(v))
            out += b"".join(text(s) if kind == 8 else struct.pack("<f" if kind == 6 else "<i", s) for s in v)
        else:
            out += struct.pack("<If", 6, v) if isinstance(v, float) else struct.pack("<II", 4, v)
    at = 0
    for name, (kind, array, raw) in tensors.items():
        dims = array.shape[::-1]
        out += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", GGML[kind], at)
        at += -(-len(raw) // 32) * 32
    out += b"\0" * (-len(out) % 32)
    return out + b"".join(raw + b"\0" * (-len(raw) % 32) for _, _, raw in tensors.values())


OURS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
MOE = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.*.gate_proj": "ffn_gate_exps",
    "mlp.experts.*.up_proj": "ffn_up_exps",
    "mlp.experts.*.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps",
}
# By architecture, beside OURS.
NAMED: dict[str, dict[str, str]] = {
    "gemma2": SANDWICH,
    "gemma3": SANDWICH,
    "olmo2": SANDWICH,
    "glm4": {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm", **FUSED},
    "phi3": FUSED,
    "starcoder2": {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "stablelm": {
        "self_attn.q_layernorm.norms.*": "attn_q_norm",
        "self_attn.k_layernorm.norms.*": "attn_k_norm",
    },
    "qwen2moe": MOE,
    "qwen3moe": MOE,
    "llama": MOE,
}
TURNED = ("llama", "granite")


def gguf_of(
    config: dict[str, Any], tensors: dict[str, Array], kind_of: Callable[[str], str], more: dict[str, Any] | None = None
) -> tuple[bytes, dict[str, Array]]:
    """A model of Hugging Face's names as llama.cpp's converter writes it; and the weights that it stands for.

    kind_of: type of a matrix, by its name; vectors are float32. config: model_type is the file's architecture.
    """
    arch, heads = config["model_type"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    keys = {
        "general.architecture": arch,
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.context_length": config["max_position_embeddings"],
        "tokenizer.ggml.tokens": ["a", "é"],
    }
    if "rms_norm_eps" in config:
        keys[f"{arch}.attention.layer_norm_rms_epsilon"] = float(config["rms_norm_eps"])
    if config.get("head_dim"):
        keys[f"{arch}.attention.key_length"] = config["head_dim"]
    rope = config.get("rope_parameters") or config
    theta = rope.get("full_attention", rope).get("rope_theta")
    if theta is not None:
        keys[f"{arch}.rope.freq_base"] = float(theta)
    ends = config["eos_token_id"]
    for end, token in zip(("eos", "eot"), ends if isinstance(ends, list) else [ends], strict=False):
        keys[f"tokenizer.ggml.{end}_token_id"] = token
    written: dict[str, tuple[str, Array, bytes]] = {}
    stands_for = {}
    stacks: dict[str, list[tuple[str, Array, bytes]]] = {}
    for name, given in tensors.items():
        stem, _, end = name.rpartition(".")
        whole = re.sub(r"\.\d+", ".*", stem.split(".", 3)[-1] if stem not in TOP else stem)
        if stem in TOP:
            target = f"{TOP[stem]}.{end}"
        else:
            target = f"blk.{stem.split('.')[2]}.{(OURS | NAMED.get(arch, {}))[whole]}.{end}"
        w = given + 1 if arch.startswith("gemma") and stem.endswith("norm") else given
        kind = kind_of(name) if w.ndim == 2 and "_inp" not in target else "F32"
        if kind in BLOCKS:
            raw, stands_for[name] = ggml(w, kind)
        else:
            stored = w.astype(np.float16 if kind == "F16" else np.float32)
            raw, stands_for[name] = stored.tobytes(), given.astype(stored.dtype).astype(np.float32)
        if arch in TURNED and ("q_proj" in name or "k_proj" in name):
            n = heads if "q_proj" in name else kv_heads
            size = len(raw) // len(w)
            each = [raw[i * size : (i + 1) * size] for i in range(len(w))]
            dim = len(w) // n
            raw = b"".join(
                each[h * dim + half * dim // 2 + i] for h in range(n) for i in range(dim // 2) for half in (0, 1)
            )
        if "*" in whole:
            stacks.setdefault(target, []).append((kind, w, raw))
        else:
            written[target] = kind, w[0] if target.endswith("inp_shexp.weight") else w, raw
    for target, parts in stacks.items():
        written[target] = parts[0][0], np.stack([w for _, w, _ in parts]), b"".join(raw for *_, raw in parts)
    return gguf(keys | (more or {}), written), stands_for
