"""Linear maps and experts whose weights come in few bits: which a model has, and the stores that take them."""

from collections import Counter
from collections.abc import Callable

import torch

from sglang.layers.linear import Linear
from sglang.layers.moe import MoE
from sglang.models.decoder import Model
from sglang.quant.base import Weight
from sglang.quant.dense import Dense
from sglang.quant.formats import KINDS, Format, chosen
from sglang.quant.late import Late
from sglang.quant.stacked import Stacked

__all__ = ["Format", "chosen", "linears", "quantize", "takers", "weight_bytes"]
Takers = dict[str, Callable[[Weight], None]]
PACKED = ("int4", "mxfp4")  # kinds in which experts stay, where the model has a type of
PACKED_TYPES = (torch.bfloat16, torch.float16)


def linears(model: Model) -> dict[str, Linear]:
    """Place prefix -> map, of all layers; the head is `head`."""
    found = {f"layers.{i}.{name}": one for i, layer in enumerate(model.layers) for name, one in layer.linears().items()}
    return found | {"head": model.head}


def experts(model: Model) -> list[tuple[str, Stacked]]:
    """Place prefix and map, of all experts of a layer; two have the same prefix."""
    return [
        (f"layers.{i}.experts", one)
        for i, layer in enumerate(model.layers)
        if isinstance(layer.mlp, MoE)
        for one in (layer.mlp.experts.gate_up, layer.mlp.experts.down)
    ]


def quantize(model: Model, kind: str, form: Format | None, device: torch.device | None = None) -> Counter[str]:
    """Let all maps take weights in few bits, before any memory is filled. kind, form: of `formats.chosen`.

    device: that it is for, where the model has none. Returns what counts the weights by what they became, while they
    are loaded.
    """
    seen: Counter[str] = Counter()
    few = kind if form is None else form.kind
    if (device or model.device).type != "cpu" and (few == "fp8" or (few in PACKED and model.dtype in PACKED_TYPES)):
        for _, stacked in experts(model):
            stacked.narrow(kind if kind in KINDS and form is None else None, seen, None if kind in KINDS else few)
    if form is None and kind not in KINDS:
        return seen
    for prefix, linear in linears(model).items():
        old = linear.store
        assert isinstance(old, Dense)
        tied = old.weight if prefix == "head" and model.spec.tied else None
        if tied is not None and form is not None:
            continue
        rounding = kind if form is None else None
        if prefix == "head" and rounding == "int4":
            rounding = "int8"  # every error of the head shows in the next token
        linear.store = Late(old.inputs, old.parts, old.bias, old.device, old.dtype, rounding, seen, tied)
    return seen


def takers(model: Model) -> Takers:
    """Place name -> who gets its weight, of the maps that `quantize` has changed."""
    found: Takers = {}
    for prefix, linear in linears(model).items():
        if isinstance(linear.store, Late):
            found |= linear.store.takers(prefix)
    for prefix, stacked in experts(model):
        found |= stacked.takers(prefix)
    return found


def kept(model: Model) -> dict[str, Stacked]:
    """Place name -> the map it is in, of experts that stay in few bits."""
    return {place: stacked for prefix, stacked in experts(model) for place in stacked.takers(prefix)}


def weight_bytes(model: Model, parameters: int) -> int:
    """Of all, in the layout that all products can use, when they are loaded."""
    late = [one.store for one in linears(model).values() if isinstance(one.store, Late)]
    saved = sum(store.saved for store in late) + sum(stacked.saved for _, stacked in experts(model))
    return parameters * model.dtype.itemsize - saved
