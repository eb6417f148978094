"""Before a step: who decodes, who fills its prompt, who is admitted, who must make room.

Decodes always go, one token each. Beside them a budget of tokens fills prompts, running ones first, then new ones in
the policy's order; so the budget bounds how long a stream pauses, and is larger where nobody streams, or as many
prompts wait. Prompt pages enter the tree as they are planned: a row may attend to cells that another row of the same
step writes (every layer writes before it reads), so requests that share a prefix share it from the first step on and
nobody waits for anybody.
"""

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from sglang.base.plan import DRAWN, FREE, KEEP, Ask, Plan, PromptAsk, Seat
from sglang.grammar.rules import Words
from sglang.schedule.constrain import follow, mask
from sglang.schedule.policy import cached, order
from sglang.schedule.state import (
    RATIO_DECAY,
    RATIO_FLOOR,
    RATIO_JUMP,
    Does,
    Flown,
    Seq,
    State,
    Status,
)

ENDLESS = 1 << 30
SEVERAL = 4  # prompts that a long step beside streams must finish
MANY = 8  # streams for each prompt that waits: then a prompt's turn comes soon anyway, and their pause counts most
EVEN = 4  # grains of a row that is worth ending where others do: by then half a grain is an eighth of it
DRAWS = Does.DRAWS
_computed = attrgetter("computed")


def plan(state: State, now: float) -> Plan | None:
    """The next step, or None where there is nothing to do. Changes the state as if the step had run."""
    draft = _Draft(state)
    floor = state.ratio_base * RATIO_FLOOR
    state.new_token_ratio = max(state.new_token_ratio - RATIO_DECAY, floor)
    _decode(state, draft)
    filling = _filling(state) if len(draft.rows) < len(state.running) else []
    left = _chunk(state, draft, filling)
    if filling:
        left = _fill(state, draft, filling, left)
    if state.waiting and left > 0 and (state.slots or state.held):
        _admit(state, draft, left, now)
    if not draft.rows:
        return None
    state.count.steps += 1
    state.flights.append(draft.rows)
    return draft.plan(state.count.steps)


def _decode(state: State, draft: "_Draft") -> None:
    size = state.budget.page_size
    while True:
        rows: list[Seq] = []
        need = 0
        for seq in state.running:
            start, length = seq.computed, len(seq.tokens) + seq.flying
            if start + 1 != length or not seq.first < length < seq.last:
                continue
            if seq.flying and seq.cursor and seq.resident is None:
                continue
            rows.append(seq)
            need += start == len(seq.pages) * size
        if need <= state.available:
            break
        _make_room(state)
    pages = state.take_pages(need)
    assert pages is not None
    # Attention reads sequences in this order, some at a time: what begins last should not be what takes longest.
    rows.sort(key=_computed, reverse=True)
    draft.decodes(rows, pages)


def _filling(state: State) -> list[Seq]:
    """Who has more of a prompt to compute."""
    return [seq for seq in state.running if seq.computed < len(seq.tokens) and not seq.flying]


