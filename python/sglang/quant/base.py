"""Store: what a weight format must do for a linear map. Grid, Mxfp4: weights in few bits, as files have them."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from sglang.kernels.packed import BLOCK, FP4

Act = Literal["silu", "gelu", "gelu_tanh"]


class Form(NamedTuple):
    """Inputs rounded to 8-bit floating point. groups: of columns, each with a scale a token; scale: or one for all."""

    groups: int
    scale: float | None


class Rounded(NamedTuple):
    """Inputs in a `Form`. codes: float8_e4m3fn [tokens, inputs]; scales: float32 [tokens, groups]."""

    codes: Tensor
    scales: Tensor


Inputs = Tensor | Rounded


class Parts(NamedTuple):
    """A product that is not finished: what is left is sum(values) + bias. values: [splits, tokens, rows]."""

    values: Tensor
    bias: Tensor | None


class Store(Protocol):
    """The weight of y = x W^T + b, in some format. x: [tokens, inputs] -> [tokens, rows]; all are new tensors."""

    @property
    def takes(self) -> Form | None:
        """The form that this would round its inputs to, on a device; it takes them in that form too. None: in none."""
        ...

    @property
    def bytes(self) -> int:
        """What the weight takes, in the layout that all products can use."""
        ...

    def places(self, prefix: str) -> dict[str, Tensor]:
        """Place name (`prefix.part.weight`, ...) -> the tensor, or the view of one, that a checkpoint fills.

        On the meta device: only its shape is meant, and `take` gets what is loaded (see `late.Late`).
        """
        ...

    def finish(self, gated: bool, keep: bool) -> None:
        """All places are filled: lay the weight out as multiplying wants it; the places go out of use.

        gated: `multiply_gated` is all that will be asked for. keep: memory allows a second layout.
        """
        ...

    def forget(self) -> None:
        """Give a second layout's memory back."""
        ...

    def multiply(self, x: Inputs) -> Tensor: ...

    def multiply_add(self, x: Inputs, other: Tensor) -> Tensor:
        """W x + b + other, which may be overwritten."""
        ...

    def multiply_gated(self, x: Inputs, act: Act, form: Form | None = None) -> Inputs:
        """act(first half of the rows) * second half. form: that the reader takes; values are always right."""
        ...

    def unfinished(self, x: Inputs) -> Parts | None:
        """What a pass of its own would have to finish; None where `multiply_add` needs none."""
        ...


class Product(Protocol):
    """A weight in few bits, laid out, and how it multiplies."""

    bytes: int

    def __call__(self, x: Any, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
        """W x + bias, then + other, which may be overwritten, or act(first half of the rows) * second half.

        x: [tokens, inputs], or in a form that this takes. Returns a tensor of the type that the model has.
        """
        ...


@dataclass(frozen=True)
class Grid:
    """W[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g], where g is the group of column k.

    codes: uint8, int8 or float8, [rows, inputs]. scales: float, [rows, groups]; zeros: the same, None for 0.
    size: columns of a group, of which the last may have fewer; or `group_of`, int64 [inputs], says each column's.
    bits: of a code. input_scale: of inputs that are rounded to the same type with one scale for all, where a file says.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    size: int
    zeros: Tensor | None = None
    group_of: Tensor | None = None
    input_scale: float | None = None

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dense(self) -> Tensor:
        """float32 [rows, inputs]."""
        inputs = self.codes.shape[1]
        values = self.codes.float()
        groups = self.group_of
        if groups is None and self.scales.shape[1] > 1:
            groups = torch.arange(inputs, device=values.device) // self.size

        def spread(one: Tensor) -> Tensor:
            return one.float() if groups is None else one.float()[:, groups]

        if self.zeros is not None:
            values -= spread(self.zeros)
        return values.mul_(spread(self.scales))

    def rows(self, index: Tensor) -> "Grid":
        """Some rows, in the order of `index`, int64 [n]."""
        zeros = None if self.zeros is None else self.zeros[index]
        # float8 cannot be indexed everywhere; its bytes can.
        codes = self.codes.view(torch.uint8)[index].view(self.codes.dtype)
        return replace(self, codes=codes, scales=self.scales[index], zeros=zeros)

    def in_runs(self) -> tuple["Grid", Tensor | None] | None:
        """The same with columns ordered by group, and that order, int64 [inputs] (None: as they are).

        None where groups have unequal sizes.
        """
        if self.group_of is None:
            return self, None
        groups, inputs = self.scales.shape[1], self.codes.shape[1]
        if inputs % groups or not (torch.bincount(self.group_of, minlength=groups) == inputs // groups).all():
            return None
        order = self.group_of.argsort(stable=True)
        plain = replace(self, codes=self.codes[:, order], group_of=None, size=inputs // groups)
        return plain, None if torch.equal(order, torch.arange(inputs, device=order.device)) else order


@dataclass(frozen=True)
class Mxfp4:
    """W[n, k] = FP4[code of k] * 2^(exponents[n, k / 32] - 127), as OCP's Microscaling formats 1.0 have it.

    blocks: uint8 [rows, inputs / 32, 16], two codes a byte, the low half first; exponents: uint8 [rows, inputs / 32].
    """

    blocks: Tensor
    exponents: Tensor

    def __post_init__(self) -> None:
        if self.blocks.shape != (*self.exponents.shape, BLOCK // 2):
            raise ValueError(f"blocks {list(self.blocks.shape)} have exponents {list(self.exponents.shape)}")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.blocks.shape[0], self.blocks.shape[1] * BLOCK))

    def dense(self) -> Tensor:
        """bfloat16 [rows, inputs], which holds all values exactly."""
        codes = torch.stack((self.blocks & 15, self.blocks >> 4), -1).flatten(-2).int()
        values = torch.tensor(FP4, dtype=torch.bfloat16, device=codes.device)[codes]
        return (values * torch.exp2(self.exponents.float() - 127).to(torch.bfloat16)[..., None]).flatten(1)


Weight = Tensor | Grid | Mxfp4


def joined(grids: list[Grid]) -> Grid | None:
    """Rows of all, one after another; None where their groups differ."""
    first = grids[0]
    for other in grids[1:]:
        same = (
            other.codes.dtype == first.codes.dtype
            and other.bits == first.bits
            and other.size == first.size
            and other.scales.shape[1] == first.scales.shape[1]
            and (other.group_of is None) == (first.group_of is None)
            and (other.zeros is None) == (first.zeros is None)
            and (first.group_of is None or other.group_of is None or torch.equal(first.group_of, other.group_of))
        )
        if not same:
            return None
    scales = [g.input_scale for g in grids if g.input_scale is not None]
    zeros = [g.zeros for g in grids if g.zeros is not None]
    return replace(
        first,
        codes=torch.cat([g.codes.view(torch.uint8) for g in grids]).view(first.codes.dtype),
        scales=torch.cat([g.scales for g in grids]),
        zeros=torch.cat(zeros) if zeros else None,
        input_scale=max(scales) if len(scales) == len(grids) else None,
    )
