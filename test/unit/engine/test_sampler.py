"""The sampler against formulas: distributions by chi-square, penalties and scores exactly, company by equality."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.base.plan import Plan, Seat
from sglang.base.sampling import SamplingParams
from sglang.engine.sampler import CANDIDATES, Masked, Sampler, invert, most_likely, uniform

EOS = (2,)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def sampler(vocab: int, device: torch.device | str = "cpu", slots: int = 8) -> Sampler:
    return Sampler(slots, vocab, EOS, torch.device(device))


def logits_of(vocab: int, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread


def draws(made: Sampler, logits: torch.Tensor, params: SamplingParams, n: int) -> np.ndarray:
    """Tokens 0 .. n - 1 of one sequence whose logits never change."""
    made.seat(Seat(0, params, 0))
    rows = logits.expand(min(n, 512), -1)
    found = []
    for at in range(0, n, len(rows)):
        count = min(len(rows), n - at)
        found.append(made.draw(rows[:count], np.zeros(count, np.int32), np.arange(at, at + count)).cpu().numpy())
    return np.concatenate(found)


def expected(logits: torch.Tensor, p: SamplingParams) -> np.ndarray:
    """The distribution by definition, in float64, from a full sort."""
    probs = (logits.double() / p.temperature).softmax(-1)
    order = probs.argsort(descending=True)
    ranked = probs[order]
    before = ranked.cumsum(-1) - ranked
    kept = before < p.top_p
    if p.top_k > 0:
        kept &= torch.arange(len(probs)) < p.top_k
    kept &= ranked >= p.min_p * ranked[0]
    out = torch.zeros_like(probs)
    out[order] = ranked * kept
    return (out / out.sum()).numpy()


COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 12, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]
# Flat over more tokens than are looked at first: the other road through the same definition.
WIDE: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"top_k": CANDIDATES + 90},
    {"temperature": 0.8, "top_k": 600, "top_p": 0.8, "min_p": 0.01},
]


def check(vocab: int, spread: float, combination: dict[str, Any], n: int, device: torch.device) -> None:
    logits = logits_of(vocab, spread)
    params = SamplingParams(seed=11, **combination)
    wanted = expected(logits, params)
    got = np.bincount(draws(sampler(vocab, device), logits.to(device), params, n), minlength=vocab)
    assert got[wanted == 0].sum() == 0, "a token that was cut off"
    order = np.argsort(-wanted)
    bins = np.array_split(order[wanted[order] > 0], min(60, (wanted > 0).sum()))
    f_wanted = np.array([wanted[b].sum() for b in bins]) * n
    f_got = np.array([got[b].sum() for b in bins])
    f_wanted, f_got = f_wanted[f_wanted > 5], f_got[f_wanted > 5]
    chi2 = ((f_got - f_wanted) ** 2 / f_wanted).sum()
    freedom = max(len(f_wanted) - 1, 1)
    # Mean `freedom`, deviation sqrt(2 freedom): five of them are one false alarm in millions; the seed is fixed.
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom) + 5, (chi2, freedom)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_draws_follow_the_distribution(combination: dict[str, Any], device: torch.device) -> None:
    check(40, 1.5, combination, 20_000, device)


@pytest.mark.parametrize("combination", WIDE, ids=str)
def test_draws_follow_a_flat_distribution_over_many_tokens(combination: dict[str, Any], device: torch.device) -> None:
    check(1200, 0.4, combination, 20_000, device)


def test_uniform_is_uniform_and_depends_on_seed_and_number_only() -> None:
    u = uniform(np.full(100_000, 5, np.uint64), np.arange(100_000, dtype=np.uint64))
    counts = np.histogram(u, 50, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 5 * math.sqrt(98)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    neighbours = uniform(np.arange(100_000, dtype=np.uint64), np.zeros(100_000, np.uint64))
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 0.02
    assert u.min() >= 0 and u.max() < 1
    # Fixed: recorded plans replay, and other devices must agree.
    assert uniform(np.array([7], np.uint64), np.array([3], np.uint64))[0] == 0.5829302930280781


def test_a_seed_repeats_itself_and_another_does_not() -> None:
    logits = logits_of(300)
    made = sampler(300)
    first = draws(made, logits, SamplingParams(seed=1), 100)
    assert (first == draws(made, logits, SamplingParams(seed=1), 100)).all()
    assert (first != draws(made, logits, SamplingParams(seed=2), 100)).any()


PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_p=0.9),
    SamplingParams(seed=3, top_k=700),
    SamplingParams(seed=4, top_k=3, min_p=0.1, temperature=0.6),
    SamplingParams(seed=5, frequency_penalty=0.5, presence_penalty=0.3, repetition_penalty=1.2),
    SamplingParams(temperature=0, logit_bias={7: 5.0, 9: -100.0}, repetition_penalty=1.5),
    SamplingParams(seed=7, min_new_tokens=3, stop_token_ids=(5, 6)),
]


@given(st.lists(st.integers(0, len(PARAMS) - 1), min_size=2, max_size=8, unique=True), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_a_token_does_not_depend_on_the_rows_beside_it(rows: list[int], seed: int) -> None:
    vocab = 900

    def seat(made: Sampler, slot: int) -> None:
        made.seat(Seat(slot, PARAMS[slot], 4, [1, 8, 9, 9], [7, 7, 30]))

    logits = torch.stack([logits_of(vocab, 0.5, seed + slot) for slot in rows])
    together = sampler(vocab)
    for slot in rows:
        seat(together, slot)
    got = together.draw(logits, np.array(rows, np.int32), np.full(len(rows), 7)).tolist()
    for i, slot in enumerate(rows):
        alone = sampler(vocab)
        seat(alone, slot)
        assert alone.draw(logits[i : i + 1], np.array([slot], np.int32), np.array([7])).tolist() == got[i : i + 1]


def penalised(logits: list[float], prompt: list[int], drawn: list[int], p: SamplingParams) -> list[float]:
    """The formulas, a token at a time."""
    out = []
    for token, x in enumerate(logits):
        x = x / (1.0 if p.greedy else p.temperature) + p.logit_bias.get(token, 0.0)
        if token in prompt or token in drawn:
            x = x / p.repetition_penalty if x > 0 else x * p.repetition_penalty
        count = drawn.count(token)
        out.append(x - p.frequency_penalty * count - p.presence_penalty * (count > 0))
    return out


@given(
    st.floats(0.5, 2.0),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.sampled_from([0.0, 0.5, 1.7]),
    st.dictionaries(st.integers(0, 11), st.floats(-5, 5), max_size=4),
    st.lists(st.integers(0, 11), max_size=6),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_penalties_and_bias_follow_their_formulas(
    repetition: float,
    frequency: float,
    presence: float,
    temperature: float,
    bias: dict[int, float],
    prompt: list[int],
    seed: int,
) -> None:
    """Drawn tokens feed back: five draws in a row, each compared with the formula over all earlier ones."""
    vocab = 12
    p = SamplingParams(
        temperature=temperature,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
        seed=seed,
    )
    made = sampler(vocab)
    drawn = [3, 3, 5]
    made.seat(Seat(1, p, len(prompt), prompt, list(drawn)))
    for i in range(5):
        logits = logits_of(vocab, 2.0, seed + i)
        wanted = torch.tensor(penalised(logits.tolist(), prompt, drawn, p), dtype=torch.float64)
        token = int(made.draw(logits[None], np.array([1], np.int32), np.array([len(prompt) + 3 + i]))[0])
        if p.greedy:
            assert wanted[token] >= wanted.max() - 1e-5
        else:
            u = uniform(np.array([seed], np.uint64), np.array([3 + i], np.uint64))[0]
            cumulative = torch.cat((torch.zeros(1), wanted.softmax(-1).cumsum(-1)))
            assert cumulative[token] - 1e-5 <= u <= cumulative[token + 1] + 1e-5
        drawn.append(token)


def test_a_minimum_length_keeps_every_end_back() -> None:
    logits = torch.zeros(10)
    logits[[2, 5]] = 50.0  # the model wants to stop
    p = SamplingParams(temperature=0, min_new_tokens=3, stop_token_ids=(5, 999))
    tokens = draws(sampler(10), logits, p, 6)
    assert not {2, 5} & set(tokens[:3].tolist())
    assert set(tokens[3:].tolist()) <= {2, 5}


def test_a_new_sequence_in_a_slot_starts_clean() -> None:
    made = sampler(10)
    logits = torch.arange(10).float()
    made.seat(Seat(3, SamplingParams(temperature=0, presence_penalty=2.0, logit_bias={0: 50}), 0))
    slot = np.array([3], np.int32)
    assert made.draw(logits[None], slot, np.array([0])).tolist() == [0]
    made.seat(Seat(3, SamplingParams(temperature=0), 0))
    assert made.draw(logits[None], slot, np.array([0])).tolist() == [9]
    made.seat(Seat(3, SamplingParams(temperature=0, presence_penalty=2.0), 0))
    assert made.draw(logits[None], slot, np.array([0])).tolist() == [9]
    assert made.draw(logits[None], slot, np.array([1])).tolist() == [8]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("p", [*PARAMS], ids=str)
def test_a_broken_row_draws_some_token_and_harms_no_other(bad: float, p: SamplingParams, device: torch.device) -> None:
    vocab = 900
    good = logits_of(vocab).to(device)
    for broken in (torch.full_like(good, bad), torch.where(torch.arange(vocab, device=device) == 17, bad, good)):
        made = sampler(vocab, device)
        for slot in (0, 1):
            made.seat(Seat(slot, p, 0))
        alone = sampler(vocab, device)
        alone.seat(Seat(1, p, 0))
        at = np.zeros(1, np.int64)
        got = made.draw(torch.stack((broken, good)), np.array([0, 1], np.int32), np.zeros(2, np.int64)).tolist()
        assert 0 <= got[0] < vocab
        assert got[1:] == alone.draw(good[None], np.array([1], np.int32), at).tolist()


@given(st.integers(1, 1500), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_inverting_finds_the_index_the_definition_names(m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy((rng.random((3, m)) * (rng.random((3, m)) < 0.3)).astype(np.float32))
    u = torch.from_numpy(rng.random((3, 1)))
    u[0] = 1 - 2**-53  # the largest there is
    u[1] = 0
    for row, index in enumerate(invert(weights, u).tolist()):
        if weights[row].sum() == 0:
            assert index == 0
            continue
        assert weights[row, index] > 0, "a token without weight"
        cumulative = np.cumsum(weights[row].numpy().astype(np.float64))
        below = cumulative[index - 1] if index else 0.0
        slack = 1e-6 * cumulative[-1]
        assert below - slack <= u[row, 0] * cumulative[-1] <= cumulative[index] + slack


@given(st.integers(1, 9000), st.integers(0, 2**32), st.sampled_from([1.0, 0.02, 0.0]))
@settings(max_examples=60, deadline=None)
def test_the_most_likely_token_is_the_first_largest(m: int, seed: int, scale: float) -> None:
    """A small scale, rounded, makes ties: then the first counts."""
    rng = np.random.default_rng(seed)
    rows = np.round(rng.standard_normal((3, m)) * scale * 50).astype(np.float32)
    rows[1, rng.integers(m)] = 1e9
    rows[2, rng.integers(m)] = np.nan
    wanted = [np.flatnonzero(np.isnan(row) | (row == row.max()))[0] for row in rows]
    assert most_likely(torch.from_numpy(rows)).tolist() == wanted


def test_the_most_likely_token_of_16_bits_is_that_of_32() -> None:
    inf = math.inf
    rows = [
        [-3.0, -0.5, -7.0],
        [-1.0, -0.0, 0.0],
        [0.5, 2.0, 2.0],
        [-inf, -inf, -inf],
        [1.0, inf, 2.0],
        [0, -2.0, -1.0],
    ]
    for some in ([*rows], [[1.0, 3.0, 2.0], [5.0, 5.0, -9.0]], *([row] for row in rows)):
        for dtype in (torch.bfloat16, torch.float16):
            logits = torch.tensor(some).to(dtype)
            assert most_likely(logits).tolist() == most_likely(logits.float()).tolist()


def test_rows_are_ranked_where_they_are_greedy_and_nothing_else_is_asked(device: torch.device) -> None:
    sampler = Sampler(4, 8, (0,), device)
    kinds = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(temperature=0, logit_bias={3: 5.0})]
    for slot, sampling in enumerate(kinds):
        sampler.seat(Seat(slot, sampling, 0))

    def ranks(slots: list[int], rows: list[int], **more: Any) -> bool:
        some = np.array(slots, np.int32)
        ones, none = np.ones(len(slots), np.int32), np.empty(0, np.int32)
        plan = Plan(0, some, ones, ones, ones > 0, ones, none, none, none, **more)
        return sampler.ranks(plan, np.array(rows))

    assert ranks([0], [0]) == ranks([1, 0], [1]) == (device.type == "cpu")
    assert not ranks([0, 1], [0, 1]) and not ranks([2], [0])
    assert not ranks([0], [0], masked=np.zeros(1, np.int32))
    assert not ranks([0], [0], places=np.zeros(1, np.int32)), "an automaton says what may be drawn"


def under(
    allowed: list[list[int]], rows: list[int], vocab: int, of: list[int], device: torch.device, n: int
) -> dict[str, Any]:
    """Arguments of draw. allowed: tokens of each mask; rows: those of n that have one; of: which."""
    bits = np.zeros((len(allowed), -(-vocab // 32) * 32), np.uint8)
    for mask, tokens in enumerate(allowed):
        bits[mask, tokens] = 1
    words = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    if device.type == "cpu":
        return {"masked": Masked(np.array(rows), words, np.array(of), device)}
    from sglang.kernels.automata import Held

    places = torch.full((n,), -1, device=device)
    places[rows] = torch.tensor(of, device=device)
    masks, slots = torch.from_numpy(words.view(np.int32)).to(device), torch.arange(n, device=device)
    return {"held": Held(masks, slots, places, slots)}


@pytest.mark.parametrize("vocab", [70, 700], ids=["of all", "of a list"])
@pytest.mark.parametrize("changes", COMBINATIONS)
def test_draws_under_a_mask_follow_the_renormalised_distribution(
    device: torch.device, changes: dict[str, Any], vocab: int
) -> None:
    n = 20000
    logits, allowed = logits_of(vocab, 1.5), [0, 3, 5, 31, 32, 33, 40, 64, vocab - 1]
    params = SamplingParams(seed=11, **changes)
    made = sampler(vocab, device)
    made.seat(Seat(0, params, 0))
    rows = logits.expand(1000, -1).to(device)
    found = []
    for at in range(0, n, 1000):
        masked = under([allowed], list(range(1000)), vocab, [0] * 1000, device, 1000)
        found.append(made.draw(rows, np.zeros(1000, np.int32), np.arange(at, at + 1000), **masked).cpu().numpy())
    counts = np.bincount(np.concatenate(found), minlength=vocab)
    narrowed = torch.full_like(logits, -torch.inf)
    narrowed[allowed] = logits[allowed]
    wanted = expected(narrowed, params) * n
    assert set(np.flatnonzero(counts)) <= set(allowed)
    kept = wanted > 5
    assert counts[wanted == 0].sum() == 0
    chi = float(((counts[kept] - wanted[kept]) ** 2 / wanted[kept]).sum())
    assert chi < 3 * kept.sum() + 15


@pytest.mark.parametrize("vocab", [900, 9000, 70_000])
def test_a_row_draws_the_same_from_a_list_as_from_all(vocab: int) -> None:
    """Whoever sits beside it; short lists, long ones, and masks that allow most."""
    kinds = [{"temperature": 0}, {"seed": 3}, {"seed": 4, "top_k": 5}, {"seed": 5, "top_p": 0.6},
             {"seed": 6, "min_p": 0.1}, {"seed": 7, "logit_bias": dict.fromkeys(range(0, 900, 3), 9.0)}]  # fmt: skip
    made = sampler(vocab, slots=24)
    for slot in range(24):
        made.seat(Seat(slot, SamplingParams(**kinds[slot % 6]), 0))
    chance = np.random.default_rng(1)
    sizes = [1, 2, 63, 64, 65, 200, vocab // 5, vocab // 2, vocab]
    allowed = [sorted(chance.choice(vocab, min(size, vocab), replace=False).tolist()) for size in sizes]
    logits = torch.stack([logits_of(vocab, 2.0, seed) for seed in range(24)])
    slots, positions, cpu = np.arange(24), np.zeros(24, np.int64), torch.device("cpu")
    held = [row for row in range(24) if row % 7]
    of = [int(chance.integers(len(sizes))) for _ in held]
    masked = under(allowed, held, vocab, of, cpu, 24)["masked"]
    listed = sum(len(rows) for rows, _ in masked.lists(vocab, np.ones(24, bool)))
    assert 5 < listed < len(held)
    found = made.draw(logits, slots, positions, masked)
    assert torch.equal(found, made._draw_dense(logits, slots, positions, masked))
    for row in range(24):
        alone = masked.among(np.array([row]))
        assert (alone is None) == (row not in held)
        one = made.draw(logits[row : row + 1], slots[row : row + 1], positions[:1], alone)
        assert one.tolist() == [int(found[row])]
        assert row not in held or int(found[row]) in allowed[of[held.index(row)]]


def test_masked_and_free_rows_of_a_step_do_not_meet(device: torch.device) -> None:
    vocab = 5000
    made = sampler(vocab, device)
    kinds = [SamplingParams(temperature=0), SamplingParams(seed=1), SamplingParams(temperature=0),
             SamplingParams(seed=2, frequency_penalty=0.5, logit_bias={7: 50.0}), SamplingParams(seed=1)]  # fmt: skip
    for slot, params in enumerate(kinds):
        made.seat(Seat(slot, params, 0))
    logits = torch.stack([logits_of(vocab, 2.0, seed) for seed in range(5)]).to(device)
    before = logits.clone()
    slots, positions = np.arange(5, dtype=np.int32), np.zeros(5, np.int64)
    free = made.draw(logits, slots, positions).tolist()
    masked = under([[4, 4999], [8, 9]], [0, 3, 4], vocab, [0, 1, 0], device, 5)
    bound = made.draw(logits, slots, positions, **masked).tolist()
    assert torch.equal(logits, before)
    assert [bound[1], bound[2]] == [free[1], free[2]]
    assert bound[0] == (4 if logits[0, 4] > logits[0, 4999] else 4999)
    assert bound[3] in (8, 9)
    assert bound[4] in (4, 4999)
    greedy = under([[4, 4999]], [0, 2], vocab, [0, 0], device, 3)
    both = under([[4, 4999]], [0, 1], vocab, [0, 0], device, 2)
    assert set(made.draw(logits[[0, 2]], slots[[0, 2]], positions[:2], **both).tolist()) <= {4, 4999}
    assert made.draw(logits[:3], slots[:3], positions[:3], **greedy).tolist()[1] == free[1]


@pytest.mark.gpu
def test_rows_with_penalties_are_drawn_while_the_device_is_busy() -> None:
    made, logits = sampler(5000, "cuda"), torch.randn(4, 5000, device="cuda")
    kinds = [{"repetition_penalty": 1.3}, {"frequency_penalty": 0.5}, {"logit_bias": {4: 9.0}}, {"min_new_tokens": 3}]
    for waits in ("default", "error"):  # what is met first may be compiled
        torch.cuda.set_sync_debug_mode(waits)
        try:
            for slot, kind in enumerate(kinds):
                made.seat(Seat(slot, SamplingParams(seed=slot, **kind), 3, prompt=[4, 9], drawn=[7]))
            drawn = made.draw(logits, np.arange(4), np.full(4, 3))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert ((drawn >= 0) & (drawn < 5000)).all()
