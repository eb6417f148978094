"""Dense weights: packed and plain products agree, and packing is really in use where it works."""

import pytest
import torch
import torch.nn.functional as F

from sglang.quant.dense import ACTS, PROBE_BYTES, Dense, Routes, bfloat16_arithmetic, measure, packing_works

CPU = torch.device("cpu")


def dense(
    parts: dict[str, int], inputs: int, dtype: torch.dtype, bias: bool, gated: bool, keep: bool = False
) -> tuple[Dense, Dense]:
    """The same weight twice: as it is, and finished."""
    torch.manual_seed(1)
    pair = Dense(inputs, parts, bias, CPU, dtype), Dense(inputs, parts, bias, CPU, dtype)
    for name, place in pair[0].places("x").items():
        place.copy_(torch.randn(place.shape) * inputs**-0.5)
        pair[1].places("x")[name].copy_(place)
    pair[1].finish(gated, keep)
    return pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keep", [False, True], ids=["packed", "both"])
@pytest.mark.parametrize("rows", [1, 3, 6, 17, 130])
def test_packed_products_equal_plain_ones(rows: int, keep: bool, bias: bool, dtype: torch.dtype) -> None:
    bound = 1e-5 if dtype == torch.float32 else 0.04
    x = torch.randn(rows, 96).to(dtype)
    plain, packed = dense({"a": 40, "b": 24}, 96, dtype, bias, False, keep)
    other = torch.randn(rows, 64).to(dtype)
    assert (plain.multiply(x) - packed.multiply(x)).abs().max() < bound
    assert (plain.multiply_add(x, other) - packed.multiply_add(x, other)).abs().max() < bound
    plain, packed = dense({"gate": 32, "up": 32}, 96, dtype, bias, True, keep)
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


def test_a_second_layout_is_given_back() -> None:
    _, packed = dense({"a": 64}, 96, torch.float32, False, False, keep=True)
    assert packed.weight.numel() == 64 * 96
    packed.forget()
    assert packed.weight.numel() == 0
    unpackable = Dense(96, {"a": 64}, False, CPU, torch.float16)
    unpackable.finish(False, False)
    unpackable.forget()
    assert unpackable.weight.numel() == 64 * 96, "the only layout there is"


@pytest.mark.parametrize("keep", [False, True])
def test_measuring_never_drops_a_row_and_leaves_the_maps_as_they_were(keep: bool) -> None:
    rows, inputs = 4096, 1024
    gated = [
        dense({"gate": rows // 2, "up": rows // 2}, inputs, torch.float32, False, True, keep)[1]
        for _ in range(PROBE_BYTES // (rows * inputs * 4))
    ]
    routes = measure(gated)
    assert routes.cheapest[0] == 0 and all(m >= n for n, m in enumerate(routes.cheapest))
    assert keep or not routes.single
    assert all(store._single == keep for store in gated)
    assert measure(gated[:1]) == Routes(grain=1), "a model in the cache is not worth the question"


@pytest.mark.parametrize("grain, most", [(1, 100), (16, 60)])
def test_many_rows_are_rounded_up_to_few_numbers_with_little_padding(grain: int, most: int) -> None:
    routes = Routes(grain=grain)
    found = [routes.padded(n) for n in range(1, 2049)]
    assert found[:6] == [1, 2, 3, 4, 5, 6]
    for n, m in enumerate(found, 1):
        assert n <= m < n * 9 / 8 + 1 or (m < n + grain and m <= n * 3 / 2)
        assert routes.padded(m) == m
    assert len(set(found)) < most
    assert [Routes().padded(n) for n in (1, 33, 1000)] == [1, 33, 1000]
