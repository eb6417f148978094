import random
import re

import pytest
from grammar_patterns import REAL, patterns
from grammar_walks import Walker
from hypothesis import given, settings

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex
from sglang.grammar.language import lengths, shortened


@pytest.mark.parametrize(
    ("pattern", "span"),
    [
        ("", (0, 0)),
        ("abc", (3, 3)),
        ("a|bcd", (1, 3)),
        ("[ab]{2,5}é", (3, 6)),
        ("a*", (0, None)),
        ("(a|b+)c", (2, None)),
        ("(){9}(a{0}b)?", (0, 1)),
        ("(?=.{4})[a-z]*", (4, None)),
        ("(?!b)[a-z]{2}", (2, 2)),
    ],
)
def test_lengths_are_counted_in_characters(pattern: str, span: tuple[int, int | None]) -> None:
    assert lengths(regex.parse(pattern)) == span


@settings(max_examples=100, deadline=None)
@given(patterns)
def test_no_text_is_outside_of_the_lengths(pattern: str) -> None:
    low, high = lengths(regex.parse(pattern))
    try:
        walker = Walker(automaton.compile(regex.parse(pattern)))
    except FieldError:
        return  # there is no text
    for wander in (0, 3, 12):
        length = len(walker.draw(random.Random(wander), wander))
        assert length >= low and (high is None or length <= high)


@pytest.mark.parametrize("pattern", [r"a+b{2,3}\.[0-9]*", "x[a-z]*(-[a-z]+)?", *[p for p in REAL[1:150] if "*" in p]])
@pytest.mark.parametrize("most", [12, 40])
def test_a_shortened_language_is_a_part_that_keeps_to_its_length(pattern: str, most: int) -> None:
    whole = regex.parse(pattern)
    part = shortened(whole, most)
    if part is None:
        return
    high = lengths(part)[1]
    assert high is not None and high <= most
    walker = Walker(automaton.compile(part))
    for wander in (0, 3, 12, 60):
        text = walker.draw(random.Random(wander), wander)
        assert re.fullmatch(pattern, text, re.ASCII) and len(text) <= most


def test_what_cannot_be_shortened_is_left() -> None:
    assert shortened(regex.parse("a{3}"), 9) is None  # nothing to shorten
    assert shortened(regex.parse("([a-z]*,)*"), 9) is None  # one in another
    assert shortened(regex.parse("a{9}b*"), 9) is None  # no room
    assert shortened(regex.parse("a*b*"), 9, repeats=1) is None
