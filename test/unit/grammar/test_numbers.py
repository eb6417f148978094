import json
import random
from decimal import Decimal

import pytest
from grammar_walks import Walker
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.base.errors import FieldError
from sglang.grammar import automaton, numbers

bounds = st.one_of(st.none(), st.integers(-1200, 1200), st.integers(-(10**20), 10**20))
fractions = st.one_of(st.none(), st.decimals(-50, 50, places=2), st.decimals(-(10**9), 10**9, places=1))


@settings(max_examples=120, deadline=None)
@given(bounds, bounds, st.lists(st.integers(-1300, 1300), max_size=20))
def test_an_integer_range_is_exact(low: int | None, high: int | None, tried: list[int]):
    node = numbers.integers(low, high)
    if low is not None and high is not None and low > high:
        with pytest.raises(FieldError):
            automaton.compile(node)
        return
    made = automaton.compile(node)
    near = [b + d for b in (low, high) if b is not None for d in (-11, -10, -9, -1, 0, 1, 9, 10, 11)]
    for x in [*tried, *near]:
        assert made.matches(str(x)) == ((low is None or x >= low) and (high is None or x <= high)), x
    for wrong in ("", "-", "00", "01", "-01", "+1", "1.0", "1e3"):
        assert not made.matches(wrong)


@settings(max_examples=150, deadline=None)
@given(fractions, fractions, st.booleans(), st.booleans(), st.lists(st.decimals(-60, 60, places=3), max_size=20))
def test_a_range_of_decimals_is_exact(
    low: Decimal | None, high: Decimal | None, above: bool, below: bool, tried: list[Decimal]
):
    def inside(x: Decimal) -> bool:
        return (low is None or x > low or (x == low and not above)) and (
            high is None or x < high or (x == high and not below)
        )

    try:
        made = automaton.compile(numbers.decimals(low, high, above, below))
    except FieldError:
        assert low is not None
        assert high is not None
        assert low > high or (low == high and (above or below))
        return
    if low is None and high is None:
        return
    near = [
        b + Decimal(d) for b in (low, high) if b is not None for d in ("-1", "-0.1", "-0.01", "0", "0.01", "0.1", "1")
    ]
    for x in [*tried, *near]:
        for text in {f"{x:f}", f"{x:f}0", f"{x.normalize():f}"}:
            assert made.matches(text) == inside(x), text
    rng = random.Random(0)
    walker = Walker(made)
    for wander in (0, 3, 30):
        text = walker.draw(rng, wander)
        # Whoever reads it as a float sees it on the right side of the bounds too.
        read = json.loads(text)
        assert low is None or read > float(low) or (read == float(low) and not above), text
        assert high is None or read < float(high) or (read == float(high) and not below), text


def test_free_numbers_are_json_and_finite():
    rng = random.Random(0)
    for node in (numbers.INTEGER, numbers.NUMBER):
        walker = Walker(automaton.compile(node))
        for _ in range(200):
            read = json.loads(walker.draw(rng, 60))
            assert abs(read) < 1e300
    made = automaton.compile(numbers.NUMBER)
    for text in ("0", "-0.5", "1e5", "12.5E-07", "-9223372036854775808", "3.141592653589793"):
        assert made.matches(text)
    for text in ("", ".5", "1.", "01", "1e", "+1", "0x1", "NaN", "1" * 20):
        assert not made.matches(text)
