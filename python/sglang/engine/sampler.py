"""Logits -> tokens, vectorised over the rows of a step.

Order: logits + bias, penalties, minimum length -> / temperature -> softmax -> top-k, top-p and min-p, all measured on
that one distribution -> renormalise -> draw. Greedy rows take the argmax before the temperature.

Randomness is counter-based: token number i of a sequence is drawn with u = hash(seed, i), so it depends on logits, seed
and i alone, never on the other rows, a retraction or the device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang.base.messages import Score
from sglang.base.plan import Ask, Plan, Seat

CANDIDATES = 256  # most likely tokens looked at before a whole vocabulary is sorted
SCORE_BLOCK = 64  # positions whose logits are made at a time for prompt scores


def uniform(seeds: np.ndarray, index: np.ndarray) -> np.ndarray:
    """float64 in [0, 1): splitmix64 (Steele, Lea, Flood 2014) of seed and token number. seeds, index: uint64 [n]."""
    with np.errstate(over="ignore"):
        z = seeds + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


@dataclass
class _Penalties:
    """Of one slot. counts: float32 [vocab] of generated tokens; seen: bool [vocab], the prompt's tokens too."""

    counts: Tensor
    seen: Tensor


class Sampler:
    """Keeps what a slot's draws need from one step to the next."""

    def __init__(self, slots: int, vocab: int, eos_ids: tuple[int, ...], device: torch.device):
        self._vocab = vocab
        self._eos = eos_ids
        self._device = device
        self._seats: list[Seat | None] = [None] * slots
        self._plain = np.ones(slots, np.bool_)  # greedy, and nothing touches its logits
        self._penalties: dict[int, _Penalties] = {}
        self._bias: dict[int, tuple[Tensor, Tensor]] = {}

    def seat(self, seat: Seat) -> None:
        """A sequence took the slot, or its parameters changed."""
        p, slot = seat.sampling, seat.slot
        self._seats[slot] = seat
        self._plain[slot] = p.greedy and not (p.penalised or p.logit_bias or p.min_new_tokens)
        self._penalties.pop(slot, None)
        self._bias.pop(slot, None)
        if p.logit_bias:
            ids = torch.tensor(list(p.logit_bias), device=self._device)
            self._bias[slot] = (ids, torch.tensor(list(p.logit_bias.values()), device=self._device))
        if p.penalised:
            counts = torch.zeros(self._vocab, device=self._device)
            drawn = torch.tensor(seat.drawn, dtype=torch.int64, device=self._device)
            counts.index_add_(0, drawn, torch.ones(len(seat.drawn), device=self._device))
            seen = counts > 0
            seen[torch.tensor(seat.prompt, dtype=torch.int64, device=self._device)] = True
            self._penalties[slot] = _Penalties(counts, seen)

    def draw(self, logits: Tensor, slots: np.ndarray, positions: np.ndarray) -> Tensor:
        """One token per row.

        logits: float32 [S, vocab], left as they are; slots, positions (of the tokens to draw): [S].
        Returns int64 [S]. A row whose logits are not finite draws token 0 of what is left of it, never fails.
        """
        if self._plain[slots].all():
            return logits.argmax(-1)
        seats = [self._seat(slot) for slot in slots.tolist()]
        numbers = [position - seat.first for position, seat in zip(positions.tolist(), seats, strict=True)]
        if any(self._touches(seat, n) for seat, n in zip(seats, numbers, strict=True)):
            logits = logits.clone()
            for row, (seat, n) in enumerate(zip(seats, numbers, strict=True)):
                self._touch(logits[row], seat, n)
        tokens = logits.argmax(-1)
        random = [row for row, seat in enumerate(seats) if not seat.sampling.greedy]
        if random:
            rows = logits if len(random) == len(seats) else logits[random]
            tokens[random] = self._draw_random(rows, [seats[r] for r in random], [numbers[r] for r in random])
        for row, seat in enumerate(seats):
            state = self._penalties.get(seat.slot)
            if state is not None:
                state.counts[tokens[row]] += 1
                state.seen[tokens[row]] = True
        return tokens

    def _seat(self, slot: int) -> Seat:
        seat = self._seats[slot]
        assert seat is not None, f"nobody sits in slot {slot}"
        return seat

    def _touches(self, seat: Seat, number: int) -> bool:
        return seat.slot in self._bias or seat.slot in self._penalties or number < seat.sampling.min_new_tokens

    def _touch(self, logits: Tensor, seat: Seat, number: int) -> None:
        """Bias, penalties and minimum length, in place. logits: [vocab]."""
        p, slot = seat.sampling, seat.slot
        if slot in self._bias:
            ids, values = self._bias[slot]
            logits.index_add_(0, ids, values)
        if slot in self._penalties:
            state = self._penalties[slot]
            if p.repetition_penalty != 1:  # arXiv 1909.05858: towards zero for positive logits, away for negative
                r = p.repetition_penalty
                torch.where(state.seen, torch.where(logits > 0, logits / r, logits * r), logits, out=logits)
            logits -= p.frequency_penalty * state.counts + p.presence_penalty * (state.counts > 0)
        if number < p.min_new_tokens:
            logits[list({*self._eos, *p.stop_token_ids})] = -torch.inf

    def _draw_random(self, logits: Tensor, seats: list[Seat], numbers: list[int]) -> Tensor:
        """logits: [n, vocab] of rows that are not greedy."""
        params = [seat.sampling for seat in seats]
        seeds = np.array([p.seed or 0 for p in params], np.uint64)
        u = torch.from_numpy(uniform(seeds, np.array(numbers, np.uint64))).to(self._device, torch.float32)[:, None]
        temperature = torch.tensor([[p.temperature] for p in params], device=self._device)
        probs = torch.nan_to_num(torch.softmax(logits / temperature, -1))
        if all(p.top_k == -1 and p.top_p == 1 and p.min_p == 0 for p in params):
            return _inverse(probs, u)
        top_k = torch.tensor([[p.top_k if p.top_k > 0 else self._vocab] for p in params], device=self._device)
        top_p = torch.tensor([[p.top_p] for p in params], device=self._device)
        min_p = torch.tensor([[p.min_p] for p in params], device=self._device)
        size = min(CANDIDATES, self._vocab)
        while True:
            best, ids = probs.topk(size, -1)
            before = best.cumsum(-1) - best  # probability of everything likelier
            rank = torch.arange(size, device=self._device)
            kept = (rank < top_k) & (before < top_p) & (best >= min_p * best[:, :1])
            if size == self._vocab or not bool(kept[:, -1].any()):
                break
            size = self._vocab  # some row keeps more than the candidates
        return ids.gather(-1, _inverse(best * kept, u)[:, None])[:, 0]


