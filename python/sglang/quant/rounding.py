"""Floating-point weights -> grids: what `--quantization int8`, `int4` and `fp8` do while a model loads."""

import torch
from torch import Tensor

from sglang.quant.base import Grid

INT4_GROUP = 32
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
BLOCK = 4096  # rows rounded at once: what is needed beside the result stays small


def rounded(weight: Tensor, kind: str) -> Grid:
    """weight: [rows, inputs] of any floating type. kind: int8 and fp8, a scale a row; int4, scale and zero a group."""
    one = {"int8": _int8, "int4": _int4, "fp8": _fp8}[kind]
    parts = [one(block.float()) for block in weight.split(BLOCK)]
    first = parts[0]
    return Grid(
        torch.cat([p.codes.view(torch.uint8) for p in parts]).view(first.codes.dtype),
        torch.cat([p.scales for p in parts]),
        first.bits,
        first.size,
        None if first.zeros is None else torch.cat([p.zeros for p in parts if p.zeros is not None]),
    )


def dummy(weight: Tensor, kind: str) -> Grid:
    """A weight of the same shape and spread, as checkpoints in few bits have them: groups of 128 for 4 bits."""
    rows, inputs = weight.shape
    if kind != "int4" or inputs % 128:
        return rounded(weight, kind)
    step = float(weight.std()) / 3
    codes = (weight / step + 8).round_().clamp_(0, 15).to(torch.uint8)
    zeros = torch.full((rows, inputs // 128), 8.0, device=weight.device)
    return Grid(codes, torch.full_like(zeros, step), 4, 128, zeros)


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
