import random
from collections.abc import Callable

import numpy as np
import pytest
from grammar_patterns import CHARACTER
from grammar_tokenizers import KINDS, Kind, kind

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex
from sglang.grammar.jump import WINDOW, Jumper
from sglang.grammar.regular import RegularCompiled, RegularCursor
from sglang.grammar.vocab import Vocabulary

PATTERNS = [
    CHARACTER,
    r'\{"name": "[a-zA-Z ]{1,20}", "age": [0-9]{1,3}, "length": \d+\.\d{1,2}\}',
    r'\{"name": "[^"]{1,20}", "house": "(Gryffindor|Slytherin)", "alive": (true|false)\}',
    r"(Gryffindor|Gryffin|Grypton): [a-z]*",
    r"x = [0-9]+;\n    return x",
    r"    [a-z]+\n\n    [A-Z0-9]*  end",
    r"it's? a [a-z']+ day",
    r"日本[語人]: [^\n]*\n",
    r"(foo)?  [0-9]{1,6}",
    r'"caf[éè]": [.]+',
    r"[ \t]*\t\t[a-z0-9]?",
    r"Hermione( Granger)?[a-z ]*",
    r"len[a-z]* of the names",
    r"\n\n\n(\n| |a)*",
    r"(naïve|日本語|Zoë Müller): (é|中|1)+",
]
PROMPTS = ["Answer:\n", 'It is "', "x\n\n", "Fill in:", "a ", "é中", "1"]


def allowed(at: RegularCursor, vocabulary: Vocabulary) -> list[int]:
    return [t for t in np.flatnonzero(vocabulary.unpack(at.mask())).tolist() if vocabulary.bytes[t]]


def completion(at: RegularCursor, vocabulary: Vocabulary, rng: random.Random) -> bytes:
    """Some text that may follow, in long tokens as often as in short ones."""
    at, text = at.fork(), b""
    for _ in range(rng.randint(0, 12)):
        if at.finished or (at.accepting and rng.random() < 0.1):
            break
        tokens = allowed(at, vocabulary)
        if not tokens:  # the vocabulary has a gap here, and tokens that lead over it
            break
        if rng.random() < 0.5:
            tokens = [max(rng.sample(tokens, min(8, len(tokens))), key=lambda t: len(vocabulary.bytes[t]))]
        token = rng.choice(tokens)
        at.advance(token)
        text += vocabulary.bytes[token]
    return text


class Tally:
    def __init__(self) -> None:
        self.jumps = self.seams = self.checks = self.wrong = 0


def play(one: Kind, pattern: str, rng: random.Random, rounds: int, jumper: Jumper, tally: Tally) -> None:
    """Draws a beginning, jumps, and compares with how the tokenizer writes whole texts that begin like that."""
    vocabulary = one.vocabulary
    compiled = RegularCompiled(automaton.compile(regex.parse(pattern)), vocabulary)
    for _ in range(rounds):
        said = rng.choice(PROMPTS)
        prompt = one.encode(said)
        at, drawn = compiled.cursor(), []
        for _ in range(rng.randint(0, 25)):
            tokens = allowed(at, vocabulary)
            if not tokens or (at.forced() and rng.random() < 0.3):
                break
            drawn.append(rng.choice(tokens))
            at.advance(drawn[-1])
        forced = at.forced()
        if not forced:
            continue
        after = at.fork()
        after.feed(forced)
        jump = jumper.jump(prompt, drawn, forced, after.follows, after.place)
        if jump is None:
            continue
        tally.jumps += 1
        tally.seams += jump.keep < len(drawn)
        known = drawn[: jump.keep] + jump.tokens
        text = one.spell(drawn)
        assert one.spell(known) == text + jump.text
        assert jump.text
        assert forced.startswith(jump.text)
        for _ in range(8):
            try:
                whole = (text + forced + completion(after, vocabulary, rng)).decode()
            except UnicodeDecodeError:
                continue
            ids = one.encode(said + whole)
            if ids[: len(prompt)] == prompt:
                tally.checks += 1
                tally.wrong += ids[len(prompt) :][: len(known)] != known


def played(name: str, seed: int, rounds: int, change: Callable[[Jumper], None] | None = None) -> Tally:
    one = kind(name)
    jumper = Jumper(one.vocabulary, one.encode)
    if change is not None:
        change(jumper)
    tally, rng = Tally(), random.Random(seed)
    for pattern in PATTERNS:
        try:
            play(one, pattern, rng, rounds, jumper, tally)
        except FieldError as error:
            assert "cannot spell" in str(error)  # a unigram model has no token for every byte
    return tally


@pytest.mark.parametrize("name", KINDS)
def test_whatever_comes_the_tokenizer_writes_the_forced_tokens(name: str):
    tally = played(name, 1, 12)
    assert tally.wrong == 0
    assert tally.jumps > 50
    assert tally.seams > 3
    assert tally.checks > 200


