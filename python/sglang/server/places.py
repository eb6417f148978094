"""Where requests stand in the queue that continue others: the calls of a program, of an agent, of a chat.

A request may name its `parent`: the one whose text it goes on with, by its rid. Then it is as old as what it continues,
so that what is begun ends before anything new is begun (program-level first come, first served).
"""

import time
from typing import NamedTuple

from sglang.base import limits

HEAD_START_S = 600.0  # for as long continuations go before what came meanwhile: nobody is overtaken for ever


class Place(NamedTuple):
    founded: float  # when the oldest of the family came
    path: tuple[int, ...]  # ids from that one on; beyond PARENTS of them a family is a line


class Places:
    """By rid: where what continues it stands. The names that were last met are remembered."""

    def __init__(self) -> None:
        self._known: dict[str, Place] = {}

    def enter(self, id: int, rid: str, parent: str) -> tuple[int, ...]:
        """The place of sequence `id`, which goes by `rid`, as `Submit.place` has it.

        A parent that nobody has heard of is a name that siblings share: they stand behind the first who says it.
        """
        now = time.monotonic()
        place = self._known.get(parent) if parent else None
        if place is None or now - place.founded > HEAD_START_S:
            place = Place(now, ())
            if parent:
                self._remember(parent, Place(now, (id,)))
        self._remember(rid, Place(place.founded, (*place.path, id)[: limits.PARENTS]))
        return place.path

    def _remember(self, name: str, place: Place) -> None:
        self._known.pop(name, None)  # the youngest at the end
        self._known[name] = place
        if len(self._known) > limits.NAMES:
            del self._known[next(iter(self._known))]
