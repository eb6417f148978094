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
    block = _blocks(table, distance[alive], work)
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


def _blocks(table: NDArray[np.int32], distance: NDArray[np.int32], work: Work) -> NDArray[np.int64]:
    """Which states are equal, by number. Components from the last to the first: outside of cycles a state is known by
    its targets' blocks, so counted repeats, however long, take one look; cycles are refined together.
    """
    n, width = table.shape
    accepts = distance == 0
    block = np.full(n + 1, DEAD, np.int64)  # [-1] stays DEAD
    known: dict[bytes | int, int] = {}  # a state's look, or its hash inside a cycle -> its block
    mixer = np.random.default_rng(20_240_117)
    weights = mixer.integers(1, 2**63, width, dtype=np.uint64) | np.uint64(1)
    count = 0
    for members in _components(table):
        first = members[0]
        if len(members) > 1 or (table[first] == first).any():
            hashes = _refined(np.array(members), table, distance, block, weights, work)
            for state, hashed in zip(members, hashes, strict=True):
                block[state] = known.setdefault(hashed, count)
                count = max(count, int(block[state]) + 1)
            for state in members:
                known.setdefault(_look(table, accepts, block, state), int(block[state]))
        else:
            block[first] = known.setdefault(_look(table, accepts, block, first), count)
            count = max(count, int(block[first]) + 1)
    _, some, inverse = np.unique(block[:n], return_index=True, return_inverse=True)
    targets = block[table]
    same = (targets == targets[some][inverse.reshape(-1)]).all()
    return block[:n] if same else np.arange(n)  # two hashes met: the automaton stays as it is


def _look(table: NDArray[np.int32], accepts: NDArray[np.bool_], block: NDArray[np.int64], state: int) -> bytes:
    return block[table[state]].tobytes() + bytes([int(accepts[state])])


def _refined(
    members: NDArray[np.int64],
    table: NDArray[np.int32],
    distance: NDArray[np.int32],
    block: NDArray[np.int64],
    weights: NDArray[np.uint64],
    work: Work,
) -> list[int]:
    """Hashes of a component's states that are equal where the states are, in other components too."""
    rows = table[members]
    place = np.full(len(table) + 1, -1, np.int64)
    place[members] = np.arange(len(members))
    inside = place[rows]  # -1: leads elsewhere
    elsewhere = np.where(inside < 0, block[rows] + 2, 0).astype(np.uint64)

    def round_of(own: NDArray[np.uint64]) -> NDArray[np.uint64]:
        following = np.where(inside < 0, np.uint64(0), own[inside])
        return _mixed((following * weights).sum(1, dtype=np.uint64) + own * _ODD)

    own = _mixed((elsewhere * weights).sum(1, dtype=np.uint64) + distance[members].astype(np.uint64) * _ODD)
    count = 0
    while count < len(members):
        work.spend(16 + rows.size // 256)
        found = len(np.unique(own))
        if found == count:
            break
        count = found
        own = round_of(own)
    # One more round says of each block where it leads, so all blocks together say what the component is.
    own = round_of(own)
    return _mixed(own + np.unique(own).sum(dtype=np.uint64)).tolist()


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
