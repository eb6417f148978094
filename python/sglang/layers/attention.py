"""The attention of one layer: which layer it is and how it looks; a backend does the work."""

from torch import Tensor

from sglang.attention.base import AttentionBackend, Look

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
    ):
        self._layer = layer
        self.look = Look(window, chunk, softcap, sinks)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
        """q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim or value_dim].

        Returns [tokens, heads * value_dim].
        """
        return backend.attend(q, k, v, self._layer, self.look)
