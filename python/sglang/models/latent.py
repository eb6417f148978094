"""Multi-head latent attention (DeepSeek V2, arXiv 2405.04434) over the compressed vectors themselves.

The map from latent vector to keys is moved to the queries, the one to values behind the attention: what attends is then
a plain multi-query attention with one wide KV head, whose values are the first dims of its keys.
"""

import torch
from torch import Tensor

from sglang.layers.attention import Attention, Backend
from sglang.layers.linear import Linear
from sglang.layers.norm import RMSNorm
from sglang.layers.rope import Turn
from sglang.models.spec import Decoder
from sglang.quant.base import Form, Inputs

EPS = 1e-6  # of the norms inside, in all published models, whatever the config says of the others


class LatentAttention:
    def __init__(self, spec: Decoder, index: int, device: torch.device, dtype: torch.dtype):
        latent = spec.latent
        assert latent is not None
        self._heads, self._sizes = spec.heads, latent
        wide = spec.heads * (latent.nope + latent.rope)
        self._q = latent.q_rank or wide
        cell = latent.kv_rank + latent.rope
        first = {"kv_a": cell} | ({"q_a": latent.q_rank} if latent.q_rank else {"q": wide})
        self.down = Linear(spec.hidden, first, split="out", bias=spec.qkv_bias, device=device, dtype=dtype)
        self.q_b = None
        self.q_norm = None
        if latent.q_rank:
            self.q_b = Linear(latent.q_rank, {"q_b": wide}, split="out", device=device, dtype=dtype)
            self.q_norm = RMSNorm(latent.q_rank, EPS, device, dtype)
        self.kv_norm = RMSNorm(latent.kv_rank, EPS, device, dtype)
        self.kv_b = torch.empty(spec.heads * (latent.nope + latent.value), latent.kv_rank, device=device, dtype=dtype)
        self.attention = Attention(index)
        inputs = spec.heads * latent.value
        self.out = Linear(inputs, {"o": spec.hidden}, split="in", bias=spec.out_bias, device=device, dtype=dtype)

    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.down, "out": self.out} | ({} if self.q_b is None else {"q_up": self.q_b})

    def norms(self) -> dict[str, RMSNorm]:
        return {"kv_norm": self.kv_norm} | ({} if self.q_norm is None else {"q_norm": self.q_norm})

    def places(self, prefix: str) -> dict[str, Tensor]:
        return {f"{prefix}.kv_b.weight": self.kv_b}

    def finish(self) -> None:
        s = self._sizes
        maps = self.kv_b.view(self._heads, s.nope + s.value, s.kv_rank)
        self._keys = maps[:, : s.nope].contiguous()  # [heads, nope, kv_rank]
        self._values = maps[:, s.nope :].transpose(1, 2).contiguous()  # [heads, kv_rank, value]
        self.kv_b = torch.empty(0)

    @property
    def takes(self) -> Form | None:
        return self.down.takes

    def __call__(self, x: Inputs, turn: Turn | None, heat: Tensor | None, backend: Backend) -> Tensor:
        """x: [tokens, hidden]. Returns [tokens, heads * value]."""
        s = self._sizes
        first = self.down(x)
        tokens = len(first)
        cell, q = first.split([s.kv_rank + s.rope, self._q], -1)
        if self.q_b is not None and self.q_norm is not None:
            q = self.q_b(self.q_norm(q))
        q = q.reshape(tokens, self._heads, s.nope + s.rope)
        plain, turned = q[..., : s.nope], q[..., s.nope :]
        latent = self.kv_norm(cell[:, : s.kv_rank])[:, None]
        shared = cell[:, None, s.kv_rank :]
        if turn is not None:
            turned, shared = turn(turned), turn(shared)
        if heat is not None:
            plain, turned = plain * heat, turned * heat
        query = torch.cat((torch.bmm(plain.transpose(0, 1), self._keys).transpose(0, 1), turned), -1)
        seen = self.attention(query, torch.cat((latent, shared), -1), latent, backend)  # [tokens, heads * kv_rank]
        seen = seen.view(tokens, self._heads, s.kv_rank).transpose(0, 1)
        return torch.bmm(seen, self._values).transpose(0, 1).reshape(tokens, -1)
