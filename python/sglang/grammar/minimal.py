"""Fewer states: those that lead nowhere go, equal ones become one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.grammar.work import Work

DEAD = -1


@dataclass(frozen=True, eq=False)
class Dfa:
    """Over classes of characters. starts[i] is the first code point of interval i, kinds[i] its class (-1: in none)."""

    starts: NDArray[np.int64]  # [intervals]
    kinds: NDArray[np.int32]  # [intervals]
    table: NDArray[np.int32]  # [states, classes]
    accepts: NDArray[np.bool_]  # [states]


def minimal(dfa: Dfa, work: Work) -> Dfa:
    """Without states that lead nowhere, and with equal states made one; no states at all for an empty language."""
    distance = _distances(dfa)
    alive = distance >= 0
    if not alive[0]:
        return Dfa(dfa.starts, dfa.kinds, np.zeros((0, dfa.table.shape[1]), np.int32), np.zeros(0, bool))
    names = np.append(np.where(alive, np.cumsum(alive) - 1, DEAD), DEAD).astype(np.int32)
    table = names[dfa.table[alive]]
    accepts = dfa.accepts[alive]
    block = _Blocks(table, distance[alive], work).result()
    # Blocks are numbered by their first member, so the start stays state 0.
    _, first, inverse = np.unique(block, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(np.argsort(first))
    block, first = order[inverse].astype(np.int32), np.sort(first)
    merged = np.append(block, DEAD).astype(np.int32)[table[first]]
    return Dfa(dfa.starts, dfa.kinds, merged, accepts[first])


def _edges(table: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(sources, targets) of a table's edges, each once, by source."""
    source, column = np.nonzero(table >= 0)
    pairs = np.unique(source * len(table) + table[source, column])
    return pairs // len(table), pairs % len(table)


def _lists(keys: NDArray[np.int64], values: NDArray[np.int64], n: int) -> list[list[int]]:
    """values by key, for keys 0 .. n-1."""
    order = np.argsort(keys, kind="stable")
    bounds = np.searchsorted(keys[order], np.arange(n + 1)).tolist()
    listed = values[order].tolist()
    return [listed[bounds[i] : bounds[i + 1]] for i in range(n)]


def _distances(dfa: Dfa) -> NDArray[np.int32]:
    """Characters in the shortest way from each state to an accepting one, -1 where there is none."""
    sources, targets = _edges(dfa.table)
    before = _lists(targets, sources, len(dfa.accepts))
    distance = np.where(dfa.accepts, 0, -1).tolist()
    todo = np.flatnonzero(dfa.accepts).tolist()
    for state in todo:
        for other in before[state]:
            if distance[other] < 0:
                distance[other] = distance[state] + 1
                todo.append(other)
    return np.array(distance, np.int32)


