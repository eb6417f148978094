"""The stream that layers add to, and how the products after an addition read it."""

from collections.abc import Callable

import torch
from torch import Tensor

from sglang.kernels.staging import triton_works
from sglang.layers.linear import Linear
from sglang.layers.norm import Norm, RMSNorm
from sglang.quant.base import Form, Inputs, Parts, Rounded


class Addition:
    """x += scale * post(part), and norm(x), which is what is read of it.

    On CUDA devices, what no product's own kernel does is one kernel: the end of a product that was split, the addition,
    both norms, and rounding to the form that all readers take.
    """

    def __init__(self, post: Norm | None, scale: float, device: torch.device):
        self._post, self._scale = post, scale
        self._norm: Norm | None = None
        self._takes: Callable[[], Form | None] = lambda: None
        self._form: Form | None = None
        self._joins = device.type == "cuda" and triton_works()

    def then(self, norm: Norm | None, takes: Callable[[], Form | None]) -> None:
        """norm: of the readers; takes: the form that all of them take, once weights are finished."""
        self._norm, self._takes = norm, takes

    def finish(self) -> None:
        """Weights are finished."""
        self._form = self._takes()
        self._joins &= all(one is None or isinstance(one, RMSNorm) for one in (self._post, self._norm))

    def product(self, x: Tensor, last: Linear, inputs: Inputs) -> tuple[Tensor, Inputs]:
        """Add last(inputs) to x: [tokens, hidden], in place. Returns x, and what is read of it."""
        if self._joins and (parts := last.unfinished(inputs)) is not None:
            return self._join(x, parts)
        if self._post is not None or self._scale != 1:
            return self.value(x, last(inputs))
        x = last.plus(inputs, x)  # its own kernel adds
        return x, self._read(x)

    def value(self, x: Tensor, part: Tensor) -> tuple[Tensor, Inputs]:
        """The same with a product that is finished."""
        if self._joins:
            return self._join(x, Parts(part[None], None))
        x = torch.add(x, part if self._post is None else self._post(part), alpha=self._scale)
        return x, self._read(x)

    def _read(self, x: Tensor) -> Tensor:
        return x if self._norm is None else self._norm(x)

    def _join(self, x: Tensor, parts: Parts) -> tuple[Tensor, Inputs]:
        from sglang.kernels.stream import join

        post, norm = _rms(self._post), _rms(self._norm)
        form = None if norm is None else self._form
        read, scales = join(parts.values, parts.bias, x, post, self._scale, norm, form)
        return x, read if scales is None else Rounded(read, scales)


def _rms(norm: Norm | None) -> tuple[Tensor, float] | None:
    return (norm.weight, norm.eps) if isinstance(norm, RMSNorm) else None
