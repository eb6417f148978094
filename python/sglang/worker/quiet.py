"""When the device may prepare for later steps: once nobody has come for a while, and in the gaps of a load seldom.

What is prepared is left when somebody comes, some of it not at once, and begun again later. Where that happens the
pause that must come first is doubled, and where nobody came it shrinks again: under requests one by one it is soon
longer than most of their gaps.
"""

LEAST_S = 0.02  # gaps of a load of 50 requests a second
MOST_S = 0.5  # most of what is prepared is left at once: a longer pause would cost more than it saves


class Quiet:
    """All times in seconds, by one clock."""

    def __init__(self, now: float) -> None:
        self._since = now  # when there was last something to do
        self._pause = 0.0  # at the start nobody can have come yet

    def worked(self, now: float) -> None:
        self._since = now
        self._pause = max(self._pause, LEAST_S)

    def prepared(self, disturbed: bool) -> None:
        """disturbed: somebody came meanwhile."""
        if disturbed:
            self._pause = min(2 * max(self._pause, LEAST_S), MOST_S)
        else:
            self._pause = max(self._pause / 2, LEAST_S) if self._pause else 0.0

    def lasted(self, now: float) -> float:
        return now - self._since

    def left(self, now: float, needed: float) -> float:
        """How long nobody must come before something that is done after at least `needed`. 0: now."""
        return max(0.0, max(self._pause, needed) - self.lasted(now))
