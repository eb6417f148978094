"""When to plan the next step: as late as the device can bear, because a request that arrives after waits a step more.

While a step runs, the next one must be launched before it ends. How long it takes: as long as the shortest of the last
steps of its kind. How long it takes to plan and launch: as long as the longest of the last did. What took long because
its launch did (a graph captured, a kernel compiled) says nothing of its kind; and a kind is measured anew of which a
step was found to have ended already.
"""

from collections import deque

from sglang.base.plan import Plan

KEPT = 4  # steps of a kind
LAUNCHES = 8
LATE_S = 0.0002  # a step whose end is awaited for less had perhaps ended before the next one was launched
SPARED_S = 0.0005  # the end of a step is foreseen to be so much earlier
MOST_S = 0.02  # a launch that takes longer is no usual one


class Pace:
    """All times in seconds, by one clock."""

    def __init__(self) -> None:
        self._took: dict[tuple[int, bool], deque[float]] = {}
        self._last = deque([SPARED_S], maxlen=LAUNCHES)  # seconds of usual launches
        self._free = 0.0  # when the device was last known to begin on the step that now runs, or to have ended one
        self._due = 0.0
        self._launches: dict[int, float] = {}  # by step: seconds of the host

    def launched(self, plan: Plan, began: float, now: float, alone: bool) -> None:
        """began: when it was begun to be planned. alone: nothing runs before it."""
        self._launches[plan.step] = launch = now - began
        if launch < MOST_S:
            self._last.append(launch)
        if alone:
            self._free = began
            self._due = began + self._shortest(plan)

    def landed(self, plan: Plan, following: Plan | None, waited: float, now: float) -> None:
        """A step has ended, after a wait for it. following: the one that begins then."""
        took, launch = now - self._free, self._launches.pop(plan.step)
        if waited < LATE_S:
            self._took.pop(_kind(plan), None)
        elif launch < took / 2:
            self._took.setdefault(_kind(plan), deque(maxlen=KEPT)).append(took)
        self._free = now
        self._due = now + self._shortest(following) if following is not None else now

    def spare(self, now: float) -> float:
        """How long the next step need not be planned yet."""
        return self._due - max(self._last) - SPARED_S - now

    def _shortest(self, plan: Plan) -> float:
        return min(self._took.get(_kind(plan), (0.0,)))


def _kind(plan: Plan) -> tuple[int, bool]:
    """Steps that take about as long: tokens to an eighth of a power of two, and whether prompts are among them."""
    tokens = len(plan.tokens)
    grain = max(0, tokens.bit_length() - 4)
    return tokens >> grain << grain, tokens > len(plan.slots)
