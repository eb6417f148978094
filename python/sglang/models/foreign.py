"""Architectures that have no family here: transformers' own code computes them, over our attention and KV pool.

transformers lets who runs a model say how it attends and what a mask is. Ours are registered there: attention hands
queries, keys and values to the backend of the step, and a mask is no tensor but the rule it would be made of, which a
trial run of three tokens reads for every layer. What does not attend that way, or by a rule we do not know, is refused.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglang.base.errors import ConfigError
from sglang.layers.attention import Backend, Look
from sglang.layers.linear import Routes
from sglang.models.decoder import Model
from sglang.models.spec import Decoder, HFConfig

log = logging.getLogger("sglang.models")
NAME = "sglang"  # in transformers' registries
FAR = (1, 2, 5, 100, 1000, 4095, 4096, 10_000, 131_071, 2**20)  # positions at which a mask's rule is looked at


@dataclass(frozen=True)
class Rule:
    """What a mask would have been made of. sees(query, key): whether the one position sees the other."""

    sees: Callable[[int, int], bool]

    def first(self, query: int) -> int:
        """The first position that `query` sees; all up to its own must follow."""
        low, high = 0, query
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.sees(query, middle) else (middle + 1, high)
        return low

    def look(self) -> Look:
        """Raises ValueError where it is neither all that comes before, nor a window, nor chunks."""
        firsts = {query: self.first(query) for query in FAR}
        for query, first in firsts.items():
            if not self.sees(query, query) or self.sees(query, query + 1):
                raise ValueError("a token sees what comes after it")
            if first and any(self.sees(query, far) for far in (0, first // 2, first - 1)):
                raise ValueError("what a token sees has a gap")
        if not any(firsts.values()):
            return Look()
        spans = {query - first + 1 for query, first in firsts.items() if first}
        if len(spans) == 1 and all(first or query < min(spans) for query, first in firsts.items()):
            return Look(window=spans.pop())
        size = next(first for first in firsts.values() if first)  # the first chunk that is not the first ends there,
        for chunk in (size // n for n in range(1, size + 1) if size % n == 0):  # or some chunks do
            if all(first == query // chunk * chunk for query, first in firsts.items()):
                return Look(chunk=chunk)
        raise ValueError("what a token sees is neither a window nor its chunk")


@dataclass
class Layer:
    """How one layer attends, as the trial found it."""

    look: Look
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass
class Step:
    """Where attention finds the backend of the step; or, in the trial, leaves what it was asked for."""

    backend: Backend | None
    layers: dict[int, Layer] = field(default_factory=dict)
    asked: list[Tensor] = field(default_factory=list)  # queries and keys, token by token
    reads: bool = True  # the rules of masks


STEP: ContextVar[Step] = ContextVar("step")


def _mask(*_: Any, mask_function: Callable[..., Any], **__: Any) -> Rule:
    """transformers' maker of masks."""

    def sees(query: int, key: int) -> bool:
        zero = torch.tensor(0)
        return bool(mask_function(zero, zero, torch.tensor(query), torch.tensor(key)))

    return Rule(sees)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention. query: [1, heads, tokens, dim]; returns [1, tokens, heads, dim of values]."""
    step = STEP.get()
    number = getattr(module, "layer_idx", None)
    if not isinstance(number, int):
        raise ValueError("an attention layer has no number")
    heads, head_dim, value_dim = query.shape[1], query.shape[-1], value.shape[-1]
    if step.backend is None:
        if number in step.layers:
            raise ValueError(f"layer {number} attends twice")
        if attention_mask is not None and not isinstance(attention_mask, Rule):
            raise ValueError("it makes masks of its own")
        if is_causal is False or getattr(module, "is_causal", True) is False:
            raise ValueError("a token sees what comes after it")
        if unknown := [name for name in ("position_bias", "head_mask") if more.get(name) is not None]:
            raise ValueError(f"its attention takes a {unknown[0]}")
        look = attention_mask.look() if attention_mask is not None and step.reads else Look(window=sliding_window)
        look = replace(look, softcap=softcap, sinks=s_aux)
        step.asked += [query[0].transpose(0, 1), key[0].transpose(0, 1)]
        step.layers[number] = Layer(look, heads, key.shape[1], head_dim, value_dim)
        return torch.zeros(1, query.shape[2], heads, value_dim, dtype=query.dtype, device=query.device), None
    look = step.layers[number].look
    # The pool's values are as wide as its keys; scores are scaled here, since layers may differ.
    q = query[0].transpose(0, 1) * (head_dim**-0.5 if scaling is None else scaling)
    k, v = key[0].transpose(0, 1), F.pad(value[0].transpose(0, 1), (0, head_dim - value_dim))
    seen = step.backend.attend(q.contiguous(), k.contiguous(), v.contiguous(), number, look)
    return seen.view(1, -1, heads, head_dim)[..., :value_dim], None


class _Given(nn.Module):
    """Stands where the layers were, and gives the states that the head is to read."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        given = MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]  # a Tensor is one
        given.cross_attentions = None  # type: ignore[attr-defined]  # heads of models that could have such pass them on
        return given

    @property
    def decoder(self) -> "_Given":
        """Some heads call the part of the part."""
        return self


