"""GGUF files against the same model with the weights that they stand for."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
import torch
from engine_driver import Driver, load
from family_cases import CASES, LLAMA3, LONGROPE, TOKENS, Make, known
from safetensors.torch import load_file

from sglang.base.errors import ConfigError
from sglang.models import gguf

SIZES = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
CLOSE = 1e-3


def parts(make: Make, family: str, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], Any]:
    folder, model = make(family, **{**SIZES, **changes})
    config = json.loads((folder / "config.json").read_text())
    return config, {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}, model


def written(path: Path, make: Make, family: str, kind: str, more: dict[str, Any] | None = None, **changes: Any) -> Any:
    config, tensors, model = parts(make, family, **changes)
    raw, stands_for = packers.gguf_of(config, tensors, lambda name: kind, more)
    path.write_bytes(raw)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, w in stands_for.items():
            copied.get_parameter(name).copy_(torch.from_numpy(w))
    return copied


@torch.no_grad()
def difference(path: Path, model: Any, **flags: Any) -> float:
    expected = model(torch.tensor([TOKENS])).logits[0].float().log_softmax(-1)
    assert expected.std() > 0.5
    return (known(Driver(load(path, **flags)), 0, TOKENS, [1, 9, 24]) - expected).abs().max().item()


@pytest.mark.parametrize("kind", ["F16", "F32", *packers.BLOCKS])
def test_every_type_gives_the_log_probabilities_of_the_weights_it_stands_for(
    kind: str, make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    model = written(path, make, "Llama", kind)
    assert difference(path, model) < CLOSE


@pytest.mark.parametrize(
    ("family", "changes"), [("Qwen2", {}), ("Qwen3", {}), ("Llama", {"tie_word_embeddings": True})], ids=str
)
def test_other_families_and_tied_heads(family: str, changes: dict[str, Any], make: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    model = written(path, make, family, "Q8_0", **changes)
    assert difference(path, model, load_format="gguf") < CLOSE


# Case of a family -> the file's architecture, and what its converter writes beside sizes.
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama biases": ("llama", {}),
    "llama mqa": ("llama", {}),
    "mistral small": ("llama", {}),
    "mixtral": ("llama", {"expert_count": 4, "expert_used_count": 2}),
    "qwen3 moe": ("qwen3moe", {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 24}),
    "qwen2 moe": ("qwen2moe", {"expert_count": 8, "expert_used_count": 3}),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {"attention.sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3", {"attention.sliding_window": 8}),
    "phi3": ("phi3", {"attention.sliding_window": 8, "rope.dimension_count": 16}),
    "phi4 mini": ("phi3", {"rope.dimension_count": 12}),
    "stablelm": ("stablelm", {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4}),
    "stablelm 12b": (
        "stablelm",
        {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "starcoder2": ("starcoder2", {"attention.layer_norm_epsilon": 1e-5, "attention.sliding_window": 8}),
    "command-r": ("command-r", {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.5}),
    "command-r+": ("command-r", {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.8}),
    "command-r7b": (
        "cohere2",
        {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.5, "attention.sliding_window": 8},
    ),
    "glm4": ("glm4", {"rope.dimension_count": 8}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo2", {"attention.sliding_window": 8}),
    "granite": (
        "granite",
        {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.6, "logit_scale": 0.7},
    ),
}
# What the file leaves to those who know the model: all of its kind have it.
USUAL = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32},
    "qwen2 moe": {"decoder_sparse_step": 1},
}


@pytest.mark.parametrize("case", FILES)
def test_architectures_equal_transformers(case: str, make: Make, tmp_path: Path) -> None:
    family, changes = CASES[case]
    arch, keys = FILES[case]
    folder, model = make(family, **changes | USUAL.get(case, {}))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": arch}
    tensors = {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    raw, _ = packers.gguf_of(config, tensors, lambda name: "F32", {f"{arch}.{key}": v for key, v in keys.items()})
    assert difference(_saved(tmp_path / "model.gguf", raw), model) < 1e-4


def test_experts_in_blocks_are_those_they_stand_for(make: Make, tmp_path: Path) -> None:
    family, changes = CASES["mixtral"]
    folder, _ = make(family, **changes)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    tensors = {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    more = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    blocks, stands_for = packers.gguf_of(config, tensors, lambda name: "Q8_0", more)
    plain, _ = packers.gguf_of(config, stands_for, lambda name: "F32", more)
    files = [_saved(tmp_path / f"{name}.gguf", raw) for name, raw in (("blocks", blocks), ("plain", plain))]
    got, wanted = (known(Driver(load(file)), 0, TOKENS, [1, 9]) for file in files)
    assert (got - wanted).abs().max() < CLOSE


def test_a_model_in_several_files_is_one(make: Make, tmp_path: Path) -> None:
    config, tensors, _ = parts(make, "Llama")
    whole, _ = packers.gguf_of(config, tensors, lambda name: "F16")
    halves = [{n: t for i, (n, t) in enumerate(tensors.items()) if i % 2 == half} for half in (0, 1)]
    files = [tmp_path / f"model-0000{i}-of-00002.gguf" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        raw, _ = packers.gguf_of(config, half, lambda name: "F16", {"split.count": 2})
        file.write_bytes(raw)
    path = _saved(tmp_path / "whole.gguf", whole)
    got, wanted = (known(Driver(load(file)), 0, TOKENS, [9]) for file in (files[0], path))
    assert torch.equal(got, wanted)
    assert "--model-path names the first" in refused(files[1])
    files[1].unlink()
    raw = files[0].read_bytes()
    again = tmp_path / "more"
    again.mkdir()
    assert "model-00002-of-00002.gguf is missing" in refused(_saved(again / files[0].name, raw))


def test_factors_of_long_and_short_contexts_are_phi_3s(make: Make, tmp_path: Path) -> None:
    folder, model = make("Phi3", rope_parameters=LONGROPE, sliding_window=None, original_max_position_embeddings=64)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "phi3"}
    tensors = {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    packers.TOP |= {f"rope_factors_{name}": f"rope_factors_{name}" for name in ("long", "short")}
    for name in ("long", "short"):
        tensors[f"rope_factors_{name}.weight"] = np.array(LONGROPE[f"{name}_factor"], np.float32)
    keys = {"phi3.rope.dimension_count": 16, "phi3.rope.scaling.original_context_length": 64}
    raw, _ = packers.gguf_of(config, tensors, lambda name: "F32", keys)
    assert difference(_saved(tmp_path / "model.gguf", raw), model, context_length=64) < 1e-4


def test_every_token_that_ends_a_turn_ends_the_text(make: Make, tmp_path: Path) -> None:
    config, tensors, _ = parts(make, "Llama")
    raw, _ = packers.gguf_of(config | {"eos_token_id": [2, 7]}, tensors, lambda name: "F16")
    assert load(_saved(tmp_path / "model.gguf", raw)).eos_ids == (2, 7)


def test_factors_of_the_rotation_are_llama_3s(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    scaling = {**LLAMA3, "original_max_position_embeddings": 8192}
    config, tensors, model = parts(make, "Llama", rope_parameters=scaling)
    raw, _ = packers.gguf_of(config, tensors, lambda name: "F32")

    # As the converter computes them: wavelengths of the plain rotation over those of the scaled one.
    inv = model.model.rotary_emb.inv_freq
    factors = (500000.0 ** -(torch.arange(0, 64, 2) / 64) / inv).numpy().astype(np.float32)
    keys = gguf.config(_saved(tmp_path / "none.gguf", raw))
    assert keys["rope_scaling"] is None
    both = {**tensors, "rope_freqs.weight": factors}
    packers.TOP["rope_freqs"] = "rope_freqs"
    raw, _ = packers.gguf_of(config, both, lambda name: "F32")
    path.write_bytes(raw)
    assert difference(path, model) < CLOSE


def _saved(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def refused(path: Path, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, **flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_cut_off_anywhere_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written(path, make, "Llama", "Q8_0")
    whole = path.read_bytes()
    for size in (0, 3, 20, 100, 500):
        path = _saved(tmp_path / f"{size}.gguf", whole[:size])
        assert f"{size}.gguf: not a readable GGUF file" in refused(path)
    message = refused(_saved(tmp_path / "data.gguf", whole[:-5000]))
    assert "data.gguf: " in message and "bytes beyond the file" in message
    assert "does not begin with GGUF" in refused(_saved(tmp_path / "other.gguf", b"GGML" + whole[4:]))
    assert "version 1" in refused(_saved(tmp_path / "old.gguf", b"GGUF" + struct.pack("<I", 1) + whole[8:]))


def test_what_is_not_read_is_named(make: Make, tmp_path: Path) -> None:
    config, tensors, _ = parts(make, "Llama")

    def file(name: str, **changes: Any) -> Path:
        raw, _ = packers.gguf_of({**config, **changes}, tensors, lambda n: "F16", None)
        return _saved(tmp_path / name, raw)

    message = refused(file("mamba.gguf", model_type="mamba"))
    assert "mamba.gguf: general.architecture = 'mamba' is not supported; known: llama" in message
    raw, _ = packers.gguf_of({**config, "model_type": "qwen3"}, tensors, lambda n: "F16", {"qwen3.expert_count": 8})
    assert "qwen3.expert_count = 8; not supported" in refused(_saved(tmp_path / "moe.gguf", raw))
    raw, _ = packers.gguf_of(config, tensors, lambda n: "F16", {"llama.attention.value_length": 8})
    assert "llama.attention.value_length = 8" in refused(_saved(tmp_path / "values.gguf", raw))
    raw, _ = packers.gguf_of(config, tensors, lambda n: "F16", {"llama.attention.head_count_kv": [2, 1]})
    assert "llama.attention.head_count_kv differs from layer" in refused(_saved(tmp_path / "layers.gguf", raw))
    one = {"general.architecture": "llama", "llama.attention.head_count": 2}
    one |= {f"llama.{key}": 4 for key in ("embedding_length", "block_count", "feed_forward_length")}
    odd = packers.gguf(one, {"blk.0.attn_q.weight": ("IQ3_S", np.zeros((2, 256)), b"\0" * 220)})
    assert "blk.0.attn_q.weight has type IQ3_S; known: F32" in refused(_saved(tmp_path / "odd.gguf", odd))
    odd = packers.gguf(one, {"blk.0.attn_q.weight": ("Q4_K", np.zeros((2, 96)), b"\0" * 288)})
    assert "has shape [2, 96], which Q4_K cannot hold" in refused(_saved(tmp_path / "narrow.gguf", odd))
    none = packers.gguf({"general.architecture": "llama"}, {"token_embd.weight": ("F32", np.zeros((2, 4)), b"\0" * 32)})
    assert "llama.embedding_length is missing" in refused(_saved(tmp_path / "none.gguf", none))
    short = dict(tensors)
    del short["model.layers.1.mlp.up_proj.weight"]
    raw, _ = packers.gguf_of(config, short, lambda n: "Q8_0")
    assert "1 tensors are missing: blk.1.ffn_up.weight" in refused(_saved(tmp_path / "short.gguf", raw))
    path = file("plain.gguf")
    assert "--load-format pt does not read" in refused(path, load_format="pt")
    assert "--load-format gguf does not read" in refused(tmp_path_with_config(tmp_path, config), load_format="gguf")


def tmp_path_with_config(path: Path, config: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path
