"""Which automata are on the device, and where.

An arena of rows, one a state, takes automata whole and side by side. Running sequences hold theirs; the others stay for
the next that ask, and those unused for longest go when room is needed. A row may be given away while a step in flight
still reads it: what the device does to it comes later.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from sglang.base.plan import LIVES, STOPS, Load
from sglang.grammar.rules import Machine

Key = tuple[int, bool]  # the machine's number; whether its texts may be ended


@dataclass
class Resident:
    base: int  # its first row
    states: int
    holders: int = 0


class Residents:
    """first, rows: the arena's rows that are for automata."""

    def __init__(self, first: int, rows: int):
        self.first = first
        self.rows = rows
        self.loads: list[Load] = []  # what the next plan brings
        self._known: OrderedDict[Key, Resident] = OrderedDict()  # least recently taken first

    def take(self, machine: Machine, ends: bool) -> Resident | None:
        """Hold a machine, which is on the device by the next plan; None where there is no room for it.

        ends: the end may be drawn wherever the text may end; otherwise only where nothing else may come.
        """
        key = (machine.number, ends)
        found = self._known.get(key)
        if found is None:
            base = self._room(len(machine.flags))
            if base is None:
                return None
            found = self._known[key] = Resident(base, len(machine.flags))
            flags = machine.flags if ends else np.where(machine.flags & STOPS, machine.flags, machine.flags & LIVES)
            self.loads.append(Load(base, machine.table, flags.astype(np.uint8)))
        self._known.move_to_end(key)
        found.holders += 1
        return found

    def release(self, resident: Resident) -> None:
        assert resident.holders > 0
        resident.holders -= 1

    def flush(self) -> list[Load]:
        """What has been taken since the last flush and is not on the device."""
        loads, self.loads = self.loads, []
        return loads

    def _room(self, states: int) -> int | None:
        """The first row of so many that are free, after some automata had to go if need be."""
        if states > self.rows:
            return None
        while (base := self._gap(states)) is None:
            idle = next((key for key, resident in self._known.items() if not resident.holders), None)
            if idle is None:
                return None
            del self._known[idle]
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
