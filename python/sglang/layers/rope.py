"""Rotary position embedding (arXiv 2104.09864) and its length extensions, as tables of cosines and sines."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")


@dataclass(frozen=True)
class Rope:
    """dim: rotated part of a head. `original`: length the model was trained for before its context was extended.

    interleaved: neighbours (2j, 2j + 1) turn together, not (j, j + dim / 2).
    """

    dim: int
    theta: float = 10000.0
    kind: str = "default"
    positions: int = 2048
    factor: float = 1.0
    original: int = 2048
    low: float = 1.0
    high: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    interleaved: bool = False


@dataclass(frozen=True)
class Turn:
    """The rotation of a step's tokens. cos, sin: [tokens, 1, dim] of `tables`."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, heads, head_dim]."""
        return rotate(x, self.cos, self.sin, self.interleaved)


def tables(
    rope: Rope, length: int, device: torch.device, dtype: torch.dtype, positions: int | None = None
) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each [positions, dim], so that rotated = x * cos + (x with its pairs swapped) * sin.

    length: of the longest sequence, which decides about frequencies; positions: rows, `length` if None.
    """
    rows = length if positions is None else positions
    inverse, scale = frequencies(rope, length)
    angles = torch.outer(torch.arange(rows, dtype=torch.float32), inverse)  # [positions, dim / 2]
    cos, sin = angles.cos() * scale, angles.sin() * scale
    if rope.interleaved:
        signed = torch.stack((-sin, sin), -1).flatten(1)
        return cos.repeat_interleave(2, -1).to(device, dtype), signed.to(device, dtype)
    return (
        torch.cat((cos, cos), -1).to(device, dtype),
        torch.cat((-sin, sin), -1).to(device, dtype),
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x: [tokens, heads, head_dim]; cos, sin: [tokens, 1, dim]. The dims beyond `dim` pass through."""
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((rotate(x[..., :dim], cos, sin, interleaved), x[..., dim:]), -1)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else x.roll(dim // 2, -1)
    return torch.addcmul(x * cos, swapped, sin)


def frequencies(rope: Rope, length: int) -> tuple[Tensor, float]:
    """Inverse frequencies [dim / 2] and the factor on cos and sin, for sequences up to `length`."""
    r = rope
    steps = torch.arange(0, r.dim, 2, dtype=torch.float32) / r.dim
    plain = 1.0 / r.theta**steps
    match r.kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / r.factor, 1.0
        case "dynamic":
            # NTK: built once for the longest sequence served, so that a token's rotation never changes later.
            longest = max(length, r.positions)
            stretch = r.factor * longest / r.positions - (r.factor - 1)
            theta = r.theta * stretch ** (r.dim / (r.dim - 2))
            return 1.0 / theta**steps, 1.0
        case "llama3":
            wave = 2 * math.pi / plain
            smooth = (r.original / wave - r.low) / (r.high - r.low)
            mixed = (1 - smooth) * plain / r.factor + smooth * plain
            scaled = torch.where(wave > r.original / r.low, plain / r.factor, mixed)
            return torch.where(wave < r.original / r.high, plain, scaled), 1.0
        case "yarn":
            return _yarn(r, plain)
        case _:
            factor = r.positions / r.original
            chosen = r.long if length > r.original else r.short
            scale = r.attention_factor
            if scale is None:
                scale = math.sqrt(1 + math.log(factor) / math.log(r.original)) if factor > 1 else 1.0
            return plain / torch.tensor(chosen, dtype=torch.float32), scale


def _yarn(r: Rope, plain: Tensor) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): high frequencies stay, low ones are interpolated, a ramp between."""

    def dimension(rotations: float) -> float:
        return r.dim * math.log(r.original / (rotations * 2 * math.pi)) / (2 * math.log(r.theta))

    def magnitude(m: float) -> float:
        return 0.1 * m * math.log(r.factor) + 1.0 if r.factor > 1 else 1.0

    low, high = dimension(r.beta_fast), dimension(r.beta_slow)
    if r.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, r.dim - 1)
    ramp = ((torch.arange(r.dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    scale = r.attention_factor
    if scale is None:
        both = r.mscale and r.mscale_all_dim
        scale = magnitude(r.mscale or 1) / magnitude(r.mscale_all_dim or 1) if both else magnitude(1.0)
    return plain / r.factor * ramp + plain * (1 - ramp), scale
