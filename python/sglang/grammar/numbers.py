"""Ranges of numbers, as the digits they are written with.

Lengths are bounded: a number that never ends is nobody's wish, and Python refuses to read integers of thousands of
digits.
"""

from decimal import Decimal

from sglang.grammar.language import EMPTY, NOTHING, Node, Repeat, alt, cat, chars, optional

INTEGER_DIGITS = 19  # every 64-bit integer
FRACTION_DIGITS = 17  # every float64 in [0.1, 1) reads back equal
EXACT_DIGITS = 15  # decimals of so many digits are different float64s where they are different
LONGEST_BOUND = 400  # digits; the largest float64 has 309

DIGIT = chars((48, 57))
ONE_TO_NINE = chars((49, 57))

INTEGER = cat(optional(cat("-")), alt("0", cat(ONE_TO_NINE, Repeat(DIGIT, 0, INTEGER_DIGITS - 1))))
NUMBER = cat(
    INTEGER,
    optional(cat(".", Repeat(DIGIT, 1, FRACTION_DIGITS))),
    optional(cat(chars("eE"), optional(chars("+-")), Repeat(DIGIT, 1, 2))),
)


def integers(low: int | None, high: int | None) -> Node:
    """All integers from `low` to `high`, both included; NOTHING where there are none."""
    if low is None and high is None:
        return INTEGER
    most = 10 ** max(INTEGER_DIGITS, len(str(abs(low or high or 0))) + 3) - 1
    first, last = -most if low is None else low, most if high is None else high
    parts: list[Node] = []
    if first < 0 and first <= last:
        parts.append(cat("-", _between(max(1, -last), -first)))
    if first <= 0 <= last:
        parts.append(cat("0"))
    if last > 0 and first <= last:
        parts.append(_between(max(1, first), last))
    return alt(*parts) if parts else NOTHING


def decimals(low: Decimal | None, high: Decimal | None, above: bool = False, below: bool = False) -> Node:
    """All numbers from `low` to `high`, without exponents. above, below: the bound itself is left out.

    Fractions are short enough that no number turns into a bound when it is read as a float.
    """
    if low is None and high is None:
        return NUMBER
    bounds = [abs(b) for b in (low, high) if b is not None]
    whole = max(len(str(int(b))) for b in bounds)
    places = max(1, EXACT_DIGITS - whole, *(_places(b) for b in bounds))
    edge = Decimal(10) ** max(EXACT_DIGITS, whole + 3)
    low, above = (-edge, True) if low is None else (low, above)
    high, below = (edge, True) if high is None else (high, below)
    parts: list[Node] = []
    if low < 0 and low <= high:
        nearest = max(Decimal(0), -high)
        parts.append(cat("-", _magnitudes(nearest, -low, below if high < 0 else True, above, places)))
    if high >= 0 and low <= high:
        nearest = max(Decimal(0), low)
        parts.append(_magnitudes(nearest, high, above if low >= 0 else False, below, places))
    return alt(*parts) if parts else NOTHING


def _places(bound: Decimal) -> int:
    exponent = bound.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _between(low: int, high: int) -> Node:
    """Positive integers."""
    first, last = str(low), str(high)
    parts: list[Node] = []
    full: list[int] = []  # lengths all of whose numbers are in
    for n in range(len(first), len(last) + 1):
        least = first if n == len(first) else "1" + "0" * (n - 1)
        most = last if n == len(last) else "9" * n
        if int(least) == 10 ** (n - 1) and set(most) == {"9"}:
            full.append(n)
        elif least <= most:
            parts.append(_digits(least, most))
    if full:
        parts.append(cat(ONE_TO_NINE, Repeat(DIGIT, full[0] - 1, full[-1] - 1)))
    return alt(*parts) if parts else NOTHING


def _digits(low: str, high: str) -> Node:
    """Digit strings as long as `low` and `high`, from one to the other."""
    if not low:
        return EMPTY
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    if first == last:
        return cat(low[0], _digits(low[1:], high[1:]))
    parts: list[Node] = []
    if low[1:].strip("0"):
        parts.append(cat(low[0], _digits(low[1:], "9" * rest)))
        first += 1
    if high[1:].strip("9"):
        parts.append(cat(high[0], _digits("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        parts.append(cat(_one_of(first, last), Repeat(DIGIT, rest, rest)))
    return alt(*parts)


def _one_of(first: int, last: int) -> Node:
    return chars((48 + first, 48 + last))


def _magnitudes(low: Decimal, high: Decimal, above: bool, below: bool, places: int) -> Node:
    """Numbers >= 0 from `low` to `high`, with up to `places` digits behind the point."""
    if low > high or (low == high and (above or below)):
        return NOTHING
    a, b = int(low), int(high)
    at_low, at_high = (f"{bound:.{places}f}".split(".")[1] for bound in (low, high))
    if a == b:
        return cat(str(a), _fraction(_inside(at_low, at_high, above, below)))
    parts: list[Node] = [cat(str(a), _fraction(_least(at_low, above)))]
    if b - a > 1:
        inner = _between(max(1, a + 1), b - 1)
        parts.append(cat(inner, _fraction((True, Repeat(DIGIT, 1, places)))))
    parts.append(cat(str(b), _fraction(_most(at_high, below))))
    return alt(*parts)


# Digits behind the point: whether there may be none, and what else they may be.
Digits = tuple[bool, Node]


def _fraction(digits: Digits) -> Node:
    none, some = digits
    written = cat(".", some)
    return optional(written) if none else written


def _then(first: Node | str, digits: Digits) -> Node:
    none, some = digits
    return cat(first, optional(some) if none else some)


def _any(places: int) -> Digits:
    return (True, Repeat(DIGIT, 1, places) if places else NOTHING)


def _least(bound: str, above: bool) -> Digits:
    """Digits that make `bound` or more."""
    if not bound:
        return (not above, NOTHING)
    if not above and not bound.strip("0"):
        return _any(len(bound))
    first = int(bound[0])
    parts = [_then(bound[0], _least(bound[1:], above))]
    if first < 9:
        parts.append(_then(_one_of(first + 1, 9), _any(len(bound) - 1)))
    return (False, alt(*parts))


def _most(bound: str, below: bool) -> Digits:
    """Digits that make `bound` or less."""
    if not bound:
        return (not below, NOTHING)
    if below and not bound.strip("0"):
        return (False, NOTHING)
    first = int(bound[0])
    parts = [_then(bound[0], _most(bound[1:], below))]
    if first > 0:
        parts.append(_then(_one_of(0, first - 1), _any(len(bound) - 1)))
    return (True, alt(*parts))


def _inside(low: str, high: str, above: bool, below: bool) -> Digits:
    if not low:
        return (not (above or below), NOTHING)
    first, last = int(low[0]), int(high[0])
    none = not above and not low.strip("0") and not (below and not high.strip("0"))
    if first == last:
        return (none, _then(low[0], _inside(low[1:], high[1:], above, below)))
    parts = [_then(low[0], _least(low[1:], above)), _then(high[0], _most(high[1:], below))]
    if last - first > 1:
        parts.append(_then(_one_of(first + 1, last - 1), _any(len(low) - 1)))
    return (none, alt(*parts))
