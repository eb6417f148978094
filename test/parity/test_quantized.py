"""Checkpoints in few bits: each format on disk against the same model with the weights that it stands for."""

import copy
import itertools
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import packers
import pytest
import torch
from engine_driver import Driver, load
from family_cases import LLAMA4, TOKENS, Make, known
from packers import Packer
from safetensors.torch import load_file, save_file

from sglang.attention.torch_native import TorchAttention
from sglang.base.errors import ConfigError

CLOSE = 1e-2  # of log-probabilities
EXACT = 2e-4  # where nothing but the weights is rounded
LLAMA = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # 128 columns are a group, 64 rows a tile
MIXTRAL = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
MAPS = re.compile(r"(_proj|\.w[123]|\.experts\.\d+\.w[123])\.weight$")
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True}


def compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


INT4 = {"num_bits": 4, "type": "int", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
BY_128, BY_32 = ({"strategy": "group", "group_size": n} for n in (128, 32))
TOKENWISE = {"num_bits": 8, "strategy": "token", "dynamic": True}
ONCE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
Case = tuple[dict[str, Any], Packer]
CASES: dict[str, Case] = {
    "awq": (AWQ | {"group_size": 128}, packers.awq),
    "awq 64": (AWQ | {"group_size": 64}, partial(packers.awq, size=64)),
    "awq column": (AWQ | {"group_size": -1}, partial(packers.awq, size=-1)),
    "gptq 4": (GPTQ | {"group_size": 128}, packers.gptq),
    "gptq 4 asym": (GPTQ | {"group_size": 32, "sym": False}, partial(packers.gptq, size=32, sym=False)),
    "gptq 4 act-order": (
        GPTQ | {"group_size": 32, "desc_act": True, "sym": False},
        partial(packers.gptq, size=32, sym=False, act_order=True),
    ),
    "gptq 4 v2": (
        GPTQ | {"group_size": 64, "sym": False, "checkpoint_format": "gptq_v2"},
        partial(packers.gptq, size=64, sym=False, version=2),
    ),
    "gptq 4 column": (GPTQ | {"group_size": -1}, partial(packers.gptq, size=-1)),
    "gptq 2": (GPTQ | {"bits": 2, "group_size": 32, "sym": False}, partial(packers.gptq, bits=2, size=32, sym=False)),
    "gptq 3": (GPTQ | {"bits": 3, "group_size": 64, "sym": False}, partial(packers.gptq, bits=3, size=64, sym=False)),
    "gptq 8": (GPTQ | {"bits": 8, "group_size": 64}, partial(packers.gptq, bits=8, size=64)),
    "marlin": ({"quant_method": "marlin", "bits": 4, "group_size": 128}, packers.marlin),
    "marlin column": (GPTQ | {"is_marlin_format": True, "group_size": -1}, partial(packers.marlin, size=-1)),
    "compressed int4": (compressed("pack-quantized", INT4 | BY_128), packers.compressed_int4),
    "compressed int4 asym act-order": (
        compressed("pack-quantized", INT4 | BY_32 | {"symmetric": False, "actorder": "group"}),
        partial(packers.compressed_int4, size=32, sym=False, act_order=True),
    ),
    "compressed int4 channel": (
        compressed("pack-quantized", INT4 | {"strategy": "channel"}),
        partial(packers.compressed_int4, size=-1),
    ),
    "compressed int8": (
        compressed("int-quantized", INT8 | {"strategy": "channel"}, TOKENWISE),
        packers.compressed_int8,
    ),
    "compressed int8 tensor": (
        compressed("int-quantized", INT8 | {"strategy": "tensor"}, TOKENWISE),
        partial(packers.compressed_int8, channel=False),
    ),
    "compressed fp8": (
        compressed("float-quantized", FLOAT | {"strategy": "channel"}, TOKENWISE),
        partial(packers.fp8, by="channel"),
    ),
    "compressed fp8 static": (
        compressed("float-quantized", FLOAT | {"strategy": "tensor"}, ONCE),
        partial(packers.fp8, static=True),
    ),
    "compressed fp8 block": (
        compressed("float-quantized", FLOAT | {"strategy": "block", "block_structure": [128, 128]}, TOKENWISE),
        partial(packers.fp8, by="block"),
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, packers.fp8),
    "fp8 static": ({"quant_method": "fp8", "activation_scheme": "static"}, partial(packers.fp8, static=True)),
    "fp8 static by transformers": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        partial(packers.fp8, static=True, inverse=True, inputs="activation_scale"),
    ),
    "fp8 block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"},
        partial(packers.fp8, by="block", inverse=True),
    ),
    "fbgemm fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, partial(packers.fp8, by="channel")),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, partial(packers.fp8, static=True)),
}  # fmt: skip


