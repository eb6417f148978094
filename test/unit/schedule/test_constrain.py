"""Constrained sequences in the scheduler, against the device that knows every cell.

The language is a toy: token t is the byte t; texts are LOW bytes below 40 and, after each byte that 7 divides, three
bytes that must come. The fake model draws what it likes; a mask turns that into the next token allowed.
"""

import random
from typing import Any

import numpy as np
import pytest
from fake_engine import VOCAB, FakeEngine, next_token
from test_schedule import EOS, Run

from sglang import schedule
from sglang.base.messages import Abort, Piece, Submit, pack
from sglang.base.plan import Plan
from sglang.base.sampling import SamplingParams
from sglang.grammar.rules import Illegal, Words

LOW, SIZE = 40, 30


def forced_after(text: bytes) -> bytes:
    """What the toy language demands next."""
    for back in range(3, 0, -1):
        if len(text) >= back and text[-back] % 7 == 0 and all(c % 7 for c in text[len(text) - back + 1 :]):
            return bytes((text[-back] + k) % LOW or 1 for k in (1, 2, 3))[back - 1 :] if back <= 3 else b""
    return b""


def submit(id: int, tokens: list[int], n: int, **sampling: Any) -> Submit:
    return Submit(id, pack(tokens), SamplingParams(max_new_tokens=n, temperature=0, **sampling))


