"""The passes between products against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from sglang.kernels.pointwise import gate, rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def some(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("hidden", [64, 100, 1536])
def test_rms_norm(hidden: int) -> None:
    whole, weight = some(3, 2 * hidden), some(hidden)
    x = whole[:, :hidden]
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = rms_norm(whole.to(DEVICE)[:, :hidden], weight.to(DEVICE), 1e-5).cpu().double()
    assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("half", [96, 1100])
def test_gate(act: str, half: int) -> None:
    both = some(3, 2 * half)
    opened = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[act]
    wanted = opened(both[:, :half].double()) * both[:, half:].double()
    got = gate(both.to(DEVICE), act).cpu().double()
    assert (got - wanted).abs().max() < 2e-5
