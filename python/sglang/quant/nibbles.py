"""Nibbles: weights of up to 4 bits in groups of columns, multiplied by our own kernel on CUDA devices."""

import torch
from torch import Tensor

from sglang.kernels.staging import triton_works
from sglang.quant.base import Act, Grid

LARGEST = 64  # zero; the kernel takes it exactly from a number of 8 bits


class Nibbles:
    def __init__(self, grid: Grid, order: Tensor | None, device: torch.device):
        """order: of the inputs, as the grid's columns have them; None: their own."""
        from sglang.kernels import int4

        scales = grid.scales.to(device)
        zeros = torch.zeros_like(scales) if grid.zeros is None else grid.zeros.to(device)
        self._words = int4.words_of(grid.codes.to(device), scales, zeros, grid.size)
        self._order = None if order is None else order.to(device)
        self.bytes = self._words.bytes

    @staticmethod
    def of(grid: Grid, device: torch.device, dtype: torch.dtype) -> "Nibbles | None":
        """None for a weight that the kernel does not take, or where it does not work."""
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
        if not int4.works(dtype, min(runs[0].size, int4.COLUMNS)):
            return None
        return Nibbles(*runs, device)

    def __call__(self, x: Tensor, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        from sglang.kernels import int4

        return int4.multiply(x if self._order is None else x[:, self._order], self._words, bias, other, act)
