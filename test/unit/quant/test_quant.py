"""Grids, rounding, and the products that a CPU has for them."""

import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from sglang.base.errors import ConfigError
from sglang.quant import integers
from sglang.quant.base import Grid, joined
from sglang.quant.dense import ACTS
from sglang.quant.float8 import Float8, rounded_rows
from sglang.quant.formats import ALIASES, KINDS, READERS, chosen
from sglang.quant.late import Late
from sglang.quant.rounding import dummy, rounded

CPU = torch.device("cpu")
X86 = platform.machine() == "x86_64"


def some(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double() - wanted.double()) / torch.linalg.norm(wanted.double()))


def made(rows: int, inputs: int, size: int, shuffled: bool = False) -> Grid:
    generator = torch.Generator().manual_seed(rows)
    groups = -(-inputs // size)
    codes = torch.randint(0, 16, (rows, inputs), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (rows, groups), generator=generator).float()
    scales = torch.rand(rows, groups, generator=generator) + 0.1
    group_of = torch.arange(inputs) // size
    order = torch.randperm(inputs, generator=generator)
    return Grid(codes, scales, 4, size, zeros, group_of[order] if shuffled else None)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("inputs", [64, 80])
def test_a_grid_stands_for_its_codes_less_zeros_times_scales(inputs: int, shuffled: bool) -> None:
    grid = made(6, inputs, 32, shuffled)
    dense = grid.dense()
    assert grid.zeros is not None
    for n in range(6):
        for k in range(inputs):
            g = k // 32 if grid.group_of is None else int(grid.group_of[k])
            assert dense[n, k] == (float(grid.codes[n, k]) - grid.zeros[n, g]) * grid.scales[n, g]
    index = torch.tensor([4, 0])
    assert torch.equal(grid.rows(index).dense(), dense[index])


def test_columns_ordered_by_group_are_the_same_weight() -> None:
    grid = made(6, 128, 32, shuffled=True)
    runs = grid.in_runs()
    assert runs is not None and runs[1] is not None and runs[0].group_of is None
    assert torch.equal(runs[0].dense(), grid.dense()[:, runs[1]])
    assert made(6, 80, 32, shuffled=True).in_runs() is None, "groups of 32, 32 and 16"
    plain = made(6, 128, 32)
    assert plain.in_runs() == (plain, None)


def test_parts_are_joined_only_where_their_groups_agree() -> None:
    a, b = made(6, 128, 32), made(10, 128, 32)
    whole = joined([a, b])
    assert whole is not None and torch.equal(whole.dense(), torch.cat((a.dense(), b.dense())))
    assert joined([a, made(10, 128, 64)]) is None
    assert joined([a, made(10, 128, 32, shuffled=True)]) is None


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.008), ("fp8", 0.03), ("int4", 0.09)])
def test_rounding_errs_by_no_more_than_its_steps(kind: str, bound: float) -> None:
    weight = some(300, 128)
    weight[5] = 0
    grid = rounded(weight, kind)
    assert grid.shape == weight.shape and far(grid.dense(), weight) < bound
    assert (grid.dense()[5].abs() < 1e-6).all()


@pytest.mark.parametrize(("kind", "bound"), [("int4", 0.11), ("int8", 0.01), ("fp8", 0.03)])
def test_random_weights_in_few_bits_have_the_spread_of_plain_ones(kind: str, bound: float) -> None:
    weight = some(64, 256) / 16
    grid = dummy(weight, kind)
    assert far(grid.dense(), weight) < bound
    assert kind != "int4" or (grid.size == 128 and grid.bits == 4)


