"""Weights in GGUF's blocks: 32 or 256 columns of a row, their scales and codes side by side in bytes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang.quant.base import Grid


@dataclass(frozen=True)
class Block:
    """columns and bytes of one. read: uint8 [rows, blocks, bytes] -> the weight."""

    columns: int
    bytes: int
    read: Callable[[Tensor], Grid]


def _halves(raw: Tensor, at: int, count: int = 1) -> Tensor:
    """float16 numbers from byte `at` on: float32 [rows, blocks, count]."""
    return raw[..., at : at + 2 * count].contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """uint8 [..., n] -> [..., 2, n]: all low halves, then all high ones."""
    return torch.stack((raw & 15, raw >> 4), -2)


def _q4_0(raw: Tensor) -> Grid:
    scales = _halves(raw, 0).flatten(1)
    return Grid(_nibbles(raw[..., 2:]).flatten(1), scales, 4, 32, torch.full_like(scales, 8.0))


def _fifths(raw: Tensor, at: int) -> Tensor:
    """uint8 [..., 32] of 5 bits: nibbles behind 32 highest bits."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    fifth = (raw[..., at : at + 4, None] >> shifts & 1).flatten(-2)
    return _nibbles(raw[..., at + 4 :]).flatten(-2) | fifth << 4


def _q5_0(raw: Tensor) -> Grid:
    scales = _halves(raw, 0).flatten(1)
    return Grid(_fifths(raw, 2).flatten(1), scales, 5, 32, torch.full_like(scales, 16.0))


