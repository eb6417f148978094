import re

import numpy as np
import pytest
from grammar_patterns import CHARACTER, REAL, patterns
from grammar_tokenizers import kind
from grammar_walks import sample
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex
from sglang.grammar.regular import RegularCompiled, RegularCursor
from sglang.grammar.rules import Illegal
from sglang.grammar.vocab import Vocabulary

VOCABULARY = Vocabulary(
    [bytes([b]) for b in range(256)] + [b"ab", b"abc", b"<eos>", b"<end>", b"<pad>"], [258, 259], [260]
)
AB, ABC, EOS, END, PAD = range(256, 261)


def cursor(pattern: str) -> RegularCursor:
    return RegularCompiled(automaton.compile(regex.parse(pattern)), VOCABULARY).cursor()


@pytest.mark.parametrize("name", ["gpt4", "llama2"])
@pytest.mark.parametrize("pattern", [CHARACTER, *REAL[1:200:9]])
def test_a_model_without_sense_writes_what_matches(name: str, pattern: str):
    vocabulary = kind(name).vocabulary
    compiled = RegularCompiled(automaton.compile(regex.parse(pattern)), vocabulary)
    rng = np.random.default_rng(7)
    for _ in range(3):
        at = compiled.cursor()
        text, ended = sample(at, vocabulary, rng, 120)
        if ended:
            assert re.fullmatch(pattern, text.decode())
        else:  # cut off: some text goes on from here
            assert compiled.automaton.walk(0, text) == at.state >= 0


@settings(max_examples=150, deadline=None)
@given(patterns, st.integers(0, 1 << 30))
def test_new_patterns_are_matched_by_a_model_without_sense(pattern: str, seed: int):
    vocabulary = kind("gpt4").vocabulary
    try:
        compiled = RegularCompiled(automaton.compile(regex.parse(pattern)), vocabulary)
    except FieldError:
        assume(False)
        raise
    text, ended = sample(compiled.cursor(), vocabulary, np.random.default_rng(seed), 40)
    assert not ended or re.fullmatch(pattern, text.decode(), re.ASCII) or re.fullmatch(pattern, text.decode())


def test_the_end_is_allowed_exactly_where_the_text_may_end():
    at = cursor("ab?c?")
    allowed = VOCABULARY.unpack(at.mask())
    assert not allowed[[EOS, END, PAD]].any()
    at.advance(ord("a"))
    allowed = VOCABULARY.unpack(at.mask())
    assert allowed[[EOS, END]].all()
    assert not allowed[PAD]
    assert at.accepting
    assert not at.finished
    at.advance(ord("c"))
    assert at.finished
    assert np.flatnonzero(VOCABULARY.unpack(at.mask())).tolist() == [EOS, END]
    at.advance(END)
    assert at.finished
    assert np.flatnonzero(VOCABULARY.unpack(at.mask())).tolist() == [EOS, END]


@pytest.mark.parametrize("token", [EOS, PAD, ord("x"), -1, 10**6])
def test_what_is_not_allowed_is_refused_and_changes_nothing(token: int):
    at = cursor("abc")
    at.advance(ord("a"))
    with pytest.raises(Illegal):
        at.advance(token)
    at.feed(b"bc")
    assert at.finished


def test_the_same_text_leads_to_the_same_place_however_it_is_cut():
    places = []
    for tokens in ([AB, ord("c")], [ABC], [ord("a"), ord("b"), ord("c")]):
        at = cursor("abcd?")
        for token in tokens:
            at.advance(token)
        places.append(at.state)
    assert len(set(places)) == 1


def test_a_fork_goes_its_own_way():
    at = cursor("a(b|x)")
    at.advance(ord("a"))
    other = at.fork()
    other.advance(ord("b"))
    assert not at.finished
    at.advance(ord("x"))
    assert at.finished
    assert other.finished


def test_a_row_is_filled_and_a_shared_mask_cannot_be_written():
    at = cursor("a")
    row = np.full(VOCABULARY.words, 0xFFFFFFFF, np.uint32)
    assert at.mask(row) is row
    assert (row == at.mask()).all()
    with pytest.raises(ValueError, match="read-only"):
        at.mask()[0] = 1


def test_forced_text_and_what_may_follow():
    at = cursor("abc(d|e)f")
    assert at.forced() == b"abc"
    assert at.follows(b"abce")
    assert not at.follows(b"abcf")
    at.feed(b"abcd")
    assert at.forced() == b"f"
    with pytest.raises(Illegal):
        at.feed(b"x")