class Foreign(Model):
    """A model of transformers with the face of ours."""

    def __init__(self, loaded: Any, raw: HFConfig, device: torch.device, dtype: torch.dtype):
        """loaded: a PreTrainedModel with a head. Raises ConfigError for one that we cannot run."""
        name = type(loaded).__name__
        self.device, self.dtype, self.routes = device, dtype, Routes()
        from transformers import PreTrainedModel

        place, body = next(
            ((name, part) for name, part in loaded.named_children() if isinstance(part, PreTrainedModel)), ("", None)
        )
        if body is None:
            raise ConfigError(f"--model-impl transformers: {name} has no part without a head")
        self._body = body
        self._head = copy.copy(loaded)  # the same weights, without the layers
        self._head._modules = {**loaded._modules, place: _Given()}
        self._parameters = list(loaded.parameters())
        config = loaded.config
        self._step, other = Step(None), Step(None, reads=False)
        order = torch.tensor([2, 0, 1], device=device)
        tokens, positions = torch.arange(3, device=device) % config.vocab_size, torch.arange(3, device=device)
        try:
            states = self._run(tokens, positions, self._step)
            self._run(tokens[order], positions[order], other)
            self.logits(states)
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ConfigError(f"--model-impl transformers: {name} cannot be run: {error}") from None
        layers = self._step.layers
        if not all(torch.allclose(a[order], b, atol=1e-2) for a, b in zip(self._step.asked, other.asked, strict=True)):
            raise ConfigError(f"--model-impl transformers: {name} does not take positions from who runs it")
        self._step.asked.clear()
        if sorted(layers) != list(range(config.num_hidden_layers)):
            raise ConfigError(
                f"--model-impl transformers: of {config.num_hidden_layers} layers of {name} only {len(layers)} attend "
                "as transformers lets others say; recurrent and other layers are not supported"
            )
        shapes = {(one.heads, one.kv_heads, one.head_dim) for one in layers.values()}
        if len(shapes) > 1 or any(one.value_dim > one.head_dim for one in layers.values()):
            raise ConfigError(
                f"--model-impl transformers: the layers of {name} differ in their heads: {sorted(shapes)}"
            )
        heads, kv_heads, head_dim = shapes.pop()
        self.spec = Decoder(
            hidden=states.shape[-1],
            layers=len(layers),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            inter=int(raw.get("intermediate_size") or 4 * states.shape[-1]),
            vocab=config.vocab_size,
            norm_eps=0.0,
            rope=None,
            attn_scale=1.0,
        )

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self._parameters)

    def reach(self, positions: int) -> None: ...

    @contextmanager
    def abridged(self) -> Iterator[None]:
        """Its layers are not ours to leave out."""
        yield

    @property
    def capturable(self) -> bool:
        """Nobody knows what its code asks the host."""
        return False

    @property
    def looks(self) -> list[Look]:
        return [self._step.layers[i].look for i in range(self.spec.layers)]

    def places(self) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None: ...

    def forward(self, tokens: Tensor, positions: Tensor, backend: Backend) -> Tensor:
        """Returns [T, hidden] behind the last norm."""
        return self._run(tokens, positions, replace(self._step, backend=backend))

    def _run(self, tokens: Tensor, positions: Tensor, step: Step) -> Tensor:
        before = STEP.set(step)
        try:
            return self._body(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, return_dict=True
            ).last_hidden_state[0]
        finally:
            STEP.reset(before)

    def states(self, x: Tensor) -> Tensor:
        return x

    def logits(self, x: Tensor, widen: bool = True) -> Tensor:
        """What transformers' code makes of the states, scales and caps included."""
        logits = self._head(inputs_embeds=x[None], use_cache=False).logits[0]
        return logits.float() if widen else logits


def known(raw: HFConfig) -> bool:
    """Whether transformers itself has the architecture, as one that writes text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    names = raw.get("architectures") or []
    there = {one for value in NAMES.values() for one in (value if isinstance(value, list | tuple) else (value,))}
    return any(name in there for name in names)


def load(folder: Path, raw: HFConfig, load_format: str, device: torch.device, dtype: torch.dtype) -> Foreign:
    """Raises ConfigError naming what is wrong with the files, or what we cannot run."""
    import transformers
    from transformers import AttentionInterface, AttentionMaskInterface

    if not known(raw):
        raise ConfigError(
            f"--model-impl transformers: transformers {transformers.__version__} has no model for "
            f"{raw.get('architectures')}, and code of the folder is not run"
        )
    _refuse_what_depends_on_others(raw)
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    options: dict[str, Any] = {"attn_implementation": NAME, "dtype": dtype}
    found: dict[str, Any] = {}
    try:
        config = transformers.AutoConfig.for_model(**raw)
        if load_format == "dummy":
            loaded: Any = transformers.AutoModelForCausalLM.from_config(config, **options)
        else:
            safe = {"safetensors": True, "pt": False}.get(load_format)
            pair: Any = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder), config=config, output_loading_info=True, use_safetensors=safe, **options
            )
            loaded, found = pair
    except Exception as error:  # its checks of configs have classes of their own, and its models raise whatever
        raise ConfigError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())}") from None
    for key, what in (("missing_keys", "are missing"), ("mismatched_keys", "have another shape")):
        if names := sorted(str(name) for name in found.get(key) or ()):
            raise ConfigError(f"{folder}: {len(names)} tensors {what}: {', '.join(names[:5])}")
    log.warning("%s runs in transformers' code, slower than a family of our own", type(loaded).__name__)
    return Foreign(loaded.to(device).eval(), raw, device, dtype)


def _refuse_what_depends_on_others(raw: HFConfig) -> None:
    """A batch must not change what its sequences say, nor a text's end its beginning."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind in ("dynamic", "longrope", "su"):
        raise ConfigError(f"config.json: rope_type = {kind!r} is not supported by --model-impl transformers")
    if raw.get("attn_temperature_tuning"):  # its code takes a token's place in the step for that in its text
        raise ConfigError("config.json: attn_temperature_tuning is not supported by --model-impl transformers")
    if raw.get("quantization_config"):
        raise ConfigError("config.json: quantization_config is not supported by --model-impl transformers")
