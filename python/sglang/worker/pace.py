"""When to plan the next step: as late as the device can bear, because a request that arrives after waits a step more.

While a step runs, the next one must be planned and its first kernels launched before it ends. How long it takes: as
long as the shortest of the last steps of its kind did on the device. How long planning takes: as long as the longest of
the last did. A kind of which a step was found to have ended already is measured anew: what it took before was unusual
(a graph was captured, a kernel compiled).
"""

from collections import deque

from sglang.base.plan import Plan

KEPT = 4  # steps of a kind
PLANS = 8
AWAITED_S = 0.0001  # a step whose end is awaited for longer ended when the wait did
LAUNCH_S = 0.0015  # from the plan to the first kernels, and what a wait for messages may be too long


class Pace:
    """All times in seconds, by one clock."""

    def __init__(self) -> None:
        self._took: dict[tuple[int, bool], deque[float]] = {}
        self._plans = deque([0.0], maxlen=PLANS)
        self._launching = 0.0  # when the last launch began
        self._due = 0.0

    def planned(self, plan: Plan, began: float, now: float, late: bool) -> None:
        """began: when the plan was begun. late: the device has nothing to do now."""
        self._plans.append(now - began)
        self._launching = now
        if late:
            self._due = now + self._shortest(plan)

    def landed(self, plan: Plan, took_s: float | None, following: Plan | None, began: float, now: float) -> None:
        """A step has ended, after a wait from `began`. took_s: of the device. following: the one that runs now."""
        if took_s is None:
            return
        kind = _kind(plan)
        ended = now if now - began > AWAITED_S else self._launching  # or somewhat later, while the next was launched
        if self._due > ended:  # it did end earlier than was thought
            self._took.pop(kind, None)
        self._took.setdefault(kind, deque(maxlen=KEPT)).append(took_s)
        self._due = ended + self._shortest(following) if following is not None else ended

    def spare(self, now: float) -> float:
        """How long the next step need not be planned yet."""
        return self._due - max(self._plans) - LAUNCH_S - now

    def _shortest(self, plan: Plan) -> float:
        return min(self._took.get(_kind(plan), (0.0,)))


def _kind(plan: Plan) -> tuple[int, bool]:
    """Steps that take about as long: tokens to an eighth of a power of two, and whether prompts are among them."""
    tokens = len(plan.tokens)
    grain = max(0, tokens.bit_length() - 4)
    return tokens >> grain << grain, tokens > len(plan.slots)
