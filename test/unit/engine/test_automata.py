"""Constraints followed on the device, planned one step ahead, beside masks that the host makes step by step."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from engine_driver import TINY, load, on_device

pytest.importorskip("triton")
from sglang import schedule
from sglang.base.messages import Logprobs, Piece, Submit, pack
from sglang.base.plan import FREE, Plan
from sglang.base.sampling import SamplingParams
from sglang.engine.automata import Automata
from sglang.engine.engine import Engine, Flight
from sglang.engine.idle import waits_for_device
from sglang.grammar import automaton, regex
from sglang.grammar.jump import Jumper
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Cursor
from sglang.grammar.vocab import Vocabulary
from sglang.schedule.residents import Residents

EOS = 3
WORDS = [b'": "', b'{"', b'"}', b"name", b"na", b"ab", b"abc", b"12", b"2024", b"er", b"Gr", b"ryff", "é".encode()]
VOCABULARY = Vocabulary([b"", b"", b"", b"<eos>", *(bytes([b]) for b in range(256)), *WORDS], (EOS,), (0, 1, 2), 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("automata")
    (path / "config.json").write_text(json.dumps(TINY))
    return path


def encode(text: str) -> list[int]:
    """The longest token that fits, again and again."""
    data, ids, known = text.encode(), [], {t: i for i, t in enumerate(VOCABULARY.bytes) if t}
    while data:
        size = next(n for n in range(8, 0, -1) if data[:n] in known)
        ids.append(known[data[:size]])
        data = data[size:]
    return ids


class Loop:
    """The worker's loop over an engine, without a worker."""

    def __init__(self, engine: Engine, jumps: bool):
        self.engine = engine
        budget = schedule.Budget(
            pages=engine.pages, page_size=engine.page_size, slots=engine.slots, context_length=128, chunk_tokens=64,
            max_prefill_tokens=256, policy="fcfs", conservativeness=1.0, radix=True, max_queued=100, eos_ids=(EOS,),
            seed=0,
        )  # fmt: skip
        self.state = schedule.State(budget)
        first, rows = engine.learn(VOCABULARY.bytes, VOCABULARY.eos_ids)
        self.state.residents = Residents(first, rows) if rows else None
        if jumps:
            jumper = Jumper(VOCABULARY, encode)

            def jump(prompt: list[int], generated: list[int], forced: bytes, beyond: Cursor) -> Any:
                found = jumper.jump(prompt, generated, forced, beyond.follows, beyond.place)
                return None if found is None else (found.keep, found.tokens, found.text)

            self.state.jump = jump
        self.got: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.plans: list[Plan] = []

    def ask(self, id: int, pattern: str | None, n: int = 12, scored: bool = False, **sampling: Any) -> None:
        params = SamplingParams(max_new_tokens=n, **{"temperature": 0, **sampling})
        cursor = None
        if pattern is not None:
            cursor = RegularCompiled(automaton.compile(regex.parse(pattern)), VOCABULARY).cursor()
        self.got[id] = []
        scores = Logprobs(-1, 0, ()) if scored else None
        self._take(schedule.apply(self.state, Submit(id, pack([id + 9, 7, 70 + id]), params, scores), 0.0, cursor))

    def run(self) -> None:
        flying: tuple[Plan, Flight] | None = None
        while True:
            plan = schedule.plan(self.state, 0.0)
            landed, flying = flying, None
            if plan is not None:
                self.plans.append(plan)
                flying = (plan, self.engine.launch(plan))
                if not self.engine.overlap:
                    landed, flying = flying, None
            if landed is not None:
                self._take(schedule.commit(self.state, landed[0], landed[1].wait(), 0.0))
            elif plan is None:
                break
        self.state.check()
        assert self.state.idle
        assert self.state.stats().used_tokens == 0

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.replaced:
                del self.got[piece.id][-piece.replaced :]
            self.got[piece.id] += piece.tokens
            if piece.finish is not None:
                self.finish[piece.id] = piece.finish.type

    def text(self, id: int) -> str:
        return b"".join(VOCABULARY.bytes[t] for t in self.got[id]).decode()


PATTERNS = [
    r'\{"name": "[a-z]{1,4}"\}',
    r"(Gryff|Granger)[a-c]{2}",
    r"[é-中]{1,2}|[0-9]{2}",
    r"20[0-9]{2}-[01][0-9]",
    r"abcabc(12)*",
]


