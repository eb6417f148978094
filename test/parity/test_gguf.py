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
from family_cases import LLAMA3, TOKENS, Make, known
from safetensors.torch import load_file

from sglang.base.config import ServerConfig
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

    message = refused(file("gemma.gguf", model_type="gemma2"))
    assert "gemma.gguf: general.architecture = 'gemma2' is not supported; known: llama" in message
    raw, _ = packers.gguf_of(config, tensors, lambda n: "F16", {"llama.expert_count": 8})
    assert "llama.expert_count = 8" in refused(_saved(tmp_path / "moe.gguf", raw))
    one = {"general.architecture": "llama"}
    odd = packers.gguf(one, {"blk.0.attn_q.weight": ("Q5_1", np.zeros((2, 32)), b"\0" * 64)})
    assert "blk.0.attn_q.weight has type Q5_1; known: F32" in refused(_saved(tmp_path / "odd.gguf", odd))
    odd = packers.gguf(one, {"blk.0.attn_q.weight": ("Q4_K", np.zeros((2, 96)), b"\0" * 288)})
    assert "has shape [2, 96], which Q4_K cannot hold" in refused(_saved(tmp_path / "narrow.gguf", odd))
    none = packers.gguf(one, {"token_embd.weight": ("F32", np.zeros((2, 4)), b"\0" * 32)})
    assert "llama.embedding_length is missing" in refused(_saved(tmp_path / "none.gguf", none))
    short = dict(tensors)
    del short["model.layers.1.mlp.up_proj.weight"]
    raw, _ = packers.gguf_of(config, short, lambda n: "Q8_0")
    assert "1 tensors are missing: model.layers.1.mlp.up_proj.weight" in refused(_saved(tmp_path / "short.gguf", raw))
    path = file("plain.gguf")
    assert "--load-format pt does not read" in refused(path, load_format="pt")
    assert "--load-format gguf does not read" in refused(tmp_path_with_config(tmp_path, config), load_format="gguf")


def tmp_path_with_config(path: Path, config: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_tokenizer_is_that_of_the_files_folder(tmp_path: Path) -> None:
    config = ServerConfig(model_path=str(tmp_path / "some.gguf"), device="cpu").resolve()
    assert config.tokenizer_path == str(tmp_path)
    assert ServerConfig(model_path="x.gguf", tokenizer_path="there", device="cpu").resolve().tokenizer_path == "there"
