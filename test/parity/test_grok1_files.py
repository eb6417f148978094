"""Grok-1's first files, numbered pickles without names, against the reference with the weights they stand for."""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import Driver, load
from family_cases import TOKENS, known
from reference_models import GROK, Grok
from tiny_checkpoints import by_reference

from sglang.base.errors import ConfigError
from sglang.models import grok1

CONFIG = GROK | {"num_hidden_layers": 3, "tie_word_embeddings": True}
GROUPS = 2  # of inputs, in matrices that were cut along them


class QuantizedWeight8bit:
    """As the published code has it; pickled under the name it had there."""

    def __init__(self, weight: Any, scales: Any):
        self.weight, self.scales = weight, scales


class Half:
    """A bfloat16 array as numpy pickles those of ml_dtypes."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __reduce__(self) -> Any:
        make, args, _ = np.zeros((1,), np.int8).__reduce__()  # type: ignore[misc]
        raw = self.values.view(torch.int16).numpy().tobytes()
        return make, args, (1, tuple(self.values.shape), HalfType(), False, raw)


class HalfType:
    def __reduce__(self) -> Any:
        return np.dtype, (sys.modules["ml_dtypes"].bfloat16, False, True), (3, "<", None, None, None, -1, -1, 0)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("ml_dtypes")
    fake.bfloat16 = type("bfloat16", (), {"__module__": "ml_dtypes"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ml_dtypes", fake)
    monkeypatch.setattr(QuantizedWeight8bit, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "QuantizedWeight8bit", QuantizedWeight8bit, raising=False)


def tree(model: Grok, layers: int) -> dict[str, torch.Tensor]:
    """The parameters under the names that the published code gives them, matrices as [inputs, outputs]."""
    state = model.state_dict()
    found = {"language_model/in_out_embed": state["model.embed_tokens.weight"]}
    found["language_model/rms_norm"] = state["model.norm.scale"]
    for i in range(layers):
        own, there = f"model.layers.{i}.", f"transformer/decoder_layer_{i}/"
        for part in ("linear", "linear_v", "linear_1"):
            each = [state[f"{own}moe_block.experts.{e}.{part}.weight"].T for e in range(GROK["num_experts"])]
            found[f"{there}moe/{part}"] = torch.stack(each)
        for theirs, ours in {"query": "q", "key": "k", "value": "v", "linear": "o"}.items():
            found[f"{there}multi_head_attention/{theirs}"] = state[f"{own}attn.{ours}_proj.weight"].T
        found[f"{there}router"] = state[f"{own}moe_block.gate.weight"].T
        for number, name in enumerate(("pre_attn", "post_attn", "pre_moe", "post_moe")):
            found[f"{there}rms_norm{f'_{number}' if number else ''}"] = state[f"{own}{name}_norm.scale"]
    return found


def written(folder: Path, found: dict[str, torch.Tensor], protocol: int) -> None:
    """One file a leaf, in the order of sorted names; 8 bits where the published files have them. Sets what they say."""
    folder.mkdir()
    for number, (name, w) in enumerate(sorted(found.items())):
        value: Any = w.numpy()
        if "moe/" in name or "attention/" in name:
            groups = GROUPS if name.endswith(("linear_1", "attention/linear")) else 1
            parts = w.unflatten(-2, (groups, -1))
            scales = (parts.abs().amax(-2) / 127).bfloat16()
            codes = (parts / scales.float().unsqueeze(-2)).round().clamp(-127, 127).to(torch.int8)
            w.copy_((codes.bfloat16() * scales.unsqueeze(-2)).float().view(w.shape))
            value = QuantizedWeight8bit(codes.view(w.shape).numpy(), Half(scales))
        (folder / f"tensor{number:05d}_000").write_bytes(pickle.dumps(value, protocol=protocol))


def made(folder: Path, protocol: int = 4) -> Grok:
    model = by_reference(folder, lambda c: Grok(c, "linear"), CONFIG)
    (folder / "model.safetensors").unlink()
    with torch.no_grad():
        found = {name: w.contiguous() for name, w in tree(model, 3).items()}
        written(folder / "ckpt-0", found, protocol)
        state = model.state_dict()
        for i in range(3):
            own, there = f"model.layers.{i}.", f"transformer/decoder_layer_{i}/"
            for part in ("linear", "linear_v", "linear_1"):
                for e in range(GROK["num_experts"]):
                    state[f"{own}moe_block.experts.{e}.{part}.weight"].copy_(found[f"{there}moe/{part}"][e].T)
            for theirs, ours in {"query": "q", "key": "k", "value": "v", "linear": "o"}.items():
                state[f"{own}attn.{ours}_proj.weight"].copy_(found[f"{there}multi_head_attention/{theirs}"].T)
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    return model


@pytest.mark.parametrize("protocol", [3, 4])
@torch.no_grad()
def test_the_published_files_are_the_model(protocol: int, theirs: None, tmp_path: Path) -> None:
    model = made(tmp_path, protocol)
    expected = model(torch.tensor(TOKENS)).float().log_softmax(-1)
    assert expected.std() > 0.5
    got = known(Driver(load(tmp_path, context_length=128, dtype="float32")), 0, TOKENS, [9, 24])
    assert (got - expected).abs().max() < 1e-4


def test_layers_come_in_the_order_of_their_names(theirs: None, tmp_path: Path) -> None:
    names = {f"transformer/decoder_layer_{i}/{n}": i for i in range(12) for n in "abcdefghijkl"}
    for number, name in enumerate(["language_model/a", "language_model/b", *sorted(names)]):
        value = np.full((2, 3, 4), names.get(name, 99), np.float32)
        (tmp_path / f"tensor{number:05d}_000").write_bytes(pickle.dumps(value, protocol=4))
    found = [
        int(grok1.tensor(tmp_path / grok1.FIRST, f"model.layers.{i}.attn.k_proj.weight")[0, 0, 0]) for i in range(12)
    ]
    assert found == list(range(12))


def test_the_published_sizes_are_known_without_a_config(tmp_path: Path) -> None:
    from sglang.models import config

    (tmp_path / "ckpt-0").mkdir()
    (tmp_path / "ckpt-0" / grok1.FIRST).write_bytes(b"")
    assert config.read(tmp_path)["num_attention_heads"] == 48
    assert config.read(tmp_path / "ckpt-0", json.dumps({"num_hidden_layers": 2}))["num_hidden_layers"] == 2


class _Runs:
    def __init__(self, call: Any, *args: Any):
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda trap: _Runs(Path.touch, trap), "which no array needs"),
        (lambda trap: _Runs(eval, f"open({str(trap)!r}, 'w')"), "asks for builtins.eval"),
        (lambda trap: _Runs(np.fromfile, str(trap)), "which no array needs"),
        (lambda trap: QuantizedWeight8bit(_Runs(print, "no"), None), "asks for builtins.print"),
        (lambda trap: [np.zeros(2, np.float32)], "which no array needs"),
        (lambda trap: np.zeros(2, np.float64), "numbers of another type"),
        (lambda trap: np.asfortranarray(np.zeros((2, 3), np.float32)), "holds no array as they were"),
        (lambda trap: np.array([trap.name, None]), "not an array of Grok-1"),
    ],
)  # fmt: skip
def test_a_pickle_that_is_more_than_an_array_is_refused_and_does_nothing(
    value: Any, words: str, theirs: None, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    for number in range(2):
        (tmp_path / f"tensor{number:05d}_000").write_bytes(pickle.dumps(value(trap), protocol=4))
    with pytest.raises(ConfigError) as caught:
        list(grok1.headers(tmp_path / grok1.FIRST))
    assert words in str(caught.value) and grok1.FIRST in str(caught.value) and "\n" not in str(caught.value)
    assert not trap.exists()


def test_files_that_are_missing_or_cut_off_are_named(theirs: None, tmp_path: Path) -> None:
    model = made(tmp_path)
    folder = tmp_path / "ckpt-0"
    assert model is not None
    last = sorted(folder.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=f"{last.name}: not an array of Grok-1"):
        load(tmp_path, context_length=128)
    last.unlink()
    with pytest.raises(ConfigError, match="37 arrays are not 2 and 12 for each layer"):
        load(tmp_path, context_length=128)
    big = tmp_path / "big"
    big.mkdir()
    for number in range(2):
        raw = pickle.dumps(np.zeros((300, 300), np.float32), protocol=4)
        (big / f"tensor{number:05d}_000").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ConfigError, match="it is cut off"):
        list(grok1.headers(big / grok1.FIRST))
