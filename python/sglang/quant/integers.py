"""Products with weights of 8 and 4 bits on a CPU, by torch's operators for them where those work here.

8 bits: oneDNN multiplies bytes by bytes and sums exactly. Inputs are cut in two bytes each, 15 bits a row's largest
value, so that nothing is lost to their rounding; the weight, which is what takes time to read, is read once for both.
4 bits: torch's product for groups of 32 to 256 columns, in bfloat16. The operators are private, so they are tried once.
"""

import functools

import torch
from torch import Tensor

from sglang.quant.base import Act, Grid
from sglang.quant.dense import after

TOP = 127 * 128.0  # largest value of two bytes: 128 * high + low, both within -127 .. 127
GROUPS = (32, 64, 128, 256)  # that the operator knows
ROWS4 = 16  # the operator's weight comes in pieces of that many rows


class Int8:
    """One scale a row. codes: int8 [rows, inputs]; scales: [rows, 1]."""

    def __init__(self, grid: Grid):
        self.rows, self.inputs = grid.codes.shape
        self.bytes = grid.codes.numel() + 4 * self.rows
        self._packed = torch.ops.onednn.qlinear_prepack(grid.codes.contiguous(), None)
        self._scales = grid.scales[:, 0].float().contiguous()
        self._zeros = torch.zeros(self.rows, dtype=torch.int64)

    def __call__(self, x: Tensor, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        return after(self.multiply(x).to(x.dtype), bias, other, act)

    def multiply(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] of any floating type. Returns float32 [tokens, rows]."""
        tokens = x.shape[0]
        x = x.float()
        scale = x.abs().amax(1, keepdim=True).div_(TOP).clamp_min_(1e-30)
        values = (x / scale).round_()
        high = (values / 128).round_()
        low = values.sub_(high, alpha=128)
        both = torch.cat((high, low)).add_(128).to(torch.uint8)
        sums = torch.ops.onednn.qlinear_pointwise(
            both, 1.0, 128, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums[tokens:].add_(sums[:tokens], alpha=128).mul_(scale)


class Int4:
    """Groups of columns. codes: uint8 below 16, [rows, inputs]; scales and zeros: [rows, groups]."""

    def __init__(self, grid: Grid, order: Tensor | None):
        """order: of the inputs, as the grid's columns have them; None: their own."""
        self.rows, self.inputs = grid.codes.shape
        self._order = order
        scales = grid.scales.bfloat16()
        zeros = 0.0 if grid.zeros is None else grid.zeros.float()
        shifts = ((8 - zeros) * grid.scales.float()).bfloat16()
        self._group = grid.size
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(grid.codes.int(), 1)
        self._steps = torch.stack((scales.t(), shifts.t()), -1).contiguous()  # [groups, rows, 2]
        self.bytes = self._packed.numel() + 2 * self._steps.numel()

    def __call__(self, x: Tensor, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        return after(self.multiply(x).to(x.dtype), bias, other, act)

    def multiply(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] of any floating type. Returns bfloat16 [tokens, rows]."""
        x = x.bfloat16()
        x = x.contiguous() if self._order is None else x[:, self._order]
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._packed, self._group, self._steps)


def fast(grid: Grid, narrow: bool) -> Int8 | Int4 | None:
    """The product for a weight, None where there is none for its layout or on this machine.

    narrow: inputs and outputs may be rounded to bfloat16, as all products of 4 bits do.
    """
    rows, inputs = grid.codes.shape
    if grid.codes.device.type != "cpu":
        return None
    if grid.codes.dtype == torch.int8 and grid.zeros is None and grid.scales.shape[1] == 1 and bytes_work():
        return Int8(grid)
    if grid.codes.dtype == torch.uint8 and grid.bits == 4 and narrow and rows % ROWS4 == 0 and nibbles_work():
        runs = grid.in_runs()
        if runs is not None and runs[0].size in GROUPS and inputs % runs[0].size == 0:
            return Int4(*runs)
    return None


def _tried(inputs: int, rows: int, codes: Tensor, size: int, bits: int, zeros: Tensor | None) -> tuple[Tensor, Grid]:
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(rows, inputs // size, generator=generator) + 0.5
    return torch.randn(3, inputs, generator=generator), Grid(codes, scales, bits, size, zeros)


@functools.cache
def bytes_work() -> bool:
    """Whether the product of bytes exists here and is right."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-127, 128, (48, 96), generator=generator, dtype=torch.int8)
    x, grid = _tried(96, 48, codes, 96, 8, None)
    try:
        got = Int8(grid).multiply(x)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    return _near(got, x @ grid.dense().t(), 1e-3)


@functools.cache
def nibbles_work() -> bool:
    """Whether the product of 4 bits exists here and is right, for one row and for several."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 16, (48, 128), generator=generator, dtype=torch.uint8)
    x, grid = _tried(128, 48, codes, 32, 4, torch.full((48, 4), 7.0))
    wanted = x @ grid.dense().t()
    try:
        product = Int4(grid, None).multiply
        return _near(product(x), wanted, 0.02) and _near(product(x[:1]), wanted[:1], 0.02)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False


def _near(got: Tensor, wanted: Tensor, bound: float) -> bool:
    return bool((got.float() - wanted).abs().max() < bound * wanted.abs().max())
