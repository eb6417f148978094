"""GGUF: one file with a model's sizes, its tokenizer and its weights in blocks, under names of llama.cpp's own.

Read as if it were a folder: `config` gives what config.json would say, `headers` and `tensor` the weights under the
names of Hugging Face's files. The tokenizer is read from the folder the file is in.
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.models.spec import HFConfig
from sglang.quant.blocks import BLOCKS

# Architectures with Llama's names of tensors.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
# Types of metadata, and of tensors: the file's numbers.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
PLAIN = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 30: ("BF16", torch.bfloat16)}
PACKED = {2: "Q4_0", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
OTHERS = {3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
          19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 39: "MXFP4"}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_LENGTH = 8192  # that these models were trained with first; the file does not say
MOST = 2**31  # of anything a header counts; more is a broken file


@dataclass(frozen=True)
class _Stored:
    """kind: of PLAIN or PACKED; shape: as torch has it; start: byte in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    bytes: int


class _Bytes:
    """What is read from the start of a file on; struct.error at its end."""

    def __init__(self, raw: "np.memmap[Any, np.dtype[np.uint8]]"):
        self.raw, self.at = raw, 0

    def one(self, kind: str) -> Any:
        size = struct.calcsize("<" + kind)
        (value,) = struct.unpack("<" + kind, self.raw[self.at : self.at + size].tobytes())
        self.at += size
        return value

    def count(self) -> int:
        value = self.one("Q")
        if value > MOST:
            raise struct.error(f"a count of {value}")
        return value

    def text(self) -> str:
        size = self.count()
        found = self.raw[self.at : self.at + size].tobytes()
        if len(found) != size:
            raise struct.error("a text ends beyond the file")
        self.at += size
        return found.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            of, count = self.one("I"), self.count()
            if of in SCALARS:
                size = struct.calcsize("<" + SCALARS[of]) * count
                found = self.raw[self.at : self.at + size]
                if len(found) != size:
                    raise struct.error("a list ends beyond the file")
                self.at += size
                return list(struct.unpack(f"<{count}{SCALARS[of]}", found.tobytes()))
            return [self.value(of) for _ in range(count)]
        if kind not in SCALARS:
            raise struct.error(f"metadata of type {kind}")
        return self.one(SCALARS[kind])


