"""Checkpoints of models that also see, read as the language models they contain."""

import json
from pathlib import Path

import pytest
import torch
from engine_driver import Driver, load
from family_cases import CASES, TOKENS, Make, known
from safetensors.torch import load_file, save_file

SEEN = {"gemma3": "Gemma3", "llama4": "Llama4", "mistral window": "Mistral3", "ministral 3": "Mistral3"}


@pytest.mark.parametrize("case", SEEN)
def test_the_language_part_is_found_by_its_prefix(case: str, make: Make, tmp_path: Path) -> None:
    family, changes = CASES[case]
    folder, model = make(family, **changes)
    parts = {f"language_model.{name}": t for name, t in load_file(folder / "model.safetensors").items()}
    parts |= {f"{other}.weight": torch.ones(2) for other in ("vision_tower.patch", "multi_modal_projector.linear")}
    save_file(parts, tmp_path / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    config = {"architectures": [SEEN[case] + "ForConditionalGeneration"], "model_type": "sees", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    engine = load(tmp_path)
    assert (known(Driver(engine), 0, TOKENS, [9]) - expected).abs().max() < 1e-4
    assert (engine.ready.model_type, engine.context_length) == ("sees", 128)


def test_gemma_3_fills_in_what_its_released_files_leave_out(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6, "sliding_window": 1024}
    scaling = {"factor": 8.0, "rope_type": "linear"}
    config = {"text_config": text | {"rope_scaling": scaling, "vocab_size": 99}}
    config["architectures"] = ["Gemma3ForConditionalGeneration"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = load(tmp_path, load_format="dummy", max_total_tokens=32)
    spec = engine._model.spec
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.vocab, spec.scale) == (8, 4, 256, 99, 1 / 16)
    ropes = [spec.rope_in(layer) for layer in (0, 5)]
    assert [(r.theta, r.kind, r.factor) for r in ropes if r] == [(1e4, "default", 1.0), (1e6, "linear", 8.0)]
    assert engine.context_length == 131072
