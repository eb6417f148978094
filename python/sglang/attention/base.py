"""What every attention backend is given and must do."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Shape:
    """An attention layer's sizes on this rank."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float  # of q k


@dataclass(frozen=True, eq=False)
class Look:
    """How a layer looks at its sequence.

    window: positions a token sees, its own included; None: all. softcap c: scores become c tanh(score / c).
    sinks: [heads], a score per head that takes its share of the softmax and gives nothing.
    """

    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass
class Rows:
    """The rows of a step, on the host. table: [slots, pages], a row valid up to its sequence's last position."""

    slots: Ints  # [R]
    starts: Ints  # [R]
    counts: Ints  # [R]
    table: Ints
    page_size: int


def cells_at(rows: Rows, slots: Ints, positions: Ints) -> Ints:
    """Pool cells of positions; slots and positions broadcast against each other."""
    if rows.page_size == 1:
        return rows.table[slots, positions]
    return rows.table[slots, positions // rows.page_size] * rows.page_size + positions % rows.page_size


class AttentionBackend(Protocol):
    """Rows of a step may share cells: every layer writes all keys and values before it reads any."""

    def plan(self, rows: Rows) -> None:
        """Once a step, on the host: what all layers need to know."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        """File k, v in the pool, then attend.

        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim]. Returns [tokens, heads * head_dim].
        There may be more tokens than the plan's: the rest is padding, is not filed and yields zeros.
        """
        ...
