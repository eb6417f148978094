"""Stacked: one map of every expert of a layer, in one piece: floating point, or 8-bit floating point."""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from sglang.quant.base import Grid
from sglang.quant.float8 import GROUP
from sglang.quant.rounding import FP8, rounded


class Stacked:
    """y = x W^T + b of each expert. parts: name -> rows, as in `dense.Dense`.

    Weights are places that are filled, unless `narrow` was called: then there are takers, and the first weight decides
    whether all are kept as 8-bit floating point, with a scale a row or a scale a row and 128 columns.
    more: room for as many others, behind them, where the weights stay as they are.
    """

    def __init__(
        self,
        count: int,
        parts: dict[str, int],
        inputs: int,
        bias: bool,
        device: torch.device,
        dtype: torch.dtype,
        more: int = 0,
    ):
        self.more = more
        self.count, self.parts, self.inputs, self.dtype = count, parts, inputs, dtype
        self.rows = sum(parts.values())
        self.bias = torch.empty(count, self.rows, device=device, dtype=dtype) if bias else None
        self.codes: Tensor | None = None  # float8 [experts, rows, inputs]
        self.scales: Tensor | None = None  # float32 [experts, groups, rows]
        self._device = device
        self._kind: str | None = None
        self._seen: Counter[str] | None = None  # not None: weights are taken

    @cached_property
    def weight(self) -> Tensor:
        """[experts + more, rows, inputs]; memory is taken when it is first asked for."""
        return torch.empty(self.count + self.more, self.rows, self.inputs, device=self._device, dtype=self.dtype)

    def narrow(self, kind: str | None, seen: "Counter[str]") -> None:
        """Take weights of 8 bits as they are. kind: fp8 to round others to; None: they stay. seen: as in `late.Late`.

        Before memory is filled.
        """
        self._kind, self._seen = kind, seen

    def _slices(self) -> list[tuple[str, slice]]:
        found, at = [], 0
        for name, rows in self.parts.items():
            found.append((name, slice(at, at + rows)))
            at += rows
        return found

    def places(self, prefix: str) -> dict[str, Tensor]:
        """prefix.EXPERT.PART.weight -> what is filled; its shape, where there is a taker."""
        found: dict[str, Tensor] = {}
        for e in range(self.count):
            for name, rows in self._slices():
                place = f"{prefix}.{e}.{name}"
                if self._seen is None:
                    found[place + ".weight"] = self.weight[e, rows]
                else:
                    found[place + ".weight"] = torch.empty(
                        rows.stop - rows.start, self.inputs, dtype=self.dtype, device="meta"
                    )
                if self.bias is not None:
                    found[place + ".bias"] = self.bias[e, rows]
        return found

    def takers(self, prefix: str) -> dict[str, Callable[[Tensor | Grid], None]]:
        def taker(e: int, rows: slice) -> Callable[[Tensor | Grid], None]:
            return lambda weight: self._take(e, rows, weight)

        if self._seen is None:
            return {}
        every = range(self.count)
        return {f"{prefix}.{e}.{name}.weight": taker(e, rows) for e in every for name, rows in self._slices()}

    def _take(self, e: int, rows: slice, weight: Tensor | Grid) -> None:
        assert self._seen is not None
        if isinstance(weight, Tensor) and self._kind is not None:
            weight = rounded(weight.to(self._device), self._kind)
        if isinstance(weight, Grid) and _fits(weight):
            groups = weight.scales.shape[1]
            if self.codes is None and "weight" not in self.__dict__:  # the first
                self._seen["float8"] += 1
                self.codes = torch.empty(self.count, self.rows, self.inputs, dtype=FP8, device=self._device)
                self.scales = torch.empty(self.count, groups, self.rows, device=self._device)
            if self.codes is not None and self.scales is not None and self.scales.shape[1] == groups:
                self.codes[e, rows].copy_(weight.codes)
                self.scales[e, :, rows].copy_(weight.scales.t())
                return
        self.widen()
        if e == 0 and rows.start == 0:
            self._seen["dequantised" if isinstance(weight, Grid) else "plain"] += 1
        self.weight[e, rows].copy_(weight.dense() if isinstance(weight, Grid) else weight)

    def widen(self) -> None:
        """Floating point from now on."""
        if self.codes is None or self.scales is None:
            return
        codes, scales, self.codes, self.scales = self.codes, self.scales, None, None
        for e in range(self.count):  # one after another: what is needed beside them stays small
            size = self.inputs // scales.shape[1]
            self.weight[e].copy_(codes[e].float() * scales[e].t().repeat_interleave(size, 1))

    @property
    def saved(self) -> int:
        """Bytes less than the weights would take as they are."""
        if self.codes is None or self.scales is None:
            return 0
        return self.codes.numel() * (self.dtype.itemsize - 1) - 4 * self.scales.numel()


def _fits(grid: Grid) -> bool:
    if grid.codes.dtype != FP8 or grid.zeros is not None or grid.group_of is not None:
        return False
    return grid.scales.shape[1] == 1 or (grid.size == GROUP and grid.shape[1] % GROUP == 0)
