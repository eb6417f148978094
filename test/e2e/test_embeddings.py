"""A server of vectors over a socket, with OpenAI's own client, and the same engine without HTTP."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from live_server import HANG_S

import sglang as sgl
from sglang.base.config import DEMO_MODEL
from sglang.base.errors import ConfigError, FieldError
from sglang.launch import ThreadWorker
from sglang.offline import Engine

TEXTS = ["The capital of France is Paris.", "Hello", "a b c d e f g h"]
MOST = 20  # tokens of a text
POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights with the demo model's tokenizer, as sentence-transformers saves one."""
    import transformers

    path = tmp_path_factory.mktemp("bert")
    vocab = json.loads((DEMO_MODEL / "config.json").read_text())["vocab_size"]
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=vocab, max_position_embeddings=64, **sizes)
    transformers.BertModel(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, path)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for k, p in kinds.items()]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MOST, "do_lower_case": False}))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    return path


@pytest.fixture(scope="module")
def vectors(folder: Path, any_server: Any) -> Iterator[Any]:
    with any_server("--model-path", str(folder), "--max-total-tokens", "2000") as running:
        yield running


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder), worker=ThreadWorker, max_total_tokens=2000, log_level="error") as engine:
        yield engine


def wanted(folder: Path, engine: Engine, text: str) -> np.ndarray:
    import transformers

    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = torch.tensor([engine.get_tokenizer().encode(text)])
        mean = model(input_ids=ids).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


def test_openais_client_gets_the_vectors_of_transformers(vectors: Any, folder: Path, engine: Engine) -> None:
    client = openai.OpenAI(base_url=vectors.url + "/v1", api_key="EMPTY", max_retries=0)
    answer = client.embeddings.create(model="any", input=TEXTS)  # this client asks for base64 by itself
    assert [one.index for one in answer.data] == [0, 1, 2] and answer.object == "list"
    for text, one in zip(TEXTS, answer.data, strict=True):
        assert np.abs(np.array(one.embedding) - wanted(folder, engine, text)).max() < 1e-5
    lengths = [len(engine.get_tokenizer().encode(text)) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths)
    whole = client.embeddings.create(model="any", input=TEXTS[0], encoding_format="float").data[0].embedding
    assert np.abs(np.array(whole) - np.array(answer.data[0].embedding)).max() < 1e-6
    short = client.embeddings.create(model="any", input=TEXTS[0], dimensions=8).data[0].embedding
    assert np.abs(np.array(short) - np.array(whole[:8]) / np.linalg.norm(whole[:8])).max() < 1e-6
    ids = engine.get_tokenizer().encode(TEXTS[0])
    by_ids = client.embeddings.create(model="any", input=[ids, ids[:2]]).data
    assert len(by_ids) == 2 and np.abs(np.array(by_ids[0].embedding) - np.array(whole)).max() < 1e-6


def test_a_text_is_cut_where_sentence_transformers_cuts_it(vectors: Any, folder: Path, engine: Engine) -> None:
    import transformers

    long = "The capital of France is Paris. " * 8
    ids = transformers.AutoTokenizer.from_pretrained(folder).encode(long, truncation=True, max_length=MOST)
    assert len(ids) == MOST < len(engine.get_tokenizer().encode(long))
    client = openai.OpenAI(base_url=vectors.url + "/v1", api_key="EMPTY", max_retries=0)
    answer = client.embeddings.create(model="any", input=[long, TEXTS[0]])
    assert answer.usage.prompt_tokens == MOST + len(engine.get_tokenizer().encode(TEXTS[0]))
    by_ids = client.embeddings.create(model="any", input=[ids, ids * 3]).data
    assert np.abs(np.array(answer.data[0].embedding) - np.array(by_ids[0].embedding)).max() < 1e-6
    assert np.abs(np.array(by_ids[0].embedding) - np.array(by_ids[1].embedding)).max() > 1e-3, "ids are not cut"
    assert engine.encode(long)["meta_info"]["prompt_tokens"] == MOST
    assert httpx.get(vectors.url + "/get_model_info", timeout=HANG_S).json()["max_seq_length"] == MOST


def edited(folder: Path, tmp_path: Path, **files: Any) -> Path:
    """A copy in which files, by the name before .json, say more. files: what."""
    other = shutil.copytree(folder, tmp_path / "other")
    for name, said in files.items():
        file = other / f"{name}.json"
        before = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(before | said))
    return other


