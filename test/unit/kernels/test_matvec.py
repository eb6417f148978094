"""One row times a weight against float64: in Triton's interpreter where there is no CUDA device."""

import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels.matvec import matvec, matvec_gated, tuning
from sglang.quant.dense import ACTS, Dense

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def some(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double().cpu() - wanted) / torch.linalg.norm(wanted))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("rows", "inputs"), [(33, 96), (64, 4096), (5000, 40), (7, 9000)])
def test_products_equal_the_reference(rows: int, inputs: int, add: bool, bias: bool) -> None:
    x, w, b, other = some(1, inputs), some(rows, inputs), some(rows), some(1, rows)
    wanted = x.double() @ w.double().T + bias * b.double() + add * other.double()
    more = other.to(DEVICE) if add else None
    got = matvec(x.to(DEVICE), w.to(DEVICE), b.to(DEVICE) if bias else None, more)
    assert got.shape == (1, rows)
    assert far(got, wanted) < 1e-6
    assert (more is None) or more is got


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("bias", [False, True])
def test_gated_products_equal_the_reference(act: str, bias: bool) -> None:
    x, w, b = some(1, 2100), some(50, 2100) / 40, some(50)
    both = x.double() @ w.double().T + bias * b.double()
    wanted = ACTS[act](both[:, :25]) * both[:, 25:]  # type: ignore[index]
    got = matvec_gated(x.to(DEVICE), w.to(DEVICE), b.to(DEVICE) if bias else None, act)
    assert far(got, wanted) < 1e-6


def test_16_bits_are_rounded_once() -> None:
    x, w = some(1, 512).half(), some(96, 512).half()
    got = matvec(x.to(DEVICE), w.to(DEVICE), None)
    assert got.dtype == torch.float16
    assert far(got, x.double() @ w.double().T) < 5e-4


@pytest.mark.parametrize(("rows", "inputs"), [(6144, 4096), (4096, 4096), (4096, 14336), (128256, 4096), (10, 24)])
def test_steps_are_powers_of_two_within_the_row(rows: int, inputs: int) -> None:
    outputs, step = tuning(rows, inputs)
    assert outputs in (2, 4)
    assert step & (step - 1) == 0
    assert step < 2 * inputs


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_uses_them_for_one_row_and_for_no_other(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dense, "_alone", lambda self, x: x.shape[0] == 1)
    store = Dense(64, {"gate": 24, "up": 24}, bias, torch.device(DEVICE), torch.float32)
    store.weight.copy_(some(48, 64) / 8)
    if store.bias is not None:
        store.bias.copy_(some(48))
    weight, added = store.weight.double().cpu(), 0 if store.bias is None else store.bias.double().cpu()
    for rows in (1, 3):
        x, other = some(rows, 64), some(rows, 48)
        wanted = x.double() @ weight.T + added
        assert far(store.multiply(x.to(DEVICE)), wanted) < 1e-6
        assert far(store.multiply_add(x.to(DEVICE), other.clone().to(DEVICE)), wanted + other.double()) < 1e-6
        gated = ACTS["silu"](wanted[:, :24]) * wanted[:, 24:]
        assert far(store.multiply_gated(x.to(DEVICE), "silu"), gated) < 1e-6
