"""Experts in 4 bits against what their weights stand for: in Triton's interpreter where there is no CUDA device."""

import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from expert_cases import COUNT, DEVICE, EXACT, KINDS, by_definition, far, ids_of, some

from sglang.kernels import experts, experts_trial
from sglang.kernels.experts_packed import FP4_APART
from sglang.kernels.experts_stack import Gate, Stack, Tail
from sglang.kernels.experts_tiles import Tile, alone, tiles_of
from sglang.kernels.packed import FP4, PLACES, Kind, Packed, each_of

TILE = Tile(16, 128, 128, 4, 2)  # few programs: each takes as long as a larger one in the interpreter
WIDE = Tile(64, 128, 128, 4, 2)  # of so many pairs that weights are scaled, not sums
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
BOUND = EXACT if DEVICE == "cpu" else 8e-3
FORMS: dict[str, tuple[Kind, int]] = {f"groups of {size}": ("int4", size) for size in (32, 64, 128, 256)}
FORMS["a scale a row"], FORMS["mxfp4"] = ("int4", 1 << 20), ("mxfp4", 32)


def packed(rows: int, inputs: int, kind: Kind, size: int) -> Packed:
    """Random codes, scales, zeros."""
    generator = torch.Generator().manual_seed(rows + inputs)
    groups = -(-inputs // size)
    made = Packed.empty(COUNT, rows, inputs, kind, each_of(kind, size, groups), torch.device(DEVICE))
    for e in range(COUNT):
        if kind == "int4":
            codes = torch.randint(0, 16, (rows, inputs), generator=generator, dtype=torch.uint8)
            scales = (torch.rand(rows, groups, generator=generator) + 0.5) * inputs**-0.5 / 5
            zeros = torch.randint(4, 12, (rows, groups), generator=generator).float()
            made.put_codes(e, slice(0, rows), codes.to(DEVICE), scales.to(DEVICE), zeros.to(DEVICE), size)
        else:
            blocks = torch.randint(0, 256, (rows, groups, 16), generator=generator, dtype=torch.uint8)
            exponents = torch.randint(121, 125, (rows, groups), generator=generator, dtype=torch.uint8)
            made.put_blocks(e, slice(0, rows), blocks.to(DEVICE), exponents.to(DEVICE))
    return made


def stacks(kind: Kind, size: int, hidden: int, inter: int, bias: bool = False) -> tuple[Stack, Stack]:
    both = packed(2 * inter, hidden, kind, size), packed(hidden, inter, kind, size)
    opens, closes = (Stack(one, some(COUNT, one.shape[1]).to(DTYPE) if bias else None) for one in both)
    return opens, closes


def wide(stack: Stack) -> Stack:
    assert isinstance(stack.weight, Packed)
    return Stack(torch.stack([stack.weight.dense(e) for e in range(COUNT)]), stack.bias)


def differ(
    both: tuple[Stack, Stack], tokens: int, kind: str = "random", gate: Gate = Gate("silu"), weigh: bool = False,
    dtype: torch.dtype = DTYPE, **more: Any,
) -> float:  # fmt: skip
    """How far the sum of experts is from its definition."""
    hidden = both[1].weight.shape[1]
    x, ids = (some(tokens, 2 * hidden)[:, :hidden] * 10).to(dtype), ids_of(kind, tokens)
    weights = some(tokens, 2).abs().contiguous()
    (opens, closes), (first, last) = both, map(wide, both)
    got = experts.forward(x, weights, ids, opens, closes, gate, weigh_inputs=weigh, **more)
    assert got.dtype == dtype
    return far(got, by_definition(x, weights, ids, first, last, gate, weigh, more.get("first", 0)))


@pytest.mark.parametrize("few", [8, 0], ids=["pairs", "blocks"])
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_products_equal_those_of_what_weights_stand_for(form: tuple[Kind, int], few: int) -> None:
    # Two pieces, of which the second is half of one; no rows fill a tile. Biases and limits are GPT-OSS's.
    both = stacks(*form, 192 if form[1] < 128 else 256, 64, True)
    assert differ(both, 2 if few else 5, gate=Gate("silu", 0.3), tiles=(TILE, TILE), few=few) < BOUND


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("split", [2, 4])
def test_parts_of_the_columns_side_by_side(form: tuple[Kind, int], split: int) -> None:
    """Three pieces of the inputs of one product, one of the other's: parts that are not there count as nothing."""
    tile = TILE._replace(block_n=64 // split, split=split)
    both = stacks(*form, 320 if form[1] < 128 else 384, 64, True)
    assert differ(both, 1, gate=Gate("silu", 0.3), tiles=(tile, tile)) < BOUND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_any_number_of_tokens_to_any_experts(tokens: int, kind: str) -> None:
    assert differ(stacks("mxfp4", 32, 96, 32), tokens, kind, tiles=(TILE, TILE)) < BOUND


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_for_many_pairs_weights_are_scaled(form: tuple[Kind, int]) -> None:
    assert differ(stacks(*form, 128, 32), 40, "one has all", tiles=(WIDE, WIDE)) < BOUND


@pytest.mark.parametrize("tokens", [1, 9])
def test_sides_that_nothing_divides(tokens: int) -> None:
    assert differ(stacks("int4", 1 << 20, 37, 21, True), tokens, tiles=(TILE, TILE)) < BOUND
    assert differ(stacks("int4", 64, 130, 67), tokens, tiles=(TILE, TILE)) < BOUND


@pytest.mark.parametrize("few", [8, 0], ids=["pairs", "blocks"])
def test_inputs_are_weighed_and_a_rank_has_its_share(few: int) -> None:
    both = stacks("mxfp4", 32, 64, 32, True)
    assert differ(both, 3, weigh=True, tiles=(TILE, TILE), few=few) < BOUND
    # Experts 0 to 4 are called 2 to 6: what is asked for beyond adds nothing.
    assert differ(both, 3, first=2, tiles=(TILE, TILE), few=few) < BOUND


@pytest.mark.parametrize("few", [8, 0], ids=["pairs", "blocks"])
def test_the_rest_of_a_layer_is_added(few: int) -> None:
    both = stacks("int4", 32, 64, 32)
    x, weights, ids = (some(3, 64) * 10).to(DTYPE), some(3, 2), ids_of("random", 3)
    shared, other, gates = some(3, 64, seed=1).to(DTYPE), some(3, 64, seed=2).to(DTYPE), some(3).abs()
    wanted = by_definition(x, weights, ids, wide(both[0]), wide(both[1]), Gate("silu"))
    wanted += shared.double() * gates.double()[:, None] + other.double()
    got = experts.forward(x, weights, ids, *both, Gate("silu"), tail=Tail(shared, gates, other), few=few)
    assert got is other and far(got, wanted) < BOUND


@pytest.mark.parametrize("few", [8, 0], ids=["pairs", "blocks"])
def test_only_one_of_the_maps_is_in_4_bits(few: int) -> None:
    opens, closes = stacks("mxfp4", 32, 64, 32)
    x, weights, ids = (some(3, 64) * 10).to(DTYPE), some(3, 2), ids_of("random", 3)
    for both in ((opens, wide(closes)), (wide(opens), closes)):
        both = tuple(s._replace(weight=s.weight.to(DTYPE)) if isinstance(s.weight, torch.Tensor) else s for s in both)
        got = experts.forward(x, weights, ids, *both, Gate("silu"), few=few)
        assert far(got, by_definition(x, weights, ids, wide(opens), wide(closes), Gate("silu"))) < BOUND


@pytest.mark.parametrize("form", [("int4", 32), ("int4", 128), ("mxfp4", 32)], ids=str)
def test_16_bits(form: tuple[Kind, int]) -> None:
    assert differ(stacks(*form, 128, 32), 3, dtype=torch.float16) < 2e-3


def test_a_token_gets_the_same_whoever_else_is_in_the_step() -> None:
    both = stacks("mxfp4", 32, 96, 32)
    x, weights, ids = (some(20, 96) * 10).to(DTYPE), some(20, 2), ids_of("random", 20)
    given: dict[str, Any] = {"tiles": (TILE, TILE), "few": 0}
    whole = experts.forward(x, weights, ids, *both, Gate("silu"), **given)
    part = experts.forward(x[7:12], weights[7:12], ids[7:12], *both, Gate("silu"), **given)
    assert torch.equal(whole[7:12], part)


@pytest.mark.parametrize("form", [("int4", 1), ("int4", 4), ("mxfp4", 1)], ids=str)
def test_what_the_trial_makes_is_near_what_it_was_given(form: tuple[Kind, int]) -> None:
    weight = some(2, 24, 256)
    stack, stands_for = experts_trial.squeezed(weight, *form)
    assert isinstance(stack.weight, Packed)
    assert torch.allclose(torch.stack([stack.weight.dense(e) for e in range(2)]).double(), stands_for, rtol=1e-4)
    assert far(stands_for, weight.double()) < 0.2


@pytest.mark.parametrize("ids", [1, 256, 1200, 4000, 32768])
@pytest.mark.parametrize(("hidden", "inter"), [(2880, 2880), (4096, 14336)])
def test_tiles_fit_shared_memory(ids: int, hidden: int, inter: int) -> None:
    both = [
        Stack(Packed.empty(8, rows, inputs, "mxfp4", 1, torch.device("meta")))
        for rows, inputs in ((2 * inter, hidden), (hidden, inter))
    ]
    single = tuple(alone(ids, stack, closes) for stack, closes in zip(both, (False, True), strict=True))
    for tile, words in (
        *zip(tiles_of(ids, 8, (both[0], both[1])), (2, 1), strict=True),
        *zip(single, (2, 1), strict=True),
    ):
        assert tile.block_k == 128 and all(n & (n - 1) == 0 for n in tile[:3])
        a_stage = 2 * 128 * tile.block_m + words * (64 + 16) * tile.block_n * tile.split
        assert tile.stages * a_stage < 227 * 1024  # of Hopper


def by_instructions(text: str, words: list[int]) -> list[int]:
    """What the device's instructions make of two words: eight registers."""
    held = {"$8": words[0], "$9": words[1]}

    def value(name: str) -> int:
        return int(name, 0) if name[0].isdigit() else held[name]

    for line in re.findall(r"(\w+\.\w+) ([^;]+);", text):
        name, (to, *given) = line[0], line[1].split(", ")
        if name == ".reg" or to.startswith(".b32"):
            continue
        a, b, *rest = map(value, given)
        match name:
            case "prmt.b32":
                found = b"".join((a | b << 32).to_bytes(8, "little")[i : i + 1] for i in _selected(rest[0]))
                held[to] = int.from_bytes(found, "little")
            case "and.b32":
                held[to] = a & b
            case "shl.b32":
                held[to] = a << b & 0xFFFFFFFF
            case "shr.u32":
                held[to] = a >> b
            case "lop3.b32":
                assert rest[1] == 0xEA
                held[to] = a & b | rest[0]
            case _:
                raise AssertionError(name)
    return [held[f"${i}"] for i in range(8)]


def _selected(selector: int) -> list[int]:
    return [selector >> (4 * i) & 15 for i in range(4)]


def test_the_instructions_take_fp4_apart() -> None:
    """Here they are not run: they are read."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (2, 8), generator=generator)
    for _ in range(20):
        codes = torch.randint(0, 16, (2, 8), generator=generator)
        words = [
            sum((int(code) >> b & 1) << (place + j // 4 * 16) for j, code in enumerate(own)
                for b, place in enumerate(PLACES[j % 4]))
            for own in codes
        ]  # fmt: skip
        for j, register in enumerate(by_instructions(FP4_APART.value, words)):
            halves = torch.tensor([register & 0xFFFF, register >> 16], dtype=torch.int32).to(torch.int16)
            numbers = halves.view(torch.bfloat16).double() * 2.0**126
            assert numbers.tolist() == [FP4[int(own[j])] for own in codes]
