"""Stacked: one map of every expert of a layer, in one piece: floating point, in 8 bits, or packed in 4."""

import math
from collections import Counter
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from sglang.kernels.packed import MOST, Kind, Packed, each_of, fits, packed_bytes
from sglang.kernels.staging import triton_works
from sglang.quant.base import Grid, Mxfp4, Weight
from sglang.quant.float8 import GROUP
from sglang.quant.nibbles import LARGEST
from sglang.quant.rounding import FP8, rounded


class Stacked:
    """y = x W^T + b of each expert. parts: name -> rows, as in `dense.Dense`.

    Weights are places that are filled, unless `narrow` was called: then there are takers, and the first weight decides
    how all are kept: as 8-bit floating point, with a scale a row or a scale a row and 128 columns, or in 4 bits.
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
        self.packed: Packed | None = None
        self._device = device
        self.files: str | None = None  # what files have weights in
        self._kind: str | None = None
        self._seen: Counter[str] | None = None  # not None: weights are taken

    @cached_property
    def weight(self) -> Tensor:
        """[experts + more, rows, inputs]; memory is taken when it is first asked for."""
        return torch.empty(self.count + self.more, self.rows, self.inputs, device=self._device, dtype=self.dtype)

    @property
    def narrowed(self) -> bool:
        return self.codes is not None or self.packed is not None

    def narrow(self, kind: str | None, seen: "Counter[str]", files: str | None = None) -> None:
        """Take weights of few bits as they are. kind: fp8 to round others to; None: they stay. seen: as in `late.Late`.

        files: what they are said to have: fp8, int4, mxfp4. Before memory is filled.
        """
        self._kind, self._seen, self.files = kind, seen, files

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

    def takers(self, prefix: str) -> dict[str, Callable[[Weight], None]]:
        def taker(e: int, rows: slice) -> Callable[[Weight], None]:
            return lambda weight: self._take(e, rows, weight)

        if self._seen is None:
            return {}
        every = range(self.count)
        return {f"{prefix}.{e}.{name}.weight": taker(e, rows) for e in every for name, rows in self._slices()}

    def _take(self, e: int, rows: slice, weight: Weight) -> None:
        assert self._seen is not None
        if isinstance(weight, Tensor) and self._kind is not None:
            weight = rounded(weight.to(self._device), self._kind)
        first = not self.narrowed and "weight" not in self.__dict__
        if not isinstance(weight, Tensor) and (
            self._put_float8(e, rows, weight, first)
            if isinstance(weight, Grid) and _is_float8(weight)
            else self._put_packed(e, rows, weight, first)
        ):
            return
        self.widen()
        if e == 0 and rows.start == 0:
            self._seen["plain" if isinstance(weight, Tensor) else "dequantised"] += 1
        self.weight[e, rows].copy_(weight if isinstance(weight, Tensor) else weight.dense())

    def _put_float8(self, e: int, rows: slice, weight: Grid, first: bool) -> bool:
        """Whether it is like the others."""
        groups = weight.scales.shape[1]
        if first and self._seen is not None:
            self._seen["float8"] += 1
            self.codes = torch.empty(self.count, self.rows, self.inputs, dtype=FP8, device=self._device)
            self.scales = torch.empty(self.count, groups, self.rows, device=self._device)
        if self.codes is None or self.scales is None or self.scales.shape[1] != groups:
            return False
        self.codes[e, rows].copy_(weight.codes)
        self.scales[e, :, rows].copy_(weight.scales.t())
        return True

    def _put_packed(self, e: int, rows: slice, weight: Grid | Mxfp4, first: bool) -> bool:
        if (form := form_of(weight)) is None:
            return False
        if first and self._seen is not None:
            self._seen[form[0]] += 1
            self.packed = Packed.empty(self.count, self.rows, self.inputs, *form, self._device)
        if self.packed is None or (self.packed.kind, self.packed.each) != form:
            return False
        if isinstance(weight, Mxfp4):
            self.packed.put_blocks(e, rows, weight.blocks.to(self._device), weight.exponents.to(self._device))
        else:
            scales = weight.scales.to(self._device)
            zeros = torch.zeros_like(scales) if weight.zeros is None else weight.zeros.to(self._device)
            self.packed.put_codes(e, rows, weight.codes.to(self._device), scales, zeros, weight.size)
        return True

    def widen(self) -> None:
        """Floating point from now on."""
        if self.packed is not None:
            packed, self.packed = self.packed, None
            for e in range(self.count):  # one after another: what is needed beside them stays small
                self.weight[e].copy_(packed.dense(e))
        if self.codes is None or self.scales is None:
            return
        codes, scales, self.codes, self.scales = self.codes, self.scales, None, None
        for e in range(self.count):
            size = self.inputs // scales.shape[1]
            self.weight[e].copy_(codes[e].float() * scales[e].t().repeat_interleave(size, 1))

    @property
    def saved(self) -> int:
        """Bytes less than the weights would take as they are."""
        plain = self.count * self.rows * self.inputs * self.dtype.itemsize
        if self.packed is not None:
            return plain - self.packed.bytes
        if self.codes is None or self.scales is None:
            return 0
        return plain - self.codes.numel() - 4 * self.scales.numel()


def planned_bytes(rows: int, inputs: int, itemsize: int, kind: str, groups: int) -> int:
    """Of an expert's part, as `Stacked` keeps it where its kernels work. groups: of a row in 4 bits; 0: others."""
    size = 1 << math.ceil(math.log2(inputs / groups)) if groups else 0  # the last group may have fewer columns
    if kind == "mxfp4":
        return packed_bytes(rows, inputs, 1)
    if kind == "int4" and groups and fits(size, groups):
        return packed_bytes(rows, inputs, each_of("int4", size, groups))
    return rows * inputs * itemsize


def _is_float8(grid: Grid) -> bool:
    if grid.codes.dtype != FP8 or grid.zeros is not None or grid.group_of is not None:
        return False
    return grid.scales.shape[1] == 1 or (grid.size == GROUP and grid.shape[1] % GROUP == 0)


def form_of(weight: Grid | Mxfp4) -> tuple[Kind, int] | None:
    """How a weight is packed: kind, and groups of a piece. None: it is not."""
    if not triton_works():
        return None
    if isinstance(weight, Mxfp4):
        return ("mxfp4", 1) if not (weight.exponents > MOST).any() else None
    if weight.codes.dtype != torch.uint8 or weight.bits > 4 or weight.group_of is not None:
        return None
    zeros, groups = weight.zeros, weight.scales.shape[1]
    if zeros is not None and bool(((zeros != zeros.round()) | (zeros < 0) | (zeros > LARGEST)).any()):
        return None
    return ("int4", each_of("int4", weight.size, groups)) if fits(weight.size, groups) else None
