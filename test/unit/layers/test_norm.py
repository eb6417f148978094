"""Norms by their definition in float64."""

import pytest
import torch

from sglang.layers.norm import HeadNorm, LayerNorm, RMSNorm, UnitNorm


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


def test_layer_norm_equals_its_definition_with_and_without_bias() -> None:
    x = 3 + 2 * torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    wide = x.double()
    centred = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, unbiased=False, keepdim=True) + 0.1).sqrt()
    for bias in (False, True):
        norm = LayerNorm((96,), 0.1, torch.device("cpu"), torch.float32, bias)
        places = norm.places("n")
        assert set(places) == ({"n.weight", "n.bias"} if bias else {"n.weight"})
        for i, place in enumerate(places.values()):
            place.copy_(torch.linspace(-1, 2 + i, 96))
        wanted = centred * torch.linspace(-1, 2, 96) + (torch.linspace(-1, 3, 96) if bias else 0)
        norm.finish()
        assert (norm(x) - wanted).abs().max() < 1e-5


def test_heads_may_have_weights_of_their_own() -> None:
    norm = LayerNorm((3, 8), 1e-5, torch.device("cpu"), torch.float32, False)
    for head, place in enumerate(norm.places("n").values()):
        place.fill_(head)
    norm.finish()
    x = torch.randn(4, 3, 8)
    plain = torch.nn.functional.layer_norm(x, (8,))
    assert torch.allclose(norm(x), plain * torch.arange(3.0)[:, None])


def test_a_weight_less_one_is_kept_exactly_enough() -> None:
    # 1 + 1/512 is 1 in bfloat16: the sum must be made in float32.
    norm = RMSNorm(64, 0.0, torch.device("cpu"), torch.bfloat16, plus_one=True)
    norm.weight.fill_(1 / 512)
    norm.finish()
    assert torch.equal(norm.weight, torch.full((64,), 1 + 1 / 512))


def test_all_heads_together_and_without_a_weight() -> None:
    x = torch.randn(4, 3, 8) * torch.tensor([1.0, 5.0, 0.2])[:, None]
    inner = RMSNorm(24, 0.0, torch.device("cpu"), torch.float32)
    inner.weight.fill_(1)
    inner.finish()
    together = HeadNorm(inner)(x)
    assert torch.allclose(together.square().mean((1, 2)), torch.ones(4), atol=1e-5)
    apart = UnitNorm(0.0, torch.device("cpu"))(x)
    assert torch.allclose(apart.square().mean(-1), torch.ones(4, 3), atol=1e-5)
