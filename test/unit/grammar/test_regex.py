import random
import re
import time
import warnings

import pytest
from grammar_patterns import REAL, looking, patterns, texts
from grammar_walks import Walker
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex

DRAWN = 8


def both(pattern: str) -> list[re.Pattern[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [re.compile(pattern), re.compile(pattern, re.ASCII)]


def test_there_are_several_hundred_patterns():
    assert len(REAL) > 300


@pytest.mark.parametrize("pattern", REAL)
def test_drawn_texts_match_in_python_and_altered_ones_are_judged_alike(pattern: str):
    expected = both(pattern)
    made = automaton.compile(regex.parse(pattern))
    walker = Walker(made)
    rng = random.Random(pattern)
    for i in range(DRAWN):
        text = walker.draw(rng, (0, 3, 10, 40)[i % 4])
        assert all(p.fullmatch(text) for p in expected), text
        at = rng.randrange(len(text) + 1)
        altered = text[:at] + rng.choice(["", "a", "0", '"', " ", "\n", "é"]) + text[at + rng.randrange(2) :]
        if altered.isascii() or made.matches(altered):
            assert made.matches(altered) == all(bool(p.fullmatch(altered)) for p in expected), altered


@settings(max_examples=250, deadline=None)
@given(st.one_of(patterns, looking), texts)
def test_new_patterns_accept_what_python_accepts(pattern: str, text: str):
    expected = both(pattern)
    try:
        made = automaton.compile(regex.parse(pattern))
    except FieldError as error:
        assert "matches no text" in str(error)
        assert not any(p.fullmatch(text) for p in expected)
        return
    matches = all(bool(p.fullmatch(text)) for p in expected)
    if made.matches(text):
        assert matches
    elif text.isascii():
        assert not matches
    rng = random.Random(0)
    walker = Walker(made)
    for wander in (0, 4, 12):
        drawn = walker.draw(rng, wander)
        assert all(p.fullmatch(drawn) for p in expected), drawn


@settings(max_examples=150, deadline=None)
@given(patterns, texts)
def test_with_search_a_pattern_may_stand_anywhere(pattern: str, text: str):
    try:
        made = automaton.compile(regex.parse(pattern, search=True))
    except FieldError:
        assume(False)
        return
    if text.isascii():
        assert made.matches(text) == all(bool(p.search(text)) for p in both(pattern))


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("^ab", ["ab", "abc"], ["cab"]),
        ("ab$", ["ab", "cab"], ["abc"]),
        ("^a|b$", ["ax", "xb", "ab"], ["xa", "bx"]),
        ("(^a|b)c", ["ac", "acx", "xbc", "bcx"], ["xac"]),
        ("^^a", ["ab"], ["ba"]),
        ("", ["", "x"], []),
        ("(?<!a)b", ["b", "cb", "abb"], ["ab", "cab"]),
        ("a(?!b)", ["a", "ab a", "ac"], ["ab", "cab"]),
        ("^(?!.*b$)", ["", "ba"], ["b", "ab", "ab\n"]),
        ("^(?=.{3}$)", ["abc"], ["ab", "abcd"]),
        ("^(?=a)|(?<=b)$", ["ax", "xb"], ["xa", "bx"]),
    ],
)
def test_anchors_close_the_ends_of_a_search(pattern: str, inside: list[str], outside: list[str]):
    made = automaton.compile(regex.parse(pattern, search=True))
    assert all(map(made.matches, inside))
    assert not any(map(made.matches, outside))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(a(?=b))c", "look-ahead"),
        ("((?!b).)*", "look-ahead"),
        ("a((?<=a)b)", "look-behind"),
        ("(b(?<!a))*", "look-behind"),
        ("a(?=^b)", "other than at the ends"),
        (r"(a)\1", "back-references"),
        (r"(?P<x>a)(?P=x)", "back-references"),
        (r"\bword\b", "word boundaries"),
        (r"a\Bb", "word boundaries"),
        ("(a)?(?(1)b|c)", "conditional groups"),
        ("(?>a+)b", "atomic groups"),
        ("a++b", "possessive repeats"),
        ("a^b", "other than at the ends"),
        ("a$b", "other than at the ends"),
        ("(^a)*", "other than at the ends"),
    ],
)
def test_what_is_not_regular_is_refused_by_name(pattern: str, name: str):
    with pytest.raises(FieldError, match=name):
        regex.parse(pattern)


@pytest.mark.parametrize("pattern", ["(", "a)", "[a", "*a", "a{2,1}", "(?P<x>a)(?P<x>b)", r"\q", "a**", "[z-a]"])
def test_what_is_no_pattern_is_refused(pattern: str):
    with pytest.raises(FieldError, match="not a regular expression"):
        regex.parse(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a{1000}){1000}",
        "((a{100}){100}){100}",
        "(((((a{0}){65535}){65535}){65535}){65535}){65535}",
        "(a|b)*a(a|b){30}",
        "(.*a){3}.{15}(.*b.{20}){9}",
        "(a?b?c?d?){300}",
        ".{30000}.{30000}",
        "(.{0,200}a.{0,200}|b){3}",
        "(" * 5000 + ")" * 5000,
        "(a" * 300 + ")*" * 300,
        "a|" * 100_000 + "b",
        r"[^\W\d_]{2000}\W{2000}\w{2000}",
        "(x+x+)+(y+y+)+{1,500}".replace("+{", "{"),
    ],
)
def test_bombs_end_soon(pattern: str):
    start = time.process_time()
    try:
        automaton.compile(regex.parse(pattern))
    except FieldError as error:
        assert error.status == 400
    assert time.process_time() - start < 3  # about one second where nothing else runs


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "(a|b)*a(a|b){30}", "(" * 5000 + ")" * 5000])
def test_the_worst_are_refused(pattern: str):
    with pytest.raises(FieldError):
        automaton.compile(regex.parse(pattern))


def test_classes_are_ascii_and_their_opposites_leave_unicode_out():
    def alone(pattern: str, text: str) -> bool:
        return automaton.compile(regex.parse(pattern)).matches(text)

    assert not alone(r"\w", "é")
    assert not alone(r"\W", "é")
    assert not alone(r"\d", "٣")
    assert alone(r"[^\"]", "é")
    assert alone(".", "😀")
    assert not alone(".", "\n")
    assert alone(r"[\w\W]", "é")
    assert alone(r"[^\W]", "a")


def test_case_is_ignored_where_asked():
    made = automaton.compile(regex.parse("(?i)straße[^k]"))
    assert made.matches("STRAßEx")
    assert not made.matches("straßeK")
    assert not made.matches("straße\u212a")  # Kelvin's sign is a k to Python
