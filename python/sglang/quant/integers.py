"""Products with weights of 8 and 4 bits on a CPU, by torch's operators for them where those work here.

8 bits: oneDNN multiplies bytes by bytes. Inputs are cut in two digits each, up to 15 bits for a row's largest value, so
that nothing is lost to their rounding; the weight, which is what takes time to read, is read once for both. CPUs before
VNNI add products in pairs, of 16 bits, where full bytes overflow unseen; digits of 7 bits do not.
4 bits: torch's product for groups of 32 to 256 columns, in bfloat16. The operators are private, so they are tried once.
"""

import functools

import torch
from torch import Tensor

from sglang.quant.base import Act, Grid
from sglang.quant.dense import after

DIGITS = (127, 63)  # the largest one of 8 and of 7 bits; 2 * (2 * 63 + 1) * 127 is less than 2**15
GROUPS = (32, 64, 128, 256)  # that the operator knows
ROWS4 = 16  # the operator's weight comes in pieces of that many rows


class Int8:
    """One scale a row. codes: int8 [rows, inputs]; scales: [rows, 1]. digit: of `largest_digit`."""

    def __init__(self, grid: Grid, digit: int):
        self.rows, self.inputs = grid.codes.shape
        self.bytes = grid.codes.numel() + 4 * self.rows
        self._digit = digit
        self._packed = torch.ops.onednn.qlinear_prepack(grid.codes.contiguous(), None)
        self._scales = grid.scales[:, 0].float().contiguous()
        self._zeros = torch.zeros(self.rows, dtype=torch.int64)

    def __call__(self, x: Tensor, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        return after(self.multiply(x).to(x.dtype), bias, other, act)

    def multiply(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] of any floating type. Returns float32 [tokens, rows]."""
        tokens, digit = x.shape[0], self._digit
        found = x.abs().amax(1, keepdim=True).float().clamp_min_(1e-30)
        # A step for one token is many small operators; with a number they take less time than with a tensor.
        largest = found.item() if tokens == 1 else found
        values = x.float() * (digit / largest)
        high = values.round()
        low = values.sub_(high).mul_(2 * digit)
        zero = digit + 1
        both = torch.cat((high, low)).add_(zero + 0.5).to(torch.uint8)  # cut off, which rounds to nearest
        sums = torch.ops.onednn.qlinear_pointwise(
            both, 1.0, zero, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums[:tokens].add_(sums[tokens:], alpha=1 / (2 * digit)).mul_(largest / digit)


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
    if grid.codes.dtype == torch.int8 and grid.zeros is None and grid.scales.shape[1] == 1:
        digit = largest_digit()
        return None if digit is None else Int8(grid, digit)
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
def largest_digit() -> int | None:
    """The largest digit of inputs whose sums are right here; None where the product of bytes is missing or wrong."""
    codes = torch.randint(-127, 128, (48, 96), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    codes[:16], codes[16:32] = 127, -127
    x, grid = _tried(96, 48, codes, 96, 8, None)
    x[0] = 1  # the largest sums there are
    wanted = x @ grid.dense().t()

    def right(digit: int) -> bool:
        product = Int8(grid, digit).multiply
        return _near(product(x), wanted, 1e-3) and _near(product(x[:1]), wanted[:1], 1e-3)

    try:
        return next(filter(right, DIGITS), None)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return None


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
