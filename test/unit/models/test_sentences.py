"""What the files of a sentence-transformers folder say, and which of it stops the start."""

import json
from pathlib import Path
from typing import Any

import pytest

from sglang.base.errors import ConfigError
from sglang.models.sentences import pooling
from sglang.models.spec import HFConfig, Pooling

OWN = "sentence_transformers.models."
BERT, ROBERTA = "sentence_bert_config", "sentence_roberta_config"
GENERAL, TOKENIZER = "config_sentence_transformers", "tokenizer_config"


def modules(**paths: str) -> list[dict[str, str]]:
    """paths: by the type's last word."""
    return [{"path": path, "type": OWN + kind} for kind, path in paths.items()]


PLAIN: dict[str, Any] = {
    "modules": modules(Transformer="", Pooling="1_Pooling", Normalize="2_Normalize"),
    "1_Pooling/config": {"pooling_mode": "cls"},
}


def read(folder: Path, files: dict[str, Any], config: HFConfig | None = None) -> Pooling:
    """files: by the name before .json, what they hold."""
    for name, said in (PLAIN | files).items():
        (folder / f"{name}.json").parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(said))
    return pooling(folder, {"max_position_embeddings": 512} if config is None else config, False)


def refusal(folder: Path, files: dict[str, Any]) -> str:
    """Without the folder."""
    with pytest.raises(ConfigError) as caught:
        read(folder, files)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


def test_a_folder_without_modules_is_pooled_as_its_kind_usually_is(tmp_path: Path) -> None:
    (tmp_path / f"{BERT}.json").write_text('{"max_seq_length": 9}')
    assert pooling(tmp_path, {}, False) == Pooling("mean")
    assert pooling(tmp_path, {}, True) == Pooling("last")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8, "include_prompt": True}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, "first"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
    ],
)
def test_states_are_pooled_as_the_file_says(said: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert read(tmp_path, {"1_Pooling/config": said}).kind == kind


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"pooling_mode": "max"}, "pooling by max is not supported"),
        ({"pooling_mode": 3}, "pooling by 3 is not supported"),
        ({"pooling_mode": ["mean", "cls"], "pooling_mode_cls_token": True}, "pooling by mean and cls is not"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": 1}, "pooling by pooling_mode_cls_token and pool"),
        ({"pooling_mode_mean_tokens": False}, "pooling by nothing is not supported"),
        ({"pooling_mode": "cls", "scale": 2}, "scale = 2 is not supported (known: word_embedding_dimension, "),
    ],
)
def test_a_pooling_that_is_not_computed_is_refused(said: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, {"1_Pooling/config": said}).startswith(f"1_Pooling/config.json: {says}")


@pytest.mark.parametrize(
    ("transformer", "pool", "normalize"),
    [
        ("models.Transformer", "models.Pooling", "models.Normalize"),
        (
            "base.modules.transformer.Transformer",
            "sentence_transformer.modules.pooling.Pooling",
            "base.modules.normalize.Normalize",
        ),
        ("base.modules.Transformer", "sentence_transformer.modules.Pooling", "base.modules.Normalize"),
        ("models.Transformer.Transformer", "models.Pooling.Pooling", "sentence_transformer.modules.Normalize"),
    ],
)
def test_a_module_goes_by_every_name_that_the_library_gave_it(
    transformer: str, pool: str, normalize: str, tmp_path: Path
) -> None:
    paths = {transformer: "", pool: "1_Pooling", normalize: "2_Normalize"}
    listed = [{"path": path, "type": f"sentence_transformers.{name}"} for name, path in paths.items()]
    assert read(tmp_path, {"modules": listed}) == Pooling("first", True, 512)
    assert read(tmp_path, {"modules": listed[:2]}) == Pooling("first", False, 512)


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ([{"path": "", "type": "custom_st.Transformer"}], "type = 'custom_st.Transformer' is not supported (known: "),
        ([{"path": "", "type": "sentence_transformers.base.modules.Pooling"}], "type = 'sentence_transformers.base"),
        (modules(Transformer="", Pooling="1_Pooling", Dense="2_Dense"), f"type = '{OWN}Dense' is not supported"),
        (modules(Transformer="", Normalize="1_Normalize", Pooling="2_Pooling"), "type = ['Transformer', 'Normalize', "),
        (modules(Pooling="1_Pooling", Transformer=""), "type = ['Pooling', 'Transformer'] is not supported (known: "),
        (modules(Transformer=""), "type = ['Transformer'] is not supported"),
        (modules(Transformer="", Pooling="1_Pooling") * 2, "type = ['Transformer', 'Pooling', 'Transformer', "),
        (modules(Transformer="0_Transformer", Pooling="1_Pooling"), "path = '0_Transformer' is not supported (a Tran"),
        (modules(Transformer="", Pooling="a/../../x"), "path = 'a/../../x' is not supported (it must be inside"),
        (modules(Transformer="", Pooling="/x"), "path = '/x' is not supported (it must be inside"),
        ([{"path": "", "name": "0", "type": OWN + kind} for kind in ("Transformer", "Pooling")], "name = ['0', '0'] "),
        ({"type": "Pooling"}, "not a list of modules"),
        ([{"path": "1_Pooling"}], "not a list of modules"),
    ],
)
def test_other_modules_and_another_order_are_refused(listed: Any, says: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, {"modules": listed}).startswith(f"modules.json: {says}")


