"""What every attention backend is given and must do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sglang.base.errors import ConfigError

Feature = Literal["window", "chunk", "softcap", "sinks", "both ways", "narrow values", "turn"]
Ints = NDArray[np.integer]
# Of each layer's keys and values: what one that is kept in 8 bits is to be multiplied by.
Scales = list[tuple[float, float]]


@dataclass(frozen=True)
class Shape:
    """An attention layer's sizes on this rank."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float  # of q k
    value_dim: int | None = None  # of a head's value, where it is not head_dim

    @property
    def values(self) -> int:
        return self.head_dim if self.value_dim is None else self.value_dim


@dataclass(frozen=True, eq=False)
class Look:
    """How a layer looks at its sequence.

    window: positions a token sees, its own included; None: all. chunk: a token sees its own chunk of that many
    positions, from its beginning. softcap c: scores become c tanh(score / c). sinks: [heads], a score per head that
    takes its share of the softmax and gives nothing. causal: it sees what comes before it; else all of its row.
    """

    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    causal: bool = True


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
    """Rows of a step may share cells: every layer writes all keys and values before it reads any.

    features: what it can do beyond causal attention at `Shape.scale`; `require` stops the start of a model that needs
    more. "narrow values": the pool's values are the first `value_dim` dims of its keys, in the same memory.
    "turn": it is a TurningBackend.
    """

    features: ClassVar[frozenset[Feature]]

    def plan(self, rows: Rows) -> None:
        """Once a step, on the host: what all layers need to know."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        """File k, v in the pool, then attend.

        q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim], or v of value_dim.
        Returns [tokens, heads * value_dim].
        There may be more tokens than the plan's: the rest is padding, is not filed and yields zeros.
        """
        ...


class TurningBackend(AttentionBackend, Protocol):
    def turn_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], layer: int, look: Look
    ) -> Tensor:
        """`attend` for q and k that are not rotated yet; q is overwritten.

        turn: cos and signed sin of the tokens, [tokens, 1, dim]; dims j and j + dim / 2 of a head turn together.
        """
        ...


def require(name: str, has: frozenset[Feature], shape: Shape, looks: Iterable[Look]) -> None:
    """Raise ConfigError where the backend `name`, which has these features, lacks one that the layers need."""
    needed: set[Feature] = {"narrow values"} if shape.value_dim is not None else set()
    for look in looks:
        named: dict[Feature, object] = {
            "window": look.window,
            "chunk": look.chunk,
            "softcap": look.softcap,
            "sinks": look.sinks,
            "both ways": None if look.causal else True,
        }
        needed |= {feature for feature, value in named.items() if value is not None}
    if lacking := sorted(needed - has):
        raise ConfigError(
            f"--attention-backend {name} cannot do what this model needs: {', '.join(lacking)}; "
            "--attention-backend torch can"
        )
