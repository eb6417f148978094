"""Logits -> tokens, vectorised over the rows of a step.

Order: logits / temperature -> + bias, penalties, minimum length, the constraint's mask -> softmax -> top-k, top-p and
min-p, all measured on that one distribution -> renormalise -> draw. Greedy rows skip the temperature and take the
argmax.

Randomness is counter-based: token number i of a sequence is drawn with u = hash(seed, i), so it depends on logits, seed
and i alone, never on the other rows, a retraction or the device.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.base.plan import Plan, Seat
from sglang.base.sampling import SamplingParams
from sglang.kernels.staging import Stager, sent, triton_works

if TYPE_CHECKING:
    from sglang.kernels.automata import Held

CANDIDATES = 256  # most likely tokens looked at before a row's whole vocabulary is
BLOCK = 256  # tokens summed at once where a cumulative sum over the vocabulary is inverted
# [256, 8] float32: the bits of a byte, low first, as what is added to a logit
_SPREAD = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") > 0, 0, -np.inf)
_SPREAD = _SPREAD.astype(np.float32)
WIDTHS = (64, 512, 2048)  # tokens that a mask allows, at most, for a row to be drawn from a list of them
LONG = 1 << 16  # vocabulary from which on rows are narrowed one by one


def uniform(seeds: np.ndarray, index: np.ndarray) -> np.ndarray:
    """float64 in [0, 1): splitmix64 (Steele, Lea, Flood 2014) of seed and token number. seeds, index: uint64 [n]."""
    with np.errstate(over="ignore"):
        z = seeds + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


class _Ledger:
    """What penalised sequences have seen. A line per slot that needs one; lines are reused.

    Where tensors index, tensors of the device are written: a number of Python's is copied there, which waits for it.
    """

    def __init__(self, vocab: int, device: torch.device):
        self.counts = torch.zeros(0, vocab, device=device)  # float32, of generated tokens
        self.seen = torch.zeros(0, vocab, dtype=torch.bool, device=device)  # the prompt's tokens too
        self.lines: dict[int, int] = {}  # slot -> line
        self._free: list[int] = []

    def open(self, seat: Seat) -> None:
        if seat.slot not in self.lines:
            if not self._free:
                self._free = list(range(len(self.counts), 2 * len(self.counts) + 4))
                more = (0, 0, 0, len(self._free))
                self.counts, self.seen = F.pad(self.counts, more), F.pad(self.seen, more)
            self.lines[seat.slot] = self._free.pop()
        line = self.lines[seat.slot]
        drawn, prompt = (
            sent(torch.tensor(ids, dtype=torch.int64), self.counts.device) for ids in (seat.drawn, seat.prompt)
        )
        self.counts[line].zero_().index_add_(0, drawn, torch.ones_like(drawn, dtype=torch.float32))
        self.seen[line] = self.counts[line] > 0
        self.seen[line].index_fill_(0, prompt, True)

    def close(self, slot: int) -> None:
        line = self.lines.pop(slot, None)
        if line is not None:
            self._free.append(line)

    def add(self, lines: Tensor, tokens: Tensor) -> None:
        self.counts[lines, tokens] += 1  # a slot has one row in a step: no line twice
        self.seen[lines, tokens] = torch.ones_like(tokens, dtype=torch.bool)


class Masked:
    """Rows that may not draw just any token. rows: int64 [M], ascending; masks: uint32 [U, words]; mask_of: int [M]."""

    def __init__(self, rows: np.ndarray, masks: np.ndarray, mask_of: np.ndarray, device: torch.device):
        self.rows = torch.from_numpy(rows.astype(np.int64)).to(device, non_blocking=True)
        self._masks = masks
        self._lines = rows, mask_of

    @staticmethod
    def of(plan: Plan, rows: np.ndarray, device: torch.device) -> "Masked | None":
        """rows: the plan's rows that draw, ascending."""
        if not len(plan.masked):
            return None
        return Masked(np.searchsorted(rows, plan.masked), plan.masks, plan.mask_of, device)

    def among(self, some: np.ndarray) -> "Masked | None":
        """As it is for `some` of the rows alone, ascending."""
        rows, mask_of = self._lines
        kept = np.isin(rows, some)
        if not kept.any():
            return None
        masks, of = np.unique(mask_of[kept], return_inverse=True)
        return Masked(np.searchsorted(some, rows[kept]), self._masks[masks], of, self.rows.device)

    def lists(self, vocab: int, able: np.ndarray) -> list[tuple[np.ndarray, Tensor]]:
        """Rows that may draw few of the tokens, in groups, with what each may draw: int64 [n, width], -1 behind it.

        able: bool [S], which rows may be among them. A row's width follows from its own mask: its draw does not depend
        on the others.
        """
        rows, mask_of = self._lines
        counts = np.bitwise_count(self._masks).sum(1, dtype=np.int64)
        found, least = [], 1
        for width in WIDTHS:
            few = (counts >= least) & (counts <= width)
            if width * 4 > vocab or not few.any():
                continue
            least = width + 1
            masks = self._masks[few]
            line, word = masks.nonzero()
            at, bit = np.unpackbits(masks[line, word].view(np.uint8), bitorder="little").reshape(-1, 32).nonzero()
            line, ends = line[at], counts[few].cumsum()
            ids = np.full((len(masks), width), -1)
            ids[line, np.arange(len(line)) - (ends - counts[few])[line]] = word[at] * 32 + bit
            mine = few[mask_of] & able[rows]
            found.append((rows[mine], torch.from_numpy(ids[(few.cumsum() - 1)[mask_of[mine]]])))
        return found

    def narrow(self, logits: Tensor, out: Tensor) -> Tensor:
        """Its rows of `logits` [S, vocab], those tokens at -inf that may not be drawn, into `out` [M, vocab].

        Adding zeros and infinities: `masked_fill` takes ten times as long on a CPU. Long rows one by one, so that what
        is added is read where it lies; short ones at once, since a call would cost more than its sums.
        """
        spread = np.take(_SPREAD, self._masks.view(np.uint8), axis=0).reshape(len(self._masks), -1)
        added = torch.from_numpy(spread)[:, : logits.shape[-1]].to(logits.device)
        rows, mask_of = self._lines
        if logits.shape[-1] < LONG:
            mine = logits if len(rows) == len(logits) else logits[self.rows]
            return torch.add(mine, added[torch.from_numpy(mask_of.astype(np.int64)).to(logits.device)], out=out)
        for i, (row, mask) in enumerate(zip(rows.tolist(), mask_of.tolist(), strict=True)):
            torch.add(logits[row], added[mask], out=out[i])
        return out