class Toy:
    """Ends after SIZE bytes."""

    def __init__(self, text: bytes = b"", ended: bool = False):
        self.text = text
        self.ended = ended

    def _allowed(self) -> set[int]:
        if self.finished:
            return {EOS}
        if must := self.forced():
            return {must[0]}
        return set(range(4, LOW)) | ({EOS} if self.accepting else set())

    def mask(self, row: Words | None = None) -> Words:
        made = np.zeros(2, np.uint32)
        for t in self._allowed():
            made[t // 32] |= np.uint32(1 << t % 32)
        return made

    def advance(self, token: int) -> None:
        if token not in self._allowed():
            raise Illegal(str(token))
        if token == EOS:
            self.ended = True
        else:
            self.text += bytes([token])

    def feed(self, text: bytes) -> None:
        for byte in text:
            self.advance(byte)

    def forced(self) -> bytes:
        must = forced_after(self.text)
        return must[: SIZE - len(self.text)] if min(must, default=9) > 3 else b""

    def follows(self, text: bytes) -> bool:
        return True

    def fork(self) -> "Toy":
        return Toy(self.text, self.ended)

    @property
    def accepting(self) -> bool:
        return self.ended or (len(self.text) >= SIZE // 2 and not self.forced())

    @property
    def finished(self) -> bool:
        return self.ended or len(self.text) >= SIZE

    @property
    def place(self) -> None:
        return None


class Obeying(FakeEngine):
    """Draws under the plan's masks."""

    def launch(self, plan: Plan) -> Any:
        landed = super().launch(plan)
        drawn = landed.wait().tokens
        for row, mask in zip(plan.masked.tolist(), plan.mask_of.tolist(), strict=True):
            bits = np.unpackbits(plan.masks[mask].view(np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits[:VOCAB])
            assert len(allowed)
            drawn[row] = self.last[plan.slots[row]] = narrowed(int(drawn[row]), allowed.tolist())
        return landed


def narrowed(token: int, allowed: list[int]) -> int:
    return min(allowed, key=lambda t: (t - token) % VOCAB)


def alone(prompt: list[int], n: int) -> list[int]:
    """What a sequence says, token by token, on a device of its own."""
    cursor, tokens = Toy(), []
    while len(tokens) < n and not cursor.finished:
        token = narrowed(next_token(prompt + tokens), sorted(cursor._allowed()))
        tokens.append(token)
        if token == EOS:
            break
        cursor.advance(token)
    return tokens


def jump(prompt: list[int], generated: list[int], forced: bytes, beyond: Any) -> tuple[int, list[int], bytes] | None:
    """A tokenizer that always agrees; now and then it wants the last token again, or is not sure of the last."""
    chance = random.Random(f"{generated}")
    back = min(len(generated), chance.choice([0, 0, 1, 2]))
    sure = forced[: chance.choice([len(forced), len(forced), 1])]
    keep = len(generated) - back
    return keep, generated[keep:] + list(sure), sure


def jumps_of(text: list[int]) -> int:
    return sum(len(forced_after(bytes(text[:n]))) == 3 for n in range(1, len(text)))


class Constrained(Run):
    def __init__(self, depth: int, jumps: bool, **changes: Any):
        super().__init__(depth, **changes)
        self.engine = Obeying(self.budget.pages, self.budget.page_size, self.budget.slots)
        self.state.jump = jump if jumps else None

    def bind(self, message: Any) -> None:
        self.got[message.id] = []
        self._take(schedule.apply(self.state, message, self.now, Toy()))

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.replaced:
                assert piece.tokens[: piece.replaced] == self.got[piece.id][-piece.replaced :]
                del self.got[piece.id][-piece.replaced :]
        super()._take(pieces)


# Behind it much is forced.
TALKATIVE = max(([a, b] for a in range(4, 30) for b in range(4, 30)), key=lambda p: jumps_of(alone(p, 30)))


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("page_size", [1, 4])
def test_constrained_sequences_say_what_they_would_say_alone(depth: int, jumps: bool, page_size: int) -> None:
    """Among free ones, in a pool so small that sequences are retracted, with some that are aborted."""
    rng = random.Random(depth * 2 + jumps)
    run = Constrained(
        depth, jumps, pages=72 // page_size, page_size=page_size, slots=8, context_length=70, conservativeness=0.01
    )
    wanted: dict[int, list[int]] = {}
    for id in range(60):
        prompt = [rng.randrange(4, 30) for _ in range(rng.randint(1, 12))]
        n = rng.choice([0, 1, 3, 10, 40, 40])
        if rng.random() < 0.7:
            wanted[id] = alone(prompt, min(n, 70 - len(prompt)))
            run.bind(submit(id, prompt, n))
        else:
            run.send(submit(id, prompt, n))
        for _ in range(rng.randint(0, 4)):
            run.step()
        if rng.random() < 0.1 and id not in run.finish:
            run.send(Abort(id))
            wanted.pop(id, None)
    run.drain()
    for id, tokens in wanted.items():
        assert run.got[id] == tokens, id
        ended = len(tokens) == SIZE or tokens[-1:] == [EOS]
        assert run.finish[id].type == ("stop" if ended else "length")
    assert run.state.count.retractions
    assert bool(run.state.count.jumped_tokens) == jumps
    assert sum(len(t) for t in run.got.values()) > 300


def test_a_row_is_not_planned_before_its_mask_is_known() -> None:
    run = Constrained(1, False)
    run.bind(submit(0, [5], 10))
    run.send(submit(1, [6], 10, ignore_eos=True))
    run.drain()
    for before, after in zip(run.plans, run.plans[1:], strict=False):
        masked = {int(before.slots[row]) for row in before.masked}
        assert not masked & {int(after.slots[row]) for row in after.masked} or len(before.slots) == 1
    assert run.got[0] == alone([5], 10)


def test_a_stop_token_inside_forced_text_ends_it() -> None:
    run = Constrained(0, True)
    prompt = next([p] for p in range(4, 30) if any(t % 7 == 0 and t < 35 for t in alone([p], 30)[:10]))
    whole = alone(prompt, 30)
    at = next(i for i, t in enumerate(whole) if t % 7 == 0 and t < 35)
    stop = whole[at + 2]
    run.bind(submit(0, prompt, 30, stop_token_ids=(stop,)))
    run.drain()
    assert run.got[0] == whole[: whole.index(stop) + 1]
    assert run.finish[0].matched == stop


def test_a_stop_token_that_is_the_last_allowed_is_a_stop() -> None:
    whole = alone(TALKATIVE, 30)
    at = next(
        i for i in range(1, 30) if len(forced_after(bytes(whole[:i]))) == 3 and whole[i + 2] not in whole[: i + 2]
    )
    for length in (30, at + 3):
        run = Constrained(0, True)
        run.state.jump = lambda before, drawn, forced, beyond: (len(drawn), list(forced), forced)
        run.bind(submit(0, TALKATIVE, length, stop_token_ids=(whole[at + 2],)))
        run.drain()
        assert run.got[0] == whole[: at + 3]
        assert run.finish[0].matched == whole[at + 2]


@pytest.mark.parametrize("hold", [False, True])
def test_tokens_behind_which_the_front_may_go_on_are_not_taken_back(hold: bool) -> None:
    """It has found a stop string in what it was sent, and says how many of those tokens are to be kept."""
    run = Constrained(0, True)
    for id in range(4, 12):
        sampling = SamplingParams(max_new_tokens=30, temperature=0, stop=("never",))
        run.bind(Submit(id, pack([id, id + 1]), sampling, hold=hold))
    run.drain()
    assert run.state.count.jumped_tokens
    assert any(piece.replaced for pieces in run.pieces.values() for piece in pieces) != hold


def test_what_cannot_be_drawn_ends_its_own_sequence_only() -> None:
    run = Constrained(0, False)
    run.engine = FakeEngine(run.budget.pages, run.budget.page_size, run.budget.slots)  # hears no masks
    run.bind(submit(0, [5], 30))
    run.send(submit(1, [6], 10, ignore_eos=True))
    run.drain()
    assert run.finish[0].type == "abort"
    assert run.finish[0].status == 500
    assert run.finish[1].type == "length"


def test_who_ignores_the_end_goes_on_as_long_as_the_text_can() -> None:
    run = Constrained(0, False)
    run.bind(submit(0, [9], 60, ignore_eos=True))
    run.drain()
    assert EOS not in run.got[0]
    assert len(run.got[0]) == SIZE


class Failing(Toy):
    def mask(self, row: Words | None = None) -> Words:
        if len(self.text) > 4:
            raise RuntimeError("the grammar grew too large")
        return super().mask(row)


class FailingLate(Toy):
    def advance(self, token: int) -> None:
        if len(self.text) > 4:
            raise RuntimeError("the grammar grew too large")
        super().advance(token)


@pytest.mark.parametrize("cursor", [Failing, FailingLate])
def test_a_grammar_that_fails_in_the_middle_fails_one_sequence(cursor: type[Toy]) -> None:
    run = Constrained(0, False)
    run.got[0] = []
    run._take(schedule.apply(run.state, submit(0, [5], 30), 0.0, cursor()))
    run.drain()
    assert run.finish[0].status == 400
    assert run.finish[0].field == "constraint"


def test_what_a_jump_is_asked_about_begins_behind_the_last_one() -> None:
    """Forced tokens are certain, so they are not tokenised again; one byte alone is not worth asking about."""
    asked: list[tuple[list[int], list[int], bytes]] = []

    def spy(before: list[int], drawn: list[int], forced: bytes, beyond: Any) -> tuple[int, list[int], bytes]:
        asked.append((before, drawn, forced))
        return len(drawn), list(forced), forced

    run = Constrained(0, True)
    prompt = TALKATIVE
    run.state.jump = spy
    run.bind(submit(0, prompt, 30))
    run.drain()
    whole, at = alone(prompt, 30), 0
    assert run.got[0] == whole and len(asked) > 2
    for before, drawn, forced in asked:
        assert before == (prompt + whole)[: at + 2]
        at += len(drawn) + len(forced)
        assert whole[:at] == (before + drawn + list(forced))[2:]
        assert len(forced) > 1


def test_forced_text_is_filed_when_its_sequence_ends() -> None:
    """Not as it is planned: looking for it among what others said takes longer than computing it."""
    run = Constrained(0, True)
    run.bind(submit(0, TALKATIVE, 30))
    sizes = []
    while not run.state.idle:
        run.step()
        sizes.append(run.state.tree.pages)
    assert run.state.count.jumped_tokens
    assert sizes[0] < 6 and set(sizes[:-1]) == {sizes[0]}
    assert sizes[-1] > 20
