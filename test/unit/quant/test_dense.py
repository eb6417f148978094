"""Dense weights: packed and plain products agree, and packing is really in use where it works."""

import pytest
import torch
import torch.nn.functional as F

from sglang.quant.dense import ACTS, Dense, bfloat16_arithmetic, cheapest_rows, packing_works

CPU = torch.device("cpu")


def dense(parts: dict[str, int], inputs: int, dtype: torch.dtype, bias: bool, gated: bool) -> tuple[Dense, Dense]:
    """The same weight twice: as it is, and finished."""
    torch.manual_seed(1)
    pair = Dense(inputs, parts, bias, CPU, dtype), Dense(inputs, parts, bias, CPU, dtype)
    for name, place in pair[0].places("x").items():
        place.copy_(torch.randn(place.shape) * inputs**-0.5)
        pair[1].places("x")[name].copy_(place)
    pair[1].finish(gated)
    return pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 6, 17, 130])
def test_packed_products_equal_plain_ones(rows: int, bias: bool, dtype: torch.dtype) -> None:
    bound = 1e-5 if dtype == torch.float32 else 0.04
    x = torch.randn(rows, 96).to(dtype)
    plain, packed = dense({"a": 40, "b": 24}, 96, dtype, bias, gated=False)
    other = torch.randn(rows, 64).to(dtype)
    assert (plain.multiply(x) - packed.multiply(x)).abs().max() < bound
    assert (plain.multiply_add(x, other) - packed.multiply_add(x, other)).abs().max() < bound
    plain, packed = dense({"gate": 32, "up": 32}, 96, dtype, bias, gated=True)
    for act in ACTS:
        assert (plain.multiply_gated(x, act) - packed.multiply_gated(x, act)).abs().max() < bound


def test_parts_are_stacked_in_order() -> None:
    plain, _ = dense({"a": 3, "b": 5}, 8, torch.float32, True, gated=False)
    places = plain.places("p")
    x = torch.randn(2, 8)
    wanted = torch.cat([F.linear(x, places[f"p.{n}.weight"], places[f"p.{n}.bias"]) for n in "ab"], -1)
    assert torch.allclose(plain.multiply(x), wanted, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_packing_is_in_use_and_frees_the_plain_weight() -> None:
    assert packing_works(torch.float32)
    assert packing_works(torch.bfloat16) == bfloat16_arithmetic()
    _, packed = dense({"a": 64}, 96, torch.float32, False, gated=False)
    assert packed.weight.numel() == 0 and packed.weight.untyped_storage().nbytes() == 0


def test_padding_never_computes_fewer_rows_than_asked_for() -> None:
    gated = [dense({"gate": 256, "up": 256}, 128, torch.float32, False, gated=True)[1] for _ in range(2)]
    cheapest = cheapest_rows(gated)
    assert cheapest[0] == 0 and all(m >= n for n, m in enumerate(cheapest))
    unpacked = dense({"gate": 256, "up": 256}, 128, torch.float32, False, gated=True)[0]
    assert cheapest_rows([unpacked]) == list(range(len(cheapest)))
