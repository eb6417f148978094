"""Store: what a weight format must do for a linear map."""

from typing import Literal, Protocol

from torch import Tensor

Act = Literal["silu", "gelu", "gelu_tanh"]


class Store(Protocol):
    """The weight of y = x W^T + b, in some format. x: [tokens, inputs] -> [tokens, rows]; all are new tensors."""

    def places(self, prefix: str) -> dict[str, Tensor]:
        """Place name (`prefix.part.weight`, ...) -> the tensor, or the view of one, that a checkpoint fills."""
        ...

    def finish(self, gated: bool, keep: bool) -> None:
        """All places are filled: lay the weight out as multiplying wants it; the places go out of use.

        gated: `multiply_gated` is all that will be asked for. keep: memory allows a second layout.
        """
        ...

    def forget(self) -> None:
        """Give a second layout's memory back."""
        ...

    def multiply(self, x: Tensor) -> Tensor: ...

    def multiply_add(self, x: Tensor, other: Tensor) -> Tensor:
        """W x + b + other, which may be overwritten."""
        ...

    def multiply_gated(self, x: Tensor, act: Act) -> Tensor:
        """act(first half of the rows) * second half."""
        ...
