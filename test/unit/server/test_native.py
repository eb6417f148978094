"""The native routes over a socket: every shape of answer."""

import json
import threading
from itertools import pairwise
from typing import Any

import httpx
import pytest
from server_doubles import CONTEXT, EOS, HANG_S, eventually

from sglang.base.config import ServerConfig
from sglang.base.messages import Logprobs

WORDS = "one two three naïve 日本語 👋 end"
PARAMS = {"max_new_tokens": 100, "temperature": 0}
TEXTS = [
    "the capital of France",
    "日本語 naïve café",
    "👋 🌍 Привет",
    "one\n\ntwo\tthree",
    " far,  far away ",
    "é" * 30,
]


def events(response: httpx.Response) -> list[Any]:
    """The JSON of every event; checks the framing and the end."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    assert all(frame.startswith("data: ") for frame in frames)
    return [json.loads(frame[6:]) for frame in frames]


def test_a_text_is_answered_with_its_completion_and_its_facts(echo: Any) -> None:
    echo.post("/generate", {"text": WORDS, "sampling_params": PARAMS})
    body = echo.post("/generate", {"text": WORDS, "sampling_params": PARAMS}).json()
    ids = echo.tokenizer.encode(WORDS)
    assert body["text"] == WORDS
    assert body["output_ids"] == [*ids[1:], EOS]
    meta = body["meta_info"]
    assert len(meta["id"]) == 32
    assert meta["finish_reason"] == {"type": "stop", "matched": EOS}
    assert meta["prompt_tokens"] == meta["completion_tokens"] == len(ids)
    assert meta["cached_tokens"] == len(ids) - 1
    assert meta["e2e_latency"] > 0
    assert not any("logprob" in key for key in meta)


def test_put_is_post(echo: Any) -> None:
    answer = echo.http.put("/generate", json={"text": "one", "sampling_params": PARAMS})
    assert answer.json()["text"] == "one"


def test_token_ids_are_taken_as_they_are(echo: Any) -> None:
    ids = echo.tokenizer.encode("one two")[1:]
    answer = echo.post("/generate", {"input_ids": ids, "sampling_params": PARAMS}).json()
    assert answer["meta_info"]["prompt_tokens"] == len(ids), "no beginning-of-text token was added"
    batch = echo.post("/generate", {"input_ids": [ids], "sampling_params": PARAMS}).json()
    assert [a["output_ids"] for a in batch] == [answer["output_ids"]]


def test_the_length_limit_is_a_reason_of_its_own(echo: Any) -> None:
    answer = echo.post("/generate", {"text": WORDS, "sampling_params": {"max_new_tokens": 3}}).json()
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    assert answer["meta_info"]["completion_tokens"] == 3


def test_no_new_tokens_still_gives_the_facts_of_the_prompt(echo: Any) -> None:
    body = {"text": "one two", "sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
    answer = echo.post("/generate", body).json()
    ids = echo.tokenizer.encode("one two")
    assert answer["text"] == ""
    assert [t for _, t, _ in answer["meta_info"]["input_token_logprobs"]] == ids
    assert answer["meta_info"]["output_token_logprobs"] == []


def test_a_stop_string_is_cut_off_unless_asked_to_stay(echo: Any) -> None:
    for keep, text in ((False, "one two"), (True, "one two three")):
        params = {"max_new_tokens": 100, "stop": " three", "no_stop_trim": keep}
        answer = echo.post("/generate", {"text": "one two three four", "sampling_params": params}).json()
        assert answer["text"] == text
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": " three"}
        assert answer["meta_info"]["completion_tokens"] == len(echo.tokenizer.encode("one two three")) - 1


def test_a_match_of_a_pattern_is_cut_off_unless_asked_to_stay(echo: Any) -> None:
    for keep, text in ((False, "one two"), (True, "one two thr")):
        params = {"max_new_tokens": 100, "stop_regex": [r"\s[th]{2}[r-z]", "seven"], "no_stop_trim": keep}
        body = {"text": "one two three four", "sampling_params": params}
        answer = echo.post("/generate", body).json()
        assert answer["text"] == text
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": " thr"}
        seen = events(echo.post("/generate", {**body, "stream": True}))
        assert seen[-1]["text"] == text
        assert all(text.startswith(event["text"]) for event in seen), "nothing of a match is sent before it is one"


def test_a_stop_token_is_matched_and_not_shown(echo: Any) -> None:
    [*_, stop] = echo.tokenizer.encode("one two")
    params = {"max_new_tokens": 100, "stop_token_ids": [stop]}
    answer = echo.post("/generate", {"text": "one two three", "sampling_params": params}).json()
    assert answer["text"] == "one"
    assert answer["output_ids"][-1] == stop
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_special_tokens_are_shown_only_on_request(echo: Any) -> None:
    ids = [5, EOS, 6]
    for skip in (True, False):
        params = {"max_new_tokens": 2, "ignore_eos": True, "skip_special_tokens": skip}
        answer = echo.post("/generate", {"input_ids": [0, *ids], "sampling_params": params}).json()
        assert ("</s>" in answer["text"]) is not skip


def test_a_batch_answers_in_order_and_one_of_a_list_is_still_a_list(echo: Any) -> None:
    for texts in (["one"], ["one", "two three", "four"]):
        answer = echo.post("/generate", {"text": texts, "sampling_params": PARAMS}).json()
        assert [a["text"] for a in answer] == texts


def test_samples_stand_together_prompt_by_prompt(echo: Any) -> None:
    before = len(echo.worker.submits)
    params = {"max_new_tokens": 50, "n": 3, "seed": 5}
    answer = echo.post("/generate", {"text": ["one", "two"], "sampling_params": params}).json()
    assert [a["text"] for a in answer] == ["one"] * 3 + ["two"] * 3
    seeds = [submit.sampling.seed for submit in echo.worker.submits[before:]]
    assert seeds == [5, 6, 7, 5, 6, 7]
    assert isinstance(echo.post("/generate", {"text": "one", "sampling_params": {"n": 2}}).json(), list)


def test_every_prompt_may_have_its_own_parameters(echo: Any) -> None:
    params = [{"max_new_tokens": 1}, None, {"max_new_tokens": 2, "n": 2}]
    answer = echo.post("/generate", {"text": [WORDS * 2] * 3, "sampling_params": params}).json()
    assert [a["meta_info"]["completion_tokens"] for a in answer] == [1, 16, 2, 2]


def test_null_stands_for_the_default(echo: Any) -> None:
    params = {"temperature": None, "stop": None, "n": None, "max_new_tokens": 4}
    body = {"text": "one two", "input_ids": None, "sampling_params": params, "rid": None, "stream": None}
    assert echo.post("/generate", body | {"image_data": None, "return_logprob": None}).status_code == 200
    assert echo.post("/generate", {"text": "one", "sampling_params": None}).status_code == 200


def test_unknown_fields_of_the_body_are_ignored(echo: Any) -> None:
    assert (
        echo.post("/generate", {"text": "one", "log_metrics": True, "priority": 3, "x": {"y": []}}).status_code == 200
    )


def test_log_probabilities_have_their_places(echo: Any) -> None:
    ids = echo.tokenizer.encode("one two three")
    body = {
        "text": "one two three",
        "sampling_params": PARAMS,
        "return_logprob": True,
        "logprob_start_len": 1,
        "top_logprobs_num": 2,
        "token_ids_logprob": [9, 8],
        "return_text_in_logprobs": True,
    }
    meta = echo.post("/generate", body).json()["meta_info"]
    text = echo.tokenizer.token_text
    assert meta["input_token_logprobs"] == [[-i / 100, i, text(i)] for i in ids[1:]]
    assert meta["output_token_logprobs"] == [[-i / 100, i, text(i)] for i in [*ids[1:], EOS]]
    assert meta["normalized_prompt_logprob"] == pytest.approx(-sum(ids[1:]) / 100 / len(ids[1:]))
    for side in ("input", "output"):
        tokens = meta[f"{side}_token_logprobs"]
        assert [len(top) for top in meta[f"{side}_top_logprobs"]] == [2] * len(tokens)
        assert [top[0] for top in meta[f"{side}_top_logprobs"]] == tokens
        chosen = [[-0.09, 9, text(9)], [-0.08, 8, text(8)]]
        assert meta[f"{side}_token_ids_logprobs"] == [chosen] * len(tokens)


def test_the_first_prompt_token_has_no_probability(echo: Any) -> None:
    body = {"text": "one two", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
    meta = echo.post("/generate", body).json()["meta_info"]
    assert meta["input_token_logprobs"][0] == [None, 0, None]
    assert meta["input_top_logprobs"][0] is None
    assert "input_token_ids_logprobs" not in meta


def test_by_default_no_prompt_token_is_scored(echo: Any) -> None:
    before = len(echo.worker.submits)
    meta = echo.post("/generate", {"text": "one two", "return_logprob": True}).json()["meta_info"]
    assert echo.worker.submits[before].logprobs == Logprobs(start=-1, top=0)
    assert meta["input_token_logprobs"] == []
    assert len(meta["output_token_logprobs"]) == meta["completion_tokens"]


def test_logprob_options_may_differ_by_prompt(echo: Any) -> None:
    body = {
        "text": ["one two", "three"],
        "return_logprob": [True, False],
        "top_logprobs_num": [2, 0],
        "logprob_start_len": [0, -1],
        "token_ids_logprob": [[4], None],
        "sampling_params": PARAMS,
    }
    first, second = echo.post("/generate", body).json()
    assert len(first["meta_info"]["input_top_logprobs"]) == 3
    assert "output_token_logprobs" not in second["meta_info"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_cumulative_and_ends_as_the_plain_answer(echo: Any, text: str) -> None:
    body = {"text": text, "sampling_params": PARAMS, "rid": "same", "return_logprob": True, "top_logprobs_num": 1}
    echo.post("/generate", body)  # from now on the prompt is cached
    whole = echo.post("/generate", body).json()
    chunks = events(echo.post("/generate", {**body, "stream": True}))
    shown = ""
    for chunk in chunks:
        assert chunk["text"].startswith(shown)
        assert "\ufffd" not in chunk["text"], "half a character"
        assert "index" not in chunk
        shown = chunk["text"]
    assert all(chunk["meta_info"]["finish_reason"] is None for chunk in chunks[:-1])
    for answer in (whole, chunks[-1]):
        del answer["meta_info"]["e2e_latency"]
    assert chunks[-1] == whole


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_of_what_is_new_adds_up_to_the_plain_answer(serving: Any, text: str) -> None:
    config = ServerConfig(model_path="m", random_seed=1, incremental_streaming_output=True, stream_interval=2)
    with serving(config=config, step_s=0.001) as server:
        body = {"text": text, "sampling_params": PARAMS, "return_logprob": True, "logprob_start_len": 0}
        whole = server.post("/generate", body).json()
        chunks = events(server.post("/generate", {**body, "stream": True}))
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
        assert [id for chunk in chunks for id in chunk["output_ids"]] == whole["output_ids"]
        for name in ("input_token_logprobs", "output_token_logprobs"):
            assert [lp for chunk in chunks for lp in chunk["meta_info"][name]] == whole["meta_info"][name]
        assert chunks[-1]["meta_info"]["completion_tokens"] == len(whole["output_ids"])


def test_a_long_prompt_is_cut_where_the_server_may(serving: Any) -> None:
    config = ServerConfig(model_path="m", random_seed=1, allow_auto_truncate=True)
    with serving(config=config) as server:
        ids = [0, *(10 + i % 300 for i in range(CONTEXT))]
        answer = server.post("/generate", {"input_ids": ids, "sampling_params": {"max_new_tokens": 1}})
        assert answer.json()["meta_info"]["prompt_tokens"] == CONTEXT - 1
        assert server.worker.submits[0].tokens.tolist() == ids[: CONTEXT - 1]


def test_a_streamed_batch_tells_its_sequences_apart(echo: Any) -> None:
    params = {"max_new_tokens": 50, "n": 2}
    chunks = events(echo.post("/generate", {"text": ["one two", "three"], "sampling_params": params, "stream": True}))
    last = {chunk["index"]: chunk for chunk in chunks}
    assert {i: chunk["text"] for i, chunk in last.items()} == {0: "one two", 1: "one two", 2: "three", 3: "three"}
    assert all(chunk["meta_info"]["finish_reason"] for chunk in last.values())


def test_the_stream_interval_of_the_server_spaces_events(serving: Any) -> None:
    config = ServerConfig(model_path="m", random_seed=1, stream_interval=5)
    with serving(config=config, steady=True) as server:
        ids = list(range(10, 33))
        chunks = events(server.post("/generate", {"input_ids": [0, *ids], "sampling_params": PARAMS, "stream": True}))
        counts = [chunk["meta_info"]["completion_tokens"] for chunk in chunks]
        assert counts[0] == 1
        assert counts[-1] == 24
        assert all(b - a >= 5 for a, b in pairwise(counts[:-1]))


def test_request_ids_are_the_callers_or_numbered(echo: Any) -> None:
    def ids(**body: Any) -> list[str]:
        answer = echo.post("/generate", {"sampling_params": {"max_new_tokens": 1}, **body}).json()
        return [a["meta_info"]["id"] for a in (answer if isinstance(answer, list) else [answer])]

    assert ids(text="one", rid="r") == ["r"]
    assert ids(text=["one", "two"], rid=["a", "b"]) == ["a", "b"]
    assert ids(text=["one", "two"], rid="r") == ["r_0", "r_1"]
    assert ids(text=["one", "two"], rid=["a", "b"], sampling_params={"n": 2}) == ["a_0", "a_1", "b_0", "b_1"]
    assert len(set(ids(text=["one", "two"]))) == 2


def test_the_cache_salt_keeps_prefixes_apart(echo: Any) -> None:
    before = len(echo.worker.submits)
    echo.post("/generate", {"text": "one", "cache_salt": "tenant"})
    echo.post("/generate", {"text": "one"})
    assert [submit.namespace for submit in echo.worker.submits[before:]] == ["tenant", ""]


@pytest.mark.parametrize("body", [{"rid": "mine"}, {"abort_all": True}])
def test_an_abort_ends_a_request_with_what_it_has(serving: Any, body: dict[str, Any]) -> None:
    with serving(script=lambda s: [10] * 100_000, step_s=0.005) as server:
        answers: list[Any] = []
        request = {"text": "x", "rid": "mine", "sampling_params": {"max_new_tokens": 100_000}}
        reader = threading.Thread(target=lambda: answers.append(server.post("/generate", request)))
        reader.start()
        assert eventually(lambda: server.worker.running == 1)
        assert server.post("/abort_request", {"rid": "other"}).json() == {"aborted": 0}
        assert server.post("/abort_request", body).json() == {"aborted": 1}
        reader.join(HANG_S)
        reason = answers[0].json()["meta_info"]["finish_reason"]
        assert reason == {"type": "abort", "message": "aborted by request"}
        assert eventually(lambda: server.worker.aborted == [server.worker.submits[0].id])


def test_health_is_empty_and_generating_health_draws_a_token(echo: Any) -> None:
    for path in ("/health", "/ping"):
        answer = echo.get(path)
        assert (answer.status_code, answer.text) == (200, "")
    before = len(echo.worker.submits)
    assert echo.get("/health_generate").status_code == 200
    assert echo.worker.submits[before].sampling.max_new_tokens == 1


def test_model_info_tells_the_model(echo: Any) -> None:
    for path in ("/get_model_info", "/model_info"):
        facts = echo.get(path).json()
        assert facts["model_path"] == "some/model"
        assert facts["is_generation"] is True
        assert facts["architectures"] == ["LlamaForCausalLM"]
        assert facts["max_model_len"] == CONTEXT


def test_server_args_tell_every_setting_but_no_secret(serving: Any) -> None:
    config = ServerConfig(model_path="m", random_seed=1, api_key="hush", ssl_keyfile_password="hush2")
    with serving(config=config) as server:
        for path in ("/get_server_args", "/get_server_info", "/server_info"):
            answer = server.get(path, headers={"X-API-Key": "hush"})
            facts = answer.json()
            assert facts["model_path"] == "m"
            assert facts["max_total_num_tokens"] == 10_000
            assert facts["internal_states"][0]["running"] == 0
            assert facts["version"]
            assert "api_key" not in facts
            assert "hush" not in answer.text


def test_the_cache_is_flushed_only_when_idle(serving: Any) -> None:
    with serving(script=lambda s: [10] * 400) as server:
        for method in (server.get, lambda path: server.post(path, None)):
            answer = method("/flush_cache")
            assert answer.status_code == 200
            assert answer.text.startswith("Cache flushed.")
        server.worker.pause()
        reader = threading.Thread(target=lambda: server.post("/generate", {"text": "x"}))
        reader.start()
        assert eventually(lambda: server.worker.running == 1)
        refused = server.get("/flush_cache")
        assert refused.status_code == 400
        assert "running" in refused.json()["error"]["message"]
        threading.Timer(0.1, server.worker.go_on).start()
        assert server.get("/flush_cache", params={"timeout": str(HANG_S)}).status_code == 200
        reader.join(HANG_S)


@pytest.mark.parametrize("path", ["", "/v1"])
def test_text_becomes_tokens_and_text_again(echo: Any, path: str) -> None:
    ids = echo.tokenizer.encode(WORDS)
    answer = echo.post(path + "/tokenize", {"prompt": WORDS}).json()
    assert answer == {"tokens": ids, "count": len(ids), "max_model_len": CONTEXT}
    bare = echo.post(path + "/tokenize", {"prompt": WORDS, "add_special_tokens": False}).json()
    assert bare["tokens"] == ids[1:]
    batch = echo.post(path + "/tokenize", {"prompt": [WORDS, "one"]}).json()
    assert batch["count"] == [len(ids), len(echo.tokenizer.encode("one"))]
    assert echo.post(path + "/detokenize", {"tokens": ids}).json() == {"text": WORDS}
    assert echo.post(path + "/detokenize", {"tokens": [ids, ids[1:]]}).json() == {"text": [WORDS, WORDS]}


def test_every_api_tells_the_worker_whom_a_request_continues(serving: Any) -> None:
    with serving() as server:

        def told(path: str, body: dict[str, Any]) -> Any:
            assert server.post(path, body).status_code == 200
            return server.worker.submits[-1]

        first = told("/generate", {"text": "one", "rid": "a", "sampling_params": PARAMS})
        assert first.place == ()
        chain = {"segments": [{"text": "one"}, {"gen": "x", "sampling_params": PARAMS}], "rid": "c", "parent": "a"}
        second = told("/generate", chain)
        assert second.place == (first.id,)
        assert told("/generate", {"text": "one", "parent": "c"}).place == (first.id, second.id)
        assert told("/v1/completions", {"prompt": "one", "parent": "a"}).place == (first.id,)
        chat = {"messages": [{"role": "user", "content": "one"}], "parent": "a"}
        assert told("/v1/chat/completions", chat).place == (first.id,)


def test_requests_are_logged_only_on_request(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sglang.server")
    for wanted in (False, True):
        with serving(config=ServerConfig(model_path="m", random_seed=1, log_requests=wanted)) as server:
            server.post("/generate", {"text": "one two", "rid": "mine", "sampling_params": PARAMS})
            server.http.post("/generate", json={"text": "x"}, headers={"X-API-Key": "not-to-be-logged"})
        text = caplog.text
        assert ("request rid=mine prompt='<s>one two'" in text) is wanted
        assert ("finished rid=mine" in text) is wanted
        assert "not-to-be-logged" not in text


def test_metrics_count_what_was_served(serving: Any) -> None:
    with serving() as server:
        for _ in range(3):
            server.post("/generate", {"text": "one two", "sampling_params": PARAMS})
        lines = server.get("/metrics").text.splitlines()

        def value(name: str) -> float:
            [line] = [x for x in lines if x.startswith(f'sglang:{name}{{model_name="some/model"')]
            return float(line.rsplit(" ", 1)[1])

        tokens = len(server.tokenizer.encode("one two"))
        assert value("num_requests_total") == 3
        assert value("prompt_tokens_total") == value("generation_tokens_total") == 3 * tokens
        assert value("time_to_first_token_seconds_count") == value("e2e_request_latency_seconds_count") == 3
        assert value("inter_token_latency_seconds_count") == 3 * (tokens - 1)
        assert value("queue_time_seconds_count") == 3
        assert value("queue_time_seconds_sum") == 0.75
        assert value("num_aborted_requests_total") == 0
        for name in ("num_running_reqs", "num_queue_reqs", "token_usage", "cache_hit_rate", "gen_throughput"):
            value(name)
        for name in ("cached_tokens_total", "num_retractions_total", "jump_forward_tokens_total"):
            value(name)
