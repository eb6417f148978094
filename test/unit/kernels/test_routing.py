"""Routing on the device against its definition: in Triton's interpreter where there is no CUDA device."""

import pytest
import torch
from expert_cases import COUNT, DEVICE, EXACT, HIDDEN, KINDS, far, ids_of, some

pytest.importorskip("triton")
from sglang.kernels import routing
from sglang.layers.moe import Routing, route

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