def _above(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zeros of blocks that keep a step and their least value."""
    step, least = _halves(raw, 0).flatten(1), _halves(raw, 2).flatten(1)
    # Equal values have a step of 0; one that is too small to see keeps what they are.
    step = torch.where(step == 0, least.abs().clamp_min(1e-20) * 2.0**-20, step)
    return step, -least / step


def _q4_1(raw: Tensor) -> Grid:
    scales, zeros = _above(raw)
    return Grid(_nibbles(raw[..., 4:]).flatten(1), scales, 4, 32, zeros)


def _q5_1(raw: Tensor) -> Grid:
    scales, zeros = _above(raw)
    return Grid(_fifths(raw, 4).flatten(1), scales, 5, 32, zeros)


def _q8_0(raw: Tensor) -> Grid:
    return Grid(raw[..., 2:].contiguous().view(torch.int8).flatten(1), _halves(raw, 0).flatten(1), 8, 32)


def _steps(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zeros of the 8 groups of a block of 256, of which a byte each holds 6 bits."""
    packed = raw[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat((first & 63, (third & 15) | (first >> 6) << 4), -1)
    least = torch.cat((second & 63, (third >> 4) | (second >> 6) << 4), -1)
    step = _halves(raw, 0) * scale
    below = _halves(raw, 2) * least
    # A group of equal values has a step of 0; one that is too small to see keeps what they are.
    step = torch.where(step == 0, below.clamp_min(1e-20) * 2.0**-20, step)
    return step.flatten(1), (below / step).flatten(1)


def _q4_k(raw: Tensor) -> Grid:
    codes = _nibbles(raw[..., 16:].unflatten(-1, (4, 32))).flatten(1)
    return Grid(codes, *_in_order(_steps(raw), 4))


def _q5_k(raw: Tensor) -> Grid:
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device).view(4, 2, 1)
    fifth = (raw[..., None, None, 16:48] >> shifts) & 1
    codes = _nibbles(raw[..., 48:].unflatten(-1, (4, 32))) | fifth << 4
    return Grid(codes.flatten(1), *_in_order(_steps(raw), 5))


def _in_order(steps: tuple[Tensor, Tensor], bits: int) -> tuple[Tensor, int, int, Tensor]:
    return steps[0], bits, 32, steps[1]


def _q6_k(raw: Tensor) -> Grid:
    low = _nibbles(raw[..., :128].unflatten(-1, (2, 64)))  # [.., half, nibble, 64]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device).view(4, 1)
    high = (raw[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts) & 3  # [.., half, 4, 32]
    codes = (low.unflatten(-1, (2, 32)).flatten(-3, -2) | high << 4).to(torch.int8) - 32
    scales = raw[..., 192:208].contiguous().view(torch.int8) * _halves(raw, 208)
    return Grid(codes.flatten(1), scales.flatten(1), 6, 16)


def _quarters(raw: Tensor) -> Tensor:
    """uint8 [..., 64] of 4 codes each -> [..., 2, 4, 32]: 32 bytes hold 4 runs of as many columns."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device).view(4, 1)
    return (raw.unflatten(-1, (2, 1, 32)) >> shifts) & 3


def _q2_k(raw: Tensor) -> Grid:
    step = _halves(raw, 80) * (raw[..., :16] & 15)
    below = _halves(raw, 82) * (raw[..., :16] >> 4)
    # A group of equal values has a step of 0; one that is too small to see keeps what they are.
    step = torch.where(step == 0, below.abs().clamp_min(1e-20) * 2.0**-20, step)
    return Grid(_quarters(raw[..., 16:80]).flatten(1), step.flatten(1), 2, 16, (below / step).flatten(1))


def _q3_k(raw: Tensor) -> Grid:
    """Its third bits lie in 32 bytes, one bit for each run of 32 columns; without it a code is 4 less."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device).view(2, 4, 1)
    third = (raw[..., None, None, :32] >> shifts) & 1
    codes = (_quarters(raw[..., 32:96]) | third << 2).to(torch.int8) - 4
    packed, two = raw[..., 96:108], torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device).view(4, 1)
    high = (packed[..., None, 8:] >> two) & 3  # [..., 4, 4]
    factors = (_nibbles(packed[..., :8]).flatten(-2) | high.flatten(-2) << 4).to(torch.int8) - 32
    return Grid(codes.flatten(1), (_halves(raw, 108) * factors).flatten(1), 3, 16)


# Codes of 4 bits that stand for values closer together about 0.
UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice what MXFP4's 16 codes stand for.
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _looked_up(raw: Tensor, table: tuple[int, ...]) -> Tensor:
    """Nibbles [..., n] -> int8 [..., 2 n]."""
    return torch.tensor(table, dtype=torch.int8, device=raw.device)[_nibbles(raw).flatten(-2).int()]


def _iq4_nl(raw: Tensor) -> Grid:
    return Grid(_looked_up(raw[..., 2:], UNEVEN).flatten(1), _halves(raw, 0).flatten(1), 8, 32)


def _iq4_xs(raw: Tensor) -> Grid:
    low = torch.stack((raw[..., 4:8] & 15, raw[..., 4:8] >> 4), -1).flatten(-2)
    two = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device)
    high = ((raw[..., 2:4, None] >> two) & 3).flatten(-2)
    scales = _halves(raw, 0) * ((low | high << 4).to(torch.int8) - 32)
    codes = _looked_up(raw[..., 8:].unflatten(-1, (8, 16)), UNEVEN)
    return Grid(codes.flatten(1), scales.flatten(1), 8, 32)


def _mxfp4(raw: Tensor) -> Grid:
    scales = torch.exp2(raw[..., 0].float() - 128)  # of the doubled values
    return Grid(_looked_up(raw[..., 1:], FP4).flatten(1), scales, 8, 32)


BLOCKS = {
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q8_0": Block(32, 34, _q8_0),
    "Q2_K": Block(256, 84, _q2_k),
    "Q3_K": Block(256, 110, _q3_k),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k),
    "IQ4_NL": Block(32, 18, _iq4_nl),
    "IQ4_XS": Block(256, 136, _iq4_xs),
    "MXFP4": Block(32, 17, _mxfp4),
}
