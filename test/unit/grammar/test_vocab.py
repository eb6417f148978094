import random

import pytest
from grammar_patterns import CHARACTER, REAL

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.vocab import Vocabulary

SINGLE = [bytes([b]) for b in range(256)]


def random_vocabulary(seed: int, size: int = 6000) -> Vocabulary:
    """Bytes, words, pieces of characters, repeated and empty tokens; more logits than tokens."""
    rng = random.Random(seed)
    alphabet = [
        "a",
        "b",
        "the",
        "Gry",
        "name",
        '"',
        '":',
        " ",
        "    ",
        "\n",
        "é",
        "中",
        "😀",
        "1",
        "23",
        "456",
        ".",
        "\\",
        "}",
    ]
    tokens = list(SINGLE)
    while len(tokens) < size:
        token = "".join(rng.choices(alphabet, k=rng.randint(1, 9))).encode()
        cut = rng.randint(0, 2) if rng.random() < 0.2 else 0
        tokens.append(token[cut:] if rng.random() < 0.5 else token[: len(token) - cut])
    rng.shuffle(tokens)
    tokens += [b"", b"<eos>", b"<pad>"]
    return Vocabulary(tokens, [size + 1], [size + 2], size=size + 50)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return random_vocabulary(0)


@pytest.mark.parametrize(
    "pattern", [CHARACTER, ".*", '[^"]*', r"[\w ]{1,16}\.", ".{3,9}", r"\d+(\.\d+)?", "[a-zé中]{0,5}x?", *REAL[5:120:7]]
)
def test_a_mask_allows_what_the_automaton_reads(pattern: str, vocabulary: Vocabulary):
    compiled = RegularCompiled(automaton.compile(regex.parse(pattern)), vocabulary)
    a = compiled.automaton
    states = range(a.states) if a.states < 12 else random.Random(1).sample(range(a.states), 12)
    for state in states:
        expected = [bool(t) and a.walk(state, t) >= 0 for t in vocabulary.bytes]
        expected += [False] * (vocabulary.size - len(expected))
        expected[vocabulary.eos_ids[0]] = bool(a.accepts[state])
        assert vocabulary.unpack(compiled.mask(state)).tolist() == expected, state


def test_masks_survive_being_forgotten(vocabulary: Vocabulary):
    compiled = RegularCompiled(automaton.compile(regex.parse(CHARACTER)), vocabulary)
    compiled._kept = 3
    first = {s: compiled.mask(s).copy() for s in range(10)}
    assert all((compiled.mask(s) == first[s]).all() for s in range(10))
    assert len(compiled._masks) == 3


def test_tokens_with_a_beginning(vocabulary: Vocabulary):
    for prefix in (b"a", b"the", b"\xff", b"\xc3", b"zzz", b'name"'):
        expected = sorted(t for t in vocabulary.bytes if t.startswith(prefix))
        assert list(vocabulary.starting_with(prefix)) == expected


def toy(*tokens: bytes) -> Vocabulary:
    return Vocabulary([*tokens, b"<eos>"], [len(tokens)])


def test_a_gap_in_the_vocabulary_is_walked_around():
    vocabulary = toy(b"a", b"ab", b"c", b"d")  # "b" and "e" only inside or not at all
    compiled = RegularCompiled(automaton.compile(regex.parse("a(b|e)c|abd|ae")), vocabulary)
    cursor = compiled.cursor()
    # After "a" alone nothing can be spelled, so "a" is not offered.
    assert vocabulary.unpack(cursor.mask()).tolist() == [False, True, False, False, False]
    cursor.advance(1)
    assert vocabulary.unpack(cursor.mask()).tolist() == [False, False, True, True, False]


def test_a_language_that_cannot_be_spelled_is_refused():
    with pytest.raises(FieldError, match="cannot spell"):
        RegularCompiled(automaton.compile(regex.parse("[0-9]+")), toy(b"a", b"b"))


def test_no_vocabulary_at_all():
    vocabulary = Vocabulary([b"<eos>"], [0])
    with pytest.raises(FieldError, match="cannot spell"):
        RegularCompiled(automaton.compile(regex.parse("a")), vocabulary)
    cursor = RegularCompiled(automaton.compile(regex.parse("a?")), vocabulary).cursor()
    assert vocabulary.unpack(cursor.mask()).tolist() == [True]
