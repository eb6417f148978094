"""What every attention backend is given and must do."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Shape:
    """One attention layer's sizes on this rank. `window`: positions a token sees, its own included; None: all."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float


@dataclass
class Rows:
    """The rows of a step on the host.

    tables: int32 [R, pages] page numbers of each row's sequence, valid up to its last position.
    """

    starts: Ints  # [R]
    counts: Ints  # [R]
    tables: list[Ints]
    page_size: int


class AttentionBackend(Protocol):
    """Rows of a step may share cells: every layer writes all keys and values before it reads any."""

    def plan(self, rows: Rows) -> None:
        """Once a step, on the host: what all layers need to know."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, window: int | None) -> Tensor:
        """File k, v in the pool, then attend.

        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim]. Returns [tokens, heads * head_dim].
        """
        ...
