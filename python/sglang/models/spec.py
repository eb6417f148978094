"""The vocabulary in which families say how they differ. Frozen records; `decoder.py` executes them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, get_args

from sglang.base.messages import Side
from sglang.layers.linear import Act
from sglang.layers.moe import Routing
from sglang.layers.norm import NormKind
from sglang.layers.rope import Rope
from sglang.models.layout import Names, Packed

Block = Literal["pre", "sandwich", "post", "sum", "parallel"]
QKNorm = Literal["head", "heads", "all", "unit"]


@dataclass(frozen=True)
class Experts:
    """A layer's feed-forward part in `routing.count` pieces, of which a token takes a few.

    inter: width of one. shared: width of the part every token takes; shared_gate: times sigmoid of a map of the token.
    """

    routing: Routing
    inter: int
    shared: int = 0
    shared_gate: bool = False
    bias: bool = False
    limit: float | None = None  # GPT-OSS's gate, clamped there, in place of the activation


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek V2, arXiv 2405.04434): keys and values live in one vector a token.

    A cell holds `kv_rank` dims of the latent vector, then `rope` dims of a key that all heads share.
    """

    kv_rank: int
    rope: int
    nope: int  # dims of a head's query and key without position
    value: int  # dims of a head's value
    q_rank: int | None = None  # queries go through that many dims


@dataclass(frozen=True)
class Pooling:
    """How a text becomes tokens, and their states one vector. unit: of length one; prompt: stands before every text;
    lower: it is read without capitals; most: tokens of a text, a longer one is cut off on `side` (None: it is refused
    if it does not fit)."""

    kind: Literal["last", "first", "mean"]
    unit: bool = True
    most: int | None = None
    side: Side = "right"
    lower: bool = False
    prompt: str = ""


@dataclass(frozen=True)
class Temperature:
    """Queries far from the start are multiplied by 1 + beta ln(1 + floor((position + shift) / length))."""

    beta: float
    length: float
    shift: int = 0


def everywhere(layer: int) -> bool:
    return True