def written(
    folder: Path, source: Path, model: Any, quantization: dict[str, Any], pack: Packer, skip: str = "lm_head"
) -> Any:
    """Write the model of `source` with its maps packed; returns a copy of `model` with the weights they stand for."""
    folder.mkdir(exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    tensors = {}
    stands_for = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in load_file(source / "model.safetensors").items():
            if not MAPS.search(name) or skip in name:
                tensors[name] = weight
                continue
            found, dense = pack(weight.float().numpy())
            stem = name.removesuffix("weight")
            tensors |= {stem + ending: t.contiguous() for ending, t in found.items()}
            _target(stands_for, name).copy_(torch.from_numpy(dense))
    save_file(tensors, folder / "model.safetensors")
    return stands_for


def _target(model: Any, name: str) -> torch.Tensor:
    """Where a tensor of a file lives in transformers' model, which stacks experts."""
    expert = re.fullmatch(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight", name)
    if expert is None:
        return model.get_parameter(name)
    layer, number, which = int(expert[1]), int(expert[2]), expert[3]
    experts = model.model.layers[layer].mlp.experts
    if which == "w2":
        return experts.down_proj[number]
    half = experts.gate_up_proj.shape[1] // 2
    return experts.gate_up_proj[number, :half] if which == "w1" else experts.gate_up_proj[number, half:]


@torch.no_grad()
def difference(folder: Path, stands_for: Any, **flags: Any) -> float:
    expected = stands_for(torch.tensor([TOKENS])).logits[0].float().log_softmax(-1)
    assert expected.std() > 0.5
    return (known(Driver(load(folder, **flags)), 0, TOKENS, [1, 9, 24]) - expected).abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_a_format_gives_the_log_probabilities_of_the_weights_it_stands_for(
    case: str, make: Make, tmp_path: Path
) -> None:
    stands_for = written(tmp_path, *make("Llama", **LLAMA), *CASES[case])
    assert difference(tmp_path, stands_for) < (CLOSE if "int8" in case else EXACT)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_format_gives_about_the_same_on_a_gpu(case: str, make: Make, tmp_path: Path) -> None:
    """In bfloat16, which alone makes 1.4 % of difference; products of 8 bits round their inputs too."""
    stands_for = written(tmp_path, *make("Llama", **LLAMA), *CASES[case])
    with torch.no_grad():
        expected = stands_for(torch.tensor([TOKENS])).logits[0].float().log_softmax(-1)
    engine = load(tmp_path, device="cuda", dtype="bfloat16")
    got = known(Driver(engine), 0, TOKENS, [1, 9, 24]).float().cpu()
    error = (got - expected).square().mean().sqrt() / expected.std()
    assert error < (0.1 if "fp8" in case or case == "modelopt" else 0.03), (
        f"{error:.3f} of the spread of log-probabilities"
    )


@pytest.mark.parametrize("case", ["awq", "gptq 3", "marlin", "compressed int8", "fp8 block", "compressed int4"])
def test_experts_in_few_bits_are_read(case: str, make: Make, tmp_path: Path) -> None:
    stands_for = written(tmp_path, *make("Mixtral", **MIXTRAL), *CASES[case], skip="lm_head")
    assert difference(tmp_path, stands_for) < CLOSE


def test_experts_of_llama4_have_a_map_each_where_they_are_in_few_bits(make: Make, tmp_path: Path) -> None:
    folder, model = make("Llama4", **LLAMA4)
    config = json.loads((folder / "config.json").read_text())
    quantization = compressed("float-quantized", FLOAT | {"strategy": "channel"}, TOKENWISE)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    tensors, stands_for = {}, copy.deepcopy(model)
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".experts." not in name:
            tensors[name] = weight
            continue
        stem, _, which = name.rpartition(".")
        target = stands_for.get_parameter(name)  # [experts, inputs, rows], gate and up one after another
        parts = {"down_proj": slice(None)}
        if which == "gate_up_proj":
            half = weight.shape[-1] // 2
            parts = {"gate_proj": slice(half), "up_proj": slice(half, None)}
        for (part, rows), (number, whole) in itertools.product(parts.items(), enumerate(weight)):
            found, dense = packers.fp8(whole[:, rows].t().numpy(), by="channel")
            tensors |= {f"{stem}.{number}.{part}.{ending}": t.contiguous() for ending, t in found.items()}
            with torch.no_grad():
                target[number, :, rows] = torch.from_numpy(dense).t()
    save_file(tensors, tmp_path / "model.safetensors")
    assert difference(tmp_path, stands_for) < CLOSE


def test_modelopt_says_in_a_file_of_its_own_how_weights_are_stored(make: Make, tmp_path: Path) -> None:
    stands_for = written(tmp_path, *make("Llama", **LLAMA), *CASES["modelopt"])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = tmp_path / "hf_quant_config.json"
    own.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}))
    assert difference(tmp_path, stands_for) < EXACT
    own.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(ConfigError, match="quant_algo = 'NVFP4' is not supported"):
        load(tmp_path)
    own.write_text(json.dumps({"quantization": "FP8"}))
    with pytest.raises(ConfigError, match=r"hf_quant_config\.json: quantization must be an object, got 'FP8'"):
        load(tmp_path)


