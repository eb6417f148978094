"""Where patterns match first in text that comes piece by piece; Python's own `re`, with re.ASCII, is the judge."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar.search import Search, patterns_of

ATOMS = st.sampled_from(["a", "b", "é", "[ab]", "[^a]", ".", r"\d", r"\W", r"\n", "(?i:B)", "日"])
REPEATS = st.sampled_from(["", "", "", "*", "?", "+", "{1,2}", "{2}", "+?", "*?"])
PATTERNS = st.recursive(
    st.builds(str.__add__, ATOMS, REPEATS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.builds(
            lambda parts, repeat: f"({'|'.join(parts)}){repeat}", st.lists(inner, min_size=1, max_size=3), REPEATS
        ),
    ),
    max_leaves=8,
)


def first(patterns: list[str], text: str) -> tuple[int, int] | None:
    """By trying all places, and at each all lengths."""
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            if any(re.compile(pattern, re.ASCII).fullmatch(text, start, end) for pattern in patterns):
                return start, end - start
    return None


def refusal(*patterns: str) -> str:
    with pytest.raises(FieldError) as caught:
        patterns_of(patterns)
    assert caught.value.field.startswith("stop_regex")
    return str(caught.value)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(PATTERNS, min_size=1, max_size=3),
    st.text("aabbBé日ñ1 \n", max_size=16),
    st.lists(st.integers(1, 4), min_size=1),
)
def test_the_first_match_is_found_however_the_text_is_cut(patterns: list[str], text: str, sizes: list[int]) -> None:
    assume(not any(re.fullmatch(pattern, "", re.ASCII) for pattern in patterns))
    search = Search(patterns_of(tuple(patterns)))
    at = turn = 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        search.read(text[at : at + size])
        at, turn = at + size, turn + 1
    assert search.found == first(patterns, text)


def test_what_may_still_become_a_match_is_open_and_no_more() -> None:
    search = Search(patterns_of((r"a\d+x",)))
    seen = []
    for c in "..a12.a3":
        search.read(c)
        seen.append(search.open)
    assert seen == [1, 2, 2, 2, 2, 6, 6, 6]
    search.read("x")
    assert search.found == (6, 3)


def test_a_match_waits_for_one_that_began_before_it() -> None:
    search = Search(patterns_of(("ab+c", "b")))
    search.read("abb")
    assert (search.found, search.open) == ((1, 1), 0)
    search.read("c")
    assert (search.found, search.open >= 0) == ((0, 4), True)
    search = Search(patterns_of(("ab+c", "b")))
    search.read("abbx")
    assert search.found == (1, 1) and search.open >= 1


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "stop_regex is not a regular expression: missing ), unterminated subpattern"),
        ("(?u)a(?a)", "stop_regex is not a regular expression"),
        ("^a", "^, $, \\b, \\B and look-arounds cannot be used"),
        ("(a|b$)c", "^, $, \\b, \\B and look-arounds cannot be used"),
        (r"\bend", "^, $, \\b, \\B and look-arounds cannot be used"),
        ("a(?=b)", "^, $, \\b, \\B and look-arounds cannot be used"),
        ("((?<!a)b)*c", "^, $, \\b, \\B and look-arounds cannot be used"),
        (r"(a)\1", "back-references cannot be used"),
        ("(?>a)b", "atomic groups cannot be used"),
        ("a*+b", "possessive repeats cannot be used"),
        ("(" * 201 + "a" + ")" * 201, "nested 200 deep at most"),
        ("", "must not match the empty text"),
        ("a*", "must not match the empty text"),
        (r"[^\s\S]", "matches no text at all"),
        ("a{255}", "too large an automaton (at most 255 states"),
        (".?" * 200 + "x", "too large an automaton"),
        ("(((a{99}){99}){99}){99}", "too large an automaton"),
        ("(a|b)*a(a|b){9}c", "too large an automaton"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(pattern: str, says: str) -> None:
    assert says in refusal(pattern)


def test_a_pattern_among_others_is_named_and_all_count_together() -> None:
    assert refusal("a", "b", "(").startswith("stop_regex[2] is not")
    halves = ("a{150}", "b{150}")
    for half in halves:
        patterns_of((half,))
    assert "too large" in refusal(*halves)


def test_patterns_that_are_slow_elsewhere_are_not() -> None:
    """A backtracking matcher takes exponential or quadratic time on these; here a state costs each character once."""
    for pattern in ("(a+)+b", "(a|aa)+b", "a*a*a*a*b", ".*.*=.*x", "x.{240}y"):
        search = Search(patterns_of((pattern,)))
        search.read("a" * 20_000)
        assert search.found is None
        assert len(search._states) <= limits.STOP_REGEX_STATES


def test_patterns_are_compiled_once() -> None:
    assert patterns_of((r"\d+\.",)) is patterns_of((r"\d+\.",))