def test_what_is_remembered_is_what_is_found_again():
    one = kind("gpt4")
    compiled = RegularCompiled(automaton.compile(regex.parse(CHARACTER)), one.vocabulary)
    remembering, rng = Jumper(one.vocabulary, one.encode), random.Random(3)
    for _ in range(200):
        at, drawn = compiled.cursor(), []
        while (not at.forced() and not at.finished) or rng.random() < 0.8:
            tokens = allowed(at, one.vocabulary)
            if not tokens:
                break
            drawn.append(rng.choice(tokens))
            at.advance(drawn[-1])
        if not (forced := at.forced()):
            continue
        after = at.fork()
        after.feed(forced)
        fresh = (
            Jumper(one.vocabulary, one.encode).jump([], drawn, forced, after.follows) if rng.random() < 0.1 else None
        )
        found = remembering.jump([], drawn, forced, after.follows, after.place)
        assert fresh is None or found == fresh
    assert remembering._loose


def test_without_looking_at_longer_tokens_it_would_be_wrong():
    """The test above sees what it should."""

    def blind(jumper: Jumper) -> None:
        jumper._borders = lambda text, follows: []  # type: ignore[method-assign]
        jumper._continuations = {k: [] for k in jumper._continuations}

    assert played("gpt4", 1, 12, blind).wrong > 50


def forced_all(name: str, prompt: str, text: str, rest: str = "") -> tuple[list[int], Kind]:
    one = kind(name)
    at = RegularCompiled(automaton.compile(regex.parse(f"{text}{rest}")), one.vocabulary).cursor()
    forced = at.forced()
    after = at.fork()
    after.feed(forced)
    jump = Jumper(one.vocabulary, one.encode).jump(one.encode(prompt), [], forced, after.follows)
    return ([] if jump is None else jump.tokens), one


@pytest.mark.parametrize("name", KINDS)
def test_a_text_that_ends_is_forced_whole(name: str):
    tokens, one = forced_all(name, "The end:\n", "def main", "")
    assert tokens
    assert one.spell(tokens) in (b"def main", b"def")


def test_the_last_token_is_left_where_a_longer_one_may_come():
    one = kind("gpt4")
    tokens, _ = forced_all("gpt4", "x\n", "return sel", "f?")
    text = one.spell(tokens)
    assert text.startswith(b"return")
    assert len(text) < len(b"return sel")


def test_tokens_drawn_before_are_replaced_where_the_tokenizer_joins_them():
    one = kind("gpt4")
    jumper = Jumper(one.vocabulary, one.encode)
    drawn = [one.vocabulary.bytes.index(bytes([b])) for b in b"retu"]
    jump = jumper.jump(one.encode("x = 1\n"), drawn, b"rn self\n", lambda text: text.startswith(b"#"))
    assert jump is not None
    assert jump.keep == 0
    assert one.spell(jump.tokens).startswith(b"return self")
    assert jump.tokens[0] not in drawn
    assert b"retu" + jump.text == one.spell(jump.tokens)


def test_far_tokens_stay_as_they_were_drawn():
    one = kind("gpt4")
    single = {b: one.vocabulary.bytes.index(bytes([b])) for b in range(256)}
    drawn = [single[b] for b in b"word " * 60]
    jump = Jumper(one.vocabulary, one.encode).jump([], drawn, b"return self\n\nx", None)
    assert jump is not None
    assert jump.keep >= len(drawn) - WINDOW


@pytest.mark.parametrize(
    ("drawn", "forced"), [(b"", b""), (b"\xff", b"abc def ghi"), (b"a", b"\xe6"), (b"", b"<eos> and more ")]
)
def test_what_cannot_be_known_is_left_alone(drawn: bytes, forced: bytes):
    one = kind("gpt4")
    single = {b: one.vocabulary.bytes.index(bytes([b])) for b in range(256)}
    jumper = Jumper(one.vocabulary, one.encode)
    assert jumper.jump(one.encode("x"), [single[b] for b in drawn], forced, None) is None


def test_special_tokens_bound_what_is_looked_at():
    one = kind("gpt4")
    jumper = Jumper(one.vocabulary, one.encode)
    prompt = [*one.encode("retu"), one.eos]
    jump = jumper.jump(prompt, [], b"rn self, other", lambda text: text.startswith(b"#"))
    assert jump is not None
    assert one.spell(jump.tokens).startswith(b"rn self")


def test_words_taken_whole_are_noticed():
    assert Jumper(kind("llama3").vocabulary, kind("llama3").encode).whole_words
    assert not Jumper(kind("gpt4").vocabulary, kind("gpt4").encode).whole_words
