"""What the files beside the weights say of how a model is to be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from sglang.base.errors import ConfigError
from sglang.models.config import pooling, sampling
from sglang.models.spec import Pooling


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


def of_sentences(folder: Path, **files: Any) -> Path:
    """A folder as sentence-transformers writes it. files: by the name before .json, what they hold."""
    parts = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in MODULES.items()]
    written = {
        "modules": parts,
        "config": {"max_position_embeddings": 512},
        "1_Pooling/config": {"pooling_mode": "cls"},
    }
    for name, said in (written | files).items():
        (folder / f"{name}.json").parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(said))
    return folder


MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
BERT, ROBERTA = "sentence_bert_config", "sentence_roberta_config"


@pytest.mark.parametrize(
    ("files", "most", "lower"),
    [
        ({BERT: {"max_seq_length": 128, "do_lower_case": True}}, 128, True),
        ({BERT: {"max_seq_length": 128}, ROBERTA: {"max_seq_length": 5}}, 128, False),
        ({ROBERTA: {"max_seq_length": 5, "do_lower_case": False}}, 5, False),
        ({BERT: {"max_seq_length": 128, "processor_kwargs": {"model_max_length": 64}}}, 64, False),
        ({BERT: {"max_seq_length": None}}, 512, False),
        ({"tokenizer_config": {"model_max_length": 256}}, 256, False),
        ({"tokenizer_config": {"model_max_length": 1e30}, "config": {}}, int(1e30), False),
        ({"config": {}}, None, False),
    ],
)
def test_a_text_is_as_long_as_sentence_transformers_reads_it(
    files: dict[str, Any], most: int | None, lower: bool, tmp_path: Path
) -> None:
    assert pooling(of_sentences(tmp_path, **files), False) == Pooling("first", True, most, lower)


def test_files_of_the_module_count_and_a_folder_without_modules_has_no_limit(tmp_path: Path) -> None:
    modules = [{"path": "0_Text", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    folder = of_sentences(tmp_path, modules=modules, **{f"0_Text/{BERT}": {"max_seq_length": 9}})
    assert pooling(folder, False) == Pooling("first", False, 9)
    (folder / "modules.json").unlink()
    assert pooling(folder, False) == Pooling("mean")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"max_seq_length": "many"}, "max_seq_length = 'many' is not supported"),
        ({"max_seq_length": 0}, "max_seq_length = 0 is not supported"),
        ({"do_lower_case": 1}, "do_lower_case = 1 is not supported"),
        ({"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask' is not supported"),
    ],
)
def test_what_sentence_transformers_files_say_and_we_do_not_do_stops_the_start(
    said: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"sentence_bert_config.json: {says}"):
        pooling(of_sentences(tmp_path, **{BERT: said}), False)


def test_prompts_that_only_sentence_transformers_would_write_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pooling(of_sentences(tmp_path, config_sentence_transformers={"prompts": {"q": "query: "}}), False)
    assert not caplog.text
    pooling(of_sentences(tmp_path, config_sentence_transformers={"default_prompt_name": "q"}), False)
    assert "default_prompt_name = 'q' is not heeded" in caplog.text