def test_one_module_in_few_bits_beside_others_that_are_not(make: Make, tmp_path: Path) -> None:
    stands_for = written(tmp_path, *make("Llama", **LLAMA), *CASES["awq"], skip="k_proj")
    assert difference(tmp_path, stands_for) < CLOSE


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_weights_rounded_while_they_load_give_the_log_probabilities_of_the_rounded_ones(
    kind: str, make: Make, tmp_path: Path
) -> None:
    from sglang.quant.rounding import rounded

    folder, model = make("Llama", **LLAMA)
    stands_for = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in stands_for.named_parameters():
            if MAPS.search(name) or name == "lm_head.weight":
                p.copy_(rounded(p, "int8" if "lm_head" in name else kind).dense())
    # Products of 4 bits take bfloat16.
    assert difference(folder, stands_for, quantization=kind) < (CLOSE if kind == "int8" else 10 * CLOSE)
    assert difference(folder, model, quantization=kind) > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("case", ["awq", "fp8", "compressed int8"])
def test_random_weights_take_as_many_bits_as_the_config_says(case: str, make: Make, tmp_path: Path) -> None:
    written(tmp_path, *make("Llama", **LLAMA), *CASES[case])
    engine = load(tmp_path, load_format="dummy", dtype="bfloat16")
    plain = engine.ready.parameters * 2
    # On a CPU, weights of 8-bit floating point are multiplied as bfloat16.
    assert engine.ready.weight_bytes <= plain * {"awq": 0.6, "fp8": 1, "compressed int8": 0.75}[case]


def changed(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors.get(name))
    save_file({k: t.contiguous() for k, t in tensors.items() if t is not None}, folder / "model.safetensors")


Q = "model.layers.1.self_attn.q_proj."


