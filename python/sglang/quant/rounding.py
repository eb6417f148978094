"""Floating-point weights -> grids: what `--quantization int8`, `int4` and `fp8` do while a model loads."""

import math

import torch
from torch import Tensor

from sglang.kernels.packed import BLOCK
from sglang.quant.base import Grid, Mxfp4

INT4_GROUP = 32
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
ROWS = 4096  # rounded at once: what is needed beside the result stays small
FP4_BETWEEN = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # what is in the middle of two numbers of FP4


def rounded(weight: Tensor, kind: str) -> Grid:
    """weight: [rows, inputs] of any floating type. kind: int8 and fp8, a scale a row; int4, scale and zero a group."""
    one = {"int8": _int8, "int4": _int4, "fp8": _fp8}[kind]
    parts = [one(block.float()) for block in weight.split(ROWS)]
    first = parts[0]
    return Grid(
        torch.cat([p.codes.view(torch.uint8) for p in parts]).view(first.codes.dtype),
        torch.cat([p.scales for p in parts]),
        first.bits,
        first.size,
        None if first.zeros is None else torch.cat([p.zeros for p in parts if p.zeros is not None]),
    )


def dummy(weight: Tensor, kind: str) -> Grid | Mxfp4:
    """A weight of the same shape and spread, as checkpoints in few bits have them: in groups of `dummy_group`."""
    rows, inputs = weight.shape
    size, spread = dummy_group(inputs), float(weight.std())
    if size is None or kind not in ("int4", "mxfp4"):
        return rounded(weight, "int4" if kind == "mxfp4" else kind)
    if kind == "mxfp4":
        exponent = round(math.log2(max(spread / 2, 2.0**-126)))
        codes = torch.bucketize(weight.float().abs() * 2.0**-exponent, torch.tensor(FP4_BETWEEN, device=weight.device))
        codes = (codes | (weight < 0).int() << 3).to(torch.uint8).unflatten(1, (-1, BLOCK))
        blocks = codes[..., ::2] | codes[..., 1::2] << 4
        return Mxfp4(blocks, torch.full_like(blocks[..., 0], exponent + 127))
    step = spread / 3
    codes = (weight / step + 8).round_().clamp_(0, 15).to(torch.uint8)
    zeros = torch.full((rows, inputs // size), 8.0, device=weight.device)
    return Grid(codes, torch.full_like(zeros, step), 4, size, zeros)


def dummy_group(inputs: int) -> int | None:
    return next((size for size in (128, 64, 32) if inputs % size == 0), None)


def _int8(w: Tensor) -> Grid:
    scales = (w.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
    return Grid((w / scales).round_().to(torch.int8), scales, 8, w.shape[1])


def _fp8(w: Tensor) -> Grid:
    scales = (w.abs().amax(1, keepdim=True) / FP8_MAX).clamp_min(1e-12)
    return Grid((w / scales).to(FP8), scales, 8, w.shape[1])


def _int4(w: Tensor) -> Grid:
    """16 even steps from each group's least to its largest value, or a little inside where that errs less."""
    rows, inputs = w.shape
    size = INT4_GROUP if inputs % INT4_GROUP == 0 else inputs
    groups = w.view(rows, -1, size)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    # 0 must be near a step, and products of bfloat16 round scale and zero: they are rounded first.
    best = torch.full_like(low, torch.inf)
    found = torch.zeros_like(groups, dtype=torch.uint8), torch.zeros_like(low), torch.zeros_like(low)
    for share in (1.0, 0.92, 0.84):
        middle, half = (low + high) / 2, (high - low) / 2 * share
        scale = (half * 2 / 15).clamp_min(1e-8).bfloat16().float()
        zero = 8 - (middle + 0.5 * scale).bfloat16().float() / scale
        codes = (groups / scale + zero).round_().clamp_(0, 15)
        error = ((codes - zero) * scale - groups).square_().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        found = (
            torch.where(better, codes.to(torch.uint8), found[0]),
            torch.where(better, scale, found[1]),
            torch.where(better, zero, found[2]),
        )
    codes, scales, zeros = found
    return Grid(codes.view(rows, inputs), scales[..., 0], 4, size, zeros[..., 0])