def _chunk(state: State, draft: "_Draft", filling: list[Seq]) -> int:
    """Most tokens of prompts in this step, whose decodes are drafted.

    Streams pause for it, so it depends on how many do, and for how many. In a burst, as many prompts wait as there are
    streams and several are finished at once: it may be as long as any. With few prompts among many streams it is short.
    """
    whole, most, streams = state.budget.chunk_tokens, state.budget.beside_tokens, len(draft.rows)
    whole = whole if whole > 0 else ENDLESS
    if most is None:
        return whole
    if not streams:  # those who wait for a mask wait for this step as well
        streams = sum(seq.computed + 1 == seq.length and seq.first < seq.length < seq.last for seq in state.running)
    asking = [*filling, *state.waiting] if filling else state.waiting
    if not streams or (len(asking) >= streams and _finishes(state, asking[:SEVERAL], whole)):
        most = whole
    elif len(asking) * MANY < streams:
        most -= most // 4
    return max(most - len(draft.rows), (most + 1) // 2)


def _even(start: int, end: int, grain: int) -> int:
    """The multiple of `grain` that is next to `end`, where the row stays about as long."""
    near = (end + grain // 2) // grain * grain
    return near if end - start >= EVEN * grain else end


def _finishes(state: State, asking: list[Seq], most: int) -> bool:
    """Whether these prompts are several, and a step of `most` tokens has room for all that they lack."""
    lack = (len(seq.tokens) - max(seq.computed, cached(state, seq)) for seq in asking)
    return len(asking) == SEVERAL and sum(lack) <= most


def _fill(state: State, draft: "_Draft", filling: list[Seq], left: int) -> int:
    """Next chunks of prompts that are under way; what is left of the budget."""
    stuck = False
    for seq in filling:
        if left <= 0:
            break
        before = seq.computed
        if before < seq.first:  # behind it is text that a constraint forced: a few tokens, which others seldom have
            state.adopt(seq)
        count = draft.fill(seq, left)
        stuck = stuck or (count == 0 and seq.computed == before)
        left -= count
    if stuck and not draft.rows and not state.flights:
        # Prompts hold each other's last pages and nothing else will ever free one.
        _make_room(state)
        return _fill(state, draft, _filling(state), left)
    return left


def _admit(state: State, draft: "_Draft", left: int, now: float) -> None:
    size = state.budget.page_size
    ratio = state.new_token_ratio
    promised = 0.0
    for seq in state.running:
        known = len(seq.tokens)
        promised += max(known - seq.computed, 0) + ratio * (seq.last - known - seq.flying)
    prefill_left = state.budget.max_prefill_tokens
    for seq in order(state, now):
        if left <= 0 or prefill_left <= 0 or not (state.slots or state.held):
            return
        state.adopt(seq)
        need = len(seq.tokens) - seq.computed
        if state.budget.whole and draft.rows and need > left:
            return
        wanted = promised + need + ratio * (seq.last - seq.length)
        alone = not state.running
        while (not state.slots or _pages(wanted if not alone else need, size) > state.available) and state.held:
            _park(state)
        if not state.slots or (not alone and _pages(wanted, size) > state.available):
            state.let_go(seq)
            return  # nobody overtakes: the pages it waits for would never come together
        if seq.cached is None:
            seq.cached = min(seq.computed, seq.first)  # a constraint may have put tokens behind the prompt
            state.count.prompt_tokens += seq.first
            state.count.prompt_cached_tokens += seq.cached
            state.waited.append(now - seq.since)
        seq.slot = state.slots.pop()
        seq.status = Status.RUNNING
        state.waiting.remove(seq)
        state.running.append(seq)
        promised = wanted
        prefill_left -= need
        left -= draft.fill(seq, need if state.budget.whole else left)


def _pages(tokens: float, size: int) -> int:
    return -int(-tokens // size)


def _make_room(state: State) -> None:
    """Give pages back to the tree: of a held sequence, else of the running one that loses least."""
    if state.held:
        _park(state)
        return
    assert len(state.running) > 1, "a lone sequence fits, or was refused at the door"
    victim = min(state.running, key=lambda s: (s.generated, -s.first))
    state.running.remove(victim)
    state.let_go(victim)
    victim.status = Status.WAITING
    state.waiting.append(victim)
    state.count.retractions += 1
    state.new_token_ratio = min(state.new_token_ratio + RATIO_JUMP, 1.0)


def _park(state: State) -> None:
    """The longest held sequence gives up its place; it is found in the tree again, or computed again."""
    seq = next(iter(state.held.values()))
    del state.held[seq.id]
    state.let_go(seq)
    seq.status = Status.PARKED


class _Draft:
    """The plan being written."""

    def __init__(self, state: State):
        self.state = state
        self.rows: Flown = []
        self._slots: list[int] = []
        self._starts: list[int] = []
        self._counts: list[int] = []  # of the rows behind the decodes, which come first
        self._samples: list[bool] = []
        self._tokens = array("i")
        self._table_slots: list[int] = []
        self._table_index: list[int] = []
        self._table_pages: list[int] = []
        self._tables: list[tuple[int, int, np.ndarray]] = []  # longer stretches: slot, first index, pages
        self._seats: list[Seat] = []
        self._asks: list[Ask] = []
        self._prompt_asks: list[PromptAsk] = []
        self._masks: dict[int, int] = {}  # identity of a mask, which rows may share -> its place
        self._mask_rows: list[Words] = []
        self._masked: list[int] = []
        self._mask_of: list[int] = []
        self._places: dict[int, int] = {}  # row -> where on the device its automaton is

    def decodes(self, seqs: list[Seq], pages: "array[int]") -> None:
        """One row of one token each. pages: one for each of `seqs` whose last page is full."""
        size = self.state.budget.page_size
        starts, rows = [seq.computed for seq in seqs], self.rows
        for seq, start in zip(seqs, starts, strict=True):
            if start == len(seq.pages) * size:
                seq.pages.append(pages.pop())
            if seq.tabled < len(seq.pages):
                self._table(seq)
            if not seq.seated:
                self._seat(seq)
            if seq.logprobs is not None:
                self._asks.append(Ask(len(rows), seq.logprobs.top, seq.logprobs.ids))
            if seq.cursor is not None:
                self._constrain(seq)
            rows.append((seq, seq.epoch, DRAWS))
            seq.computed = start + 1
        # One attribute at a time: hundreds of sequences decode in every step.
        self._slots += [seq.slot for seq in seqs]
        self._starts += starts
        self._tokens.extend([DRAWN if seq.flying else seq.tokens[-1] for seq in seqs])
        for seq in seqs:
            seq.flying += 1

    def fill(self, seq: Seq, most: int) -> int:
        """A row of about `most` known tokens of `seq`, or fewer; how many there are pages for."""
        state = self.state
        size = state.budget.page_size
        start = seq.computed
        whole, end = len(seq.tokens), start + most
        end = whole if whole <= end else min(whole, _even(start, end, state.budget.grain))
        missing = -(-end // size) - len(seq.pages)
        if missing > 0:
            missing = min(missing, state.available)
            end = min(end, (len(seq.pages) + missing) * size)
            pages = state.take_pages(missing)
            assert pages is not None
            seq.pages.extend(pages)
        count = end - start
        if count == 0:
            return 0
        does = Does.FILLS if end < whole else Does.DRAWS if seq.last > seq.first else Does.ENDS
        self._ask(seq, start, end, does)
        if not seq.seated:
            self._seat(seq)
        if seq.cursor is not None and does is Does.DRAWS:
            self._constrain(seq)
        self._slots.append(seq.slot)
        self._starts.append(start)
        self._counts.append(count)
        self._samples.append(does is Does.DRAWS)
        self._tokens += seq.tokens[start:end]
        self.rows.append((seq, seq.epoch, does))
        seq.computed = end
        seq.flying += does is Does.DRAWS
        if start < seq.first:
            state.share(seq, end)
        self._table(seq)
        return count

    def plan(self, step: int) -> Plan:
        def ints(values: "Sequence[int] | array[int]") -> np.ndarray:
            return np.array(values, np.int32)

        decodes = len(self.rows) - len(self._counts)
        counts, samples = np.ones(len(self.rows), np.int32), np.ones(len(self.rows), np.bool_)
        if self._counts:
            counts[decodes:], samples[decodes:] = self._counts, self._samples
        embeds = self.state.budget.embeds
        more: dict[str, Any] = {}
        table_slots, table_index, table_pages = (
            ints(one) for one in (self._table_slots, self._table_index, self._table_pages)
        )
        if self._tables:
            lengths = [len(pages) for _, _, pages in self._tables]
            index = [np.arange(begin, begin + len(pages), dtype=np.int32) for _, begin, pages in self._tables]
            slots = np.repeat(ints([slot for slot, _, _ in self._tables]), lengths)
            table_slots = np.concatenate((table_slots, slots))
            table_index = np.concatenate((table_index, *index))
            table_pages = np.concatenate((table_pages, *(pages for _, _, pages in self._tables)))
        if self._masked:
            more |= {"masks": np.stack(self._mask_rows), "masked": ints(self._masked), "mask_of": ints(self._mask_of)}
        if self._places:
            more["places"] = ints([self._places.get(row, FREE) for row in range(len(self.rows))])
        if self.state.residents is not None:
            more["loads"] = self.state.residents.flush()
        return Plan(
            step=step,
            slots=ints(self._slots),
            starts=ints(self._starts),
            counts=counts,
            samples=samples,
            tokens=ints(self._tokens),
            table_slots=table_slots,
            table_index=table_index,
            table_pages=table_pages,
            seats=self._seats,
            asks=self._asks,
            prompt_asks=self._prompt_asks,
            embeds=[row for row, (_, _, does) in enumerate(self.rows) if does is Does.ENDS] if embeds else [],
            **more,
        )

    def _constrain(self, seq: Seq) -> None:
        """The row to come draws under the constraint of `seq`."""
        if seq.resident is None:
            follow(self.state, seq, seated=True)
        if seq.resident is None:
            seq.mask = mask(self.state, seq) if seq.mask is None else seq.mask
            self._mask(seq.mask)
            return
        assert seq.cursor is not None
        self._places[len(self.rows)] = KEEP if seq.placed else seq.resident.base + seq.cursor.state
        seq.placed = True

    def _mask(self, mask: Words) -> None:
        """The row to come draws under `mask`."""
        place = self._masks.setdefault(id(mask), len(self._mask_rows))
        if place == len(self._mask_rows):
            self._mask_rows.append(mask)
        self._masked.append(len(self.rows))
        self._mask_of.append(place)

    def _table(self, seq: Seq) -> None:
        begin, end = seq.tabled, len(seq.pages)
        if begin + 1 == end:  # as where a decode takes a page: no lists for one entry
            self._table_slots.append(seq.slot)
            self._table_index.append(begin)
            self._table_pages.append(seq.pages[begin])
        else:
            self._tables.append((seq.slot, begin, np.array(seq.pages[begin:], np.int32)))
        seq.tabled = end

    def _seat(self, seq: Seq) -> None:
        seat = Seat(seq.slot, seq.sampling, seq.first)
        if seq.sampling.penalised:
            seat.prompt = seq.tokens[: seq.first].tolist()
            seat.drawn = seq.tokens[seq.first :].tolist()
        self._seats.append(seat)
        seq.seated = True
        follow(self.state, seq, seated=False)

    def _ask(self, seq: Seq, start: int, end: int, does: Does) -> None:
        asked = seq.logprobs
        if asked is None:
            return
        row = len(self.rows)
        if does is Does.DRAWS:
            self._asks.append(Ask(row, asked.top, asked.ids))
        if seq.scored:
            return
        first = max(start, seq.score_from - 1)
        last = min(end, seq.first - 1)  # the logits of position p score the token at p + 1
        if first < last:
            targets = seq.tokens[first + 1 : last + 1].tolist()
            self._prompt_asks.append(PromptAsk(row, first - start, targets, asked.top, asked.ids))
