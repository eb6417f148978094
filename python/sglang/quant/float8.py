"""Float8: weights in 8-bit floating point, multiplied as such on CUDA devices that can."""

import functools

import torch
from torch import Tensor

from sglang.quant.base import Grid
from sglang.quant.rounding import FP8, FP8_MAX

MULTIPLE = 16  # sides of a weight that the matrix units take


class Float8:
    """codes: float8_e4m3fn [rows, inputs]; scales: [rows, 1]. Inputs are rounded too: a scale a token, or the file's.

    On a CPU the same steps are computed in float32: the twin that the product on the device is compared with.
    """

    def __init__(self, grid: Grid, device: torch.device):
        self.rows, self.inputs = grid.codes.shape
        self.bytes = grid.codes.numel() + 4 * self.rows
        self._codes = grid.codes.to(device).contiguous()
        self._scales = grid.scales.float().t().contiguous().to(device)  # [1, rows]
        self._input_scale = grid.input_scale

    @staticmethod
    def fits(grid: Grid, dtype: torch.dtype) -> bool:
        able = dtype == torch.bfloat16 and scaled_products_work()
        sides = all(side % MULTIPLE == 0 for side in grid.codes.shape)
        return able and sides and grid.codes.dtype == FP8 and grid.scales.shape[1] == 1

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs]. Returns bfloat16 [tokens, rows]."""
        codes, scales = rounded_rows(x, self._input_scale)
        if x.is_cuda:
            return torch.ops.aten._scaled_mm(
                codes, self._codes.t(), scale_a=scales, scale_b=self._scales, out_dtype=torch.bfloat16
            )
        return (codes.float() @ self._codes.float().t()).mul_(scales).mul_(self._scales).bfloat16()


def rounded_rows(x: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """x: [tokens, inputs] -> float8 of the same shape, float32 scales [tokens, 1]."""
    x = x.float()
    if scale is None:
        scales = (x.abs().amax(1, keepdim=True) / FP8_MAX).clamp_min(1e-12)
    else:
        scales = x.new_full((len(x), 1), scale)
    return (x / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


@functools.cache
def scaled_products_work() -> bool:
    """Whether the CUDA device multiplies 8-bit floating point with a scale a row."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        return False
    a, b = (torch.ones(32, 32, device="cuda").to(FP8) for _ in range(2))
    one = torch.ones(32, 1, device="cuda")
    try:
        got = torch.ops.aten._scaled_mm(a, b.t(), scale_a=one, scale_b=one.t(), out_dtype=torch.bfloat16)
    except (RuntimeError, TypeError, ValueError):
        return False
    return bool((got == 32).all())
