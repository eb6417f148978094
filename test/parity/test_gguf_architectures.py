"""GGUF files of every architecture against the model whose converted weights they hold, and against llama.cpp."""

import json
import re
from pathlib import Path
from typing import Any

import embedding_cases
import numpy as np
import pytest
import torch
from engine_driver import Driver, load
from family_cases import CASES, TOKENS, YARN, Make, known
from gguf_converter import ENCODERS, KINDS, converted
from reference_models import CASES as WRITTEN
from safetensors.torch import load_file
from test_gguf import FILES
from tiny_checkpoints import by_reference

from sglang.base.errors import ConfigError
from sglang.base.gguf import header
from sglang.models.gguf_architectures import ARCHITECTURES

# What the file leaves to those who know the model: all of its kind have it.
USUAL: dict[str, dict[str, Any]] = {
    "gpt-oss": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "truncate": False,
                                    "original_max_position_embeddings": 32}},
    "ministral 3": {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0},
                    "head_dim": 16},
    "llama4": {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1, "intermediate_size": 96},
    "llama4 maverick": {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1, "num_local_experts": 128},
    "deepseek v3 yarn": {"rope_parameters": {**YARN, "mscale": 1.3, "mscale_all_dim": 1.3}},
}  # fmt: skip


def checkpoint(case: str, make: Make, folder: Path, **more: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], Any]:
    """Its config, its tensors, and what computes logits of a list of tokens."""
    if case in WRITTEN:
        build, config = WRITTEN[case]
        model = by_reference(folder, build, config)
        answer = lambda tokens: model(torch.tensor(tokens))  # noqa: E731
    else:
        family, changes = CASES[case]
        folder, model = make(family, **changes | USUAL.get(case, {}) | more)
        answer = lambda tokens: model(torch.tensor([tokens])).logits[0]  # noqa: E731
    config = json.loads((folder / "config.json").read_text())
    return config, {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}, answer


def written(case: str, make: Make, folder: Path, **more: Any) -> tuple[Path, Any]:
    config, tensors, answer = checkpoint(case, make, folder, **more)
    path = folder / "model.gguf"
    path.write_bytes(converted(case, config, tensors))
    return path, answer


@pytest.mark.parametrize("case", KINDS)
def test_a_converted_file_is_the_model(case: str, make: Make, tmp_path: Path) -> None:
    path, answer = written(case, make, tmp_path)
    with torch.no_grad():
        expected = answer(TOKENS).float().log_softmax(-1)
    assert expected.std() > 0.5
    assert (known(Driver(load(path)), 0, TOKENS, [1, 9, 24]) - expected).abs().max() < 1e-4


# llama.cpp has no biases of InternLM 2, tells V2's groups by V3's rule and its lite kind and EXAONE's windows by the
# number of layers.
OTHERWISE = ("internlm2 biases", "deepseek v2", "deepseek v2 lite", "exaone4 32b")
# What it lacks of a family: grouped heads, no biases, biases, a ramp of YaRN that is not rounded.
WITHOUT: dict[str, dict[str, Any]] = {
    "gpt-neox serial": {"attention_bias": True},
    "olmoe": {"num_key_value_heads": 4},
    "ernie4.5": {"use_bias": False},
    "gpt-oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
}
# Exact GELU where llama.cpp has a table of float16, or the approximation by tanh.
GELU = {"gpt-neox": 5e-2, "gpt-neox serial": 5e-2, "gpt2": 5e-3, "bigcode": 5e-3, "phi": 5e-3, "grok": 5e-3}


@pytest.mark.parametrize("case", [case for case in KINDS if case not in OTHERWISE])
def test_a_converted_file_is_what_llama_cpp_reads(case: str, make: Make, tmp_path: Path) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference here")
    path, _ = written(case, make, tmp_path, **WITHOUT.get(case, {}))
    theirs = llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, type_k=0, type_v=0,
        flash_attn=False,
    )  # fmt: skip
    theirs.eval(TOKENS)
    expected = torch.tensor(theirs.scores[: len(TOKENS)].copy()).float().log_softmax(-1)
    assert (known(Driver(load(path)), 0, TOKENS, [9]) - expected).abs().max() < GELU.get(case, 1e-4)


@pytest.mark.parametrize("case", ["gpt2", "gpt-neox", "chatglm3", "granite moe", "gpt-oss", "deepseek v3"])
def test_fused_and_stacked_blocks_are_what_they_stand_for(case: str, make: Make, tmp_path: Path) -> None:
    config, tensors, _ = checkpoint(case, make, tmp_path)
    found = []
    for spelt_out in (False, True):
        path = tmp_path / f"{spelt_out}.gguf"
        path.write_bytes(converted(case, config, tensors, "Q8_0", spelt_out))
        found.append(known(Driver(load(path)), 0, TOKENS, [1, 9]))
    assert found[0].std() > 0.5
    assert (found[0] - found[1]).abs().max() < 1e-3


@pytest.mark.parametrize("case", ["bert", "xlm-roberta"])
def test_a_converted_file_makes_the_vectors_of_its_texts(case: str, tmp_path: Path) -> None:
    model = embedding_cases.written(tmp_path, case)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = {n: t.float().numpy() for n, t in load_file(tmp_path / "model.safetensors").items()}
    path = tmp_path / "model.gguf"
    path.write_bytes(converted(case, config, tensors))
    texts = embedding_cases.TEXTS[:-1]  # such a file does not have RoBERTa's rows for padding, which the last one holds
    found, _ = embedding_cases.vectors(path, texts)
    for vector, text in zip(found, texts, strict=True):
        torch.testing.assert_close(vector, embedding_cases.expected(model, case, text), rtol=1e-4, atol=1e-5)


def test_a_pooling_we_do_not_have_is_refused(tmp_path: Path) -> None:
    embedding_cases.written(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = {n: t.float().numpy() for n, t in load_file(tmp_path / "model.safetensors").items()}
    path = tmp_path / "model.gguf"
    path.write_bytes(
        converted("bert", config, tensors).replace(b"pooling_type\x04\0\0\0\x01", b"pooling_type\x04\0\0\0\x04")
    )
    with pytest.raises(ConfigError, match=r"bert\.pooling_type = 4; known: 1"):
        embedding_cases.vectors(path, [[3]])


@pytest.mark.parametrize("case", KINDS)
def test_names_of_a_converted_file_are_those_of_the_gguf_package(case: str, make: Make, tmp_path: Path) -> None:
    package = pytest.importorskip("gguf", reason="it is the reference here")
    path, _ = written(case, make, tmp_path)
    found = header(path)
    arch = next(a for a, name in package.MODEL_ARCH_NAMES.items() if name == found.architecture)
    known_names = {package.TENSOR_NAMES[t].replace("{bid}", "*") for t in package.MODEL_TENSORS[arch]}
    assert {re.sub(r"\.\d+", ".*", name.rpartition(".")[0]) for name in found.tensors} <= known_names


def test_every_architecture_has_a_case() -> None:
    assert {kind.arch for kind in (KINDS | ENCODERS).values()} | {arch for arch, _ in FILES.values()} == set(
        ARCHITECTURES
    ) - PLAIN


PLAIN = {"qwen2", "qwen3"}  # of test_gguf.py
