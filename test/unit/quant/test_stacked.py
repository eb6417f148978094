"""All experts' weights of one map: filled, or taken in few bits as files have them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from sglang.kernels.packed import MOST, packed_bytes
from sglang.quant.base import Grid, Mxfp4, Weight
from sglang.quant.rounding import dummy, rounded
from sglang.quant.stacked import Stacked, planned_bytes

CPU = torch.device("cpu")


def some(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def made(bias: bool = False, inputs: int = 256) -> Stacked:
    return Stacked(2, {"gate": 6, "up": 4}, inputs, bias, CPU, torch.float32)


def blocks(weight: torch.Tensor) -> Grid:
    """A scale for every row and 128 columns."""
    parts = weight.unflatten(1, (-1, 128))
    scales = parts.abs().amax(-1) / 448
    return Grid((parts / scales[..., None]).to(torch.float8_e4m3fn).flatten(1), scales, 8, 128)


def test_places_are_views_of_one_tensor() -> None:
    one = made(bias=True)
    places = one.places("x")
    assert len(places) == 8
    places["x.1.up.weight"].fill_(3)
    places["x.0.gate.bias"].fill_(2)
    assert (one.weight[1, 6:] == 3).all() and one.bias is not None and (one.bias[0, :6] == 2).all()
    assert not one.takers("x") and one.saved == 0


@pytest.mark.parametrize("grids", [lambda w: rounded(w, "fp8"), blocks, lambda w: w], ids=["rows", "blocks", "plain"])
def test_weights_of_8_bits_stay_as_they_are_until_they_are_widened(grids) -> None:  # type: ignore[no-untyped-def]
    one, seen = made(), Counter[str]()
    one.narrow("fp8", seen)
    weights = {place: some(*shape.shape) for place, shape in one.places("x").items()}
    assert all(t.device.type == "meta" for t in one.places("x").values())
    for place, take in one.takers("x").items():
        take(grids(weights[place]))
    assert one.codes is not None and one.scales is not None and seen == {"float8": 1}
    assert one.saved == one.codes.numel() * 3 - 4 * one.scales.numel()
    codes, scales = one.codes.float(), one.scales.transpose(1, 2).repeat_interleave(256 // one.scales.shape[1], 2)
    wanted = torch.stack([torch.cat([weights[f"x.{e}.{part}.weight"] for part in ("gate", "up")]) for e in range(2)])
    assert torch.linalg.norm(codes * scales - wanted) < 0.04 * torch.linalg.norm(wanted)
    one.widen()
    assert one.codes is None and torch.equal(one.weight, codes * scales)


def test_one_that_is_not_like_the_others_widens_all() -> None:
    one, seen = made(), Counter[str]()
    one.narrow(None, seen)
    weights = {place: some(*shape.shape) for place, shape in one.places("x").items()}
    takers = one.takers("x")
    for place, grid in zip(list(weights)[:3], (blocks, blocks, lambda w: rounded(w, "fp8")), strict=True):
        takers[place](grid(weights[place]))
    last = list(weights)[3]
    takers[last](weights[last])
    assert one.codes is None and torch.equal(one.weight[1, 6:], weights[last])
    first = weights["x.0.gate.weight"]
    assert torch.linalg.norm(one.weight[0, :6] - first) < 0.04 * torch.linalg.norm(first)


def test_integers_are_written_out() -> None:
    one, seen = made(), Counter[str]()
    one.narrow(None, seen)
    for place, take in one.takers("x").items():
        take(rounded(some(*one.places("x")[place].shape), "int8"))
    assert one.codes is None and seen == {"dequantised": 1}


def int4(weight: torch.Tensor, size: int = 64) -> Grid:
    """Even steps above a whole zero."""
    groups = weight.unflatten(1, (-1, size))
    scales = groups.abs().amax(-1) / 7
    codes = (groups / scales[..., None] + 8).round().clamp(0, 15).to(torch.uint8).flatten(1)
    return Grid(codes, scales, 4, size, torch.full_like(scales, 8.0))


def mxfp4(weight: torch.Tensor) -> Mxfp4:
    made = dummy(weight, "mxfp4")
    assert isinstance(made, Mxfp4)
    return made


def taken(one: Stacked, make: Any) -> tuple[Counter[str], list[torch.Tensor]]:
    """All places, with what `make` makes of their weights; what that stands for, expert by expert."""
    seen, whole = Counter[str](), []
    one.narrow(None, seen)
    for place, take in one.takers("x").items():
        weight: Weight = make(some(*one.places("x")[place].shape))
        take(weight)
        whole.append(weight if isinstance(weight, torch.Tensor) else weight.dense().float())
    return seen, [torch.cat(whole[i : i + 2]) for i in (0, 2)]


FOUR: dict[str, Any] = {"int4": int4, "mxfp4": mxfp4, "awq": lambda w: int4(w, 128), "a row": lambda w: int4(w, 256)}


@pytest.mark.parametrize("kind", FOUR)
def test_weights_of_4_bits_stay_packed_until_they_are_widened(kind: str) -> None:
    one = made()
    seen, wanted = taken(one, FOUR[kind])
    assert one.packed is not None and one.narrowed and seen == {"mxfp4" if kind == "mxfp4" else "int4": 1}
    each = {"int4": 2}.get(kind, 1)
    assert one.packed.bytes == 2 * packed_bytes(10, 256, each)
    assert one.saved == 2 * 10 * 256 * 4 - one.packed.bytes
    one.widen()
    assert not one.narrowed and one.saved == 0
    for e, weight in enumerate(wanted):
        assert torch.allclose(one.weight[e], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "groups"), [("mxfp4", 0), ("int4", 4), ("awq", 2), ("a row", 1)])
def test_what_a_plan_counts_is_what_is_kept(kind: str, groups: int) -> None:
    one = made()
    taken(one, FOUR[kind])
    assert one.packed is not None
    assert one.packed.bytes == 2 * sum(planned_bytes(n, 256, 4, one.packed.kind, groups) for n in (6, 4))


def test_a_plan_counts_what_does_not_fit_as_plain() -> None:
    assert planned_bytes(6, 256, 2, "int4", 0) == planned_bytes(6, 256, 2, "int4", 16) == 2 * 6 * 256
    assert planned_bytes(6, 160, 2, "int4", 2) == packed_bytes(6, 160, 1)  # of 128 and 32 columns


NOT_PACKED: dict[str, Any] = {
    "zeros are not whole": lambda w: rounded(w, "int4"),
    "columns in another order": lambda w: replace(int4(w), group_of=torch.arange(256) % 4),
    "groups of 16": lambda w: int4(w, 16),
    "exponents that no bfloat16 has": lambda w: Mxfp4(mxfp4(w).blocks, torch.full_like(mxfp4(w).exponents, MOST + 1)),
}


@pytest.mark.parametrize("kind", NOT_PACKED)
def test_weights_that_the_kernel_does_not_take_are_written_out(kind: str) -> None:
    one = made()
    seen, wanted = taken(one, NOT_PACKED[kind])
    assert not one.narrowed and seen == {"dequantised": 1}
    assert torch.equal(one.weight, torch.stack(wanted))


def test_groups_of_another_size_widen_all() -> None:
    one, turn = made(), iter((int4, int4, FOUR["awq"], int4))
    _, wanted = taken(one, lambda w: next(turn)(w))
    assert not one.narrowed and torch.allclose(one.weight, torch.stack(wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["int4", "mxfp4"])
@pytest.mark.parametrize("inputs", [256, 192, 96])
def test_random_weights_of_4_bits_are_packed_and_as_wide(kind: str, inputs: int) -> None:
    one = made(inputs=inputs)
    _, wanted = taken(one, lambda w: dummy(w, kind))
    assert one.packed is not None and one.packed.kind == kind
    weight = some(6, inputs)
    assert torch.linalg.norm(wanted[0][:6] - weight) < 0.2 * torch.linalg.norm(weight)
