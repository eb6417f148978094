"""The one decoder: executes a `spec.Decoder` over the flat tokens of a step."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.attention.base import AttentionBackend
from sglang.layers.linear import Linear
from sglang.layers.norm import rms_norm
from sglang.layers.rope import rotate, tables
from sglang.models.spec import Decoder

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


class _Layer:
    def __init__(self, spec: Decoder, device: torch.device, dtype: torch.dtype):
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

        def linear(inputs: int, parts: dict[str, int], bias: bool) -> Linear:
            return Linear(inputs, parts, bias, device, dtype)

        self.attn_norm = torch.empty(spec.hidden, device=device, dtype=dtype)
        self.qkv = linear(spec.hidden, {"q": q, "k": kv, "v": kv}, spec.qkv_bias)
        self.out = linear(q, {"o": spec.hidden}, spec.out_bias)
        self.mlp_norm = torch.empty(spec.hidden, device=device, dtype=dtype)
        self.gate = linear(spec.hidden, {"gate": spec.inter}, spec.mlp_bias)
        self.up = linear(spec.hidden, {"up": spec.inter}, spec.mlp_bias)
        self.down = linear(spec.inter, {"down": spec.hidden}, spec.mlp_bias)

    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.qkv, "out": self.out, "gate": self.gate, "up": self.up, "down": self.down}


class Model:
    """Parameters and forward pass. Parameters are empty until `places` have been filled and `finish` was called."""

    def __init__(self, spec: Decoder, length: int, device: torch.device, dtype: torch.dtype):
        """length: longest sequence that will be computed; rotary tables reach that far."""
        self.spec = spec
        self.embed = torch.empty(spec.vocab, spec.hidden, device=device, dtype=dtype)
        self.layers = [_Layer(spec, device, dtype) for _ in range(spec.layers)]
        self.norm = torch.empty(spec.hidden, device=device, dtype=dtype)
        self.head = Linear(spec.hidden, {"head": spec.vocab}, False, device, dtype)
        if spec.tied:
            self.head.weight = self.embed
        self._cos, self._sin = tables(spec.rope, length, device, dtype)
        self._silu = spec.act == "silu"
        self._act = ACTS[spec.act]

    def places(self) -> dict[str, Tensor]:
        """Every place a checkpoint must fill -> the tensor to copy into."""
        found = {"embed": self.embed, "norm": self.norm}
        if not self.spec.tied:
            found |= self.head.places("head")
        for i, layer in enumerate(self.layers):
            found[f"layers.{i}.attn_norm"] = layer.attn_norm
            found[f"layers.{i}.mlp_norm"] = layer.mlp_norm
            for name, linear in layer.linears().items():
                found |= linear.places(f"layers.{i}.{name}")
        return found

    def finish_layer(self, i: int) -> None:
        """All places of layer `i` are filled."""
        for linear in self.layers[i].linears().values():
            linear.finish()

    def finish(self) -> None:
        """All places are filled."""
        for i in range(len(self.layers)):
            self.finish_layer(i)
        self.head.finish()

    def forward(self, tokens: Tensor, positions: Tensor, attention: AttentionBackend) -> Tensor:
        """tokens, positions: [T]. Returns [T, hidden] before the last norm."""
        s = self.spec
        cos = self._cos[positions][:, None]
        sin = self._sin[positions][:, None]
        both = s.heads + s.kv_heads
        x = F.embedding(tokens, self.embed)
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(rms_norm(x, layer.attn_norm, s.norm_eps)).view(-1, both + s.kv_heads, s.head_dim)
            turned = rotate(qkv[:, :both], cos, sin)
            seen = attention.attend(turned[:, : s.heads], turned[:, s.heads :], qkv[:, both:], i, s.window)
            x = layer.out.plus(seen, x)
            h = rms_norm(x, layer.mlp_norm, s.norm_eps)
            gate = layer.gate.silu(h) if self._silu else self._act(layer.gate(h))
            x = layer.down.plus(layer.up.times(h, gate), x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """x: [n, hidden] of `forward`. Returns [n, vocab] in float32."""
        return self.head(rms_norm(x, self.norm, self.spec.norm_eps)).float()
