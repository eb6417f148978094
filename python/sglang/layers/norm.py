"""RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), in float32 whatever the type of their input."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.kernels.staging import triton_works

NormKind = Literal["rms", "rms+1", "layer"]


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. weight: [hidden]; plus_one: files hold it less 1."""

    def __init__(self, hidden: int, eps: float, device: torch.device, dtype: torch.dtype, plus_one: bool = False):
        self.weight = torch.empty(hidden, device=device, dtype=dtype)
        self.eps = eps
        self._eps_tensor = torch.tensor(eps, device=device)
        self._plus_one = plus_one
        self._fused = device.type == "cuda" and triton_works()

    def places(self, prefix: str) -> dict[str, Tensor]:
        return {f"{prefix}.weight": self.weight}

    def finish(self) -> None:
        """The weight is filled."""
        if self.weight.device.type == "cpu" or self._plus_one:
            self.weight = self.weight.float()
        if self._plus_one:
            self.weight = self.weight + 1

    def __call__(self, x: Tensor) -> Tensor:
        if self._fused:
            from sglang.kernels.matvec import FEW, early
            from sglang.kernels.pointwise import rms_norm

            return rms_norm(x, self.weight, self.eps, early(x.shape[0], FEW))
        return (unit(x.float(), self._eps_tensor)).mul_(self.weight).to(x.dtype)


def unit(x: Tensor, eps: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps). float32."""
    # F.rms_norm is ten small operators on a CPU; with these a norm has seven, half of its time for a few rows.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension.

    weight: the shape of the input's last dimensions; of two, heads and theirs, there is no bias.
    """

    def __init__(self, shape: tuple[int, ...], eps: float, device: torch.device, dtype: torch.dtype, bias: bool):
        self.weight = torch.empty(shape, device=device, dtype=dtype)
        self.bias = torch.empty(shape, device=device, dtype=dtype) if bias else None
        self._eps = eps

    def places(self, prefix: str) -> dict[str, Tensor]:
        """Two dimensions: a place for each head."""
        if self.weight.dim() == 2:
            return {f"{prefix}.{head}.weight": weight for head, weight in enumerate(self.weight)}
        found = {f"{prefix}.weight": self.weight}
        return found if self.bias is None else found | {f"{prefix}.bias": self.bias}

    def finish(self) -> None:
        """Weight and bias are filled."""
        self.weight = self.weight.float()
        self.bias = None if self.bias is None else self.bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return F.layer_norm(x.float(), (x.shape[-1],), self.weight, self.bias, self._eps).to(x.dtype)
        return F.layer_norm(x.float(), (x.shape[-1],), eps=self._eps).mul_(self.weight).to(x.dtype)


class HeadNorm:
    """RMSNorm over all heads at once. x: [tokens, heads, head_dim]."""

    def __init__(self, inner: RMSNorm):
        self.places = inner.places
        self.finish = inner.finish
        self._inner = inner

    def __call__(self, x: Tensor) -> Tensor:
        return self._inner(x.flatten(1)).view(x.shape)


class UnitNorm:
    """RMSNorm without a weight."""

    def __init__(self, eps: float, device: torch.device):
        self._eps = torch.tensor(eps, device=device)

    def places(self, prefix: str) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None: ...

    def __call__(self, x: Tensor) -> Tensor:
        return unit(x.float(), self._eps).to(x.dtype)


Norm = RMSNorm | LayerNorm | HeadNorm | UnitNorm


def norm(
    kind: NormKind, shape: tuple[int, ...], eps: float, bias: bool, device: torch.device, dtype: torch.dtype
) -> RMSNorm | LayerNorm:
    """kind: `rms+1` keeps its weight less 1. shape: of the weight; RMSNorm takes one dimension, and no bias."""
    if kind == "layer":
        return LayerNorm(shape, eps, device, dtype, bias)
    assert not bias and len(shape) == 1
    return RMSNorm(shape[0], eps, device, dtype, kind == "rms+1")
