"""How checkpoints pack what we keep apart: one tensor of a file -> tensors of our places.

A family's name table maps a checkpoint's name to a place, or to a `Packed` of several. `*` stands for a number, on both
sides; a place with one `*` more than the name stands for as many as there are (experts, heads).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sglang.quant.base import Mxfp4

if TYPE_CHECKING:
    from sglang.models.spec import Decoder

# (tensors of the file, shapes of the places, the Decoder) -> a weight for each place, in order
Cut = Callable[[Sequence[Tensor], Sequence[torch.Size], "Decoder"], Sequence[Tensor | Mxfp4]]


@dataclass(frozen=True)
class Packed:
    """cut must work on meta tensors too: shapes are checked that way. It may raise RuntimeError.

    beside: endings (of this tensor's name, of another's) where two tensors make one.
    """

    places: tuple[str, ...]
    cut: Cut
    beside: tuple[str, str] | None = None


Names = dict[str, str | Packed]


def below(prefix: str, names: Mapping[str, str | Packed]) -> Names:
    """The same names with a prefix: of a model that is the language part of another."""
    return {prefix + name: place for name, place in names.items()}


SEEING = ("vision_tower.*", "vision_model.*", "multi_modal_projector.*")  # the other parts; text needs none of them


def stacked(*places: str) -> Packed:
    """Rows of the parts one after another."""
    return Packed(places, lambda found, shapes, spec: found[0].split([s[0] for s in shapes]))


def transposed(*places: str) -> Packed:
    """[in, out], the parts' outputs one after another; biases [out]."""
    return Packed(places, lambda found, shapes, spec: found[0].t().split([s[0] for s in shapes]))


def grouped(*places: str) -> Packed:
    """For each KV head: rows of its queries, then of its key, then of its value."""

    def cut(found: Sequence[Tensor], shapes: Sequence[torch.Size], spec: "Decoder") -> Sequence[Tensor]:
        tensor = found[0]
        groups = tensor.reshape(spec.kv_heads, -1, spec.head_dim, *tensor.shape[1:])
        split = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
        return [part.reshape(-1, *tensor.shape[1:]) for part in split]

    return Packed(places, cut)


def experts(*places: str, inputs_first: bool = False, flat: bool = False, interleaved: bool = False) -> Packed:
    """All experts of a layer in one tensor [experts, rows, inputs], or biases [experts, rows]; parts stacked in rows.

    inputs_first: [experts, inputs, rows]. flat: experts and rows are one dimension, as are, with inputs_first, experts
    and inputs. interleaved: the parts' rows alternate.
    """

    def cut(found: Sequence[Tensor], shapes: Sequence[torch.Size], spec: "Decoder") -> Sequence[Tensor]:
        whole = found[0]
        assert spec.experts is not None
        count = spec.experts.routing.count
        if flat:
            whole = whole.reshape(count, -1, *whole.shape[1:])
        if inputs_first and whole.dim() == 3:
            whole = whole.transpose(1, 2)
        return _apart(whole.unbind(0), len(places), interleaved)

    return Packed(places, cut)


def _apart(wholes: Sequence[Tensor], parts: int, interleaved: bool) -> list[Tensor]:
    """[rows, ...] of each expert -> the rows of each part, of each expert."""
    rows = wholes[0].shape[0] // parts
    cuts = [slice(i, None, parts) if interleaved else slice(i * rows, (i + 1) * rows) for i in range(parts)]
    return [whole[cut] for cut in cuts for whole in wholes]


def mxfp4(*places: str, interleaved: bool = False) -> Packed:
    """Experts in MXFP4: codes `_blocks` uint8 [experts, rows, inputs / 32, 16], and exponents `_scales` uint8
    [experts, rows, inputs / 32]."""

    def cut(found: Sequence[Tensor], shapes: Sequence[torch.Size], spec: "Decoder") -> Sequence[Mxfp4]:
        both = [_apart(whole.unbind(0), len(places), interleaved) for whole in found]
        return [Mxfp4(blocks, exponents) for blocks, exponents in zip(*both, strict=True)]

    return Packed(places, cut, beside=("_blocks", "_scales"))


def listed(place: str) -> Packed:
    """[n, ...] in one tensor, n places."""
    return Packed((place,), lambda found, shapes, spec: found[0].unbind(0))
