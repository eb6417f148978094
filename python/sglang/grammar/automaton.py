"""Language trees -> minimal automata over the bytes of UTF-8.

Tree -> NFA over characters -> DFA over classes of characters that the tree never tells apart -> minimal DFA -> bytes.
Going to bytes last keeps every step small: a counted string of 1000 characters is 1000 states until the end.
All work is counted, not timed: what is refused does not depend on how busy the machine is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar.language import LAST, Alt, Both, Cat, Chars, Node, Ranges, Repeat, Text, Without

DEAD = -1
Table = NDArray[np.int16] | NDArray[np.int32]  # [states, columns], DEAD where nothing goes on


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over bytes. State 0 is the start; from every state an accepting one can be reached.

    table: int16 where the states fit, else int32; [states, 256].
    only: the byte that must come next, where there is one way on and the text may not end here; -1 elsewhere.
    """

    table: Table
    accepts: NDArray[np.bool_]  # [states]
    only: NDArray[np.int16]  # [states]

    @property
    def states(self) -> int:
        return len(self.accepts)

    def walk(self, state: int, data: bytes) -> int:
        """The state after `data`, DEAD where it leaves the language."""
        for byte in data:
            if state < 0:
                return DEAD
            state = int(self.table[state, byte])
        return state

    def matches(self, text: str | bytes) -> bool:
        end = self.walk(0, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        return end >= 0 and bool(self.accepts[end])

    def forced(self, state: int) -> bytes:
        """What must come next: the bytes up to the next place with a choice, the choice to end included."""
        out = bytearray()
        while (byte := int(self.only[state])) >= 0:
            out.append(byte)
            state = int(self.table[state, byte])
        return bytes(out)


def compile(node: Node, field: str = "regex") -> Automaton:
    """Raises FieldError(field) for an empty language, TooLarge for one over limits.GRAMMAR_STATES or GRAMMAR_WORK."""
    work = _Work(field)
    try:
        dfa = _minimal(_determine(node, work), work)
    except RecursionError:
        raise FieldError(field, f"{field} is nested too deeply") from None
    if not len(dfa.accepts):
        raise FieldError(field, f"{field} matches no text at all")
    return _over_bytes(dfa, work)


class TooLarge(FieldError):
    """The language is regular, but its automaton is over the limits."""


class _Work:
    """What one compilation may cost."""

    def __init__(self, field: str):
        self.field = field
        self.left = limits.GRAMMAR_WORK

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise self.too_large()

    def too_large(self) -> TooLarge:
        return TooLarge(
            self.field,
            f"{self.field} needs too large an automaton (at most {limits.GRAMMAR_STATES} states, and "
            f"{limits.GRAMMAR_WORK} steps to build them): long bounded repeats and overlapping alternatives multiply",
        )


@dataclass(frozen=True, eq=False)
class _Dfa:
    """Over classes of characters. starts[i] is the first code point of interval i, kinds[i] its class (-1: in none)."""

    starts: NDArray[np.int64]  # [intervals]
    kinds: NDArray[np.int32]  # [intervals]
    table: NDArray[np.int32]  # [states, classes]
    accepts: NDArray[np.bool_]  # [states]


class _Nfa:
    """Built from the end: `build(node, next)` is the state from which `node` and then `next` is read.

    State 0 accepts. A state either reads one character out of a set and goes to one place, or is a fork.
    """

    def __init__(self, work: _Work):
        self.work = work
        self.sets: dict[Ranges, int] = {}
        self.reads: list[int] = [-1]  # set of characters, -1 for forks and the end
        self.goes: list[int] = [0]
        self.forks: dict[int, tuple[int, ...]] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self._splits: dict[tuple[int, ...], int] = {}
        self._built: dict[tuple[int, int], int] = {}
        self._nodes: list[Node] = []  # keeps ids of nodes from being used twice
        self._closed: dict[int, frozenset[int]] = {0: frozenset((0,))}

    def build(self, node: Node, next: int) -> int:
        key = (id(node), next)
        state = self._built.get(key)
        if state is None:
            self.work.spend(1)
            state = self._built[key] = self._build(node, next)
            self._nodes.append(node)
        return state

    def _build(self, node: Node, next: int) -> int:
        match node:
            case Text(value):
                for c in reversed(value):
                    next = self._step(((ord(c), ord(c)),), next)
                return next
            case Chars(ranges):
                return self._step(ranges, next) if ranges else self._fork(())
            case Cat(items):
                for item in reversed(items):
                    next = self.build(item, next)
                return next
            case Alt(items):
                return self._fork(tuple(dict.fromkeys(self.build(item, next) for item in items)))
            case Repeat(item, low, high):
                return self._repeat(item, low, high, next)
            case Both() | Without():
                return self._embed(_product(node, self.work), next)

    def _repeat(self, item: Node, low: int, high: int | None, next: int) -> int:
        while isinstance(item, Repeat) and (item.low, item.high) == (0, 1):
            item, low = item.item, 0  # (a?){9} is a{0,9}, whose states overlap less
        if high is None:
            loop = self._new(-1, 0)
            self.forks[loop] = ()
            self.forks[loop] = (self.build(item, loop), next)
            next = loop
        else:
            end = next
            for _ in range(high - low):
                before, next = next, self._fork((self.build(item, next), end))
                self.work.spend(1)
                if next == before:
                    break  # the item is empty
        for _ in range(low):
            before, next = next, self.build(item, next)
            self.work.spend(1)
            if next == before:
                break
        return next

    def _step(self, ranges: Ranges, next: int) -> int:
        number = self.sets.setdefault(ranges, len(self.sets))
        key = (number, next)
        if key not in self._steps:
            self._steps[key] = self._new(number, next)
        return self._steps[key]

    def _fork(self, targets: tuple[int, ...]) -> int:
        targets = tuple(dict.fromkeys(targets))
        if len(targets) == 1:
            return targets[0]
        if targets not in self._splits:
            self.work.spend(len(targets))
            state = self._splits[targets] = self._new(-1, 0)
            self.forks[state] = targets
        return self._splits[targets]

    def _new(self, reads: int, goes: int) -> int:
        self.work.spend(4)
        self.reads.append(reads)
        self.goes.append(goes)
        return len(self.reads) - 1

    def _embed(self, dfa: _Dfa, next: int) -> int:
        """A finished automaton as a part of this one."""
        if not len(dfa.accepts):
            return self._fork(())
        states = [self._new(-1, 0) for _ in dfa.accepts]
        for state, row, accepts in zip(states, dfa.table.tolist(), dfa.accepts.tolist(), strict=True):
            self.work.spend(len(row))
            ways = [self._step(_ranges_of(dfa, row, target), states[target]) for target in {*row} - {DEAD}]
            self.forks[state] = (*ways, *((next,) if accepts else ()))
        return states[0]

    def close(self, state: int) -> frozenset[int]:
        """What can be reached without reading: states that read, and 0 where the end is."""
        known = self._closed.get(state)
        if known is not None:
            return known
        if self.reads[state] >= 0:
            found = frozenset((state,))
        else:
            seen = {state}
            todo = [state]
            reached: set[int] = set()
            while todo:
                for target in self.forks[todo.pop()]:
                    if target in self._closed:
                        reached |= self._closed[target]
                    elif self.reads[target] >= 0:
                        reached.add(target)
                    elif target not in seen:
                        seen.add(target)
                        todo.append(target)
            self.work.spend(len(seen) + len(reached))
            found = frozenset(reached)
        self._closed[state] = found
        return found


def _alphabet(sets: Sequence[Ranges]) -> tuple[NDArray[np.int64], NDArray[np.int32], list[list[int]]]:
    """Cuts the code points into classes whose members are in the same sets.

    Returns the intervals' starts, their classes (-1: in no set), and for every set the classes it is made of.
    """
    cuts = {0}
    for ranges in sets:
        for low, high in ranges:
            cuts.add(low)
            cuts.add(high + 1)
    starts = np.array(sorted(cuts - {LAST + 1}), np.int64)
    member = np.zeros((len(sets), len(starts)), bool)
    for i, ranges in enumerate(sets):
        for low, high in ranges:
            member[i, np.searchsorted(starts, low) : np.searchsorted(starts, high + 1)] = True
    keys = np.ascontiguousarray(np.packbits(member, axis=0).T)
    names: dict[bytes, int] = {bytes(keys.shape[1]): DEAD}
    kinds = np.array([names.setdefault(key.tobytes(), len(names) - 1) for key in keys], np.int32)
    return starts, kinds, [sorted({*kinds[row].tolist()}) for row in member]


def _determine(node: Node, work: _Work) -> _Dfa:
    """Subset construction."""
    nfa = _Nfa(work)
    start = nfa.close(nfa.build(node, 0))
    starts, kinds, classes = _alphabet(list(nfa.sets))
    width = int(kinds.max(initial=DEAD)) + 1
    ways: dict[tuple[int, ...], list[tuple[list[int], list[int]]]] = {}
    index = {start: 0}
    heads: dict[tuple[int, ...], int] = {}  # places just entered -> the state they make
    todo = [start]
    rows: list[tuple[int, list[int], int]] = []  # (state, classes, target)
    for state in todo:
        source = index[state]
        work.spend(2 + len(state))
        read: dict[int, list[int]] = {}
        for place in state:
            if place:
                read.setdefault(nfa.reads[place], []).append(nfa.goes[place])
        key = tuple(sorted(read))
        if key not in ways:
            ways[key] = _ways(key, classes, work)
        for members, columns in ways[key]:
            places = read[members[0]] if len(members) == 1 else [p for m in members for p in read[m]]
            entered = tuple(sorted({*places})) if len(places) > 1 else (places[0],)
            target = heads.get(entered, DEAD)
            if target < 0:
                reached = nfa.close(entered[0])
                if len(entered) > 1:
                    others = [nfa.close(p) for p in entered[1:]]
                    work.spend(len(entered) + sum(map(len, others)) // 64)
                    reached = reached.union(*others)
                target = index.setdefault(reached, len(index))
                heads[entered] = target
                if target == len(todo):
                    todo.append(reached)
            rows.append((source, columns, target))
            work.spend(1)
        if len(todo) * max(width, 1) > _CELLS or len(todo) > limits.GRAMMAR_STATES * 5 // 4:
            raise work.too_large()
    table = np.full((len(todo), width), DEAD, np.int32)
    lengths = np.array([len(c) for _, c, _ in rows], np.int64)
    sources = np.repeat(np.array([r[0] for r in rows], np.int64), lengths)
    table[sources, np.array([c for _, columns, _ in rows for c in columns], np.int64)] = np.repeat(
        np.array([r[2] for r in rows], np.int32), lengths
    )
    return _Dfa(starts, kinds, table, np.array([0 in s for s in todo], bool))


_CELLS = 1 << 24  # of a table of states by classes


def _ways(sets: tuple[int, ...], classes: list[list[int]], work: _Work) -> list[tuple[list[int], list[int]]]:
    """How the classes in `sets` fall apart: (the sets they are all in, the classes)."""
    if len(sets) == 1:
        return [(list(sets), classes[sets[0]])]
    inside: dict[int, list[int]] = {}
    for number in sets:
        work.spend(len(classes[number]))
        for kind in classes[number]:
            inside.setdefault(kind, []).append(number)
    groups: dict[tuple[int, ...], list[int]] = {}
    for kind, numbers in inside.items():
        groups.setdefault(tuple(numbers), []).append(kind)
    return [(list(numbers), kinds) for numbers, kinds in groups.items()]


def _ranges_of(dfa: _Dfa, row: list[int], target: int) -> Ranges:
    """The characters that lead to `target`."""
    ends = [*dfa.starts[1:].tolist(), LAST + 1]
    spans: list[tuple[int, int]] = []
    for low, end, kind in zip(dfa.starts.tolist(), ends, dfa.kinds.tolist(), strict=True):
        if kind >= 0 and row[kind] == target:
            if spans and spans[-1][1] == low - 1:
                low = spans.pop()[0]
            spans.append((low, end - 1))
    return tuple(spans)


def _product(node: Both | Without, work: _Work) -> _Dfa:
    left = _minimal(_determine(node.left, work), work)
    right = _minimal(_determine(node.right, work), work)
    if not len(left.accepts):
        return left
    starts = np.union1d(left.starts, right.starts)
    sides = []
    for dfa in (left, right):
        kinds = dfa.kinds[np.searchsorted(dfa.starts, starts, "right") - 1]
        sink = len(dfa.accepts)  # for `right` also the place of all that left it; an empty language is nothing but that
        table = np.vstack([np.where(dfa.table < 0, sink, dfa.table), np.full((1, dfa.table.shape[1]), sink)])
        # One more column for characters the automaton never reads.
        table = np.hstack([table, np.full((sink + 1, 1), sink)])[:, kinds]
        sides.append((table, np.append(dfa.accepts, False)))
    (a, a_accepts), (b, b_accepts) = sides
    both, columns = np.unique(np.vstack([a, b]), axis=1, return_inverse=True)
    a, b = both[: len(a)], both[len(a) :]
    keep_right = isinstance(node, Both)
    index = {(0, 0): 0}
    todo = [(0, 0)]
    rows: list[list[int]] = []
    for p, q in todo:
        work.spend(4 + a.shape[1])
        row = []
        for pair in zip(a[p].tolist(), b[q].tolist(), strict=True):
            if pair[0] == len(a) - 1 or (keep_right and pair[1] == len(b) - 1):
                row.append(DEAD)
                continue
            if pair not in index:
                index[pair] = len(todo)
                todo.append(pair)
            row.append(index[pair])
        rows.append(row)
    accepts = np.array([a_accepts[p] and b_accepts[q] == keep_right for p, q in todo], bool)
    table = np.array(rows, np.int32).reshape(len(rows), a.shape[1])
    return _minimal(_Dfa(starts, columns.reshape(-1).astype(np.int32), table, accepts), work)


def _minimal(dfa: _Dfa, work: _Work) -> _Dfa:
    """Without states that lead nowhere, and with equal states made one; no states at all for an empty language."""
    distance = _distances(dfa)
    alive = distance >= 0
    if not alive[0]:
        return _Dfa(dfa.starts, dfa.kinds, np.zeros((0, dfa.table.shape[1]), np.int32), np.zeros(0, bool))
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
    return _Dfa(dfa.starts, dfa.kinds, merged, accepts[first])


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


def _distances(dfa: _Dfa) -> NDArray[np.int32]:
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


def _blocks(table: NDArray[np.int32], distance: NDArray[np.int32], work: _Work) -> NDArray[np.int64]:
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
    work: _Work,
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


@dataclass
class _Shape:
    """Where in the bytes of characters which classes stand: nodes of a minimal tree of continuation bytes.

    A node is a list of (first byte, last byte, child); a child is a node's number, or ~class below the last byte.
    """

    dfa: _Dfa
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


def _over_bytes(dfa: _Dfa, work: _Work) -> Automaton:
    """Minimal, as `dfa` is: states inside a character are told apart by what follows only."""
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
        if n + len(inner) > limits.GRAMMAR_STATES:
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
    if n + len(inner) > limits.GRAMMAR_STATES:
        raise work.too_large()
    table = np.full((n + len(inner), 256), DEAD, np.int16 if n + len(inner) < 2**15 else np.int32)
    table[:n] = roots
    for state, runs in enumerate(inner, n):
        for low, high, target in runs:
            table[state, low : high + 1] = target
    accepts = np.append(dfa.accepts, np.zeros(len(inner), bool))
    ways = table >= 0
    only = np.where((ways.sum(1) == 1) & ~accepts, ways.argmax(1), -1).astype(np.int16)
    return Automaton(table, accepts, only)
