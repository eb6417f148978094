"""Experts on the device against their definition: in Triton's interpreter where there is no CUDA device."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from expert_cases import COUNT, DEVICE, EXACT, HIDDEN, INTER, KINDS, by_definition, far, ids_of, some

from sglang.kernels import experts, experts_pairs, fp8
from sglang.kernels.experts_stack import Gate, Stack, Tail
from sglang.kernels.experts_tiles import Tile, tiles_of

SMALL = (Tile(16, 32, 32, 4, 2), Tile(16, 32, 16, 4, 2))


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes as long as a larger one in the interpreter; steps that end within the columns."""
    monkeypatch.setattr(experts_pairs, "tuning", lambda inputs, opens=True: (16, 64, 4))


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
    for tile, stack in zip(tiles_of(ids, 60, both), both, strict=True):
        assert all(n & (n - 1) == 0 for n in tile[:3])
        assert stack.weight.shape[2] % tile.block_k == 0
