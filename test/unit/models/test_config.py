"""What the files beside the weights say of how a model is to be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from sglang.base.errors import ConfigError
from sglang.models.config import sampling


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "bos_token_id": 1, "num_beams": 4}, "as said"),
        ({"temperature": 0.6, "do_sample": False}, {}),
        ({"temperature": 0.6, "do_sample": True, "top_k": 0, "min_p": None}, {"temperature": 0.6}),
        ({"repetition_penalty": 1.05}, {"repetition_penalty": 1.05}),
    ],
)
def test_sampling_is_as_the_generation_config_says(tmp_path: Path, said: dict[str, Any], means: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    if means == "as said":
        means = {name: said[name] for name in ("temperature", "top_p", "top_k")}
    assert sampling(tmp_path) == means


def test_a_model_without_a_generation_config_says_nothing(tmp_path: Path) -> None:
    assert sampling(tmp_path) == {}


def test_a_generation_config_that_cannot_be_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(ConfigError, match=r"generation_config.json.top_p must be in \(0, 1\], got 7"):
        sampling(tmp_path)