def test_rounding_to_4_bits_beats_the_widest_steps() -> None:
    weight = some(64, 128)
    groups = weight.view(64, -1, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    widest = (((groups - low) / step).round() * step + low).view(64, 128)
    assert far(rounded(weight, "int4").dense(), weight) < far(widest, weight)


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_a_product_of_8_bits_loses_nothing_to_its_inputs(tokens: int) -> None:
    if integers.largest_digit() is None and not X86:  # there it must
        pytest.skip("torch's product of bytes does not work here")
    grid = rounded(some(48, 96), "int8")
    x = some(tokens, 96)
    product = integers.fast(grid, narrow=False)
    assert isinstance(product, integers.Int8)
    assert far(product(x, None, None, None), x @ grid.dense().T) < 2e-4


@pytest.mark.parametrize("tokens", [1, 5])
def test_digits_of_7_bits_keep_what_is_small_beside_a_row_s_largest_input(tokens: int) -> None:
    if integers.largest_digit() is None:
        pytest.skip("torch's product of bytes does not work here")
    grid = rounded(some(48, 4096), "int8")
    x = some(tokens, 4096)
    x[:, 7] = 60
    x[-1] *= 1e-6  # rows of unlike sizes have steps of their own
    small = x.clone()
    small[:, 7] = 0
    wanted = small @ grid.dense().T
    for digit, bound in ((63, 4e-3), (127, 1e-3)):
        if digit <= (integers.largest_digit() or 0):
            got = integers.Int8(grid, digit).multiply(x) - x[:, 7:8] * grid.dense().T[7]
            assert all(far(a, b) < bound for a, b in zip(got, wanted, strict=True))
    zeros = integers.Int8(grid, 63).multiply(torch.zeros(tokens, 4096))
    assert not zeros.any()


@pytest.mark.skipif(not X86, reason="the setting is of x86 processors")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_sums_of_8_bits_do_not_overflow_on_older_processors(instructions: str) -> None:
    code = """
import torch
from sglang.quant import integers
from sglang.quant.base import Grid

digit = integers.largest_digit()
assert digit is not None, "there is no product"
x = torch.ones(5, 512)
x[3:] = torch.randn(2, 512)
codes = torch.full((64, 512), 127, dtype=torch.int8)
codes[32:] *= -1
grid = Grid(codes, torch.ones(64, 1), 8, 512)
wanted = x @ grid.dense().T
for rows in (1, 5):
    got = integers.Int8(grid, digit).multiply(x[:rows])
    assert (got - wanted[:rows]).abs().max() < 1e-3 * wanted.abs().max(), digit
"""
    settings = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}  # read once, when torch starts
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_product_of_4_bits_follows_its_columns(shuffled: bool) -> None:
    if not integers.nibbles_work() and not X86:
        pytest.skip("torch's product of 4 bits does not work here")
    grid = made(48, 128, 32, shuffled)
    x = some(5, 128)
    product = integers.fast(grid, narrow=True)
    assert isinstance(product, integers.Int4)
    assert far(product(x, None, None, None), x @ grid.dense().T) < 0.01
    assert integers.fast(grid, narrow=False) is None, "it would round float32 to bfloat16"


@pytest.mark.parametrize("groups", [1, 3])
def test_the_twin_of_the_8_bit_float_product_rounds_inputs_a_row_and_a_group(groups: int) -> None:
    weight, x = some(32, 384), some(4, 384)
    scales = some(32, groups).abs() + 0.5
    grid = Grid(weight.to(torch.float8_e4m3fn), scales, 8, 384 // groups)
    parts = []
    for part in x.view(4, groups, -1).unbind(1):
        codes, steps = rounded_rows(part, None)
        parts.append(codes.float() * steps)
    got = Float8(grid, CPU)(x, None, None, None)
    assert far(got, torch.cat(parts, 1) @ grid.dense().T) < 1e-5


def late(
    kind: str | None, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Late, Counter]:
    seen: Counter[str] = Counter()
    return Late(128, {"a": 32, "b": 32}, bias, CPU, dtype, kind, seen), seen


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("act", ACTS)
def test_what_is_rounded_while_it_loads_multiplies_adds_and_gates(kind: str, act: str) -> None:
    bias = some(64)
    store, seen = late(kind, bias)
    weights = {"a": some(32, 128), "b": some(32, 128) * 2}
    takers = store.takers("p")
    for name in ("b", "a"):  # files come in any order
        takers[f"p.{name}.weight"](weights[name])
    store.finish(True, False)
    assert seen.total() == 1 and store.saved > 0
    x, other = some(5, 128), some(5, 64)
    wanted = x @ torch.cat([rounded(w, kind).dense() for w in weights.values()]).T + bias
    bound = 1e-3 if kind == "int8" else 0.02
    assert far(store.multiply(x), wanted) < bound
    assert far(store.multiply_add(x, other.clone()), wanted + other) < bound
    gated = ACTS[act](wanted[:, :32]) * wanted[:, 32:]  # type: ignore[index]
    assert far(store.multiply_gated(x, act), gated) < 2 * bound  # type: ignore[arg-type]


def test_parts_in_unlike_formats_become_one_plain_weight() -> None:
    store, seen = late(None)
    grid, plain = made(32, 128, 32), some(32, 128)
    takers = store.takers("p")
    takers["p.a.weight"](grid)
    takers["p.b.weight"](plain)
    store.finish(False, False)
    x = some(3, 128)
    assert far(store.multiply(x), x @ torch.cat((grid.dense(), plain)).T) < 1e-5
    assert seen == {"dequantised": 1} and store.saved == 0


def test_a_part_of_a_larger_tensor_does_not_keep_it() -> None:
    store, _ = late(None)
    whole = some(64, 128)
    store.takers("p")["p.a.weight"](whole[:32])
    assert store._taken["a"].untyped_storage().nbytes() == 32 * 128 * 4  # type: ignore[union-attr]


def refused(config: dict | None, flag: str | None = None, device: str = "cpu") -> str:
    with pytest.raises(ConfigError) as caught:
        chosen(config, flag, device)
    return str(caught.value)


GROUP = {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP}}


