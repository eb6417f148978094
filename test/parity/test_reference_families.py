"""Families that transformers does not have, against the reference implementations of `reference_models.py`."""

from pathlib import Path

import pytest
import torch
from engine_driver import Driver, load
from family_cases import TOKENS, known, moving_text
from reference_models import CASES
from tiny_checkpoints import by_reference


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
