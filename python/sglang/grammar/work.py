"""What one compilation may cost. Work is counted, not timed: what is refused does not depend on a busy machine."""

from sglang.base import limits
from sglang.base.errors import FieldError


class TooLarge(FieldError):
    """The language is regular, but its automaton is over the limits."""


class Work:
    """What one compilation may cost."""

    def __init__(self, field: str, states: int = limits.GRAMMAR_STATES, steps: int = limits.GRAMMAR_WORK):
        self.field = field
        self.states = states
        self.steps = self.left = steps

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise self.too_large()

    def foresee(self, amount: int, times: int) -> None:
        """Much like the last `amount` is to be spent so many `times` more: what cannot be paid is refused at once."""
        if amount * times > 2 * self.left:  # twice, as it may be half as much
            raise self.too_large()

    def too_large(self) -> TooLarge:
        return TooLarge(
            self.field,
            f"{self.field} needs too large an automaton (at most {self.states} states, and "
            f"{self.steps} steps to build them): long bounded repeats and overlapping alternatives multiply",
        )
