"""Multiples of a number, as the digits they are written with: automata over remainders, of bounded length."""

from collections.abc import Callable
from decimal import Decimal
from functools import cache
from math import gcd

from sglang.grammar.language import EMPTY, Node, alt, cat, chars, optional
from sglang.grammar.numbers import EXACT_DIGITS, INTEGER_DIGITS

ROOM = 12_000  # remainders, and those that differ again for each digit that may follow: of one schema


def common(a: Decimal, b: Decimal) -> Decimal:
    """The least number that is a multiple of both."""
    places = max(_places(a), _places(b))
    x, y = (int(n.scaleb(places)) for n in (a, b))
    return Decimal(x * y // gcd(x, y)).scaleb(-places)


def multiples(step: Decimal, low: Decimal | None, high: Decimal | None, room: int) -> tuple[Node, int] | None:
    """Multiples of `step`, without exponents, of any sign, and what they take of `room`; None where that is too much.

    low, high: bounds that are seen to elsewhere; how many digits are needed depends on them. Behind the point there are
    as many digits as `step` has, or fewer.
    """
    places = _places(step)
    unit = int(step.scaleb(places))  # what the digits without the point are multiples of
    if unit > room or places >= EXACT_DIGITS:
        return None
    kinds = _kinds(unit, places)
    longest = _longest(low, high, EXACT_DIGITS - places if places else INTEGER_DIGITS)
    taken = unit + len({*kinds}) * longest
    if taken > room:
        return None

    @cache
    def fraction(left: int, remainder: int, begun: bool = True) -> Node:
        """Up to `left` digits that make a multiple, at least one unless some have `begun`.

        remainder: of all that stands before, with zeros for these digits.
        """
        ways = _by_digit(lambda d: (remainder + d * 10 ** (left - 1)) % unit) if left else {}
        ends = [EMPTY] if begun and remainder == 0 else []
        return alt(*ends, *(cat(chars(digits), fraction(left - 1, after)) for after, digits in ways.items()))

    @cache
    def whole(left: int, remainder: int) -> Node:
        """Up to `left` digits, and what stands behind the point. remainder: of the digits before."""
        scaled = remainder * 10**places % unit
        ends: list[Node] = [EMPTY] if scaled == 0 else []
        if places:
            ends.append(cat(".", fraction(places, scaled, False)))
        ways = _by_digit(lambda d: kinds[(10 * remainder + d) % unit]) if left else {}
        return alt(*ends, *(cat(chars(digits), whole(left - 1, after)) for after, digits in ways.items()))

    first = _by_digit(lambda d: kinds[d % unit], range(1, 10))
    positive = (cat(chars(digits), whole(longest - 1, after)) for after, digits in first.items())
    return cat(optional(cat("-")), alt(cat("0", whole(0, 0)), *positive)), taken


def _longest(low: Decimal | None, high: Decimal | None, usual: int) -> int:
    """Digits before the point that are needed."""
    known = max((len(str(abs(int(bound)))) for bound in (low, high) if bound is not None), default=0)
    return known if low is not None and high is not None else max(usual, known + 3 if known > usual else 0)


def _places(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _by_digit(after: Callable[[int], int], digits: range = range(10)) -> dict[int, str]:
    """What comes after -> the digits that lead there."""
    ways: dict[int, str] = {}
    for d in digits:
        ways[after(d)] = ways.get(after(d), "") + str(d)
    return ways


def _kinds(unit: int, places: int) -> list[int]:
    """Of each remainder the first that no digits behind it tell apart from it."""
    wanted = [-r * 10**places % unit for r in range(unit)]  # of the digits behind the point
    kinds = [number if number < 10**places else -1 for number in wanted]
    count = 0
    while count < len({*kinds}):
        count = len({*kinds})
        names: dict[tuple[int, ...], int] = {}
        kinds = [names.setdefault((kinds[r], *(kinds[(10 * r + d) % unit] for d in range(10))), r) for r in range(unit)]
    return kinds