class _Blocks:
    """Which states are equal, by number. Components from the last to the first: outside of cycles a state is known by
    its targets' blocks, so counted repeats, however long, take one look; cycles are refined together.
    """

    def __init__(self, table: NDArray[np.int32], distance: NDArray[np.int32], work: Work):
        n, width = table.shape
        self.table = table
        self.distance = distance
        self.work = work
        self.block = np.full(n + 1, DEAD, np.int64)  # [-1] stays DEAD
        self.count = 0
        self._known: dict[bytes | int, int] = {}  # a state's look, or its hash inside a cycle -> its block
        self._cycle: dict[int, list[int]] = {}  # block -> one state of each block of its cycle
        self._place = np.full(n + 1, -1, np.int64)  # in the component at hand
        mixer = np.random.default_rng(20_240_117)
        self._weights = mixer.integers(1, 2**63, width, dtype=np.uint64) | np.uint64(1)
        for members in _components(table):
            if len(members) > 1 or (table[members[0]] == members[0]).any():
                self.settle(np.array(members))
            else:
                self.name(members[0], self.look(members[0]))

    def result(self) -> NDArray[np.int64]:
        block = self.block[:-1]
        _, some, inverse = np.unique(block, return_index=True, return_inverse=True)
        targets = self.block[self.table]
        same = (targets == targets[some][inverse.reshape(-1)]).all()
        return block if same else np.arange(len(block))  # two hashes met: the automaton stays as it is

    def name(self, state: int, look: bytes | int) -> None:
        self.block[state] = self._known.setdefault(look, self.count)
        self.count = max(self.count, int(self.block[state]) + 1)

    def look(self, state: int) -> bytes:
        return self.block[self.table[state]].tobytes() + bytes([int(self.distance[state] == 0)])

    def settle(self, members: NDArray[np.int64]) -> None:
        """Blocks for the states of a component with a cycle."""
        rows = self.table[members]
        self._place[members] = np.arange(len(members))
        inside = self._place[rows]  # -1: leads elsewhere
        self._place[members] = -1
        hashes = self.refined(members, rows, inside)
        _, some, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        if int(hashes[0]) not in self._known:
            # One of each block, for the blocks' own little table.
            inner = np.where(inside[some] < 0, -1, inverse.reshape(-1)[inside[some]])
            equal = self.equal_below(members[some], self.block[rows[some]], inner)
            if equal is not None:
                self.block[members] = equal[inverse.reshape(-1)]
                return
        for state, hashed in zip(members.tolist(), hashes.tolist(), strict=True):
            self.name(state, hashed)
        for state in members.tolist():
            self._known.setdefault(self.look(state), int(self.block[state]))
        cycle = members[some].tolist()
        self._cycle.update((int(self.block[state]), cycle) for state in cycle)

    def refined(
        self, members: NDArray[np.int64], rows: NDArray[np.int32], inside: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        """Hashes of a component's states that are equal where the states are, in components of the same shape too."""
        elsewhere = np.where(inside < 0, self.block[rows] + 2, 0).astype(np.uint64)

        def round_of(own: NDArray[np.uint64]) -> NDArray[np.uint64]:
            following = np.where(inside < 0, np.uint64(0), own[inside])
            return _mixed((following * self._weights).sum(1, dtype=np.uint64) + own * _ODD)

        own = _mixed(
            (elsewhere * self._weights).sum(1, dtype=np.uint64) + self.distance[members].astype(np.uint64) * _ODD
        )
        count = 0
        while count < len(members):
            self.work.spend(16 + rows.size // 256)
            found = len(np.unique(own))
            if found == count:
                break
            count = found
            own = round_of(own)
        # One more round says of each block where it leads, so all blocks together say what the component is.
        own = round_of(own)
        return _mixed(own + np.unique(own).sum(dtype=np.uint64))

    def equal_below(
        self, states: NDArray[np.int64], outer: NDArray[np.int64], inner: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """A cycle may say the same as one it leads to (`a*.*`): then the blocks there, one for each of `states`.

        outer, inner: [states, classes], the block that is led to, or its index here; -1 where it is the other's to say.
        """
        outer = np.where(inner >= 0, -1, outer)
        for block in np.unique(outer[outer >= 0]).tolist():
            below = np.array(self._cycle.get(block, []), np.int64)
            fitting = below[self.distance[below] == self.distance[states[0]]]
            leads = self.block[self.table[fitting]]
            fitting = fitting[((leads == outer[0]) | (inner[0] >= 0)).all(1)]
            for start in fitting.tolist():
                found = self.follow(states, outer, inner, start)
                if found is not None:
                    return found
        return None

    def follow(
        self, states: NDArray[np.int64], outer: NDArray[np.int64], inner: NDArray[np.int64], start: int
    ) -> NDArray[np.int64] | None:
        """The blocks of `states` if the first of them is equal to `start`; None where it is not."""
        mine: dict[int, int] = {0: int(self.block[start])}
        some = {int(self.block[start]): start}
        todo = [0]
        for i in todo:
            self.work.spend(4 + outer.shape[1] // 16)
            state = some[mine[i]]
            targets = self.table[state]
            leads = self.block[targets]
            here = inner[i] >= 0
            if self.distance[state] != self.distance[states[i]] or (leads[~here] != outer[i][~here]).any():
                return None
            for j, target in {*zip(inner[i][here].tolist(), targets[here].tolist(), strict=True)}:
                block = int(self.block[target])
                if j not in mine:
                    mine[j] = block
                    some.setdefault(block, target)
                    todo.append(j)
                if block < 0 or mine[j] != block:
                    return None
        return np.array([mine[i] for i in range(len(states))], np.int64)


_ODD = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(27))


def _components(table: NDArray[np.int32]) -> Iterator[list[int]]:
    """Strongly connected components, a component after all that it leads to (Tarjan's algorithm, without recursion)."""
    after = _lists(*_edges(table), len(table))
    order = [0] * len(table)  # 1 + when a state was met
    low = [0] * len(table)
    done = [False] * len(table)
    pending: list[int] = []
    met = 0
    for root in range(len(table)):
        if order[root]:
            continue
        path = [(root, 0)]
        while path:
            state, at = path.pop()
            if at == 0:
                met += 1
                order[state] = low[state] = met
                pending.append(state)
            following = after[state]
            while at < len(following):
                other = following[at]
                at += 1
                if not order[other]:
                    path.append((state, at))
                    path.append((other, 0))
                    break
                if not done[other]:
                    low[state] = min(low[state], order[other])
            else:
                if low[state] == order[state]:
                    cut = len(pending) - 1
                    while pending[cut] != state:
                        cut -= 1
                    members = pending[cut:]
                    del pending[cut:]
                    for member in members:
                        done[member] = True
                    yield members
                if path:
                    above = path[-1][0]
                    if not done[state]:
                        low[above] = min(low[above], low[state])
