"""The attention of one layer: which layer it is and how it looks; a backend does the work."""

from typing import cast

from torch import Tensor

from sglang.attention.base import AttentionBackend, Look, TurningBackend
from sglang.layers.rope import Turn

Backend = AttentionBackend


class Attention:
    """window: positions a token sees, its own included; None: all. chunk: or those of its own chunk of that many.

    softcap: of the scores. sinks: [heads].
    """

    def __init__(
        self,
        layer: int,
        window: int | None = None,
        chunk: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        causal: bool = True,
    ):
        self._layer = layer
        self.look = Look(window, chunk, softcap, sinks, causal)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
        """q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim or value_dim].

        Returns [tokens, heads * value_dim].
        """
        return backend.attend(q, k, v, self._layer, self.look)

    def turned(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn, backend: Backend) -> Tensor:
        """The same before the rotation, for backends that can rotate on the way. q is overwritten."""
        turning = cast(TurningBackend, backend)
        return turning.turn_and_attend(q, k, v, (turn.cos, turn.sin), self._layer, self.look)


def turns(backend: Backend, turn: Turn) -> bool:
    """Whether `Attention.turned` works."""
    return "turn" in backend.features and not turn.interleaved
