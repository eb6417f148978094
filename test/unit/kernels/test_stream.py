"""What lies between two products, in one pass, against the same steps one after another."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import fp8
from sglang.kernels.parts import ended
from sglang.kernels.pointwise import rms_norm
from sglang.kernels.stream import join, opened
from sglang.quant.dense import ACTS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPE = torch.float16
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="needs 8-bit products"
)
FORMS: list[tuple[int, float | None] | None] = [None, (1, None), (1, 0.02), (3, None)]


def some(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size) + seed)).to(DEVICE)


def same(got: torch.Tensor, wanted: torch.Tensor, share: float = 0.0) -> None:
    """Equal, but for a share of values that sums of another order may round to a neighbour (on a device)."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if DEVICE.type == "cpu":
        assert torch.equal(got.float(), wanted.float())
    else:
        assert (got.float() != wanted.float()).float().mean() <= 0.01
        torch.testing.assert_close(got.float(), wanted.float(), rtol=0.13, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"bias": True},
        {"post": True},
        {"factor": 0.22},
        {"bias": True, "post": True, "factor": 0.22},
        {"norm": False},
        {"post": True, "norm": False},
    ],
    ids=lambda case: " ".join(case) or "plain",
)
def test_join_equals_its_steps(case: dict[str, Any], splits: int, form: tuple[int, float | None] | None) -> None:
    hidden, factor = 384, case.get("factor", 1.0)
    if not case.get("norm", True) and form is not None:
        pytest.skip("nothing is read")
    parts = some(splits, 5, hidden)
    parts = parts.to(TYPE) if splits == 1 else parts
    stream, bias = some(5, hidden, seed=1).to(TYPE), some(hidden).to(TYPE) if "bias" in case else None
    first, second = some(hidden, seed=2).to(TYPE), some(hidden, seed=3)
    step = stream.clone()
    if "post" in case or factor != 1:
        part = ended(parts.clone(), bias, None, None, TYPE)
        part = rms_norm(part, first, 1e-5) if "post" in case else part
        step = (step.float() + part.float() * factor).to(TYPE)
    else:
        step = ended(parts.clone(), bias, step, None, TYPE)
    wanted = rms_norm(step, second, 1e-6)
    got, scales = join(
        parts, bias, stream, (first, 1e-5) if "post" in case else None, factor,
        (second, 1e-6) if case.get("norm", True) else None, form,
    )  # fmt: skip
    same(stream, step)
    if not case.get("norm", True):
        assert got is stream
    elif form is None:
        assert scales is None
        same(got, wanted)
    else:
        codes, own = fp8.rounded(wanted, form[1], form[0])
        assert scales is not None
        same(got, codes)
        torch.testing.assert_close(scales, own, rtol=0 if DEVICE.type == "cpu" else 2e-3, atol=0)


@pytest.mark.parametrize("hidden", [40, 1000])
def test_join_of_odd_sizes_equals_float64(hidden: int) -> None:
    parts, stream, weight = some(2, 3, hidden), some(3, hidden, seed=1), some(hidden)
    wide = stream.double() + parts.double().sum(0)
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got, _ = join(parts, None, stream, norm=(weight, 1e-5))
    assert (stream.double() - wide).abs().max() < 1e-5 and (got.double() - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("act", ACTS)
def test_opened_equals_its_steps(act: str, splits: int, form: tuple[int, float | None]) -> None:
    parts, bias = some(splits, 4, 768), some(768).to(TYPE)
    parts = parts.to(TYPE) if splits == 1 else parts
    for b in (None, bias):
        wanted, own = fp8.rounded(ended(parts.clone(), b, None, act, TYPE), form[1], form[0])
        codes, scales = opened(parts, b, act, TYPE, form)
        same(codes, wanted)
        torch.testing.assert_close(scales, own, rtol=0 if DEVICE.type == "cpu" else 2e-3, atol=0)
