"""Which automata are on the device, and where.

An arena of rows, one a state, takes automata whole and side by side. Running sequences hold theirs; the others stay for
the next that ask, and those unused for longest go when room is needed. A row may be given away while a step in flight
still reads it: what the device does to it comes later.

Making masks takes the device from the others' tokens, so a plan brings a few hundred states and no more. A larger
automaton comes with several plans, and until the last of them masks of its rows come from the host.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

from sglang.base.plan import LIVES, STOPS, Load
from sglang.grammar.rules import Machine

# Whose masks a plan has made: 1.8 us each on an H200 with 128k tokens, so a fifth of a decode step of an 8B model.
STATES = 512
NO_TABLE, NO_FLAGS = np.zeros((0, 256), np.int16), np.zeros(0, np.uint8)

Key = tuple[int, bool]  # the machine's number; whether its texts may be ended


@dataclass
class Resident:
    base: int  # its first row
    states: int
    holders: int = 0
    here: bool = False  # all of it, by the next plan


class Residents:
    """first, rows: the arena's rows that are for automata; most: states that a plan brings."""

    def __init__(self, first: int, rows: int, most: int = STATES):
        self.first = first
        self.rows = rows
        self.most = most
        self._coming: deque[tuple[Resident, Load]] = deque()  # what is still to be brought, in this order
        self._known: OrderedDict[Key, Resident] = OrderedDict()  # least recently taken first

    def take(self, machine: Machine, ends: bool) -> Resident | None:
        """Hold a machine that is on the device by the next plan.

        None where it is not: then it comes later, see `arrived`, unless there is no room for it.
        ends: the end may be drawn wherever the text may end; otherwise only where nothing else may come.
        """
        key = (machine.number, ends)
        if key not in self._known:
            states = len(machine.flags)
            base = self._room(states)
            if base is None:
                return None
            self._known[key] = found = Resident(base, states)
            flags = machine.flags if ends else np.where(machine.flags & STOPS, machine.flags, machine.flags & LIVES)
            before = sum(load.count for _, load in self._coming)
            found.here = before + states <= self.most
            self._coming.append((found, Load(base, machine.table, flags.astype(np.uint8), 0, states)))
        return self.arrived(machine, ends)

    def arrived(self, machine: Machine, ends: bool) -> Resident | None:
        """Hold a machine if it is on the device by the next plan."""
        key = (machine.number, ends)
        found = self._known.get(key)
        if found is None or not found.here:
            return None
        self._known.move_to_end(key)
        found.holders += 1
        return found

    def release(self, resident: Resident) -> None:
        assert resident.holders > 0
        resident.holders -= 1

    def flush(self) -> list[Load]:
        """What a plan brings, which is made now."""
        loads, left = [], self.most
        while self._coming and left:
            resident, load = self._coming.popleft()
            rest = load.count - left
            if rest > 0:
                later = Load(load.base, NO_TABLE, NO_FLAGS, load.first + left, rest)
                self._coming.appendleft((resident, later))
                load = Load(load.base, load.table, load.flags, load.first, left)
            loads.append(load)
            left -= load.count
            resident.here = rest <= 0
        return loads

    def _room(self, states: int) -> int | None:
        """The first row of so many that are free, after some automata had to go if need be."""
        if states > self.rows:
            return None
        while (base := self._gap(states)) is None:
            idle = next((key for key, resident in self._known.items() if not resident.holders), None)
            if idle is None:
                return None
            gone = self._known.pop(idle)
            self._coming = deque((one, load) for one, load in self._coming if one is not gone)
        return base

    def _gap(self, states: int) -> int | None:
        at = self.first
        for resident in sorted(self._known.values(), key=lambda r: r.base):
            if resident.base - at >= states:
                return at
            at = resident.base + resident.states
        return at if self.first + self.rows - at >= states else None

    def check(self, held: list[Resident]) -> None:
        """The invariants, for tests: raises AssertionError. held: one for each holder."""
        known = list(self._known.values())
        assert all(any(resident is one for one in known) for resident in held), "an automaton is followed that has gone"
        for resident in known:
            assert resident.holders == sum(resident is one for one in held), "holders are counted wrongly"
        at = self.first
        for resident in sorted(known, key=lambda r: r.base):
            assert resident.base >= at, "two automata share a row"
            at = resident.base + resident.states
        assert at <= self.first + self.rows