def _inverse(weights: Tensor, u: Tensor) -> Tensor:
    """Inverse of the cumulative distribution. weights: [n, m] >= 0, u: [n, 1] in [0, 1). Returns int64 [n]."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    drawn = torch.searchsorted(cumulative, (u.double() * cumulative[:, -1:]), right=True)[:, 0]
    # Rounding may point past the end, or at a token without weight there: take the last that has some.
    last = (weights > 0).int().cumsum(-1).argmax(-1)
    return torch.minimum(drawn, last)


def score_drawn(logits: Tensor, tokens: Tensor, asks: list[Ask], rows: np.ndarray) -> dict[int, Score]:
    """Log-probabilities of drawn tokens under the model's own distribution.

    logits: float32 [S, vocab]; tokens: [S]; rows: [S], the plan's row of each.
    """
    place = {int(row): i for i, row in enumerate(rows)}
    wanted = torch.tensor([place[ask.row] for ask in asks], device=logits.device)
    found = _scores(logits[wanted], tokens[wanted].tolist(), [ask.top for ask in asks], [ask.ids for ask in asks])
    return {ask.row: score for ask, score in zip(asks, found, strict=True)}


def score_known(logits: Tensor, targets: list[int], top: int, ids: tuple[int, ...]) -> list[Score]:
    """logits: float32 [n, vocab], the distribution before each of the n targets."""
    return _scores(logits, targets, [top] * len(targets), [ids] * len(targets))


def _scores(logits: Tensor, tokens: list[int], tops: list[int], ids: list[tuple[int, ...]]) -> list[Score]:
    norm = logits.logsumexp(-1, keepdim=True)
    chosen = (logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None]) - norm)[:, 0].tolist()
    most = max(tops)
    best: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if most:
        values, places = logits.topk(min(most, logits.shape[-1]), -1)
        pairs = zip(places.tolist(), (values - norm).tolist(), tops, strict=True)
        best = [list(zip(p[:k], v[:k], strict=True)) for p, v, k in pairs]
    scores = []
    for row, (token, value) in enumerate(zip(tokens, chosen, strict=True)):
        asked = ids[row]
        given = (logits[row, list(asked)] - norm[row]).tolist() if asked else []
        scores.append(Score(token, value, best[row], list(zip(asked, given, strict=True))))
    return scores


def next_positions(plan: Plan, rows: np.ndarray) -> np.ndarray:
    """Positions of the tokens that `rows` draw."""
    return plan.starts[rows] + plan.counts[rows]