def compressed(weights: dict | None = None, **changes: object) -> dict:
    return COMPRESSED | {"config_groups": {"group_0": {"weights": GROUP["weights"] | (weights or {})}}} | changes


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"quant_method": "squeezellm"},
            "quantization_config.quant_method = 'squeezellm' is not supported (known: awq",
        ),
        ({"quant_method": None}, "quant_method = None"),
        ({"quant_method": "awq", "bits": 8}, "bits = 8 is not supported (known: 4)"),
        ({"quant_method": "awq", "w_bit": 3}, "w_bit = 3"),
        ({"quant_method": "awq", "bits": True}, "bits = True"),
        ({"quant_method": "awq", "version": "gemv"}, "version = 'gemv' is not supported (known: gemm)"),
        ({"quant_method": "gptq", "bits": 5}, "bits = 5"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"}, "checkpoint_format = 'bitblas'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*q_proj": {"bits": 6}}}, "bits = 6"),
        ({"quant_method": "gptq", "dynamic": ["q_proj"]}, "quantization_config has the wrong type for gptq ('list'"),
        ({"quant_method": "gptq", "dynamic": {"q_proj": "4"}}, "quantization_config has the wrong type for gptq"),
        ({"quant_method": "gptq", "dynamic": {"*q": {"bits": 4}}}, "wrong type for gptq (nothing to repeat"),
        ({"quant_method": "fp8", "activation_scheme": "odd"}, "activation_scheme = 'odd'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt = 'e5m2'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size = [128]"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo = 'NVFP4'"),
        (compressed(format="nvfp4-pack-quantized"), "format = 'nvfp4-pack-quantized'"),
        (compressed(config_groups={}), "config_groups"),
        (compressed(config_groups=[GROUP]), "quantization_config has the wrong type for compressed-tensors"),
        (compressed({"group_size": "many"}), "wrong type for compressed-tensors (invalid literal"),
        (compressed({"num_bits": 3}), "num_bits = 3"),
        (compressed({"type": "float"}), "pack-quantized: known"),
        (compressed({"num_bits": 8, "strategy": "group"}, format="int-quantized"), "strategy = 'group'"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (compressed(transform_config={"config_groups": {}}), "transform_config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_is_refused_by_key_and_value(config: dict, words: str) -> None:
    assert words in refused(config)


def test_the_flag_and_the_config_must_agree() -> None:
    awq = {"quant_method": "awq", "bits": 4}
    assert "leave the flag out" in refused(awq, "gptq") and "leave the flag out" in refused(awq, "int8")
    assert "has no quantization_config" in refused(None, "awq")
    assert "--quantization q9 is not supported; known: int8" in refused(None, "q9")
    assert "runs on --device cpu" in refused(None, "int4", "cuda")
    assert "needs --device cuda" in refused(None, "fp8", "cpu")
    assert chosen(awq, "awq_marlin", "cuda")[0] == "awq"
    assert chosen(None, None, "cpu") == ("none", None)
    assert chosen({"quant_method": "mxfp4"}, None, "cpu", ("mxfp4",)) == ("none", None)
    assert chosen({"quant_method": "fbgemm_fp8"}, None, "cuda")[1] is not None


def test_every_method_that_is_read_is_explained() -> None:
    page = (Path(__file__).parents[3] / "docs" / "quantization.md").read_text()
    assert all(f"`{name}`" in page for name in (*READERS, *ALIASES, *KINDS))