def test_biases_of_zeros_and_scales_of_keys_and_values_are_passed_over(make: Make, tmp_path: Path) -> None:
    stands_for = written(tmp_path, *make("Llama", **LLAMA), *CASES["fp8"])
    changed(tmp_path, Q + "bias", lambda _: torch.zeros(128))
    changed(tmp_path, "model.layers.1.self_attn.k_scale", lambda _: torch.tensor(0.3))
    changed(tmp_path, "model.layers.1.self_attn.v_proj.output_scale", lambda _: torch.tensor(0.2))
    assert difference(tmp_path, stands_for) < EXACT
    attention = load(tmp_path, kv_cache_dtype="fp8_e4m3")._attention
    assert isinstance(attention, TorchAttention)
    assert attention._scales[:2] == [(1.0, 1.0), (pytest.approx(0.3), pytest.approx(0.2))]
    changed(tmp_path, Q + "bias", lambda _: torch.ones(128))
    with pytest.raises(ConfigError, match=re.escape(f"unexpected tensors: model.safetensors: {Q}bias")):
        load(tmp_path)


@pytest.mark.parametrize(
    ("case", "part", "change", "words"),
    [
        ("awq", "scales", None, f"{Q}qweight lacks {Q}scales"),
        ("awq", "scales", lambda t: t[:, :64], "scales has shape [1, 64]"),
        ("awq 64", "scales", lambda t: t.repeat(2, 1), "groups of 64 columns are not 128 inputs"),
        ("awq", "qzeros", lambda t: t[:, :8], "qzeros has shape [1, 8]"),
        ("awq", "qweight", lambda t: t[:64], "qweight has shape [128, 64], the config asks for [128, 128]"),
        ("awq", "qweight", lambda t: t.float(), "qweight has type F32; known: I32"),
        ("awq", "qweight", lambda t: t[0], "qweight has shape [16], not two dimensions"),
        ("gptq 4", "qzeros", None, f"{Q}qweight lacks {Q}qzeros"),
        ("gptq 4", "g_idx", lambda t: t[:5], "g_idx has shape [5], qweight holds 128 inputs"),
        ("gptq 4", "g_idx", lambda t: t + 1, "g_idx must be in [0, 1), got 1 .. 1"),
        ("gptq 4", "g_idx", lambda t: t.float(), "g_idx has type F32"),
        ("gptq 4", "scales", lambda t: t.repeat(3, 1), "qzeros has shape [1, 16], not [3, 16]"),
        ("marlin", "B", lambda t: t[:, :100], "B has shape [8, 100]"),
        ("marlin", "s", lambda t: t[:, :64], "scales has shape [1, 64]"),
        ("marlin", "s", lambda t: t.repeat(2, 1), "groups of 128 columns are not 128 inputs"),
        ("compressed int4", "weight_scale", lambda t: t[:64], "weight_scale has shape [64, 1], weight_packed 128 rows"),
        ("compressed fp8", "weight_scale", None, "weight_scale is missing"),
        ("compressed fp8", "weight_scale", lambda t: t[:3], "weight_scale has shape [3, 1]"),
        ("compressed fp8", "weight", lambda t: t.to(torch.int8), "weight has type torch.int8"),
        ("fp8 static", "input_scale", None, "input_scale is missing"),
        ("fp8 block", "weight_scale_inv", lambda t: t.repeat(2, 1), "weight_scale_inv has shape [2, 1], not [1, 1]"),
    ],
    ids=itertools.count(),
)
def test_tensors_that_do_not_fit_are_named_with_their_file(
    case: str, part: str, change: Any, words: str, make: Make, tmp_path: Path
) -> None:
    written(tmp_path, *make("Llama", **LLAMA), *CASES[case])
    changed(tmp_path, Q + part, (lambda t: None) if change is None else change)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and words in message and "model.safetensors" in message, message
    assert Q.removesuffix(".") in message


def test_a_weight_laid_out_in_a_way_that_is_not_cut_by_rows_is_refused(make: Make, tmp_path: Path) -> None:
    source, _ = make("GPT2", n_embd=64, n_layer=1, n_head=2, n_positions=128)
    found: Mapping[str, torch.Tensor] = load_file(source / "model.safetensors")
    name = next(n for n in found if n.endswith("c_fc.weight"))
    packed, _ = packers.fp8(found[name].numpy(), by="channel")
    stem = name.removesuffix("weight")
    tensors = {**found, **{stem + ending: t.contiguous() for ending, t in packed.items()}}
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": CASES["fp8"][0]}))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="c_fc is laid out in a way not read in few bits"):
        load(tmp_path)
