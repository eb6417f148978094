"""Families that transformers does not have, against the reference implementations of `reference_models.py`."""

from pathlib import Path

import pytest
import torch
from engine_driver import Driver, load
from family_cases import TOKENS, known, moving_text
from reference_models import CASES
from safetensors.torch import save_file
from tiny_checkpoints import by_reference

from sglang.base.errors import ConfigError


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_log_probabilities_and_greedy_text_equal_those_of_the_reference(case: str, tmp_path: Path) -> None:
    build, config = CASES[case]
    model = by_reference(tmp_path, build, config)
    engine = load(tmp_path, context_length=128)
    expected = model(torch.tensor(TOKENS)).float().log_softmax(-1)
    assert expected.std() > 0.5, "flat logits hide errors"
    driver = Driver(engine)
    for slot, cuts in enumerate(([], [1, 9, 24, 39], list(range(1, 40)))):
        assert (known(driver, slot, TOKENS, cuts) - expected).abs().max() < 1e-4, cuts
    prompt, text = moving_text(driver)
    assert model(torch.tensor(prompt + text)).argmax(-1)[10:-1].tolist() == text


@pytest.mark.parametrize("name", ["pytorch_model-{}.bin", "model-TP-{}.safetensors"])
@torch.no_grad()
def test_grok_cut_for_ranks_is_the_same_model(name: str, tmp_path: Path) -> None:
    build, config = CASES["grok"]
    model = by_reference(tmp_path, build, config)
    (tmp_path / "model.safetensors").unlink()
    files: list[dict[str, torch.Tensor]] = [{}, {}]
    for key, tensor in model.state_dict().items():
        cut = 0 if key.endswith(("w1.weight", "w3.weight")) else 1 if key.endswith("w2.weight") else None
        for rank, file in enumerate(files):
            file[key] = (tensor if cut is None else tensor.chunk(2, cut)[rank]).contiguous()
    if name.endswith(".safetensors"):  # there what all ranks have alike lies in a file of its own
        common = {key: files[0].pop(key) for key in [*files[0]] if key.endswith("norm.weight")}
        files[1] = {key: tensor for key, tensor in files[1].items() if key not in common}
        save_file(common, tmp_path / name.format("common"))
    for rank, file in enumerate(files):
        target = tmp_path / name.format(f"{rank:03d}")
        save_file(file, target) if name.endswith(".safetensors") else torch.save(file, target)
    expected = model(torch.tensor(TOKENS)).float().log_softmax(-1)
    driver = Driver(load(tmp_path, context_length=128))
    assert (known(driver, 0, TOKENS, [9, 24]) - expected).abs().max() < 1e-4
    (tmp_path / name.format("000")).unlink()
    with pytest.raises(ConfigError, match="cut for 2 ranks, but rank 0 is missing"):
        load(tmp_path, context_length=128)
