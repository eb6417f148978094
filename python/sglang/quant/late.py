"""Late: a weight whose format is known once its parts have been read; then it takes the fastest store there is."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from sglang.quant.base import Act, Form, Grid, Inputs, Parts, Product, Weight, joined
from sglang.quant.dense import Dense
from sglang.quant.float8 import Float8
from sglang.quant.integers import fast
from sglang.quant.nibbles import Nibbles
from sglang.quant.rounding import rounded


class Late:
    """parts: name -> rows, as in `Dense`. kind: int8, int4, fp8 to round floating-point parts to; None: they stay.

    seen: counts what weights became, for the line in the log. tied: a weight of another that is read, not loaded.
    """

    def __init__(
        self,
        inputs: int,
        parts: dict[str, int],
        bias: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        kind: str | None,
        seen: "Counter[str]",
        tied: Tensor | None = None,
    ):
        self.inputs = inputs
        self._rows = sum(parts.values()) if tied is None else tied.shape[0]
        self._parts, self._bias, self._device, self._dtype = parts, bias, device, dtype
        self._kind, self._seen, self._tied = kind, seen, tied
        self._taken: dict[str, Weight] = {}
        self._dense: Dense | None = None
        if tied is not None:
            self._dense = Dense(inputs, {"": self._rows}, False, device, dtype)
            self._dense.weight, self._dense.bias = tied, bias
        self._product: Product | None = None

    def places(self, prefix: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        at = 0
        for name, rows in self._parts.items():
            if self._tied is None:
                found[f"{prefix}.{name}.weight"] = torch.empty(rows, self.inputs, dtype=self._dtype, device="meta")
            if self._bias is not None:
                found[f"{prefix}.{name}.bias"] = self._bias[at : at + rows]
            at += rows
        return found

    def takers(self, prefix: str) -> dict[str, Callable[[Weight], None]]:
        """Place name -> who gets its weight, in floating point or as a grid."""

        def taker(name: str) -> Callable[[Weight], None]:
            return lambda weight: self._take(name, weight)

        return {} if self._tied is not None else {f"{prefix}.{name}.weight": taker(name) for name in self._parts}

    def _take(self, name: str, weight: Weight) -> None:
        if isinstance(weight, Tensor):
            # Files are read without a copy, and laid out as they are; a part of one must not keep it in memory.
            weight = weight.to(self._device, self._dtype, copy=True) if self._kind is None else weight
        self._taken[name] = rounded(weight, self._kind) if self._kind and isinstance(weight, Tensor) else weight
        if len(self._taken) == len(self._parts):
            taken, self._taken = [self._taken[part] for part in self._parts], {}
            self._settle(taken)

    def _settle(self, taken: list[Weight]) -> None:
        grids = [weight for weight in taken if isinstance(weight, Grid)]
        if len(grids) == len(taken) and (grid := joined(grids)) is not None:
            self._product = self._fastest(grid)
            if self._product is not None:
                self._seen[type(self._product).__name__.lower()] += 1
                self._dense = None
                return
        if self._dense is not None:
            return  # a tied weight stays as it is
        self._seen["dequantised" if grids else "plain"] += 1
        self._dense = Dense(self.inputs, self._parts, False, self._device, self._dtype)
        self._dense.bias = self._bias
        at = 0
        for weight, rows in zip(taken, self._parts.values(), strict=True):
            self._dense.weight[at : at + rows].copy_(weight if isinstance(weight, Tensor) else weight.dense())
            at += rows

    def _fastest(self, grid: Grid) -> Product | None:
        if self._device.type == "cpu":
            return fast(grid, self._dtype == torch.bfloat16 or self._kind is not None)
        if Float8.fits(grid, self._dtype):
            return Float8(grid, self._device)
        return Nibbles.of(grid, self._device, self._dtype)

    def finish(self, gated: bool, keep: bool) -> None:
        if self._tied is not None and self._kind is not None:
            self._settle([rounded(self._tied, self._kind)])
        assert not self._taken, f"parts are missing beside {', '.join(self._taken)}"
        if self._dense is not None:
            self._dense.finish(gated, keep)

    def forget(self) -> None:
        if self._dense is not None:
            self._dense.forget()

    @property
    def bytes(self) -> int:
        held = self._dense if self._product is None else self._product
        return self._rows * self.inputs * self._dtype.itemsize if held is None else held.bytes

    @property
    def saved(self) -> int:
        """Bytes less than the weight would take as it is; less than 0 where it is beside the one it was tied to."""
        if self._tied is not None:
            return 0 if self._product is None else -self.bytes
        return self._rows * self.inputs * self._dtype.itemsize - self.bytes

    @property
    def takes(self) -> Form | None:
        return self._product.takes if isinstance(self._product, Float8) else None

    def multiply(self, x: Inputs) -> Tensor:
        if self._dense is not None:
            return self._dense.multiply(x)
        return self._multiply(x, None, None)

    def multiply_add(self, x: Inputs, other: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense.multiply_add(x, other)
        return self._multiply(x, other, None)

    def multiply_gated(self, x: Inputs, act: Act, form: Form | None = None) -> Inputs:
        if self._dense is not None:
            return self._dense.multiply_gated(x, act)
        if form is not None and isinstance(self._product, Float8):
            gated = self._product.gated(x, self._bias, act, form)
            if gated is not None:
                return gated
        return self._multiply(x, None, act)

    def unfinished(self, x: Inputs) -> Parts | None:
        values = self._product.parts(x) if isinstance(self._product, Float8) else None
        return None if values is None else Parts(values, self._bias)

    def _multiply(self, x: Inputs, other: Tensor | None, act: Act | None) -> Tensor:
        assert self._product is not None
        return self._product(x, self._bias, other, act)