def test_files_may_be_links_as_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    wanted = read(folder, {})
    (folder / "1_Pooling" / "config.json").rename(tmp_path / "blob")
    (folder / "1_Pooling" / "config.json").symlink_to(tmp_path / "blob")
    assert pooling(folder, {"max_position_embeddings": 512}, False) == wanted


def test_only_the_vector_of_the_text_is_normalised(tmp_path: Path) -> None:
    file = "2_Normalize/config"
    assert read(tmp_path, {file: {"module_input_name": "sentence_embedding", "module_output_name": None}}).unit
    assert refusal(tmp_path, {file: {"module_input_name": "token_embeddings"}}) == (
        f"{file}.json: module_input_name = 'token_embeddings' is not supported (known: 'sentence_embedding')"
    )
    assert f"{file}.json: module_output_name = 'x' is not" in refusal(tmp_path, {file: {"module_output_name": "x"}})


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({BERT: {"max_seq_length": 128}, ROBERTA: {"max_seq_length": 5}}, 128),
        ({BERT: {}, ROBERTA: {"max_seq_length": 5}}, 5),
        ({BERT: {"max_seq_length": 999}}, 999),
        ({BERT: {"max_seq_length": 128, "processor_kwargs": {"model_max_length": 640}}}, 640),
        ({BERT: {"tokenizer_args": {"model_max_length": 64}, "processor_kwargs": {"model_max_length": 9}}}, 64),
        ({BERT: {"tokenizer_args": {}, "processor_kwargs": {"model_max_length": 9}}}, 512),
        ({BERT: {"max_seq_length": 64, "processing_kwargs": {"text": {"max_length": 99}}}}, 99),
        ({BERT: {"processing_kwargs": {"text": {"max_length": 99}, "common": {"max_length": 7}}}}, 7),
        ({BERT: {"max_seq_length": 64, "processing_kwargs": {"text": {"max_length": None}}}}, 64),
        ({BERT: {"max_seq_length": None}}, 512),
        ({BERT: {"max_seq_length": 10**25}}, None),
        ({TOKENIZER: {"model_max_length": 256}}, 256),
        ({TOKENIZER: {"max_len": 256}}, 256),
        ({TOKENIZER: {"model_max_length": 1e30}}, 512),
    ],
)
def test_a_text_is_as_long_as_the_library_reads_it(files: dict[str, Any], most: int | None, tmp_path: Path) -> None:
    assert read(tmp_path, files).most == most


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 300}, 300),
        ({"n_positions": 300}, 300),
        ({"max_position_embeddings": 300, "text_config": {"max_position_embeddings": 300}}, None),
        ({}, None),
    ],
)
def test_the_models_own_limit_is_that_of_the_config_as_it_is_heeded(
    config: dict[str, Any], most: int | None, tmp_path: Path
) -> None:
    """Not of config.json, which overrides change; and transformers finds none where it is nested."""
    files = {"config": {"max_position_embeddings": 200}, TOKENIZER: {"model_max_length": 1e30}}
    assert read(tmp_path, files, config).most == most


@pytest.mark.parametrize(
    ("files", "side"),
    [
        ({}, "right"),
        ({TOKENIZER: {"truncation_side": "left"}}, "left"),
        ({BERT: {"processor_kwargs": {"truncation_side": "left"}}, TOKENIZER: {"truncation_side": "right"}}, "left"),
        ({"tokenizer": {"truncation": {"direction": "Left", "max_length": 8}}}, "left"),
        ({"tokenizer": {"truncation": {"direction": "Left"}}, TOKENIZER: {"truncation_side": "right"}}, "right"),
        ({"tokenizer": {"truncation": None}}, "right"),
    ],
)
def test_a_text_is_cut_on_the_side_that_the_tokenizers_files_say(
    files: dict[str, Any], side: str, tmp_path: Path
) -> None:
    assert read(tmp_path, files).side == side


@pytest.mark.parametrize(
    "said",
    [
        {"do_lower_case": False, "transformer_task": "feature-extraction", "tokenizer_name_or_path": None},
        {
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "unpad_inputs": False,
            "query_length": 32,
        },
        {"model_args": {"attn_implementation": "sdpa"}, "config_args": {"trust_remote_code": True}},
        {"processor_kwargs": {"padding_side": "left"}, "processing_kwargs": {"text": {"truncation": True}}},
        {"processing_kwargs": {"image": {"size": 3}, "text": {"padding": "longest"}}},
    ],
)
def test_what_changes_no_vector_is_allowed(said: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, {BERT: said}) == Pooling("first", True, 512)


