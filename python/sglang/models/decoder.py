"""The one decoder: executes a `spec.Decoder` over the flat tokens of a step."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.layers.attention import Attention, Backend, Look, turns
from sglang.layers.embedding import Embedding, head
from sglang.layers.linear import Linear, Routes, measure
from sglang.layers.memory import free_bytes
from sglang.layers.mlp import Mlp
from sglang.layers.moe import MoE
from sglang.layers.norm import HeadNorm, LayerNorm, Norm, RMSNorm, UnitNorm, norm
from sglang.layers.rope import Rope, Turn, tables
from sglang.layers.stream import Addition
from sglang.models.latent import LatentAttention
from sglang.models.spec import Decoder
from sglang.quant.base import Form, Inputs


class _Attention:
    def __init__(self, spec: Decoder, index: int, device: torch.device, dtype: torch.dtype):
        self._heads, self._kv_heads, self._dim, self._clip = spec.heads, spec.kv_heads, spec.head_dim, spec.qkv_clip
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        parts = {"q": q, "k": kv, "v": kv}
        self.qkv = Linear(spec.hidden, parts, split="out", bias=spec.qkv_bias, device=device, dtype=dtype)
        self.q_norm = _qk_norm(spec, spec.heads, device, dtype)
        self.k_norm = _qk_norm(spec, spec.kv_heads, device, dtype)
        self._norm_last = spec.qk_norm == "unit"
        self.sinks = torch.empty(spec.heads, device=device, dtype=dtype) if spec.sinks else None
        near = spec.local(index)
        self.attention = Attention(
            index,
            window=spec.window if near else None,
            chunk=spec.chunk if near else None,
            softcap=spec.attn_softcap,
            sinks=self.sinks,
            causal=spec.causal,
        )
        self.out = Linear(q, {"o": spec.hidden}, split="in", bias=spec.out_bias, device=device, dtype=dtype)

    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.qkv, "out": self.out}

    def norms(self) -> dict[str, Norm]:
        return {name: n for name, n in (("q_norm", self.q_norm), ("k_norm", self.k_norm)) if n is not None}

    def places(self, prefix: str) -> dict[str, Tensor]:
        return {} if self.sinks is None else {f"{prefix}.sinks": self.sinks}

    def finish(self) -> None: ...

    @property
    def takes(self) -> Form | None:
        return self.qkv.takes

    def __call__(self, x: Inputs, turn: Turn | None, heat: Tensor | None, backend: Backend) -> Tensor:
        """x: [tokens, hidden]; heat: [tokens, 1, 1], on queries. Returns [tokens, heads * head_dim]."""
        qkv = self.qkv(x)
        if self._clip is not None:
            qkv = qkv.clamp_(-self._clip, self._clip)
        both = self._heads + self._kv_heads
        qkv = qkv.view(-1, both + self._kv_heads, self._dim)
        qk, v = qkv[:, :both], qkv[:, both:]
        if self.q_norm is not None and self.k_norm is not None and not self._norm_last:
            qk = torch.cat((self.q_norm(qk[:, : self._heads]), self.k_norm(qk[:, self._heads :])), 1)
        if turn is not None and heat is None and not self._norm_last and turns(backend, turn):
            return self.attention.turned(qk[:, : self._heads], qk[:, self._heads :], v, turn, backend)
        if turn is not None:
            qk = turn(qk)
        if self.q_norm is not None and self._norm_last and turn is not None:
            qk = self.q_norm(qk)
        q, k = qk[:, : self._heads], qk[:, self._heads :]
        return self.attention(q if heat is None else q * heat, k, v, backend)


def _qk_norm(spec: Decoder, heads: int, device: torch.device, dtype: torch.dtype) -> Norm | None:
    kind = spec.qk_norm_kind or spec.norm
    match spec.qk_norm:
        case None:
            return None
        case "unit":
            return UnitNorm(spec.norm_eps, device)
        case "head":
            return norm(kind, (spec.head_dim,), spec.norm_eps, spec.norm_bias, device, dtype)
        case "heads":
            return LayerNorm((heads, spec.head_dim), spec.norm_eps, device, dtype, False)
        case "all":
            return HeadNorm(RMSNorm(heads * spec.head_dim, spec.norm_eps, device, dtype))


class _Layer:
    def __init__(self, spec: Decoder, index: int, device: torch.device, dtype: torch.dtype):
        s = spec
        self._parallel = s.block == "parallel"
        assert not self._parallel or s.residual_scale == 1
        self._norms_sums = s.block == "sum"

        def make(wanted: bool) -> Norm | None:
            return norm(s.norm, (s.hidden,), s.norm_eps, s.norm_bias, device, dtype) if wanted else None

        before, after = s.block not in ("post", "sum"), s.block in ("post", "sum", "sandwich")
        self.attn_norm, self.attn_post = make(before), make(after)
        self.mlp_norm, self.mlp_post = make(before and (not self._parallel or s.parallel_norms)), make(after)
        self.attn = (LatentAttention if s.latent else _Attention)(s, index, device, dtype)
        if s.experts is not None and s.expert_layers(index):
            e = s.experts
            self.mlp = MoE(s.hidden, e.routing, e.inter, e.shared, e.shared_gate, s.act, e.bias, e.limit, device, dtype)
        else:
            self.mlp = Mlp(s.hidden, s.inter, s.act, s.gated, s.mlp_bias, device, dtype)
        self._add_attn = Addition(self.attn_post, s.residual_scale, device)
        self._add_mlp = Addition(self.mlp_post, s.residual_scale, device)
        self._add_attn.then(self.mlp_norm, lambda: self._mlp_takes)

    def then(self, following: "_Layer") -> None:
        """Which layer reads what this one returns; nobody after the last one but a norm, of fewer tokens."""
        self._add_mlp.then(following.attn_norm, lambda: following.takes)

    @property
    def _mlp_takes(self) -> Form | None:
        return self.mlp.gate_up.takes if isinstance(self.mlp, Mlp) else None

    @property
    def takes(self) -> Form | None:
        """The form that what is read may have; values are always right."""
        form = self.attn.takes
        also = self._parallel and self.mlp_norm is None
        return None if also and self._mlp_takes != form else form

    def finish(self) -> None:
        """Linear maps are finished."""
        self.attn.finish()
        if isinstance(self.mlp, MoE):
            self.mlp.finish()
        for one in self.norms().values():
            one.finish()
        self._add_attn.finish()
        self._add_mlp.finish()

    def linears(self) -> dict[str, Linear]:
        return self.attn.linears() | self.mlp.linears()

    def norms(self) -> dict[str, Norm]:
        own = ("attn_norm", "attn_post", "mlp_norm", "mlp_post")
        return {name: n for name in own if (n := getattr(self, name)) is not None} | self.attn.norms()

    def places(self, prefix: str) -> dict[str, Tensor]:
        found = self.attn.places(prefix)
        if isinstance(self.mlp, MoE):
            found |= self.mlp.places(prefix)
        for name, one in (self.norms() | self.linears()).items():
            found |= one.places(f"{prefix}.{name}")
        return found

    def __call__(
        self, x: Tensor, read: Inputs, turn: Turn | None, heat: Tensor | None, backend: Backend
    ) -> tuple[Tensor, Inputs]:
        """x: [tokens, hidden], overwritten; read: its norm. Returns both for the next layer."""
        seen = self.attn(read, turn, heat, backend)
        if self._norms_sums and self.attn_post is not None and self.mlp_post is not None:
            x = self.attn_post(self.attn.out.plus(seen, x))
            x = self.mlp_post(self.mlp.plus(x, x))
            return x, x
        if self._parallel:
            read = read if self.mlp_norm is None else self.mlp_norm(x)
            x = self.attn.out.plus(seen, x)
        else:
            x, read = self._add_attn.product(x, self.attn.out, seen)
        if isinstance(self.mlp, Mlp):
            return self._add_mlp.product(x, self.mlp.down, self.mlp.wide(read))
        assert isinstance(read, Tensor)
        return self._add_mlp.value(x, self.mlp(read))


class Model:
    """Parameters and forward pass. Parameters are empty until `places` have been filled and `finish` was called."""

    def __init__(self, spec: Decoder, length: int, device: torch.device, dtype: torch.dtype):
        """length: longest sequence that will be computed. Beyond 128k, `reach` says how far positions really go."""
        learned = spec.learned_positions - spec.first_position
        if spec.learned_positions and length > learned:
            raise ConfigError(f"--context-length {length}: the model has learned {learned} positions")
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.embed = Embedding(spec.vocab, spec.hidden, device, dtype, spec.embed_scale)
        self.positions = Embedding(spec.learned_positions, spec.hidden, device, dtype)
        self.kinds = Embedding(spec.token_kinds, spec.hidden, device, dtype)
        self.layers = [_Layer(spec, i, device, dtype) for i in range(spec.layers)]
        for layer, following in pairwise(self.layers):
            layer.then(following)

        def make(wanted: bool) -> Norm | None:
            return norm(spec.norm, (spec.hidden,), spec.norm_eps, spec.norm_bias, device, dtype) if wanted else None

        self.embed_norm, self.norm = make(spec.embed_norm), make(spec.final_norm)
        self.head = head(self.embed, spec.tied, spec.head_bias)
        ropes: list[Rope | None] = [spec.rope_in(i) for i in range(spec.layers)]
        self._ropes = list(dict.fromkeys(r for r in ropes if r is not None))
        self._length = length
        self.reach(min(length, 2**17))
        self._turn_of = [None if rope is None else self._ropes.index(rope) for rope in ropes]
        self._computed: Sequence[int] = range(spec.layers)
        self.routes = Routes()

    def reach(self, positions: int) -> None:
        """Make rotary tables for that many positions, of sequences that may be as long as `length`."""
        self._tables = [tables(rope, self._length, self.device, self.dtype, positions) for rope in self._ropes]

    @contextmanager
    def abridged(self) -> Iterator[None]:
        """Inside, a forward pass computes a few layers, with kernels of every kind; what it returns means nothing."""
        every = self._computed
        self._computed = few([self._kind(i) for i in every])
        try:
            yield
        finally:
            self._computed = every

    def _kind(self, i: int) -> Hashable:
        """Layers of a kind launch the same kernels."""
        layer = self.layers[i]
        look = layer.attn.attention.look
        weights = [(type(linear.store), linear.store.bytes) for linear in layer.linears().values()]
        if isinstance(layer.mlp, MoE):
            weights += [(type(one), one.saved) for one in (layer.mlp.experts.gate_up, layer.mlp.experts.down)]
        heated = self.spec.temperature is not None and self.spec.temperature_in(i)
        return self._turn_of[i], look.window, look.chunk, tuple(weights), heated

    @property
    def capturable(self) -> bool:
        """Whether a step on a CUDA device needs no word from the host; once it is finished."""
        return all(layer.mlp.capturable for layer in self.layers if isinstance(layer.mlp, MoE))

    @property
    def looks(self) -> list[Look]:
        """How each layer looks at its sequence."""
        return [layer.attn.attention.look for layer in self.layers]

    def places(self) -> dict[str, Tensor]:
        """Every place a checkpoint must fill -> the tensor to copy into."""
        found = {"embed.weight": self.embed.weight}
        for name, one in (("norm", self.norm), ("embed_norm", self.embed_norm)):
            found |= {} if one is None else one.places(name)
        if self.spec.learned_positions:
            found["positions.weight"] = self.positions.weight
        if self.spec.token_kinds:
            found["kinds.weight"] = self.kinds.weight
        if not self.spec.tied:
            found |= self.head.places("head")
        for i, layer in enumerate(self.layers):
            found |= layer.places(f"layers.{i}")
        return found

    def finish(self) -> None:
        """All places are filled."""
        linears = [linear for layer in self.layers for linear in layer.linears().values()]
        # A second layout may be faster for one row; it must leave most of the memory to keys, values and others.
        plain_bytes = sum(t.numel() for t in self.places().values()) * self.dtype.itemsize
        keep = self.device.type == "cpu" and plain_bytes < free_bytes(self.device) / 4
        for linear in linears:
            linear.finish(keep)
        for layer in self.layers:
            layer.finish()
        for one in (self.norm, self.embed_norm):
            if one is not None:
                one.finish()
        copy_bytes = self.embed.weight.numel() * self.dtype.itemsize
        if self.spec.has_head and (not self.spec.tied or free_bytes(self.device) > 2 * copy_bytes):
            self.head.finish(keep)
        self.routes = measure(linears)
        if keep and not self.routes.single:
            for linear in (*linears, self.head):
                linear.store.forget()

    def forward(self, tokens: Tensor, positions: Tensor, backend: Backend) -> Tensor:
        """tokens, positions: [T]. Returns [T, hidden] before the last norm."""
        spec = self.spec
        turns = [
            Turn(cos[positions][:, None], sin[positions][:, None], rope.interleaved)
            for rope, (cos, sin) in zip(self._ropes, self._tables, strict=True)
        ]
        heat = None
        if (t := spec.temperature) is not None:
            far = torch.floor((positions[:, None, None].float() + t.shift) / t.length)
            heat = (1 + t.beta * torch.log1p(far)).to(self.dtype)
        x = self.embed(tokens)
        if spec.learned_positions:
            x = x + self.positions(_past_padding(tokens, positions, spec.first_position))
        if spec.token_kinds:
            x = x + self.kinds.weight[0]
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        first = self.layers[0].attn_norm if self.layers else None
        read: Inputs = x if first is None else first(x)
        for i in self._computed:
            turn = self._turn_of[i]
            warm = heat if heat is None or spec.temperature_in(i) else None
            x, read = self.layers[i](x, read, None if turn is None else turns[turn], warm, backend)
        return x

    def states(self, x: Tensor) -> Tensor:
        """x: [n, hidden] of `forward`. Returns [n, hidden] behind the last norm."""
        return x if self.norm is None else self.norm(x)

    def logits(self, x: Tensor, widen: bool = True) -> Tensor:
        """x: [n, hidden] of `forward`. Returns [n, vocab] in float32; widen=False: or in the model's own type."""
        assert self.spec.has_head
        n = len(x)
        padding = self.routes.padded(n) - n
        logits = self.head(self.states(F.pad(x, (0, 0, 0, padding)) if padding else x))[:n]
        if widen or self.spec.logit_scale != 1 or self.spec.logit_softcap is not None:
            logits = logits.float()
        if self.spec.logit_scale != 1:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return logits if cap is None else (logits / cap).tanh_().mul_(cap)


def _past_padding(tokens: Tensor, positions: Tensor, first: int) -> Tensor:
    """Rows of a table of learned positions: RoBERTa's begin behind the row of its padding, whose id is that row's
    number, and such a token in a text has that row and is not counted. All of a text is here."""
    if not first:
        return positions
    padding = tokens == first - 1
    before = padding.cumsum(0) - padding.long()  # in all texts
    begins = torch.arange(len(tokens), device=tokens.device) - positions
    return torch.where(padding, first - 1, positions + first - before + before[begins])


def few(kinds: Sequence[Hashable]) -> Sequence[int]:
    """Of layers, some in their order, the last one among them: every pair of kinds that follow each other is there, and
    no other."""
    pairs = list(pairwise(kinds))
    head = next((n + 2 for n in range(len(pairs)) if set(pairs[: n + 1]) == set(pairs)), 1)
    tail = next((n for n in range(len(pairs), head - 1, -1) if (kinds[head - 1], kinds[n]) in pairs), head)
    return [*range(head), *range(tail, len(kinds))]
