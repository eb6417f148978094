"""Routing and experts on the device against their definition: in Triton's interpreter where there is no CUDA device."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import experts, fp8, routing
from sglang.kernels.experts import Gate, Stack, Tail, Tile
from sglang.layers.moe import Routing, route
from sglang.quant.dense import ACTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = 1e-5 if DEVICE == "cuda" else 2e-6
COUNT, HIDDEN, INTER = 5, 96, 48
SMALL = (Tile(16, 32, 32, 4, 2), Tile(16, 32, 16, 4, 2))


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes as long as a larger one in the interpreter; steps that end within the columns."""
    monkeypatch.setattr(experts, "tuning", lambda inputs, opens=True: (16, 64, 4))


def some(*size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(size) + seed)
    return (torch.randn(size, generator=generator) * size[-1] ** -0.5).to(DEVICE)


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))


RULES = {
    "mixtral, gpt-oss": Routing(8, 2),
    "qwen1.5-moe": Routing(60, 4, norm=None),
    "dbrx": Routing(16, 4, norm=2.0),
    "dbrx, another norm": Routing(16, 4, norm=1.5),
    "grok": Routing(8, 2, norm=None, softcap=30.0),
    "deepseek v2": Routing(40, 6, norm=None, scale=16.0, groups=8, top_groups=3),  # groups of 5
    "deepseek v3": Routing(64, 8, score="sigmoid", scale=2.5, groups=8, top_groups=4, group_by=2, correction=True),
    "minimax": Routing(16, 8, score="sigmoid", correction=True),
    "llama 4": Routing(16, 1, score="sigmoid", norm=None, weigh_inputs=True),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_experts_are_chosen_and_weighed_as_every_family_says(rule: Routing) -> None:
    logits = some(9, rule.count, seed=1) * 10
    correction = some(rule.count, seed=2) if rule.correction else None
    wanted, ids = route(rule, logits, correction)
    got, own, gates = routing.choose(rule, logits, correction)
    assert own.dtype == torch.int32 and got.dtype == torch.float32 and gates is None
    assert torch.equal(ids, own.long())
    assert far(got, wanted.double()) < EXACT


def test_a_correction_chooses_what_it_does_not_weigh() -> None:
    rule = Routing(4, 1, score="sigmoid", norm=None, correction=True)
    logits = torch.zeros(1, 4, device=DEVICE)
    weights, ids, _ = routing.choose(rule, logits, torch.tensor([0.0, 0.0, 7.0, 0.0], device=DEVICE))
    assert ids.tolist() == [[2]] and weights.tolist() == [[0.5]]


def test_one_more_column_is_the_gate_of_the_shared_part() -> None:
    logits = some(6, 9, seed=3)
    weights, ids, gates = routing.choose(Routing(8, 2), logits, None, True)
    wanted, own = route(Routing(8, 2), logits[:, :8])
    assert gates is not None and torch.equal(ids.long(), own) and torch.allclose(weights, wanted)
    assert torch.allclose(gates, logits[:, 8].sigmoid())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_none_choose_experts_that_there_are() -> None:
    logits = torch.full((3, 5), torch.nan, device=DEVICE)
    _, ids, _ = routing.choose(Routing(5, 2), logits)
    assert ids.min() >= 0 and ids.max() < 5


@pytest.mark.parametrize("tokens", [1, 5, routing.FEW + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_scores_are_products(tokens: int, bias: bool) -> None:
    x, weight, more = some(tokens, 2 * HIDDEN)[:, :HIDDEN], some(7, HIDDEN), some(7) if bias else None
    wanted = x.double() @ weight.double().T + (0 if more is None else more.double())
    assert far(routing.scores(x, weight, more), wanted) < EXACT


def ids_of(kind: str, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    match kind:
        case "random":
            ids = torch.rand(tokens, COUNT, generator=generator).argsort(-1)[:, :2]
        case "some empty":  # the first, the last, and one between them
            ids = torch.tensor([1, 3]).expand(tokens, 2).clone()
        case _:  # an expert has all
            ids = torch.full((tokens, 2), 4)
    return ids.int().to(DEVICE)


KINDS = ["random", "some empty", "one has all"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "tall", "first", "count"), [(1, 16, 0, 5), (9, 2, 0, 5), (80, 16, 1, 3)])
def test_pairs_are_sorted_into_blocks_of_one_expert(kind: str, tokens: int, tall: int, first: int, count: int) -> None:
    ids = ids_of(kind, tokens)
    found = routing.sort(ids, count, tall, first)
    flat = ids.flatten().tolist()
    blocks = found.blocks.tolist()
    n = blocks[-1]
    assert n <= found.most
    seen = []
    for b in range(n):
        e, at, end = blocks[b], blocks[found.most + b], blocks[2 * found.most + b]
        pairs = found.order[at : min(end, at + tall)].tolist()
        assert pairs and {flat[p] for p in pairs} == {e + first}
        assert len(pairs) == tall or at + len(pairs) == end
        seen += pairs
    assert sorted(seen) == [p for p, e in enumerate(flat) if first <= e < first + count]


def test_more_pairs_than_a_program_looks_at_together() -> None:
    ids = ids_of("random", 2500)
    found = routing.sort(ids, COUNT, 64)
    assert torch.equal(found.order.long(), ids.flatten().argsort(stable=True))


def by_definition(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, opens: Stack, closes: Stack, gate: Gate,
    weigh_inputs: bool = False, first: int = 0,
) -> torch.Tensor:  # fmt: skip
    """In float64, one pair at a time."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for t, chosen in enumerate(ids.tolist()):
        for share, e in zip(weights[t].double(), (e - first for e in chosen), strict=True):
            if not 0 <= e < len(opens.weight):
                continue
            read = x[t].double() * (share if weigh_inputs else 1)
            a, b = (opens.weight[e].double() @ read + (0 if opens.bias is None else opens.bias[e])).chunk(2)
            if gate.limit is None:
                inner = ACTS[gate.act](a) * b  # type: ignore[index]
            else:
                a, b = a.clamp(max=gate.limit), b.clamp(-gate.limit, gate.limit)
                inner = a * torch.sigmoid(1.702 * a) * (b + 1)
            given = closes.weight[e].double() @ inner + (0 if closes.bias is None else closes.bias[e])
            out[t] += given if weigh_inputs else given * share
    return out


def stacks(bias: bool = False, hidden: int = HIDDEN, inter: int = INTER) -> tuple[Stack, Stack]:
    return (
        Stack(some(COUNT, 2 * inter, hidden), some(COUNT, 2 * inter) if bias else None),
        Stack(some(COUNT, hidden, inter), some(COUNT, hidden) if bias else None),
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "silu": {},
    "gelu": {"gate": Gate("gelu")},
    "gelu_tanh": {"gate": Gate("gelu_tanh")},
    "gpt-oss": {"gate": Gate("silu", 0.3), "bias": True},
    "llama 4": {"weigh_inputs": True},
    "biases, inputs weighed": {"weigh_inputs": True, "bias": True},
    "a rank's share": {"first": 1, "bias": True},
}


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("few", [8, 0], ids=["pairs", "blocks"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_experts_equal_their_definition(options: dict[str, Any], few: int) -> None:
    gate, first = options.get("gate", Gate("silu")), options.get("first", 0)
    weigh = options.get("weigh_inputs", False)
    opens, closes = stacks(options.get("bias", False))
    if first:  # experts 1, 2, 3 are here
        opens, closes = (Stack(s.weight[1:4], None if s.bias is None else s.bias[1:4]) for s in (opens, closes))
    x, ids = some(6, 2 * HIDDEN)[:, :HIDDEN] * 10, ids_of("random", 6)
    weights = some(6, 2).abs().contiguous()
    wanted = by_definition(x, weights, ids, opens, closes, gate, weigh, first)
    got = experts.forward(x, weights, ids, opens, closes, gate, weigh_inputs=weigh, first=first, tiles=SMALL, few=few)
    assert far(got, wanted) < EXACT


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_any_number_of_tokens_to_any_experts(tokens: int, kind: str) -> None:
    opens, closes = stacks()
    x, weights, ids = some(tokens, HIDDEN) * 10, some(tokens, 2), ids_of(kind, tokens)
    wanted = by_definition(x, weights, ids, opens, closes, Gate("silu"))
    assert far(experts.forward(x, weights, ids, opens, closes, Gate("silu")), wanted) < EXACT


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("few", [8, 0], ids=["pairs", "blocks"])
@pytest.mark.parametrize("tail", ["shared", "shared, gates", "shared, gates, other", "other"])
def test_the_rest_of_a_layer_is_added_in_the_last_pass(tail: str, few: int) -> None:
    opens, closes = stacks()
    x, weights, ids = some(4, HIDDEN) * 10, some(4, 2), ids_of("random", 4)
    wanted = by_definition(x, weights, ids, opens, closes, Gate("silu"))
    shared, other = some(4, HIDDEN, seed=1), some(4, HIDDEN, seed=2)
    gates = torch.rand(4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    if "shared" in tail:
        wanted += shared.double() * (gates.double()[:, None] if "gates" in tail else 1)
    wanted += other.double() if "other" in tail else 0
    given = Tail(shared if "shared" in tail else None, gates if "gates" in tail else None,
                 other if "other" in tail else None)  # fmt: skip
    got = experts.forward(x, weights, ids, opens, closes, Gate("silu"), tail=given, tiles=SMALL, few=few)
    assert far(got, wanted) < EXACT
    assert (got is other) == ("other" in tail)


@pytest.mark.parametrize("tokens", [1, 20])
def test_sides_that_no_tile_divides(tokens: int) -> None:
    opens, closes = stacks(True, 72, 40)
    x, weights, ids = some(tokens, 72) * 10, some(tokens, 2), ids_of("random", tokens)
    wanted = by_definition(x, weights, ids, opens, closes, Gate("silu"))
    assert far(experts.forward(x, weights, ids, opens, closes, Gate("silu"), tiles=SMALL), wanted) < EXACT


def test_a_token_gets_the_same_whoever_else_is_in_the_step() -> None:
    opens, closes = stacks()
    x, weights, ids = some(40, HIDDEN) * 10, some(40, 2), ids_of("random", 40)
    whole = experts.forward(x, weights, ids, opens, closes, Gate("silu"), tiles=SMALL)
    part = experts.forward(x[7:20], weights[7:20], ids[7:20], opens, closes, Gate("silu"), tiles=SMALL)
    assert torch.equal(whole[7:20], part)


@pytest.mark.parametrize("tokens", [1, 30])
def test_16_bits(tokens: int) -> None:
    opens, closes = (Stack(s.weight.half()) for s in stacks(False, 64, 32))
    x, ids = (some(tokens, 64) * 10).half(), ids_of("random", tokens)
    weights = some(tokens, 2)
    wanted = by_definition(x, weights, ids, opens, closes, Gate("silu"))
    got = experts.forward(x, weights, ids, opens, closes, Gate("silu"))
    assert got.dtype == torch.float16 and far(got, wanted) < 2e-3


def rounded(weight: torch.Tensor, groups: int) -> tuple[Stack, Stack]:
    """In 8 bits, and what that stands for."""
    parts = weight.unflatten(-1, (groups, -1))
    scales = parts.abs().amax(-1) / 448
    codes = (parts / scales[..., None]).to(fp8.FP8)
    return Stack(codes.flatten(-2), None, scales.transpose(1, 2).contiguous()), Stack(
        (codes.float() * scales[..., None]).flatten(-2)
    )


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("groups", "tokens"), [(1, 1), (1, 20), (2, 1), (2, 20)])
def test_8_bits(groups: int, tokens: int) -> None:
    opens, closes = (rounded(s.weight, groups) for s in stacks(False, 128 * groups, 128 * groups))
    x, weights, ids = some(tokens, 128 * groups) * 10, some(tokens, 2), ids_of("random", tokens)
    wanted = by_definition(x, weights, ids, opens[1], closes[1], Gate("silu"))
    got = experts.forward(x, weights, ids, opens[0], closes[0], Gate("silu"))
    # Inputs are rounded to 3 bits of mantissa, twice; the interpreter cuts bits off.
    assert far(got, wanted) < (0.06 if DEVICE == "cuda" else 0.12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, fp8.FP8], ids=str)
@pytest.mark.parametrize("ids", [6, 256, 1200, 4000, 7000, 32768])
def test_tiles_are_powers_of_two_that_fit_the_columns(dtype: torch.dtype, ids: int) -> None:
    both = (
        Stack(torch.empty(60, 2816, 2048, dtype=dtype, device="meta")),
        Stack(torch.empty(60, 2048, 1408, dtype=dtype, device="meta")),
    )
    for tile, stack in zip(experts.tiles_of(ids, 60, both), both, strict=True):
        assert all(n & (n - 1) == 0 for n in tile[:3])
        assert stack.weight.shape[2] % tile.block_k == 0
