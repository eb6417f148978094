"""Linear maps: which parts are fused, and how they are split over ranks. How a weight is stored: `quant`."""

from typing import Literal

import torch
from torch import Tensor

from sglang.parallel.group import ALONE, Group
from sglang.quant import dense
from sglang.quant.base import Act, Form, Inputs, Parts, Store
from sglang.quant.dense import Dense, Routes

bfloat16_arithmetic = dense.bfloat16_arithmetic
Split = Literal["out", "in"]


class Linear:
    """y = x W^T + b with the weights of `parts` (name -> rows) in one piece.

    split: what the ranks of `group` share, outputs or inputs (then they sum). Groups of one rank are all there is yet.
    gated: two parts of equal size that are only used as act(first) * second.
    """

    def __init__(
        self,
        inputs: int,
        parts: dict[str, int],
        *,
        split: Split,
        device: torch.device,
        dtype: torch.dtype,
        bias: bool = False,
        gated: bool = False,
        group: Group = ALONE,
    ):
        # Another store may take its place before memory is filled: see models.quantized.
        self.store: Store = Dense(inputs, parts, bias, device, dtype)
        self.split: Split = split
        self.group = group
        self._gated = gated

    def places(self, prefix: str) -> dict[str, Tensor]:
        """Place name -> view of the parameter it fills."""
        return self.store.places(prefix)

    def finish(self, keep: bool = False) -> None:
        """All places are filled. keep: memory allows a second layout of the weight."""
        self.store.finish(self._gated, keep)

    @property
    def takes(self) -> Form | None:
        """The form its inputs may have beside values; known when it is finished."""
        return self.store.takes

    def __call__(self, x: Inputs) -> Tensor:
        """x: [tokens, inputs] -> [tokens, rows]."""
        return self.store.multiply(x)

    def plus(self, x: Inputs, other: Tensor) -> Tensor:
        """W x + b + other."""
        return self.store.multiply_add(x, other)

    def gate(self, x: Inputs, act: Act, form: Form | None = None) -> Inputs:
        """act(W1 x + b1) * (W2 x + b2), in that form perhaps."""
        assert self._gated
        return self.store.multiply_gated(x, act, form)

    def unfinished(self, x: Inputs) -> Parts | None:
        """The product where a pass of its own would finish it."""
        return self.store.unfinished(x)


def measure(linears: list[Linear]) -> Routes:
    """What is fastest here. linears: finished ones, as many as a model has, in its order."""
    stores = [linear.store for linear in linears if isinstance(linear.store, Dense)]
    return dense.measure(stores) if len(stores) == len(linears) else Routes()