def test_capitals_are_made_small_where_the_file_says_so(tmp_path: Path) -> None:
    assert read(tmp_path, {BERT: {"do_lower_case": True}}).lower


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"max_seq_length": "many"}, "max_seq_length = 'many' is not supported (known: a whole number, at least 1, N"),
        ({"max_seq_length": 0}, "max_seq_length = 0 is not"),
        ({"max_seq_length": True}, "max_seq_length = True is not"),
        ({"do_lower_case": 1}, "do_lower_case = 1 is not"),
        ({"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask' is not"),
        ({"tokenizer_name_or_path": "x"}, "tokenizer_name_or_path = 'x' is not"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name = 'sentence_embedding' is not"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config = {'text': {'method': 'get_"),
        ({"new_key": None}, "new_key = None is not supported (known: max_seq_length, do_lower_case, "),
        ({"tokenizer_args": {"model_max_length": None}}, "tokenizer_args.model_max_length = None is not"),
        (
            {"processor_kwargs": {"do_lower_case": True}},
            "processor_kwargs.do_lower_case = True is not supported (known",
        ),
        ({"processor_kwargs": {"truncation_side": "middle"}}, "processor_kwargs.truncation_side = 'middle' is not"),
        ({"processor_kwargs": 3}, "processor_kwargs = 3 is not supported (it must be an object)"),
        ({"model_args": {"torch_dtype": "bfloat16"}}, "model_args.torch_dtype = 'bfloat16' is not"),
        ({"model_kwargs": {"add_pooling_layer": False}}, "model_kwargs.add_pooling_layer = False is not"),
        ({"config_args": {"num_hidden_layers": 2}}, "config_args.num_hidden_layers = 2 is not"),
        ({"config_kwargs": {"is_decoder": True}}, "config_kwargs.is_decoder = True is not"),
        ({"processing_kwargs": {"text": {"max_length": "x"}}}, "processing_kwargs.text.max_length = 'x' is not"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, "processing_kwargs.text.truncation = False is not"),
        ({"processing_kwargs": {"common": {"stride": 2}}}, "processing_kwargs.common.stride = 2 is not"),
        ({"processing_kwargs": {"texts": {}}}, "processing_kwargs.texts = {} is not"),
    ],
)
def test_what_is_not_done_with_texts_is_refused(said: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, {BERT: said}).startswith(f"{BERT}.json: {says}")


@pytest.mark.parametrize(
    ("file", "said", "says"),
    [
        (
            TOKENIZER,
            {"truncation_side": "both"},
            "truncation_side = 'both' is not supported (known: 'right', 'left', None)",
        ),
        (TOKENIZER, {"model_max_length": "all"}, "model_max_length = 'all' is not supported (it must be a number, "),
        (TOKENIZER, {"model_max_length": 0}, "model_max_length = 0 is not supported"),
        (GENERAL, {"truncate_dim": 4}, "truncate_dim = 4 is not supported (a request may say it: dimensions"),
        (GENERAL, {"model_type": "SparseEncoder"}, "model_type = 'SparseEncoder' is not supported (known: 'Sentence"),
        (GENERAL, {"default_prompt_name": "q"}, "default_prompt_name = 'q' is not supported (known: query, document)"),
        (GENERAL, {"default_prompt_name": "q", "prompts": {"q": 3}}, "prompts.q = 3 is not supported (it must be a te"),
        (GENERAL, {"default_prompt_name": ["q"]}, "default_prompt_name = ['q'] is not supported"),
        (GENERAL, {"prompts": ["q"]}, "prompts = ['q'] is not supported (it must be an object)"),
    ],
)
def test_what_the_other_files_say_and_is_not_done_is_refused(
    file: str, said: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, {file: said}).startswith(f"{file}.json: {says}")


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ({"prompts": {"q": "query: "}, "default_prompt_name": "q"}, "query: "),
        ({"prompts": {"q": "query: "}, "default_prompt_name": None, "similarity_fn_name": "dot"}, ""),
        ({"prompts": {"query": "Q "}, "default_prompt_name": "query", "truncate_dim": None}, "Q "),
        ({"prompts": {"query": None}, "default_prompt_name": "query"}, ""),
        ({"default_prompt_name": "document", "model_type": "SentenceTransformer"}, ""),
    ],
)
def test_the_default_prompt_stands_before_every_text(said: dict[str, Any], prompt: str, tmp_path: Path) -> None:
    assert read(tmp_path, {GENERAL: said}).prompt == prompt


def test_a_prompt_that_is_not_pooled_is_refused(tmp_path: Path) -> None:
    alone = {"1_Pooling/config": {"pooling_mode": "mean", "include_prompt": False}}
    assert read(tmp_path, alone).kind == "mean"
    says = refusal(tmp_path, alone | {GENERAL: {"prompts": {"q": "query: "}, "default_prompt_name": "q"}})
    assert says == (
        "1_Pooling/config.json: include_prompt = False is not supported (not with default_prompt_name = 'q')"
    )


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"adapter_config": {}}).startswith("adapter_config.json: adapters are not supported")