class _File:
    """keys: metadata; tensors: by their names in Hugging Face's files."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.raw = np.memmap(path, np.uint8, "r")
            if self.raw[:4].tobytes() != b"GGUF":
                raise struct.error("it does not begin with GGUF")
            given = _Bytes(self.raw)
            given.at = 4
            version = given.one("I")
            if version not in (2, 3):
                raise struct.error(f"version {version}; known: 2, 3")
            tensors, keys = given.count(), given.count()
            self.keys = {given.text(): given.value(given.one("I")) for _ in range(keys)}
            found = [self._stored(given) for _ in range(tensors)]
        except (OSError, ValueError, struct.error) as error:
            raise ConfigError(f"{path}: not a readable GGUF file ({error})") from None
        align = int(self.keys.get("general.alignment", 32))
        base = -(-given.at // align) * align
        self.architecture = str(self.keys.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConfigError(
                f"{path.name}: general.architecture = {self.architecture!r} is not supported; known: {known}"
            )
        self.tensors: dict[str, _Stored] = {}
        self.factors: Tensor | None = None  # of the rotation's wavelengths
        for name, kind, shape, offset in found:
            stored = self._placed(name, kind, shape, base + offset)
            if name == "rope_freqs.weight":
                self.factors = self._plain(stored)
            else:
                self.tensors[_renamed(name)] = stored

    def _stored(self, given: _Bytes) -> tuple[str, int, tuple[int, ...], int]:
        name = given.text()
        dims = [given.count() for _ in range(given.one("I"))]
        return name, given.one("I"), tuple(reversed(dims)), given.one("Q")

    def _placed(self, name: str, kind: int, shape: tuple[int, ...], start: int) -> _Stored:
        if kind in PLAIN:
            size = int(np.prod(shape)) * PLAIN[kind][1].itemsize
        elif kind in PACKED:
            block = BLOCKS[PACKED[kind]]
            if len(shape) != 2 or shape[1] % block.columns:
                raise ConfigError(f"{self.path.name}: {name} has shape {list(shape)}, which {PACKED[kind]} cannot hold")
            size = shape[0] * (shape[1] // block.columns) * block.bytes
        else:
            known = ", ".join((*(word for word, _ in PLAIN.values()), *PACKED.values()))
            raise ConfigError(f"{self.path.name}: {name} has type {OTHERS.get(kind, kind)}; known: {known}")
        if start + size > len(self.raw):
            raise ConfigError(f"{self.path.name}: {name} ends {start + size - len(self.raw)} bytes beyond the file")
        return _Stored(kind, shape, start, size)

    def key(self, name: str) -> Any:
        return self.keys.get(f"{self.architecture}.{name}")

    def _bytes(self, stored: _Stored) -> Tensor:
        return torch.from_numpy(np.array(self.raw[stored.start : stored.start + stored.bytes]))

    def _plain(self, stored: _Stored) -> Tensor:
        return self._bytes(stored).view(PLAIN[stored.kind][1]).view(stored.shape)

    def tensor(self, name: str) -> Tensor:
        """In floating point as it is, else uint8 [rows, bytes]."""
        stored = self.tensors[name]
        found = self._plain(stored) if stored.kind in PLAIN else self._bytes(stored).view(stored.shape[0], -1)
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp turns neighbours together where the files it converts turn halves: rows were interleaved.
            heads = self.key("attention.head_count")
            heads = heads if "q_proj" in name else self.key("attention.head_count_kv") or heads
            found = found.view(heads, -1, 2, found.shape[1]).transpose(1, 2).reshape(found.shape)
        return found


@functools.lru_cache(maxsize=2)
def _opened(path: Path) -> _File:
    return _File(path)


def _renamed(name: str) -> str:
    stem, _, end = name.rpartition(".")
    layer = ""
    if stem.startswith("blk."):
        _, number, stem = stem.split(".", 2)
        layer = f"model.layers.{number}."
    return f"{layer}{NAMES.get(stem, stem)}.{end}"


def config(path: Path) -> HFConfig:
    """What the model's config.json would say. Raises ConfigError."""
    file = _opened(path)
    for key in NEEDED:
        if file.key(key) is None:
            raise ConfigError(f"{path.name}: {file.architecture}.{key} is missing")
    found: HFConfig = {name: file.key(key) for key, name in KEYS.items() if file.key(key) is not None}
    for key, name in KEYS.items():
        if isinstance(found.get(name), list):
            raise ConfigError(f"{path.name}: {file.architecture}.{key} differs from layer to layer; not supported")
    if file.key("expert_count"):
        raise ConfigError(f"{path.name}: {file.architecture}.expert_count = {file.key('expert_count')}; not supported")
    embedding = file.tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise ConfigError(f"{path.name}: token_embd.weight is missing")
    return found | {
        "architectures": [ARCHITECTURES[file.architecture]],
        "model_type": file.architecture,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "lm_head.weight" not in file.tensors,
        "bos_token_id": file.keys.get("tokenizer.ggml.bos_token_id"),
        # The end of a text, of a turn and of a message to a tool.
        "eos_token_id": [
            file.keys[key] for end in ("eos", "eot", "eom") if (key := f"tokenizer.ggml.{end}_token_id") in file.keys
        ],
        "torch_dtype": "float16",
        "rope_scaling": _scaling(file),
        "quantization_config": {"quant_method": "gguf"},
    }


def _scaling(file: _File) -> HFConfig | None:
    if file.factors is not None:
        return {**LLAMA3, "factor": float(file.factors.max()), "original_max_position_embeddings": LLAMA3_LENGTH}
    kind = file.key("rope.scaling.type")
    if kind in (None, "none"):
        return None
    length = file.key("rope.scaling.original_context_length")
    scaling = {"rope_type": kind, "factor": file.key("rope.scaling.factor")}
    return scaling | ({} if length is None else {"original_max_position_embeddings": length})


def headers(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every tensor; those in blocks end in their type, and are bytes."""
    for name, stored in _opened(path).tensors.items():
        if stored.kind in PLAIN:
            yield name, stored.shape, PLAIN[stored.kind][0]
        else:
            module = name.removesuffix(".weight")
            yield f"{module}.{PACKED[stored.kind]}", (stored.shape[0], stored.bytes // stored.shape[0]), "U8"


def tensor(path: Path, name: str) -> Tensor:
    """name: of `headers`."""
    stem, _, end = name.rpartition(".")
    return _opened(path).tensor(f"{stem}.weight" if end in BLOCKS else name)
