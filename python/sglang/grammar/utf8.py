"""From classes of characters to the bytes of UTF-8."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglang.grammar.language import LAST
from sglang.grammar.minimal import DEAD, Dfa
from sglang.grammar.work import Work

Table = NDArray[np.int16]  # [states, 256], DEAD where nothing goes on; limits.GRAMMAR_STATES fit


@dataclass
class _Shape:
    """Where in the bytes of characters which classes stand: nodes of a minimal tree of continuation bytes.

    A node is a list of (first byte, last byte, child); a child is a node's number, or ~class below the last byte.
    """

    dfa: Dfa
    nodes: list[tuple[tuple[int, int, int], ...]] = field(default_factory=list)
    kinds: list[NDArray[np.int64]] = field(default_factory=list)  # classes under each node
    _names: dict[tuple[tuple[int, int, int], ...], int] = field(default_factory=dict)

    def leads(self) -> Iterator[tuple[int, int, int]]:
        """(first, last, node) of the lead bytes of characters beyond ASCII."""
        runs: list[tuple[int, int, int]] = []
        for lead in range(0xC2, 0xF5):
            rest = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
            base = (lead & (0x3F >> rest)) << (6 * rest)
            least = (0, 0x80, 0x800, 0x10000)[rest]
            _extend(runs, lead, self.node(base, rest, least))
        return iter(runs)

    def node(self, base: int, rest: int, least: int) -> int | None:
        """Code points base .. base + 64^rest - 1, as far as they are `least` or more."""
        low, high = max(base, least), min(base + 64**rest - 1, LAST)
        if low > high:
            return None
        starts, kinds = self.dfa.starts, self.dfa.kinds
        first, last = (int(np.searchsorted(starts, x, "right")) - 1 for x in (low, high))
        if first == last and low == base and high == base + 64**rest - 1:
            return self._whole(int(kinds[first]), rest)
        if not (kinds[first : last + 1] >= 0).any():
            return None
        runs: list[tuple[int, int, int]] = []
        for i in range(64):
            part = base + i * 64 ** (rest - 1)
            if rest > 1:
                _extend(runs, 0x80 + i, self.node(part, rest - 1, least))
            elif least <= part <= LAST:
                _extend(runs, 0x80 + i, self._whole(int(kinds[np.searchsorted(starts, part, "right") - 1]), 0))
        return self._intern(runs)

    def _whole(self, kind: int, rest: int) -> int | None:
        if kind < 0:
            return None
        child = ~kind
        for _ in range(rest):
            found = self._intern([(0x80, 0xBF, child)])
            assert found is not None
            child = found
        return child

    def _intern(self, runs: list[tuple[int, int, int]]) -> int | None:
        if not runs:
            return None
        key = tuple(runs)
        if key not in self._names:
            self._names[key] = len(self.nodes)
            self.nodes.append(key)
            below = [np.array([~c]) if c < 0 else self.kinds[c] for _, _, c in key]
            self.kinds.append(np.unique(np.concatenate(below)))
        return self._names[key]


def _extend(runs: list[tuple[int, int, int]], byte: int, child: int | None) -> None:
    if child is None:
        return
    if runs and runs[-1][1] == byte - 1 and runs[-1][2] == child:
        runs[-1] = (runs[-1][0], byte, child)
    else:
        runs.append((byte, byte, child))


def over_bytes(dfa: Dfa, work: Work) -> tuple[Table, NDArray[np.bool_]]:
    """(table, accepting states), minimal as `dfa` is: states inside a character are told apart by what follows only."""
    n = len(dfa.accepts)
    ascii_kinds = dfa.kinds[np.searchsorted(dfa.starts, np.arange(128), "right") - 1]
    padded = np.hstack([dfa.table, np.full((n, 1), DEAD, np.int32)])  # column -1: characters in no class
    roots = np.full((n, 256), DEAD, np.int32)
    roots[:, :128] = padded[:, ascii_kinds]
    shape = _Shape(dfa)
    inner: dict[tuple[tuple[int, int, int], ...], int] = {}
    done: dict[tuple[int, bytes], int] = {}

    def resolve(node: int, row: NDArray[np.int32]) -> int:
        """The state inside a character, at `node`, of one whose classes lead where `row` says."""
        key = (node, row[shape.kinds[node]].tobytes())
        state = done.get(key)
        if state is not None:
            return state
        runs: list[tuple[int, int, int]] = []
        for low, high, child in shape.nodes[node]:
            target = int(row[~child]) if child < 0 else resolve(child, row)
            if target < 0:
                continue
            if runs and runs[-1][1] == low - 1 and runs[-1][2] == target:
                runs[-1] = (runs[-1][0], high, target)
            else:
                runs.append((low, high, target))
        work.spend(8 + len(runs))
        state = inner.setdefault(tuple(runs), n + len(inner)) if runs else DEAD
        if n + len(inner) > work.states:
            raise work.too_large()
        done[key] = state
        return state

    for low, high, node in shape.leads():
        rows, inverse = np.unique(dfa.table[:, shape.kinds[node]], axis=0, return_inverse=True)
        full = np.full(dfa.table.shape[1], DEAD, np.int32)
        targets = np.empty(len(rows), np.int32)
        for i, row in enumerate(rows):
            full[shape.kinds[node]] = row
            targets[i] = resolve(node, full)
        roots[:, low : high + 1] = targets[inverse.reshape(-1)][:, None]
    if n + len(inner) > work.states:
        raise work.too_large()
    table = np.full((n + len(inner), 256), DEAD, np.int16)
    table[:n] = roots
    for state, runs in enumerate(inner, n):
        for low, high, target in runs:
            table[state, low : high + 1] = target
    return table, np.append(dfa.accepts, np.zeros(len(inner), bool))
