"""The vocabulary in which families say how they differ. Frozen records; `decoder.py` executes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang.layers.rope import Rope


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer. Sizes are of the whole model, whatever a rank holds of it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int
    norm_eps: float
    rope: Rope
    act: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False  # the head is the embedding
    window: int | None = None  # a token sees the last `window` positions, its own included


HFConfig = dict[str, Any]
Names = dict[str, str]  # checkpoint name -> place; `*` stands for the layer's number on both sides


@dataclass(frozen=True)
class Family:
    architectures: tuple[str, ...]
    build: Callable[[HFConfig], Decoder]
    names: Names = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # endings of tensors that hold nothing of the model


FAMILIES: dict[str, Family] = {}


def family(*architectures: str, names: Names, ignored: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Register a function HF config -> Decoder under Hugging Face's architecture names."""

    def register(build: Callable[[HFConfig], Decoder]) -> Callable[[HFConfig], Decoder]:
        record = Family(architectures, build, names, ignored)
        FAMILIES.update(dict.fromkeys(architectures, record))
        return build

    return register
