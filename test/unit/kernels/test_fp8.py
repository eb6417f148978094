"""Products of 8-bit floating point against float64: in Triton's interpreter where there is no CUDA device."""

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import fp8
from sglang.quant.dense import ACTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Without a device that has 8-bit products, only the interpreter can.
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="needs 8-bit products"
)


def some(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double().cpu() - wanted) / torch.linalg.norm(wanted))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.002])
def test_inputs_are_rounded_with_a_scale_a_row_a_group_or_the_files(groups: int, scale: float | None) -> None:
    x = some(5, 768)[:, :384]
    x[1] = 0
    codes, scales = fp8.rounded(x.to(DEVICE), scale, groups)
    given = codes.double().cpu().view(5, groups, -1) * scales.double().cpu()[..., None]
    if scale is None:
        # Half of the last of 4 bits; the interpreter may lose one that is carried.
        assert (given - x.double().view(5, groups, -1)).abs().max() < x.abs().max() / (27 if DEVICE == "cuda" else 6.9)
        assert (codes.float().abs().cpu().view(5, groups, -1).amax(-1)[[0, 2, 3, 4]] == 448).all()
    else:
        assert (scales == scale).all()
        assert given.abs().max() <= 448 * scale + 1e-6, "beyond the largest value"
        assert (given - x.double().view(5, groups, -1).clamp(-448 * scale, 448 * scale)).abs().max() < (
            0.035 if DEVICE == "cuda" else 0.14
        )


def made(m: int, rows: int, inputs: int, groups: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    weight, scales = some(rows, inputs).to(fp8.FP8), some(groups, rows).abs() + 0.5
    codes, x_scales = fp8.rounded(some(m, inputs).to(DEVICE), None, groups)
    size = inputs // groups
    w = weight.double() * scales.double().T.repeat_interleave(size, 1)
    x = codes.double().cpu() * x_scales.double().cpu().repeat_interleave(size, 1)
    return [codes, x_scales, weight.to(DEVICE), scales.to(DEVICE)], x @ w.T


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("m", "rows", "inputs"),
    [(1, 64, 128), (3, 80, 4096), (17, 144, 384), (40, 64, 512), (70, 130, 256), (140, 64, 256)],
)
def test_products_equal_the_reference(m: int, rows: int, inputs: int, grouped: bool) -> None:
    given, wanted = made(m, rows, inputs, inputs // 128 if grouped else 1)
    got = fp8.multiply(*given, dtype=torch.float32)  # type: ignore[misc]
    assert got.shape == (m, rows)
    # On a device, sums of 8-bit products keep 14 bits.
    assert far(got, wanted) < (1e-3 if DEVICE == "cuda" else 1e-6)


@pytest.mark.parametrize("act", [None, *ACTS])
@pytest.mark.parametrize("m", [1, 20])
def test_what_follows_a_product_is_done_in_its_last_pass(m: int, act: str | None) -> None:
    given, wanted = made(m, 64, 512, 1)
    b = some(64)
    wanted = (wanted + b) / 30
    given[3] /= 30
    if act is not None:
        wanted = ACTS[act](wanted[:, :32]) * wanted[:, 32:]  # type: ignore[index]
    other = some(m, wanted.shape[1])
    more = other.clone().to(DEVICE)
    got = fp8.multiply(*given, dtype=torch.float32, bias=b.to(DEVICE) / 30, other=more, act=act)  # type: ignore[misc]
    assert far(got, wanted + other) < (1e-3 if DEVICE == "cuda" else 1e-6) and got is more