def test_texts_are_prepared_as_sentence_transformers_does(folder: Path, tmp_path: Path) -> None:
    import transformers

    other = edited(
        folder,
        tmp_path,
        config_sentence_transformers={"prompts": {"q": "Query: "}, "default_prompt_name": "q"},
        sentence_bert_config={"do_lower_case": True},
        tokenizer_config={"truncation_side": "left"},
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(other)
    with Engine(str(other), worker=ThreadWorker, max_total_tokens=2000, log_level="error") as engine:
        for text in (TEXTS[0], "The capital of France is Paris. " * 8 + "SO IT IS"):
            ids = tokenizer.encode("query: " + text.lower(), truncation=True, max_length=MOST)
            by_ids, by_text = engine.encode(input_ids=ids), engine.encode(text)
            assert by_text["meta_info"]["prompt_tokens"] == len(ids)
            assert by_text["embedding"] == by_ids["embedding"], "ids get no prompt"
        assert len(ids) == MOST and "so it is" in tokenizer.decode(ids)


def test_a_text_within_the_limit_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    other = edited(folder, tmp_path, sentence_bert_config={"max_seq_length": 100})
    with (
        Engine(str(other), worker=ThreadWorker, max_total_tokens=2000, log_level="error") as engine,
        pytest.raises(FieldError, match=r"longer than the model's context length \(64 tokens\)"),
    ):
        engine.encode("a b c d " * 30)


def test_the_limit_follows_the_settings_that_change_the_config(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(DEMO_MODEL, tmp_path / "other")
    for name in ("modules.json", "1_Pooling"):
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, other / name)
    settings = {"is_embedding": True, "json_model_override_args": '{"max_position_embeddings": 24}'}
    with Engine(str(other), worker=ThreadWorker, max_total_tokens=2000, log_level="error", **settings) as engine:
        assert engine.encode("a b c d " * 30)["meta_info"]["prompt_tokens"] == 24


def test_a_text_that_is_cut_may_fill_the_context(folder: Path) -> None:
    with Engine(
        str(folder), worker=ThreadWorker, max_total_tokens=2000, allow_auto_truncate=True, log_level="error"
    ) as engine:
        assert engine.encode(input_ids=[3] * 64)["meta_info"]["prompt_tokens"] == 64
        assert engine.encode(input_ids=[3] * 65)["meta_info"]["prompt_tokens"] == 64


def test_encode_and_the_engine_give_the_same(vectors: Any, engine: Engine) -> None:
    one = httpx.post(vectors.url + "/encode", json={"text": TEXTS[0], "rid": "mine"}, timeout=HANG_S).json()
    assert one["meta_info"]["id"] == "mine" and one["meta_info"]["prompt_tokens"] > 3
    many = engine.encode(TEXTS)
    assert np.abs(np.array(one["embedding"]) - np.array(many[0]["embedding"])).max() < 1e-6
    assert len(engine.encode(input_ids=[3, 4, 5], dimensions=5)["embedding"]) == 5
    raw = httpx.post(
        vectors.url + "/v1/embeddings", json={"input": TEXTS[0], "encoding_format": "base64"}, timeout=HANG_S
    ).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), np.float32)
    assert np.abs(decoded - np.array(one["embedding"])).max() < 1e-6
    assert httpx.get(vectors.url + "/get_model_info", timeout=HANG_S).json()["is_generation"] is False


def test_a_runtime_of_vectors(folder: Path, engine: Engine) -> None:
    with sgl.Runtime(model_path=str(folder), is_embedding=True, max_total_tokens=2000) as runtime:
        [one] = json.loads(runtime.encode(TEXTS[:1]))
        assert np.abs(np.array(one["embedding"]) - wanted(folder, engine, TEXTS[0])).max() < 1e-5
        assert json.loads(runtime.encode(TEXTS[0]))["embedding"] == one["embedding"]
        with pytest.raises(RuntimeError, match=r"400.*text"):
            runtime.encode([])


@pytest.mark.parametrize(
    ("path", "body", "field", "says"),
    [
        ("/generate", {"text": "hi"}, "model", "makes vectors and generates no text"),
        ("/v1/completions", {"prompt": "hi"}, "model", "makes vectors"),
        ("/v1/embeddings", {"input": []}, "input", "at least one prompt"),
        ("/v1/embeddings", {"input": ["a", 3]}, "input", "not a mixture"),
        ("/v1/embeddings", {"input": [[3], 3]}, "input", "not a mixture"),
        ("/v1/embeddings", {"input": [10**6]}, "input", "token ids in"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, "dimensions", r"in [1, 32], got 33"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ("/v1/embeddings", {"input": [3] * 65}, "input", "longer than the model's context length (64 tokens)"),
        ("/encode", {}, "text", "Either text or input_ids"),
        ("/encode", {"text": "a", "image_data": "x"}, "image_data", "not supported"),
    ],
)
def test_what_is_wrong_is_said(path: str, body: dict[str, object], field: str, says: str, vectors: Any) -> None:
    answer = httpx.post(vectors.url + path, json=body, timeout=HANG_S)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field and says in answer.json()["error"]["message"]


def test_a_server_of_text_makes_no_vectors(served: Any) -> None:
    for path, body in (("/v1/embeddings", {"input": "hi"}), ("/encode", {"text": "hi"})):
        answer = httpx.post(served.url + path, json=body, timeout=HANG_S)
        assert answer.status_code == 400 and "--is-embedding" in answer.json()["error"]["message"]


def test_a_text_model_makes_vectors_where_it_is_asked_to() -> None:
    with Engine(worker=ThreadWorker, is_embedding=True, max_total_tokens=2000, log_level="error") as engine:
        [one, other] = [answer["embedding"] for answer in engine.encode(["The capital of France is", "2 + 2 ="])]
        assert abs(np.linalg.norm(one) - 1) < 1e-5 and np.dot(one, other) < 0.99
        with pytest.raises(FieldError, match="makes vectors"):
            engine.generate("hi")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode_cls_token": True}, "and"),
        ({"pooling_mode_mean_tokens": False}, "nothing"),
    ],
)
def test_a_pooling_that_is_not_computed_stops_the_start(
    change: dict[str, bool], says: str, folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "1_Pooling" / "config.json").write_text(json.dumps(POOLING | change))
    with pytest.raises(ConfigError, match=f"config.json: pooling by .*{says}"):
        Engine(str(other), worker=ThreadWorker, log_level="error")
