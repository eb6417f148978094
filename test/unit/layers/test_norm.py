"""RMSNorm by its definition in float64."""

import pytest
import torch

from sglang.layers.norm import RMSNorm


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 2e-3)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_norm_equals_its_definition(eps: float, dtype: torch.dtype, bound: float, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(5, 96, generator=generator) * torch.tensor([[1e-3], [0.1], [1.0], [30.0], [0.0]])).to(
        device, dtype
    )
    norm = RMSNorm(96, eps, torch.device(device), dtype)
    norm.weight.copy_(1 + 0.3 * torch.randn(96, generator=generator))
    weight = norm.weight.double()
    norm.finish()
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    out = norm(x)
    assert out.dtype == dtype
    assert ((out.double() - wanted).abs() <= bound * (1 + wanted.abs())).all()
    assert torch.equal(x.double(), wide), "the input is left as it is"
