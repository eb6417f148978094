"""When to plan the next step: as late as the device can bear, because a request that arrives after waits a step more.

While a step runs, the next one must be launched before it ends. How long it takes: as long as the shortest of the last
steps of its kind; how long a launch takes is learned: where a step was found to have ended already, launches must begin
earlier, and otherwise may begin a little later than they did.
"""

from collections import deque

from sglang.base.plan import Plan

KEPT = 4  # steps of a kind
LATE_S = 0.0002  # a step whose end is awaited for less had perhaps ended before the next one was launched
LEAST_S, MOST_S = 0.001, 0.02  # from the launch of a step to the end of the one before it
EASE = 0.99  # of that margin stays after a step in time


class Pace:
    """All times in seconds, by one clock."""

    def __init__(self) -> None:
        self._took: dict[tuple[int, bool], deque[float]] = {}
        self._margin = 2 * LEAST_S
        self._free = 0.0  # when the device was last known to begin on the step that now runs, or to have ended one
        self._due = 0.0

    def launched(self, plan: Plan, now: float, alone: bool) -> None:
        """alone: nothing runs before it, so it has begun."""
        if alone:
            self._free = now
            self._due = now + self._shortest(plan)

    def landed(self, plan: Plan, following: Plan | None, waited: float, now: float) -> None:
        """A step has ended, after a wait for it. following: the one that begins then."""
        if waited < LATE_S:
            self._margin = min(MOST_S, 1.5 * self._margin)
        else:
            self._took.setdefault(_kind(plan), deque(maxlen=KEPT)).append(now - self._free)
            self._margin = max(LEAST_S, EASE * self._margin)
        self._free = now
        self._due = now + self._shortest(following) if following is not None else now

    def spare(self, now: float) -> float:
        """How long the next step need not be planned yet."""
        return self._due - self._margin - now

    def _shortest(self, plan: Plan) -> float:
        return min(self._took.get(_kind(plan), (0.0,)))


def _kind(plan: Plan) -> tuple[int, bool]:
    """Steps that take about as long: tokens to an eighth of a power of two, and whether prompts are among them."""
    tokens = len(plan.tokens)
    grain = max(0, tokens.bit_length() - 4)
    return tokens >> grain << grain, tokens > len(plan.slots)