@dataclass(frozen=True)
class Decoder:
    """A transformer of one stack. Sizes are of the whole model, whatever a rank holds of it.

    block: where the norms stand. pre: before attention and MLP. sandwich: before and after both. post: after both.
    sum: after what they give was added. parallel: both read the layer's input, through one norm, or two with
    `parallel_norms`.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int
    norm_eps: float
    rope: Rope | None
    block: Block = "pre"
    parallel_norms: bool = False
    norm: NormKind = "rms"
    norm_bias: bool = False
    act: Act = "silu"
    gated: bool = True  # the MLP is down(act(gate) * up), else down(act(up))
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False  # the head is the embedding
    learned_positions: int = 0  # rows of a table that is added to the embedding,
    first_position: int = 0  # beginning with this one
    token_kinds: int = 0  # rows of another, of which all tokens get the first
    embed_norm: bool = False
    final_norm: bool = True
    has_head: bool = True  # else its states are all it tells, and it is `tied`
    causal: bool = True  # else every token sees the whole text
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # of what a layer's halves add
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    attn_scale: float | None = None  # of q k; None: head_dim**-0.5
    attn_softcap: float | None = None
    sinks: bool = False
    qkv_clip: float | None = None
    # Norms of queries and keys. head: over a head, one weight for all heads; heads: a weight for each; all: over all
    # heads at once; unit: over a head, after the rotation, without a weight.
    qk_norm: QKNorm | None = None
    qk_norm_kind: NormKind | None = None  # None: as `norm`
    temperature: Temperature | None = None
    window: int | None = None  # in local layers a token sees the last `window` positions, its own included,
    chunk: int | None = None  # or those of its own chunk of this many positions
    local: Callable[[int], bool] = everywhere
    rope_of: Callable[[int], Rope | None] | None = None  # by layer, where they differ
    temperature_in: Callable[[int], bool] = everywhere
    latent: Latent | None = None
    experts: Experts | None = None
    expert_layers: Callable[[int], bool] = everywhere
    context: int | None = None  # tokens, where the usual keys of a config would be misread
    spare_layers: int = 0  # of the checkpoint, beyond `layers`: for guessing ahead; not read

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.attn_scale is None else self.attn_scale

    @property
    def value_dim(self) -> int:
        return self.latent.kv_rank if self.latent else self.head_dim

    def rope_in(self, layer: int) -> Rope | None:
        return self.rope_of(layer) if self.rope_of else self.rope


def check(spec: Decoder) -> None:
    """Raise ValueError for what a config can say and nobody can compute; else a server would start, and fail at its
    first request."""
    _numbers(spec)
    for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "vocab"):
        _demand(getattr(spec, name) > 0, name, getattr(spec, name), "at least 1")
    _demand(spec.heads % spec.kv_heads == 0, "kv_heads", spec.kv_heads, f"a divisor of heads = {spec.heads}")
    for name in ("window", "chunk"):
        span = getattr(spec, name)
        _demand(span is None or 0 < span < 2**31, name, span, "at least 1, and a place in a text")
    if spec.experts is not None:
        r = spec.experts.routing
        _demand(1 <= r.top_k <= r.count, "experts of a token", r.top_k, f"1 to {r.count}, as many as there are")
        _demand(r.groups > 0 and r.count % r.groups == 0, "groups of experts", r.groups, f"a divisor of {r.count}")
        _demand(1 <= r.top_groups <= r.groups, "groups of a token", r.top_groups, f"1 to {r.groups}")
    for layer in range(spec.layers):
        turn = spec.rope_in(layer)
        width = spec.latent.rope if spec.latent else spec.head_dim
        if turn is not None:
            _numbers(turn)
            _demand(0 < turn.dim <= width, "rotated dims of a head", turn.dim, f"1 to {width}")
            _demand(turn.theta > 1, "theta", turn.theta, "above 1")
        for of_layer in (spec.local, spec.expert_layers, spec.temperature_in):
            of_layer(layer)


def _numbers(record: Any) -> None:
    """That the fields of numbers, also of the records within, hold such."""
    for one in fields(record):
        value: object = getattr(record, one.name)
        kinds = get_args(one.type) if isinstance(one.type, UnionType) else (one.type,)
        match value:
            case None if type(None) in kinds:
                continue
            case bool() | None if float in kinds or int in kinds:
                fits = False
            case str() | list() | dict() | complex() if {float, int, bool} & set(kinds):
                fits = False
            case float():
                fits = float in kinds and math.isfinite(value)
            case int() if int in kinds:
                fits = value >= 0
            case _ if is_dataclass(value):
                _numbers(value)
                continue
            case _:
                continue
        what = "a number" if float in kinds else "a whole number, not negative" if int in kinds else "true or false"
        _demand(fits, one.name, value, what)


def _demand(fits: bool, name: str, value: object, what: str) -> None:
    if not fits:
        raise ValueError(f"{name} = {value!r} is not supported (it must be {what})")


HFConfig = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """ignored: endings, or beginnings (`vision.*`), of tensors that hold nothing of the model.

    formats: values of `quant_method` whose weights the name table unpacks. defaults: for keys that released files of
    the family leave out.
    """

    architectures: tuple[str, ...]
    build: Callable[[HFConfig], Decoder]
    names: Names = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    defaults: HFConfig = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.build.__module__.rpartition(".")[2]


FAMILIES: dict[str, Family] = {}


def headless(family: Family) -> Family:
    """The family where its tensors may also lie under the names of a model without a head, which lack a prefix."""
    short = {name.partition(".")[2]: place for name, place in family.names.items() if name.startswith(PREFIXES)}
    return replace(family, names=short | family.names)


PREFIXES = ("model.", "transformer.")


def family(
    *architectures: str,
    names: Mapping[str, str | Packed],
    ignored: tuple[str, ...] = (),
    formats: tuple[str, ...] = (),
    defaults: HFConfig | None = None,
) -> Callable[[Callable[[HFConfig], Decoder]], Callable[[HFConfig], Decoder]]:
    """Register a function HF config -> Decoder under Hugging Face's architecture names."""

    def register(build: Callable[[HFConfig], Decoder]) -> Callable[[HFConfig], Decoder]:
        record = Family(architectures, build, dict(names), ignored, formats, defaults or {})
        FAMILIES.update(dict.fromkeys(architectures, record))
        return build

    return register
