"""The one decoder: executes a `spec.Decoder` over the flat tokens of a step."""

import torch
from torch import Tensor

from sglang.layers.attention import Attention, Backend
from sglang.layers.embedding import Embedding, head
from sglang.layers.linear import Linear, Routes, Split, measure
from sglang.layers.memory import free_bytes
from sglang.layers.norm import RMSNorm
from sglang.layers.rope import rotate, tables
from sglang.models.spec import Decoder


class _Layer:
    def __init__(self, spec: Decoder, index: int, device: torch.device, dtype: torch.dtype):
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

        def linear(inputs: int, parts: dict[str, int], split: Split, bias: bool, gated: bool = False) -> Linear:
            return Linear(inputs, parts, split=split, bias=bias, gated=gated, device=device, dtype=dtype)

        self.attn_norm = RMSNorm(spec.hidden, spec.norm_eps, device, dtype)
        self.qkv = linear(spec.hidden, {"q": q, "k": kv, "v": kv}, "out", spec.qkv_bias)
        self.attention = Attention(index, spec.window)
        self.out = linear(q, {"o": spec.hidden}, "in", spec.out_bias)
        self.mlp_norm = RMSNorm(spec.hidden, spec.norm_eps, device, dtype)
        self.gate_up = linear(spec.hidden, {"gate": spec.inter, "up": spec.inter}, "out", spec.mlp_bias, gated=True)
        self.down = linear(spec.inter, {"down": spec.hidden}, "in", spec.mlp_bias)

    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.qkv, "out": self.out, "gate_up": self.gate_up, "down": self.down}


class Model:
    """Parameters and forward pass. Parameters are empty until `places` have been filled and `finish` was called."""

    def __init__(self, spec: Decoder, length: int, device: torch.device, dtype: torch.dtype):
        """length: longest sequence that will be computed; rotary tables reach that far."""
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.embed = Embedding(spec.vocab, spec.hidden, device, dtype)
        self.layers = [_Layer(spec, i, device, dtype) for i in range(spec.layers)]
        self.norm = RMSNorm(spec.hidden, spec.norm_eps, device, dtype)
        self.head = head(self.embed, spec.tied)
        self._cos, self._sin = tables(spec.rope, length, device, dtype)
        self.routes = Routes()

    def places(self) -> dict[str, Tensor]:
        """Every place a checkpoint must fill -> the tensor to copy into."""
        found = {"embed": self.embed.weight, "norm": self.norm.weight}
        if not self.spec.tied:
            found |= self.head.places("head")
        for i, layer in enumerate(self.layers):
            found[f"layers.{i}.attn_norm"] = layer.attn_norm.weight
            found[f"layers.{i}.mlp_norm"] = layer.mlp_norm.weight
            for name, linear in layer.linears().items():
                found |= linear.places(f"layers.{i}.{name}")
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
            layer.attn_norm.finish()
            layer.mlp_norm.finish()
        self.norm.finish()
        copy_bytes = self.embed.weight.numel() * self.dtype.itemsize
        if not self.spec.tied or free_bytes(self.device) > 2 * copy_bytes:
            self.head.finish(keep)
        self.routes = measure(linears)
        if keep and not self.routes.single:
            for linear in (*linears, self.head):
                linear.store.forget()

    def forward(self, tokens: Tensor, positions: Tensor, backend: Backend) -> Tensor:
        """tokens, positions: [T]. Returns [T, hidden] before the last norm."""
        s = self.spec
        cos = self._cos[positions][:, None]
        sin = self._sin[positions][:, None]
        both = s.heads + s.kv_heads
        x = self.embed(tokens)
        for layer in self.layers:
            qkv = layer.qkv(layer.attn_norm(x)).view(-1, both + s.kv_heads, s.head_dim)
            turned = rotate(qkv[:, :both], cos, sin)
            seen = layer.attention(turned[:, : s.heads], turned[:, s.heads :], qkv[:, both:], backend)
            x = layer.out.plus(seen, x)
            x = layer.down.plus(layer.gate_up.gate(layer.mlp_norm(x), s.act), x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """x: [n, hidden] of `forward`. Returns [n, vocab] in float32."""
        return self.head(self.norm(x)).float()
