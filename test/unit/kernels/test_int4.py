"""Products with weights of 4 bits against float64: in Triton's interpreter where there is no CUDA device."""

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import int4
from sglang.quant.dense import ACTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] if DEVICE == "cpu" else [torch.bfloat16, torch.float16]


def some(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def made(rows: int, inputs: int, size: int) -> tuple[int4.Words, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + inputs)
    groups = inputs // size
    codes = torch.randint(0, 16, (rows, inputs), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 17, (rows, groups), generator=generator).float()
    scales = torch.rand(rows, groups, generator=generator) * 0.02 + 0.01
    weight = (codes.double() - zeros.double().repeat_interleave(size, 1)) * scales.double().repeat_interleave(size, 1)
    return int4.laid_out(codes.to(DEVICE), scales.to(DEVICE), zeros.to(DEVICE), size), weight


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double().cpu() - wanted) / torch.linalg.norm(wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "rows", "inputs", "size"),
    [
        (1, 64, 128, 128),
        (1, 130, 2048, 128),  # splits share the columns, rows fill no piece
        (3, 192, 512, 512),
        (16, 64, 1024, 256),
        (17, 96, 256, 32),
        (40, 96, 256, 64),
        (70, 200, 256, 128),
        (130, 64, 128, 32),
        (300, 64, 256, 128),  # written out
    ],
)
def test_products_equal_the_reference(m: int, rows: int, inputs: int, size: int, dtype: torch.dtype) -> None:
    w, weight = made(rows, inputs, size)
    x = some(m, 2 * inputs).to(dtype)[:, :inputs]
    got = int4.multiply(x.to(DEVICE), w)
    assert got.shape == (m, rows) and got.dtype == dtype
    # Scales keep 15 bits beside the zeros; weights are rounded to the type of the inputs where many rows share them.
    assert far(got, x.double() @ weight.T) < (4e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize(
    ("m", "add", "bias", "act"),
    [
        (1, True, False, None),
        (20, False, True, None),
        (300, True, True, None),
        *((m, False, True, act) for m, act in zip((1, 20, 300), ACTS, strict=True)),
    ],
)
def test_what_follows_a_product_is_done_in_its_last_pass(m: int, add: bool, bias: bool, act: str | None) -> None:
    w, weight = made(64, 1024, 128)
    x, b = some(m, 1024) / 8, some(64)
    wanted = x.double() @ weight.T + (b.double() if bias else 0)
    if act is not None:
        wanted = ACTS[act](wanted[:, :32]) * wanted[:, 32:]  # type: ignore[index]
    other = some(m, wanted.shape[1])
    more = other.clone().to(DEVICE) if add else None
    got = int4.multiply(x.to(DEVICE), w, b.to(DEVICE) if bias else None, more, act)
    assert far(got, wanted + (other.double() if add else 0)) < (1e-3 if DEVICE == "cuda" else 4e-5)
    assert more is None or more is got


@pytest.mark.parametrize("size", [32, 128, 256, 1024])
def test_a_weight_written_out_is_what_it_was(size: int) -> None:
    w, weight = made(130, 1024, size)
    assert far(int4.written_out(w, torch.float32), weight) < 4e-5
    assert w.bytes < 0.75 * 256 * 1024


def test_layouts_that_do_not_fit_are_known() -> None:
    assert int4.fits(10, 256, 32, 8) and int4.fits(10, 256, 256, 1) and int4.fits(10, 384, 128, 3)
    assert not int4.fits(10, 96, 32, 3) and not int4.fits(10, 256, 16, 16) and not int4.fits(10, 384, 192, 2)