def fill(loop: Loop, penalty: float) -> None:
    for id, pattern in enumerate(PATTERNS):
        loop.ask(id, pattern)
    loop.ask(5, None, 8)
    loop.ask(6, PATTERNS[0], repetition_penalty=penalty)
    loop.ask(7, r"([a-z]{2}[0-9])*", scored=True, ignore_eos=True)


@pytest.mark.parametrize("jumps", [False, True])
def test_what_is_said_ahead_is_what_is_said_step_by_step(folder: Path, jumps: bool) -> None:
    plain = Loop(load(folder, load_format="dummy", max_total_tokens=256), jumps)
    penalty = 1.0 if jumps else 1.3  # with it tokens are drawn behind the graph, without in it
    fill(plain, penalty)
    plain.run()
    own = Loop(on_device(folder), jumps)
    assert own.engine.overlap
    fill(own, penalty)
    own.run()
    assert own.got == plain.got
    assert own.finish == plain.finish
    assert sum(len(plan.loads) for plan in own.plans) == len(PATTERNS) + 2
    assert not any(len(plan.masked) for plan in own.plans)
    assert bool(own.state.count.jumped_tokens) == jumps
    for id, pattern in enumerate(PATTERNS):
        if own.finish[id] == "stop":
            assert re.fullmatch(pattern, own.text(id))
    assert "stop" in own.finish.values()


def test_automata_that_come_in_parts_say_the_same(folder: Path) -> None:
    own, plain = Loop(on_device(folder), False), Loop(load(folder, load_format="dummy", max_total_tokens=256), False)
    assert own.state.residents is not None
    own.state.residents.most = 12
    for loop in (own, plain):
        for id, pattern in enumerate(PATTERNS):
            loop.ask(id, pattern)
        loop.run()
    assert own.got == plain.got
    parts = [load for plan in own.plans for load in plan.loads]
    assert {len(load.flags) > 0 for load in parts} == {True, False}
    assert any(len(plan.masked) for plan in own.plans)
    assert any(len(plan.places) and (plan.places != FREE).any() for plan in own.plans)


def test_texts_match_whatever_is_drawn(folder: Path) -> None:
    own = Loop(on_device(folder), True)
    for id, pattern in enumerate(PATTERNS):
        own.ask(id, pattern, 20, temperature=2.0, seed=id, **([{}, {"top_p": 0.9}, {"top_k": 3}][id % 3]))
    own.run()
    for id, pattern in enumerate(PATTERNS):
        assert own.finish[id] == "length" or re.fullmatch(pattern, own.text(id)), own.text(id)


def test_masks_of_the_host_and_automata_share_a_step(folder: Path) -> None:
    """An arena with room for one automaton of the two: the other's masks come from the host."""
    engine = on_device(folder)
    own, plain = Loop(engine, False), Loop(load(folder, load_format="dummy", max_total_tokens=256), False)
    assert own.state.residents is not None
    own.state.residents.rows = 16
    for loop in (own, plain):
        loop.ask(0, PATTERNS[3])
        loop.ask(1, PATTERNS[0], 6)
        loop.ask(2, None, 6)
        loop.run()
    assert own.got == plain.got
    assert any(len(plan.masked) and len(plan.places) for plan in own.plans)


def test_draws_that_cannot_be_held_by_kernels_are_held_by_torch(folder: Path) -> None:
    own = on_device(folder)
    own._automata = None  # as `warm` leaves it where they do not compile
    loop, plain = Loop(own, False), Loop(load(folder, load_format="dummy", max_total_tokens=256), False)
    assert loop.state.residents is None
    for one in (loop, plain):
        one.ask(0, PATTERNS[3])
        one.ask(1, None, 4)
        one.run()
    assert loop.got == plain.got


def test_captures_wait_while_a_thread_learns_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the device, which a capture elsewhere does not permit, and would not survive."""
    held: list[bool] = []
    rehearse = Automata.rehearse
    monkeypatch.setattr(Automata, "rehearse", lambda *given: held.append(waits_for_device.locked()) or rehearse(*given))
    engine = on_device(folder)
    first, rows = engine.learn(VOCABULARY.bytes, VOCABULARY.eos_ids)
    assert rows > 0 and first == engine.slots
    assert held == [True]
    assert not waits_for_device.locked()
