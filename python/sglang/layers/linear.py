"""Linear maps: how a weight is fused from parts, stored, and multiplied.

On CPUs with bfloat16 arithmetic weights are repacked once into oneDNN's blocked layout, which reads memory at its full
rate where `F.linear` reaches half. The operators are torch's private ones, so they are tried at start and left alone
where they fail or differ.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x W^T + b, W [sum of parts, inputs] in one piece.

    parts: name -> rows, in order. `places` hands out where the checkpoint's tensors go; `finish` is called when they
    are there and may repack the weight.
    """

    def __init__(
        self, inputs: int, parts: dict[str, int], bias: bool, device: torch.device, dtype: torch.dtype, pack: bool = True
    ):
        self.parts = parts
        rows = sum(parts.values())
        self.weight = torch.empty(rows, inputs, device=device, dtype=dtype)
        self.bias = torch.empty(rows, device=device, dtype=dtype) if bias else None
        self._pack = pack and device.type == "cpu" and dtype != torch.float16
        self._packed: Tensor | None = None

    def places(self, prefix: str) -> dict[str, Tensor]:
        """Place name -> view of the parameter it fills."""
        found: dict[str, Tensor] = {}
        at = 0
        for name, rows in self.parts.items():
            found[f"{prefix}.{name}.weight"] = self.weight[at : at + rows]
            if self.bias is not None:
                found[f"{prefix}.{name}.bias"] = self.bias[at : at + rows]
            at += rows
        return found

    def finish(self) -> None:
        if self._pack and packing_works(self.weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to_mkldnn(), None)
            self.weight = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, inputs] -> [tokens, rows]."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """silu(W x + b)."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "swish", [], "")
        return F.silu(F.linear(x, self.weight, self.bias))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(W x + b) * other."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "mul")
        return F.linear(x, self.weight, self.bias).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """W x + b + other."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "add")
        return F.linear(x, self.weight, self.bias).add_(other)


@functools.cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether the packed product exists here and agrees with F.linear."""
    if dtype == torch.bfloat16 and not _flag(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, generator=generator).to(dtype)
    w = torch.randn(96, 64, generator=generator).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(w.to_mkldnn(), None)
        plain = F.linear(x, w)
        other = torch.ones_like(plain)
        tried = [
            (torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""), plain),
            (torch.ops.mkldnn._linear_pointwise(x, packed, None, "swish", [], ""), F.silu(plain)),
            (torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, None, "add"), plain + 1),
            (torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, None, "mul"), plain),
        ]
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    bound = 0.05 if dtype == torch.bfloat16 else 1e-4
    return all(torch.allclose(a.float(), b.float(), rtol=bound, atol=bound * 8) for a, b in tried)


def _flag(holder: Any, name: str) -> bool:
    try:
        return bool(getattr(holder, name)())
    except (AttributeError, RuntimeError):
        return False
