"""Constraints that the device follows: planned ahead like free rows, and the same tokens as step by step.

The fake device keeps an arena of states as the real one does. What a sequence should say is found on a scheduler of its
own that waits for every token and makes its masks itself.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
from fake_engine import VOCAB
from hypothesis import HealthCheck, given, settings
from test_constrain import Obeying, narrowed
from test_schedule import EOS, Run

from sglang import schedule
from sglang.base.errors import FieldError
from sglang.base.messages import Abort, Extend, Logprobs, Piece, Submit, pack
from sglang.base.plan import DEAD, ENDS, FREE, KEEP, LIVES, Load, Plan
from sglang.base.sampling import SamplingParams
from sglang.grammar import automaton, regex
from sglang.grammar.jump import Jumper
from sglang.grammar.regular import RegularCompiled, RegularCursor
from sglang.grammar.vocab import Vocabulary
from sglang.schedule.residents import Residents

WORDS = [
    *'abcdexyz0129 .,-"{}:n',
    "ab",
    "abc",
    "bc",
    "cd",
    "xyz",
    "yz",
    "00",
    "12",
    "na",
    '": "',
    '{"',
    "name",
    '"}',
    "aa",
]
TOKENS = [b"", b"", b"", b"<eos>", *(w.encode() for w in WORDS)]
VOCABULARY = Vocabulary(TOKENS, (EOS,), (0, 1, 2), VOCAB)
FIRST = 8  # rows of the fake arena that are not for automata


def encode(text: str) -> list[int]:
    """The longest token that fits, again and again."""
    ids, at = [], 0
    while at < len(text):
        word = max((w for w in WORDS if text.startswith(w, at)), key=len, default=None)
        ids.append(TOKENS.index(word.encode()) if word else 0)
        at += len(word or "?")
    return ids


JUMPER = Jumper(VOCABULARY, encode)


def jump(prompt: list[int], generated: list[int], forced: bytes, beyond: Any) -> tuple[int, list[int], bytes] | None:
    found = JUMPER.jump(prompt, generated, forced, beyond.follows, beyond.place)
    return None if found is None else (found.keep, found.tokens, found.text)


@cache
def compiled(pattern: str) -> RegularCompiled:
    return RegularCompiled(automaton.compile(regex.parse(pattern)), VOCABULARY)


class Following(Obeying):
    """Masks that the host brings, and an arena of automata; a state of the arena goes where its tokens lead."""

    def __init__(self, budget: schedule.Budget):
        super().__init__(budget.pages, budget.page_size, budget.slots)
        self.arena: dict[int, tuple[Load, int]] = {}  # rows whose masks are made
        self.tables: dict[int, Load] = {}
        self.states = [FREE] * budget.slots
        self.loaded = 0

    def launch(self, plan: Plan) -> Any:
        for load in plan.loads:
            if len(load.flags):
                self.loaded += 1
                self.tables[load.base] = load
                for i in range(len(load.flags)):
                    self.arena.pop(load.base + i, None)
            made = range(load.first, load.first + load.count)
            self.arena |= {load.base + i: (self.tables[load.base], i) for i in made}
        landed = super().launch(plan)
        drawn = landed.wait().tokens
        for row, place in enumerate(plan.places.tolist()):
            slot = int(plan.slots[row])
            at = self.states[slot] if place == KEEP else place
            if at == FREE:
                continue
            assert plan.samples[row] and row not in plan.masked
            ways = self._ways(at)
            drawn[row] = self.last[slot] = token = narrowed(int(drawn[row]), sorted(ways))
            self.states[slot] = ways[token]
        return landed

    def _ways(self, at: int) -> dict[int, int]:
        """Token -> row of the arena."""
        load, state = self.arena[at]
        ways = {EOS: at} if load.flags[state] & ENDS else {}
        for token, data in enumerate(VOCABULARY.bytes):
            to = state if data else DEAD
            for byte in data:
                to = int(load.table[to, byte]) if to != DEAD else DEAD
            if to != DEAD and load.flags[to] & LIVES:
                ways[token] = load.base + to
        return ways


class Ahead(Run):
    def __init__(self, depth: int, jumps: bool, rows: int | None = None, most: int = 512, **changes: Any):
        super().__init__(depth, **changes)
        self.engine = Following(self.budget)
        self.state.jump = jump if jumps else None
        self.state.residents = Residents(FIRST, rows, most) if rows is not None else None

    def bind(self, message: Submit | Extend, pattern: str | None) -> None:
        cursor = RegularCursor(compiled(pattern), 0) if pattern is not None else None
        self.got[message.id] = []
        self._take(schedule.apply(self.state, message, self.now, cursor))

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.replaced:
                del self.got[piece.id][-piece.replaced :]
        super()._take(pieces)


@dataclass(frozen=True)
class Wish:
    prompt: tuple[int, ...]
    pattern: str | None
    n: int
    sampling: dict[str, Any] = field(default_factory=dict)
    scored: bool = False

    def submit(self, id: int, hold: bool = False) -> Submit:
        params = SamplingParams(max_new_tokens=self.n, temperature=0, **self.sampling)
        return Submit(id, pack(self.prompt), params, Logprobs(-1, 0, ()) if self.scored else None, hold=hold)

    def extend(self, id: int, of: int, keep: int) -> Extend:
        params = SamplingParams(max_new_tokens=self.n, temperature=0, **self.sampling)
        return Extend(id, of, keep, list(self.prompt), params)


def alone(wish: Wish, jumps: bool, before: tuple[int, ...] = ()) -> tuple[list[int], str]:
    """What it says by itself, step by step, under masks that the host makes."""
    run = Ahead(0, jumps, pages=200, context_length=60)
    run.bind(Wish((*before, *wish.prompt), wish.pattern, wish.n, wish.sampling, wish.scored).submit(0), wish.pattern)
    run.drain()
    assert not run.engine.loaded
    return run.got[0], run.finish[0].type


def text_of(tokens: list[int]) -> str:
    return b"".join(TOKENS[t] for t in tokens if t != EOS).decode()


PATTERNS = [
    r'\{"name": "[a-z]+", "n": (ab|abc|12)\}',
    r"abcxyz00129",
    r"(abc|abd)(xyz)*",
    r"[0-9]{1,3}\.[0-9]{2}",
    r"(a|b)+(name|name: [a-z]{2,5})",
    r"",
    r"a?",
    r"(aa)*name(aa)*",
    r"[a-e]*xyz: [0-9 ]+",
    r"([a-z]{3}xyz)+",
    r"[a-z0-9]{60}",
    r"([a-e]{2}[0-9]{2})*",
]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("rows", [0, 40, 400])
def test_sequences_say_what_they_would_say_step_by_step(depth: int, jumps: bool, rows: int) -> None:
    """Among free ones, in a pool and an arena so small that sequences are retracted and automata have to go."""
    import random

    rng = random.Random(depth * 2 + jumps + rows)
    most = 512 if jumps else 9  # or large ones come in parts
    run = Ahead(depth, jumps, rows, most, pages=60, slots=8, context_length=60, conservativeness=0.01)
    wanted: dict[int, Wish] = {}
    for id in range(90):
        pattern = rng.choice([*PATTERNS, *PATTERNS[-3:], None, None])
        sampling = rng.choice([{}, {}, {"ignore_eos": True}, {"min_new_tokens": 2}, {"repetition_penalty": 1.1}])
        prompt = tuple(rng.randrange(4, VOCAB - 8) for _ in range(rng.randint(1, 12)))
        wish = wanted[id] = Wish(prompt, pattern, rng.choice([0, 1, 12, 40, 40]), sampling, rng.random() < 0.2)
        run.bind(wish.submit(id), pattern)
        for _ in range(rng.randint(0, 3)):
            run.step()
        if rng.random() < 0.1 and id not in run.finish:
            run.send(Abort(id))
            del wanted[id]
    run.drain()
    for id, wish in wanted.items():
        tokens, finish = alone(wish, jumps)
        assert (run.got[id], run.finish[id].type) == (tokens, finish), wish
        if wish.pattern is not None and finish == "stop":
            assert re.fullmatch(wish.pattern, text_of(tokens))
    assert run.state.count.retractions
    assert bool(run.state.count.jumped_tokens) == jumps
    assert bool(run.engine.loaded) == (rows > 0)
    if rows == 40:
        assert run.engine.loaded > 2 * len(PATTERNS), "nothing had to go"
        assert any(len(plan.masked) for plan in run.plans), "there was always room"
    if rows == 400:
        assert any(len(plan.masked) for plan in run.plans) == (most == 9)
    assert all(sum(load.count for load in plan.loads) <= most for plan in run.plans)


def test_a_row_is_planned_before_its_last_token_is_known() -> None:
    run = Ahead(1, False, 400)
    run.bind(Wish((5,), "[a-z]{30}", 25).submit(0), "[a-z]{30}")
    run.drain()
    steps = len(run.plans)
    tokens = len(run.got[0])
    assert tokens > 8
    assert steps <= tokens + 2, "it sat out steps"
    assert [p.places.tolist() for p in run.plans[1:]] == [[KEEP]] * (steps - 1)


class Stacked(RegularCursor):
    """What a device cannot follow."""

    __slots__ = ()

    @property
    def machine(self) -> None:  # type: ignore[override]
        return None

    def fork(self) -> "Stacked":
        return Stacked(self.compiled, self.state)


def test_a_grammars_row_sits_out_every_second_step_and_nobody_else_does() -> None:
    run = Ahead(1, False, 400)
    pattern = "[a-z]{30}"
    wish = Wish((6, 7), pattern, 25)
    run.got[0] = []
    run._take(schedule.apply(run.state, wish.submit(0), run.now, Stacked(compiled(pattern), 0)))
    run.bind(Wish((5,), pattern, 25).submit(1), pattern)
    run.bind(Wish((8,), None, 25, {"ignore_eos": True}).submit(2), None)
    slots = dict.fromkeys(range(3), -1)
    seen: dict[int, list[int]] = {id: [] for id in range(3)}
    while not run.state.idle:
        run.step()
        slots |= {seq.id: seq.slot for seq in run.state.running}
    for step, plan in enumerate(run.plans):
        for id, slot in slots.items():
            if slot in plan.slots.tolist():
                seen[id].append(step)
    assert run.got[0] == alone(wish, False)[0]
    assert all(b - a == 2 for a, b in zip(seen[0], seen[0][1:], strict=False) if b <= seen[1][-1])
    for id in (1, 2):
        assert seen[id] == list(range(seen[id][0], seen[id][-1] + 1)), "others waited for it"
        assert len(seen[id]) >= len(run.got[id])


def test_a_jump_is_found_one_step_late_and_costs_the_token_in_flight() -> None:
    run = Ahead(1, True, 400)
    pattern = r"[a-c]xyz0012[a-c]xyz0012"
    run.bind(Wish((5,), pattern, 30).submit(0), pattern)
    run.drain()
    assert run.got[0] == alone(Wish((5,), pattern, 30), True)[0]
    assert run.state.count.jumped_tokens
    known = len(run.got[0]) - run.state.count.jumped_tokens
    assert run.state.count.generated_tokens == known, "a token that was dropped has been counted"


def test_a_machine_is_loaded_once_for_all_who_ask() -> None:
    run = Ahead(1, True, 400)
    for id in range(6):
        run.bind(Wish((5, id + 4), PATTERNS[0], 20).submit(id), PATTERNS[0])
    run.drain()
    assert run.engine.loaded == 1
    run.bind(Wish((7,), PATTERNS[0], 20, {"ignore_eos": True}).submit(9), PATTERNS[0])
    run.drain()
    assert run.engine.loaded == 2, "texts that must not end have masks of their own"


def test_a_large_machine_comes_in_parts_and_its_row_does_not_wait_for_them() -> None:
    pattern = "[a-z]{40}"
    run = Ahead(1, False, 400, most=10)
    run.bind(Wish((5,), pattern, 30).submit(0), pattern)
    run.drain()
    assert run.got[0] == alone(Wish((5,), pattern, 30), False)[0]
    parts = [[(load.first, load.count, len(load.flags)) for load in plan.loads] for plan in run.plans]
    assert parts[:6] == [[(0, 10, 41)], [(10, 10, 0)], [(20, 10, 0)], [(30, 10, 0)], [(40, 1, 0)], []]
    assert [bool(len(plan.masked)) for plan in run.plans[:6]] == [True] * 5 + [False]
    assert [plan.places.tolist() for plan in run.plans[6:8]] == [[KEEP]] * 2
    small = Residents(4, 100, 10)
    a, b, c = (compiled(p).machine for p in ("a{6}", "b{6}", "c{2}"))
    assert small.take(a, True) is not None
    assert small.take(b, True) is None, "with it the plan would bring too many"
    assert small.take(c, True) is None, "it comes behind the second"
    assert [(load.count, load.first) for load in small.flush()] == [(7, 0), (3, 0)]
    assert small.arrived(b, True) is None
    assert [(load.count, load.first) for load in small.flush()] == [(4, 3), (3, 0)]
    assert small.arrived(b, True) is not None
    assert small.arrived(b, False) is None
    assert small.flush() == []


def test_what_goes_before_it_has_come_is_not_brought() -> None:
    residents = Residents(4, 8, 4)
    a, b = (compiled(p).machine for p in ("a{6}", "b{6}"))
    assert residents.take(a, True) is None
    assert [load.count for load in residents.flush()] == [4]
    assert residents.take(b, True) is None, "the first made room, which nobody holds"
    assert [(load.count, len(load.flags)) for load in residents.flush()] == [(4, 7)]
    assert [load.count for load in residents.flush()] == [3]
    assert residents.arrived(a, True) is None
    assert residents.arrived(b, True) is not None


def test_what_has_been_unused_for_longest_goes_first() -> None:
    residents = Residents(4, 20)
    a, b, c = (compiled(p).machine for p in ("a{6}", "b{6}", "c{4}"))
    first, second = residents.take(a, True), residents.take(b, True)
    assert first and second
    assert (first.base, second.base) == (4, 11)
    assert residents.take(c, True) is not None
    assert len(residents.flush()) == 3
    assert residents.take(compiled("d{3}").machine, True) is None, "all are held"
    residents.release(second)
    residents.release(first)
    taken = residents.take(compiled("e{4}").machine, True)
    assert taken is not None
    assert taken.base == 4, "the first was taken earlier"
    assert residents.take(b, True) is second
    assert len(residents.flush()) == 1
    assert residents.take(compiled("x{30}").machine, True) is None, "larger than the arena"
    residents.check([taken, second, *(r for r in residents._known.values() if r.states == 5 and r is not taken)])


_atoms = st.sampled_from(["a", "b", "c", "xyz", "00", "12", "name", "[a-e]", "[0-9]", "a?", "(ab|abc)", '": "'])
_patterns = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])).map(lambda t: f"({t[0]}){t[1]}"),
    ),
    max_leaves=8,
)
_wishes = st.builds(
    Wish,
    st.lists(st.integers(4, VOCAB - 9), min_size=1, max_size=6).map(tuple),
    st.one_of(st.none(), _patterns),
    st.integers(1, 20),
    st.sampled_from([{}, {}, {"ignore_eos": True}, {"min_new_tokens": 2}, {"presence_penalty": 0.5}]),
    st.booleans(),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(_wishes, st.integers(0, 5), st.sampled_from(["", "", "", "abort", "extend"])), min_size=1, max_size=8
    ),
    st.booleans(),
    st.integers(0, 60),
    st.integers(1, 20),
    st.integers(60, 80),
    st.sampled_from([1, 4]),
)
def test_any_workload_says_what_it_would_say_step_by_step(
    wishes: list[tuple[Wish, int, str]], jumps: bool, rows: int, most: int, tokens: int, page_size: int
) -> None:
    run = Ahead(
        1, jumps, rows, most, pages=tokens // page_size, page_size=page_size, slots=3, context_length=60,
        conservativeness=0.01,
    )  # fmt: skip
    wanted: list[tuple[int, Wish, tuple[int, ...]]] = []
    for id, (wish, steps, then) in enumerate(wishes):
        try:
            compiled(wish.pattern or "")
        except FieldError:
            continue
        run.bind(wish.submit(id, hold=then == "extend"), wish.pattern)
        for _ in range(steps):
            run.step()
        if then == "abort":
            run.send(Abort(id))
        elif then == "extend" and (seq := run.state.seqs.get(id)) is not None:
            before = tuple(seq.tokens)
            more = wish.extend(100 + id, id, len(before))
            run.bind(more, wish.pattern)
            wanted.append((100 + id, replace(wish, scored=False), before))
        elif then == "":
            wanted.append((id, wish, ()))
    run.drain()
    for id, wish, before in wanted:
        want, finish = alone(wish, jumps, before)
        assert run.got[id] == want[: len(run.got[id])]
        assert (run.got[id], run.finish[id].type) == (want, finish), (wish, before)
    for id in list(run.state.seqs):
        run.send(Abort(id))
    run.drain()
    run.state.check()
    assert run.state.stats().used_tokens == 0
    assert len(run.state.slots) == run.budget.slots


def test_the_fake_device_notices_a_foreign_state() -> None:
    """The tests above are only worth something if a wrong place shows."""
    run = Ahead(1, False, 400)
    run.bind(Wish((5,), PATTERNS[0], 20).submit(0), PATTERNS[0])
    run.step()
    run.engine.states = [s + 1 for s in run.engine.states]
    run.drain()
    assert run.got[0] != alone(Wish((5,), PATTERNS[0], 20), False)[0] or run.finish[0].type == "abort"
