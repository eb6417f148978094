"""Writers of weights in few bits, element by element as the formats' authors describe them; they share no line with
the readers. Each gives the tensors of a module by their endings, and the weight that those stand for."""

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


def fp8(w: Array, by: str = "tensor", static: bool = False, inverse: bool = False) -> Packed:
    """by: tensor, channel, or block, of 128 x 128, the last of which may be smaller."""
    rows, inputs = w.shape
    if by == "block":
        s = np.zeros((-(-rows // 128), -(-inputs // 128)), np.float32)
        for i, j in np.ndindex(*s.shape):
            s[i, j] = np.abs(w[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]).max() / 448
        spread = np.repeat(np.repeat(s, 128, 0)[:rows], 128, 1)[:, :inputs]
    else:
        s = np.abs(w).max(1, keepdims=True) / 448 if by == "channel" else np.array(np.abs(w).max() / 448)
        s = s.astype(np.float32)
        spread = s
    q = tensor(w / spread).to(torch.float8_e4m3fn)
    found = {"weight": q, "weight_scale_inv" if inverse else "weight_scale": tensor(s)}
    if static:
        found["input_scale"] = torch.tensor(0.05)
    return found, q.float().numpy() * spread
