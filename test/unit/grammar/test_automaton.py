import random
from itertools import product

import numpy as np
import pytest
from grammar_patterns import REAL, patterns
from grammar_walks import Walker
from hypothesis import given, settings

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex
from sglang.grammar.automaton import Automaton
from sglang.grammar.characters import determine
from sglang.grammar.language import Both, Without, alt, cat, to_regex
from sglang.grammar.work import TooLarge, Work


def made(pattern: str) -> Automaton:
    return automaton.compile(regex.parse(pattern))


def numbered(a: Automaton) -> list[tuple[bool, tuple[int, ...]]]:
    """The automaton with its states in the order of a walk over sorted bytes: equal for equal minimal automata."""
    names = {0: 0}
    todo = [0]
    rows = []
    for state in todo:
        row = []
        for target in a.table[state].tolist():
            if target >= 0 and target not in names:
                names[target] = len(names)
                todo.append(target)
            row.append(names.get(target, -1))
        rows.append((bool(a.accepts[state]), tuple(row)))
    return rows


def distinct(a: Automaton) -> int:
    """States by the textbook: split until nothing splits."""
    block = a.accepts.astype(int)
    while True:
        looks = [(b, *row) for b, row in zip(block.tolist(), np.append(block, -1)[a.table].tolist(), strict=True)]
        names = {look: i for i, look in enumerate(dict.fromkeys(looks))}
        if len(names) == len(set(block.tolist())):
            return len(names)
        block = np.array([names[look] for look in looks])


@settings(max_examples=150, deadline=None)
@given(patterns)
def test_automata_are_minimal_and_without_dead_ends(pattern: str):
    try:
        a = made(pattern)
    except FieldError:
        return
    assert distinct(a) == a.states
    assert len(Walker(a).distance) == a.states  # an end can be reached from everywhere
    assert len(numbered(a)) == a.states  # and everywhere from the start


def test_cycles_that_differ_far_from_where_one_looks_are_told_apart():
    a = made("1(abcdef)*abcdex|2(abcdef)*abcdey|3ka?|4(k|ka)|5(abcdef)*abcdey")
    assert distinct(a) == a.states == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(a|b)*", "(a*b*)*"),
        ("a(bc)*b?|", "(ab(cb)*c?)?|a(bc)*b?"),
        ("x{0,50}y", "(x?){50}y"),
        ("(a{0,5}z)*", "((|a|aa|aaa|aaaa|aaaaa)z)*"),
        ("a.*|b.*", "[ab].*"),
        ('("(x|y)*",)*"q"|("(y|x)*",)*"q"', '("[xy]*",)*"q"'),
        ("c(ab*)*|d(ab*)*", "[cd](a[ab]*)?"),
    ],
)
def test_equal_languages_have_equal_automata(one: str, other: str):
    assert numbered(made(one)) == numbered(made(other))


@settings(max_examples=80, deadline=None)
@given(patterns)
def test_a_tree_written_as_a_pattern_is_the_same_language(pattern: str):
    tree = regex.parse(pattern)
    text = to_regex(tree, "regex", 1_000_000)
    try:
        expected = automaton.compile(tree)
    except FieldError:
        return
    assert numbered(made(text)) == numbered(expected), text


def test_the_seeds_pattern_is_written_back_as_the_same_language():
    for pattern in REAL[:60]:
        tree = regex.parse(pattern)
        assert numbered(made(to_regex(tree, "regex", 100_000))) == numbered(automaton.compile(tree)), pattern


@settings(max_examples=60, deadline=None)
@given(patterns, patterns)
def test_what_is_in_both_and_what_is_left_without(one: str, other: str):
    a, b = regex.parse(one), regex.parse(other)

    def judge(node: object) -> Automaton | None:
        try:
            return automaton.compile(node)  # type: ignore[arg-type]
        except FieldError:
            return None

    left, right = judge(a), judge(b)
    both, rest = judge(Both(a, b)), judge(Without(a, b))
    rng = random.Random(0)
    words = [Walker(x).draw(rng, n) for x in (left, right, both, rest) if x for n in (0, 3, 9)]
    for word in [*words, "", "a", "ab", "0"]:
        in_left = left is not None and left.matches(word)
        in_right = right is not None and right.matches(word)
        assert (both is not None and both.matches(word)) == (in_left and in_right)
        assert (rest is not None and rest.matches(word)) == (in_left and not in_right)


def test_set_operations_can_stand_inside_a_sequence():
    words = Without(regex.parse("[a-c]{1,3}"), alt("ab", "c"))
    a = automaton.compile(cat("<", words, ">", words))
    spelled = ["".join(p) for n in range(1, 4) for p in product("abc", repeat=n)]
    for one in spelled:
        for other in ("a", "ab", "cc"):
            assert a.matches(f"<{one}>{other}") == (one not in ("ab", "c") and other not in ("ab", "c"))


def test_utf8_is_read_exactly():
    a = made(".")
    for code in (0, 9, 10, 127, 128, 0x7FF, 0x800, 0xFFF, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x10FFFF):
        assert a.matches(chr(code)) == (code != 10)
    for wrong in (b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80",
                  b"\xf5\x80\x80\x80", b"\x80", b"\xc3", b"\xc3\xa9\xa9"):  # fmt: skip
        assert not a.matches(wrong)


@pytest.mark.parametrize("low", [0x7E, 0x7FE, 0xFFE, 0xFFFE, 0x3F, 0x1000])
def test_ranges_end_where_they_say(low: int):
    high = low + 0x1005
    a = made(f"[{chr(low)}-{chr(high)}]".replace("\\", "\\\\"))
    for code in (low - 1, low, low + 1, low + 64, high - 1, high, high + 1, high + 64):
        assert a.matches(chr(code)) == (low <= code <= high)


def test_forced_text_ends_at_a_choice_or_a_possible_end():
    a = made(r'\{"name": "(Harry|Hagrid)"( x)?')
    start = a.forced(0)
    assert start == b'{"name": "Ha'
    after = a.walk(0, start + b"r")
    assert a.forced(after) == b'ry"'
    assert a.forced(a.walk(after, b'ry"')) == b""
    assert a.forced(a.walk(after, b'ry" ')) == b"x"


def test_an_empty_language_is_refused():
    for pattern in (r"[^\w\W]", r"a[^\x00-\U0010ffff]b", "(?!)"):
        with pytest.raises(FieldError, match="matches no text"):
            made(pattern)


def test_a_large_automaton_is_refused_for_its_size():
    with pytest.raises(TooLarge, match="too large an automaton"):
        made("a{40000}")
    assert made("a{30000}").states == 30001


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "((a{1,100}){1,100}){1,100}", "x([a-z]{3}|b){1,500000}"])
def test_what_repeats_too_often_is_refused_before_it_is_built(pattern: str):
    """On a busy machine compiling gets a tenth of a core, and others wait behind it."""
    work = Work("regex")
    with pytest.raises(TooLarge):
        determine(regex.parse(pattern), work)
    assert work.left > 0.8 * work.steps
