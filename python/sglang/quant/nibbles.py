"""Nibbles: weights of up to 4 bits in groups of columns, multiplied by our own kernels on CUDA devices."""

from typing import Any

import torch
from torch import Tensor

from sglang.kernels.staging import triton_works
from sglang.quant.base import Act, Grid

LARGEST = 64  # zero; the kernel takes it exactly from a number of 8 bits


class Nibbles:
    def __init__(self, grid: Grid, order: Tensor | None, device: torch.device, kernels: Any):
        """order: of the inputs, as the grid's columns have them; None: their own. kernels: of `_kernels`."""
        scales = grid.scales.to(device)
        zeros = torch.zeros_like(scales) if grid.zeros is None else grid.zeros.to(device)
        self._kernels, self._weight = kernels, kernels.laid_out(grid.codes.to(device), scales, zeros, grid.size)
        self._order = None if order is None else order.to(device)
        self.bytes = self._weight.bytes

    @staticmethod
    def of(grid: Grid, device: torch.device, dtype: torch.dtype) -> "Nibbles | None":
        """None for a weight that the kernels do not take, or where they do not work."""
        if not triton_works() or grid.codes.dtype != torch.uint8 or grid.bits > 4:
            return None
        from sglang.kernels import int4

        runs = grid.in_runs()
        rows, inputs = grid.codes.shape
        if runs is None or not int4.fits(rows, inputs, runs[0].size, runs[0].scales.shape[1]):
            return None
        zeros = grid.zeros
        if zeros is not None and bool(((zeros != zeros.round()) | (zeros < 0) | (zeros > LARGEST)).any()):
            return None
        kernels = _kernels(
            rows, dtype, int4.COLUMNS if runs[0].scales.shape[1] == 1 else min(runs[0].size, int4.COLUMNS)
        )
        return None if kernels is None else Nibbles(*runs, device, kernels)

    def __call__(self, x: Tensor, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        return self._kernels.multiply(x if self._order is None else x[:, self._order], self._weight, bias, other, act)


def _kernels(rows: int, dtype: torch.dtype, group: int) -> Any:
    """The fastest that work: a module with `laid_out` and `multiply`. None: there are none."""
    from sglang.kernels import fragments, int4

    known = (fragments, int4) if rows % fragments.MULTIPLE == 0 else (int4,)
    return next((kernels for kernels in known if kernels.works(dtype, group)), None)
