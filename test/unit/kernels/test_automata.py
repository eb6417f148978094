"""The kernels that follow automata, beside the cursors and masks of the CPU."""

import numpy as np
import pytest
import torch
from grammar_patterns import REAL
from grammar_tokenizers import kind

pytest.importorskip("triton")
from sglang.base.plan import FREE, Load
from sglang.engine.automata import Automata
from sglang.grammar import automaton, regex
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Illegal
from sglang.grammar.vocab import Vocabulary

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GAPS = Vocabulary([b"a", b"ab", b"c", b"d", b"<eos>"], [4])  # "b" stands inside a token only
WIDE = Vocabulary(
    [bytes([b]) for b in range(256)] + [b"<eos>", b"<end>", b"<pad>", b" " * 9, "é中".encode(), b"", "中国".encode()],
    [256, 257],
    [258],
    300,
)


def compiled(pattern: str, vocabulary: Vocabulary) -> RegularCompiled:
    return RegularCompiled(automaton.compile(regex.parse(pattern)), vocabulary)


def arena(vocabulary: Vocabulary, states: int, slots: int = 3) -> Automata:
    made = Automata(slots, vocabulary.size, states * (4 * (vocabulary.words + 4) + 513), DEVICE)
    assert made.learn(vocabulary.bytes, vocabulary.eos_ids)
    return made


def load(made: Automata, one: RegularCompiled, base: int) -> None:
    made.load(Load(base, one.machine.table, one.machine.flags))


CASES = [
    (WIDE, r"(.|\n)*"),
    (WIDE, r" {3,12}[é-中]?\w{2}"),
    (WIDE, r"中+|[^a]{2}"),
    (GAPS, "a(b|e)c|abd|ae"),
    (GAPS, "(ab|c)*d"),
]


@pytest.mark.parametrize(("vocabulary", "pattern"), CASES)
def test_masks_of_all_states_are_those_of_the_cpu(vocabulary: Vocabulary, pattern: str) -> None:
    one = compiled(pattern, vocabulary)
    made = arena(vocabulary, one.automaton.states + 9)
    for base in (made.first, made.first + 9):
        load(made, one, base)
        found = made.arena.masks[base : base + one.automaton.states, : vocabulary.words].cpu().numpy().view(np.uint32)
        for state in range(one.automaton.states):
            assert np.array_equal(found[state], one.mask(state)), state


@pytest.mark.parametrize("pattern", [r"""\{"name": "[\w\d\s]{1,6}"\}""", REAL[3], REAL[4]])
def test_masks_over_a_real_vocabulary(pattern: str) -> None:
    vocabulary = kind("gpt4").vocabulary
    one = compiled(pattern, vocabulary)
    made = arena(vocabulary, one.automaton.states)
    load(made, one, made.first)
    found = made.arena.masks[made.first :, : vocabulary.words].cpu().numpy().view(np.uint32)
    for state in range(one.automaton.states):
        assert np.array_equal(found[state], one.mask(state)), state


@pytest.mark.parametrize(("vocabulary", "pattern"), CASES)
def test_a_state_follows_every_token_as_a_cursor_does(vocabulary: Vocabulary, pattern: str) -> None:
    one = compiled(pattern, vocabulary)
    slots = vocabulary.size
    made = arena(vocabulary, one.automaton.states, slots)
    load(made, one, made.first)
    for state in range(min(one.automaton.states, 12)):
        made.states.fill_(FREE)
        rows = torch.arange(slots, device=DEVICE)
        held = made.held(rows, np.full(slots, made.first + state))
        made.advance(held, rows)
        for token, after in enumerate(made.states.tolist()):
            cursor = one.cursor()
            cursor.state = state
            try:
                cursor.advance(token)
            except Illegal:  # drawn only where nothing has a finite logit: the text ends there
                continue
            assert after == made.first + (cursor.state if cursor.state >= 0 else state), (state, token)


def test_places_are_given_or_kept_and_free_rows_stay_free() -> None:
    one = compiled("abc*", WIDE)
    made = arena(WIDE, one.automaton.states, slots=4)
    load(made, one, made.first)
    slots = torch.tensor([2, 0, -1, 3], device=DEVICE)
    made.states[:] = torch.tensor([made.first, FREE, FREE, FREE])
    held = made.held(slots, np.array([made.first, -2, made.first, FREE]))
    made.advance(held, torch.tensor([ord("a"), ord("a"), ord("a"), ord("a")], device=DEVICE))
    after = one.automaton.walk(0, b"a") + made.first
    assert made.states.tolist() == [after, FREE, after, FREE]


def test_a_device_without_these_kernels_leaves_masks_to_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sglang.kernels import automata

    def broken(*args: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(automata, "make_masks", broken)
    made = Automata(2, WIDE.size, 1 << 20, DEVICE)
    assert not made.learn(WIDE.bytes, WIDE.eos_ids)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "no such instruction" in caplog.text


def test_without_memory_for_states_there_are_none() -> None:
    made = Automata(2, WIDE.size, 0, DEVICE)
    assert not made.learn(WIDE.bytes, WIDE.eos_ids)
