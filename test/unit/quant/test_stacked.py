"""All experts' weights of one map: filled, or taken in 8 bits as files have them."""

from collections import Counter

import pytest
import torch

from sglang.quant.base import Grid
from sglang.quant.rounding import rounded
from sglang.quant.stacked import Stacked

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
