"""Language trees -> deterministic automata over classes of characters that the tree never tells apart.

Through an NFA that is built from its end, so that equal endings are one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sglang.grammar.language import LAST, Alt, Both, Cat, Chars, Node, Ranges, Repeat, Text, Without
from sglang.grammar.minimal import DEAD, Dfa, minimal
from sglang.grammar.work import Work


class Nfa:
    """Built from the end: `build(node, next)` is the state from which `node` and then `next` is read.

    State 0 accepts. A state either reads one character out of a set and goes to one place, or is a fork.
    """

    def __init__(self, work: Work):
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
            for more in reversed(range(high - low)):
                left, before, next = self.work.left, next, self._fork((self.build(item, next), end))
                self.work.spend(1)
                if next == before:
                    break  # the item is empty
                self.work.foresee(left - self.work.left, more)
        for more in reversed(range(low)):
            left, before, next = self.work.left, next, self.build(item, next)
            self.work.spend(1)
            if next == before:
                break
            self.work.foresee(left - self.work.left, more)
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

    def _embed(self, dfa: Dfa, next: int) -> int:
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


def determine(node: Node, work: Work) -> Dfa:
    """Subset construction."""
    nfa = Nfa(work)
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
        if len(todo) * max(width, 1) > _CELLS or len(todo) > work.states * 5 // 4:
            raise work.too_large()
    table = np.full((len(todo), width), DEAD, np.int32)
    lengths = np.array([len(c) for _, c, _ in rows], np.int64)
    sources = np.repeat(np.array([r[0] for r in rows], np.int64), lengths)
    table[sources, np.array([c for _, columns, _ in rows for c in columns], np.int64)] = np.repeat(
        np.array([r[2] for r in rows], np.int32), lengths
    )
    return Dfa(starts, kinds, table, np.array([0 in s for s in todo], bool))


_CELLS = 1 << 24  # of a table of states by classes


def _ways(sets: tuple[int, ...], classes: list[list[int]], work: Work) -> list[tuple[list[int], list[int]]]:
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


def _ranges_of(dfa: Dfa, row: list[int], target: int) -> Ranges:
    """The characters that lead to `target`."""
    ends = [*dfa.starts[1:].tolist(), LAST + 1]
    spans: list[tuple[int, int]] = []
    for low, end, kind in zip(dfa.starts.tolist(), ends, dfa.kinds.tolist(), strict=True):
        if kind >= 0 and row[kind] == target:
            if spans and spans[-1][1] == low - 1:
                low = spans.pop()[0]
            spans.append((low, end - 1))
    return tuple(spans)


def _product(node: Both | Without, work: Work) -> Dfa:
    left = minimal(determine(node.left, work), work)
    right = minimal(determine(node.right, work), work)
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
    return minimal(Dfa(starts, columns.reshape(-1).astype(np.int32), table, accepts), work)
