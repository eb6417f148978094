"""The feed-forward part of a layer."""

import torch
from torch import Tensor

from sglang.layers.linear import Act, Linear
from sglang.quant.base import Inputs
from sglang.quant.dense import ACTS


class Mlp:
    """down(act(gate x) * up x), or down(act(up x)) where there is no gate."""

    def __init__(
        self, hidden: int, inter: int, act: Act, gated: bool, bias: bool, device: torch.device, dtype: torch.dtype
    ):
        parts = {"gate": inter, "up": inter} if gated else {"up": inter}
        self.gate_up = Linear(hidden, parts, split="out", bias=bias, gated=gated, device=device, dtype=dtype)
        self.down = Linear(inter, {"down": hidden}, split="in", bias=bias, device=device, dtype=dtype)
        self._act: Act = act
        self._gated = gated

    def linears(self) -> dict[str, Linear]:
        return {"gate_up": self.gate_up, "down": self.down}

    def wide(self, x: Inputs) -> Inputs:
        """x: [tokens, hidden]. Returns what `down` multiplies."""
        return self.gate_up.gate(x, self._act, self.down.takes) if self._gated else ACTS[self._act](self.gate_up(x))

    def __call__(self, x: Inputs) -> Tensor:
        """x: [tokens, hidden]."""
        return self.down(self.wide(x))

    def plus(self, x: Inputs, other: Tensor) -> Tensor:
        return self.down.plus(self.wide(x), other)
