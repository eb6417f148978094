"""The feed-forward part of a layer."""

import torch
from torch import Tensor

from sglang.layers.linear import Act, Linear
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

    def _wide(self, x: Tensor) -> Tensor:
        return self.gate_up.gate(x, self._act) if self._gated else ACTS[self._act](self.gate_up(x))

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]."""
        return self.down(self._wide(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self.down.plus(self._wide(x), other)