class Sampler:
    """Keeps what a slot's draws need from one step to the next."""

    def __init__(self, slots: int, vocab: int, eos_ids: tuple[int, ...], device: torch.device):
        self._vocab = vocab
        self._eos = eos_ids
        self._device = device
        self._seats: list[Seat | None] = [None] * slots
        self._plain = np.ones(slots, np.bool_)  # greedy, and nothing touches its logits
        self._ledger = _Ledger(vocab, device)
        self._spare = torch.empty(0, vocab, device=device)
        self._bias: dict[int, tuple[Tensor, Tensor]] = {}  # slot -> ids, values
        self._ends: dict[int, Tensor] = {}  # slot -> ids kept back until the minimum length
        self._touched = np.zeros(slots, np.bool_)  # something besides the temperature changes the logits
        self._wishes = np.zeros((4, slots), np.int64)  # of each slot: the first four of `wishes`
        self._seeds = np.zeros(slots, np.uint64)
        self._firsts = np.zeros(slots, np.int64)
        self._stager = Stager(device) if device.type == "cuda" and triton_works() else None

    def seat(self, seat: Seat) -> None:
        """A sequence took the slot, or its parameters changed."""
        p, slot = seat.sampling, seat.slot
        self._seats[slot] = seat
        self._touched[slot] = p.penalised or bool(p.logit_bias) or p.min_new_tokens > 0
        self._plain[slot] = p.greedy and not self._touched[slot]
        floats = [0.0 if p.greedy else p.temperature, p.top_p, p.min_p]
        temperature, top_p, min_p = np.array(floats, np.float64).view(np.int64).tolist()
        self._wishes[:, slot] = temperature, p.top_k, top_p, min_p
        self._seeds[slot], self._firsts[slot] = p.seed or 0, seat.first
        self._bias.pop(slot, None)
        self._ends.pop(slot, None)
        self._ledger.close(slot)
        if p.logit_bias:
            ids = [i for i in p.logit_bias if i < self._vocab]
            self._bias[slot] = (self._ids(ids), self._column(p.logit_bias[i] for i in ids)[:, 0])
        if p.min_new_tokens:
            self._ends[slot] = self._ids(sorted({i for i in (*self._eos, *p.stop_token_ids) if i < self._vocab}))
        if p.penalised:
            self._ledger.open(seat)

    def draw(
        self,
        logits: Tensor,
        slots: np.ndarray,
        positions: np.ndarray,
        masked: Masked | None = None,
        held: "Held | None" = None,
    ) -> Tensor:
        """One token per row.

        logits: float32 [S, vocab], left as they are; slots, positions (of the tokens to draw): [S].
        masked: what may be drawn; `held` on a device whose kernels draw.
        Returns int64 [S]. A row without a single finite logit, or with a NaN, draws some token of the vocabulary. No
        row fails, and none harms another.
        """
        if self._stager is not None and masked is None:
            return self._draw_on_device(logits, slots, positions, held)
        if masked is None or logits.is_cuda:
            return self._draw_dense(logits, slots, positions, masked)
        rest = np.ones(len(slots), np.bool_)
        tokens = torch.empty(len(slots), dtype=torch.int64)
        for rows, ids in masked.lists(self._vocab, ~self._touched[slots]):
            rest[rows] = False
            tokens[rows] = self._draw_listed(logits, ids, rows, slots, positions)
        some = rest.nonzero()[0]
        if len(some) == len(slots):
            return self._draw_dense(logits, slots, positions, masked)
        if len(some):
            tokens[some] = self._draw_dense(logits[some], slots[some], positions[some], masked.among(some))
        return tokens

    def ranks(self, plan: Plan, rows: np.ndarray) -> bool:
        """Whether these rows' draws on a CPU are their most likely tokens: `draw` would do no more than find them."""
        if self._device.type != "cpu" or len(plan.masked) or len(plan.places):
            return False
        return np.count_nonzero(self._plain[plan.slots[rows]]) == len(rows)

    def _draw_listed(
        self, logits: Tensor, ids: Tensor, rows: np.ndarray, slots: np.ndarray, positions: np.ndarray
    ) -> Tensor:
        """One of `ids` [n, width] for each of `rows`, whose other logits are not looked at."""
        listed = logits[torch.from_numpy(rows)[:, None], ids.clamp_min(0)].masked_fill_(ids < 0, -torch.inf)
        if self._plain[slots[rows]].all():
            chosen = most_likely(listed)
        else:
            seats, numbers = self._seats_of(slots[rows], positions[rows])
            listed /= self._column(1.0 if s.sampling.greedy else s.sampling.temperature for s in seats)
            chosen = self._choose(listed, seats, numbers)
        return ids.gather(-1, chosen[:, None])[:, 0]

    def _draw_dense(self, logits: Tensor, slots: np.ndarray, positions: np.ndarray, masked: Masked | None) -> Tensor:
        if self._plain[slots].all():
            if masked is None:
                return most_likely(logits)
            narrowed = most_likely(masked.narrow(logits, self._room(len(masked.rows))))
            if len(narrowed) == len(logits):
                return narrowed
            tokens = most_likely(logits)
            tokens[masked.rows] = narrowed
            return tokens
        seats, numbers = self._seats_of(slots, positions)
        logits = logits / self._column(1.0 if s.sampling.greedy else s.sampling.temperature for s in seats)
        self._touch(logits, seats, numbers)
        if masked is not None:
            whole = len(masked.rows) == len(seats)
            narrowed = masked.narrow(logits, logits if whole else self._room(len(masked.rows)))
            if not whole:
                logits[masked.rows] = narrowed
        tokens = self._choose(logits, seats, numbers)
        self._remember(seats, tokens)
        return tokens

    def _choose(self, logits: Tensor, seats: list[Seat], numbers: list[int]) -> Tensor:
        """logits: divided by the temperatures where there are any."""
        random = [row for row, seat in enumerate(seats) if not seat.sampling.greedy]
        if len(random) == len(seats):
            tokens = self._draw_random(logits, seats, numbers)
        else:
            tokens = most_likely(logits)
            if random:
                some = self._ids(random)
                tokens[some] = self._draw_random(logits[some], [seats[r] for r in random], [numbers[r] for r in random])
        return tokens

    def touches(self, slots: np.ndarray) -> bool:
        """Whether bias, penalties or a minimum length change any of these slots' logits."""
        return bool(self._touched[slots].any())

    def wishes(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int64 [5, n]: temperature (0: greedy), top_k, top_p, min_p, uniform number; floats as their float64 bits."""
        found = np.zeros((5, len(slots)), np.int64)
        found[:4] = self._wishes[:, slots]
        if found[0].any():  # a greedy row needs no number
            u = uniform(self._seeds[slots], (positions - self._firsts[slots]).astype(np.uint64))
            found[4] = u.view(np.int64)
        return found

    def _draw_on_device(self, logits: Tensor, slots: np.ndarray, positions: np.ndarray, held: "Held | None") -> Tensor:
        from sglang.kernels import sample

        assert self._stager is not None
        wishes = self.wishes(slots, positions)
        seats: list[Seat] = []
        if self.touches(slots):
            seats, numbers = self._seats_of(slots, positions)
            logits = logits / self._column(1.0 if s.sampling.greedy else s.sampling.temperature for s in seats)
            self._touch(logits, seats, numbers)
            wishes[0, wishes[0] != 0] = np.array(1.0).view(np.int64)
        nobody, *wishes = self._stager.put([np.full(len(slots), -1), *wishes])
        tokens = torch.empty(len(slots), dtype=torch.int64, device=self._device)
        # One program for a row: these steps are long, and kernels for few rows would have to be compiled before them.
        sample.draw(logits, sample.Draws.of(nobody, wishes), tokens, tokens, held, several=False)
        self._remember(seats, tokens)
        return tokens

    def _remember(self, seats: list[Seat], tokens: Tensor) -> None:
        """Count drawn tokens where penalties will need them."""
        lined = [row for row, seat in enumerate(seats) if seat.slot in self._ledger.lines]
        if lined:
            lines = self._ids(self._ledger.lines[seats[row].slot] for row in lined)
            self._ledger.add(lines, tokens[self._ids(lined)])

    def _room(self, n: int) -> Tensor:
        """[n, vocab] to write into: fresh memory of that size costs more than what is written."""
        if len(self._spare) < n:
            self._spare = torch.empty(n, self._vocab, device=self._device)
        return self._spare[:n]

    def _seats_of(self, slots: np.ndarray, positions: np.ndarray) -> tuple[list[Seat], list[int]]:
        """Who sits there, and the number of the token that each is to draw."""
        seats = [self._seat(slot) for slot in slots.tolist()]
        return seats, [position - seat.first for position, seat in zip(positions.tolist(), seats, strict=True)]

    def _seat(self, slot: int) -> Seat:
        seat = self._seats[slot]
        assert seat is not None, f"nobody sits in slot {slot}"
        return seat

    def _ids(self, values: Iterable[int]) -> Tensor:
        return sent(torch.tensor(list(values), dtype=torch.int64), self._device)

    def _column(self, values: Iterable[float]) -> Tensor:
        return sent(torch.tensor([float(v) for v in values], dtype=torch.float32), self._device)[:, None]

    def _touch(self, logits: Tensor, seats: list[Seat], numbers: list[int]) -> None:
        """Bias, penalties and minimum length, in place."""
        biased = [(row, *self._bias[s.slot]) for row, s in enumerate(seats) if s.slot in self._bias]
        if biased:
            rows = self._ids(row for row, ids, _ in biased for _ in range(len(ids)))
            ids, values = torch.cat([ids for _, ids, _ in biased]), torch.cat([v for _, _, v in biased])
            logits[rows, ids] += values  # no pair twice: `accumulate` would sort them, and ask the device about them
        lined = [row for row, seat in enumerate(seats) if seat.slot in self._ledger.lines]
        if lined:
            rows = self._ids(lined)
            lines = self._ids(self._ledger.lines[seats[row].slot] for row in lined)
            params = [seats[row].sampling for row in lined]
            counts, x = self._ledger.counts[lines], logits[rows]
            # arXiv 1909.05858: towards zero for positive logits, away from it for negative ones
            r = self._column(p.repetition_penalty for p in params)
            x = torch.where(self._ledger.seen[lines], torch.where(x > 0, x / r, x * r), x)
            x -= self._column(p.frequency_penalty for p in params) * counts
            x -= self._column(p.presence_penalty for p in params) * (counts > 0)
            logits[rows] = x
        short = [
            (row, self._ends[s.slot])
            for row, (s, n) in enumerate(zip(seats, numbers, strict=True))
            if n < s.sampling.min_new_tokens
        ]
        if short:
            rows = self._ids(row for row, ids in short for _ in range(len(ids)))
            logits[rows, torch.cat([ids for _, ids in short])] = logits.new_full((len(rows),), -torch.inf)

    def _draw_random(self, logits: Tensor, seats: list[Seat], numbers: list[int]) -> Tensor:
        """logits: [n, m] of rows that are not greedy, divided by their temperatures."""
        params = [seat.sampling for seat in seats]
        seeds = np.array([p.seed or 0 for p in params], np.uint64)
        u = torch.from_numpy(uniform(seeds, np.array(numbers, np.uint64))).to(self._device)[:, None]
        probs = torch.nan_to_num(torch.softmax(logits, -1))
        limited = [row for row, p in enumerate(params) if p.top_k != -1 or p.top_p != 1 or p.min_p != 0]
        if len(limited) == len(params):
            return self._draw_limited(probs, u, params)
        tokens = invert(probs, u)
        if limited:
            some = self._ids(limited)
            tokens[some] = self._draw_limited(probs[some], u[some], [params[row] for row in limited])
        return tokens

    def _draw_limited(self, probs: Tensor, u: Tensor, params: list[SamplingParams]) -> Tensor:
        """probs: [n, m] of rows with top-k, top-p or min-p."""
        m = probs.shape[-1]
        top_k = self._column(p.top_k if p.top_k > 0 else m for p in params)
        top_p = self._column(p.top_p for p in params)
        min_p = self._column(p.min_p for p in params)
        size = min(CANDIDATES, m)
        best, ids = probs.topk(size, -1)
        likelier = best.cumsum(-1, dtype=torch.float64) - best  # probability of everything before it
        rank = torch.arange(size, device=self._device)
        kept = (rank < top_k) & (likelier < top_p) & (best >= min_p * best[:, :1])
        tokens = ids.gather(-1, invert(best * kept, u)[:, None])[:, 0]
        if size < m:
            # Whether a row goes this way depends on nothing but the row, so its token does neither.
            wide = kept[:, -1].nonzero()[:, 0]
            if len(wide):
                floor = torch.maximum(_nucleus(probs[wide], top_p[wide]), min_p[wide] * best[wide, :1])
                limited = top_k[wide] < m
                if bool(limited.any()):
                    k = int(top_k[wide][limited].max())
                    ranked = probs[wide].topk(k, -1).values
                    last = ranked.gather(-1, top_k[wide].long().clamp_max(k) - 1)
                    floor = torch.where(limited, torch.maximum(floor, last), floor)
                tokens[wide] = invert(probs[wide] * (probs[wide] >= floor), u[wide])
        return tokens


def most_likely(logits: Tensor) -> Tensor:
    """The first index of each row's largest value; a NaN in float32 counts as largest.

    logits: [n, m]. Returns int64 [n].
    """
    if logits.is_cuda:
        return logits.argmax(-1)
    # On a CPU torch compares one value at a time, numpy a vector of them: a tenth of the time.
    if logits.itemsize == 2:  # which numpy does not know, but above zero floats order like their bits
        bits = logits.view(torch.int16).numpy()
        found = bits.argmax(-1)
        if min(bits[np.arange(len(bits)), found].tolist()) > 0:
            return torch.from_numpy(found)
    return torch.from_numpy(logits.float().numpy().argmax(-1))


def _nucleus(probs: Tensor, top_p: Tensor) -> Tensor:
    """The largest probability such that all tokens of at least that much together reach `top_p`.

    probs: float32 [n, vocab] >= 0; top_p: [n, 1]. Floats of one sign order like their bits, so 30 halvings find it
    exactly; sorting a vocabulary takes ten times as long. Tokens of equal probability stay or go together.
    """
    low = torch.zeros(len(probs), 1, dtype=torch.int32, device=probs.device)  # bits that are small enough
    high = torch.full_like(low, 0x3F800001)  # just above 1.0: too large
    for _ in range(30):  # log2 of the distance
        middle = low + (high - low) // 2
        mass = (probs * (probs >= middle.view(torch.float32))).sum(-1, keepdim=True)
        enough = mass >= top_p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.view(torch.float32)


def invert(weights: Tensor, u: Tensor) -> Tensor:
    """The first index at which the cumulative sum of weights exceeds u times their sum.

    weights: float32 [n, m] >= 0; u: float64 [n, 1] in [0, 1). Returns int64 [n]: 0 where all weights are 0.
    """
    n, m = weights.shape
    if m <= 2 * BLOCK:
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        return _beyond(cumulative, u * cumulative[:, -1:])[:, 0]
    blocks = F.pad(weights, (0, -m % BLOCK)).view(n, -1, BLOCK)
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = u * sums[:, -1:]
    block = _beyond(sums, target)
    before = F.pad(sums, (1, 0)).gather(-1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _beyond(inside, target - before))[:, 0]


def _beyond(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative sum exceeds `target`. [n, m], [n, 1] -> [n, 1]"""
    total = cumulative[:, -1:]
    # Below the total whatever rounding did: then the index exists, and has weight of its own.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total))).clamp_min_(0)
    return torch.searchsorted(cumulative, target, right=True) * (total > 0)


def next_positions(plan: Plan, rows: np.ndarray) -> np.ndarray:
    """Positions of the tokens that `rows` draw."""
    return plan.starts[rows] + plan.counts[rows]
