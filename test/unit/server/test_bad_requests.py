"""Every kind of request that cannot be served: a 4xx that names the field, and a server that minds nothing."""

import json
import threading
from typing import Any

import httpx
import pytest
from server_doubles import CONTEXT, HANG_S, eventually

from sglang.base import limits

USER = [{"role": "user", "content": "hi"}]
G, C, H = "/generate", "/v1/completions", "/v1/chat/completions"


def params(**values: Any) -> dict[str, Any]:
    return {"text": "x", "sampling_params": values}


def prompt(**values: Any) -> dict[str, Any]:
    return {"prompt": "x", **values}


def chat(**values: Any) -> dict[str, Any]:
    return {"messages": USER, **values}


def scored(**values: Any) -> dict[str, Any]:
    return {"text": "x", "return_logprob": True, **values}


BAD: list[tuple[str, Any, str, str]] = [
    # path, body, field named in `param`, words of the message
    (G, {}, "text", "Either text or input_ids"),
    (G, {"text": "x", "input_ids": [1]}, "text", "Either text or input_ids"),
    (G, [], "body", "Expected object, got array"),
    (G, "x", "body", "Expected object, got str"),
    (G, {"text": 3}, "text", "got int"),
    (G, {"text": ["a", 3]}, "text[1]", "got int"),
    (G, {"text": []}, "text", "at least one prompt"),
    (G, {"input_ids": []}, "input_ids", "at least one token"),
    (G, {"input_ids": [[]]}, "input_ids", "at least one token"),
    (G, {"input_ids": ["a"]}, "input_ids[0]", "got str"),
    (G, {"input_ids": [1, [2]]}, "input_ids", "not a mixture"),
    (G, {"input_ids": [1.5]}, "input_ids[0]", "got float"),
    (G, {"input_ids": [True]}, "input_ids[0]", "got bool"),
    (G, {"input_ids": [400]}, "input_ids", "[0, 400), got 400"),
    (G, {"input_ids": [-1]}, "input_ids", "got -1"),
    (G, {"input_ids": [2**80]}, "input_ids", "[0, 400)"),
    (G, {"input_ids": [5] * CONTEXT}, "input_ids", f"{CONTEXT} tokens"),
    (G, {"text": "one " * 5000}, "text", "too long"),
    (G, {"text": ["x"] * (limits.BATCH + 1)}, "text", "at most 4096 sequences, got 4097"),
    (G, {"text": ["x"] * 2000, "sampling_params": {"n": 3}}, "text", "got 6000"),
    (G, {"text": "x", "sampling_params": 3}, "sampling_params", "got int"),
    (G, {"text": ["x", "y"], "sampling_params": [{}]}, "sampling_params", "list of 2"),
    (G, {"text": ["x"], "sampling_params": [{"top_p": 3}]}, "sampling_params[0].top_p", "(0, 1], got 3"),
    (G, params(temperature=-0.1), "sampling_params.temperature", "[0, inf), got -0.1"),
    (G, params(temperature="hot"), "sampling_params.temperature", "got str"),
    (G, params(temperature="nan"), "sampling_params.temperature", "got str"),
    (G, params(temperature=True), "sampling_params.temperature", "got bool"),
    (G, params(top_p=0), "sampling_params.top_p", "(0, 1], got 0"),
    (G, params(top_p=1.01), "sampling_params.top_p", "got 1.01"),
    (G, params(top_k=0), "sampling_params.top_k", "-1 (off)"),
    (G, params(top_k=-2), "sampling_params.top_k", "got -2"),
    (G, params(top_k=2**40), "sampling_params.top_k", "got 1099511627776"),
    (G, params(top_k=1.5), "sampling_params.top_k", "got float"),
    (G, params(min_p=1.5), "sampling_params.min_p", "[0, 1], got 1.5"),
    (G, params(max_new_tokens=-1), "sampling_params.max_new_tokens", "got -1"),
    (G, params(max_new_tokens=2**40), "sampling_params.max_new_tokens", str(2**40)),
    (G, params(max_new_tokens=1.5), "sampling_params.max_new_tokens", "got float"),
    (G, params(min_new_tokens=9, max_new_tokens=3), "sampling_params.min_new_tokens", "max_new_tokens = 3"),
    (G, params(frequency_penalty=2.1), "sampling_params.frequency_penalty", "[-2, 2], got 2.1"),
    (G, params(presence_penalty=-3), "sampling_params.presence_penalty", "got -3"),
    (G, params(repetition_penalty=0), "sampling_params.repetition_penalty", "(0, 2], got 0"),
    (G, params(n=0), "sampling_params.n", "[1, 128], got 0"),
    (G, params(n=129), "sampling_params.n", "got 129"),
    (G, params(seed=-1), "sampling_params.seed", "got -1"),
    (G, params(stop=5), "sampling_params.stop[0]", "got int"),
    (G, params(stop=[""]), "sampling_params.stop", "1 to 512 characters"),
    (G, params(stop=["a"] * 33), "sampling_params.stop", "at most 32"),
    (G, params(stop=["a" * 513]), "sampling_params.stop", "got 513"),
    (G, params(stop_token_ids=["a"]), "sampling_params.stop_token_ids[0]", "got str"),
    (G, params(stop_token_ids=[-4]), "sampling_params.stop_token_ids", ">= 0"),
    (G, params(stop_token_ids=[401]), "stop_token_ids", "[0, 400), got 401"),
    (G, params(stop_token_ids=list(range(257))), "sampling_params.stop_token_ids", "at most 256"),
    (G, params(logit_bias={"a": 1}), "sampling_params.logit_bias", "Expected int"),
    (G, params(logit_bias={"5": 101}), "sampling_params.logit_bias", "[-100, 100], got 101"),
    (G, params(logit_bias={"555": 1}), "logit_bias", "got 555"),
    (G, params(logit_bias=[1]), "sampling_params.logit_bias", "got array"),
    (G, params(ignore_eos=1), "sampling_params.ignore_eos", "got int"),
    (G, params(regex="a", ebnf="b"), "sampling_params.ebnf", "at most one constraint"),
    (G, params(dtype="list"), "sampling_params.dtype", "must be one of int, float, bool, str"),
    (G, params(regex=1), "sampling_params.regex", "got int"),
    (G, params(json_schema=[1]), "sampling_params.json_schema", "got array"),
    (G, params(stop_regex=[1]), "sampling_params.stop_regex[0]", "got int"),
    (G, params(stop_regex="a" * 513), "sampling_params.stop_regex", "at most 512 characters"),
    (G, params(stop_regex="("), "sampling_params.stop_regex", "not a regular expression"),
    (G, params(stop_regex=["a", "b*"]), "sampling_params.stop_regex", "must not match the empty text"),
    (G, params(stop_regex=r"(a)\1"), "sampling_params.stop_regex", "back-references"),
    (G, params(stop_regex="a{300}"), "sampling_params.stop_regex", "too large"),
    (
        G,
        {"text": ["x", "y"], "sampling_params": [{"stop_regex": "a"}, {"stop_regex": "a$"}]},
        "sampling_params[1].stop_regex",
        "cannot be used",
    ),
    (
        G,
        {"text": ["x"] * 65, "sampling_params": [{"stop_regex": f"a{i}"} for i in range(65)]},
        "sampling_params[64].stop_regex",
        "at most 64 different ones",
    ),
    (
        G,
        {"segments": [{"text": "x"}, {"gen": "a"}, {"gen": "b", "sampling_params": {"stop_regex": "("}}]},
        "segments[2].sampling_params.stop_regex",
        "not a regular expression",
    ),
    (G, params(stream_interval=4), "sampling_params.stream_interval", "not supported"),
    (G, params(tempratur=1), "sampling_params.tempratur", "known keys: "),
    (G, {"text": "x", "stream": "yes"}, "stream", "got str"),
    (G, {"text": "x", "rid": 5}, "rid", "got int"),
    (G, {"text": "x", "rid": ""}, "rid", "1 to 256"),
    (G, {"text": "x", "rid": "r" * 257}, "rid", "1 to 256"),
    (G, {"text": ["x", "y"], "rid": ["a"]}, "rid", "list of 2"),
    (G, {"text": "x", "parent": ""}, "parent", "1 to 256"),
    (C, {"prompt": "x", "parent": ""}, "parent", "1 to 256"),
    (G, {"text": "x", "parent": "r" * 257}, "parent", "1 to 256"),
    (G, {"text": "x", "parent": ["a"]}, "parent", "got array"),
    (G, {"segments": [{"text": "x"}, {"gen": None}], "parent": ""}, "parent", "1 to 256"),
    (G, {"text": ["x", "y"], "rid": ["a", "a"]}, "rid", "alike"),
    (G, {"text": "x", "return_logprob": "yes"}, "return_logprob", "got str"),
    (G, {"text": ["x", "y"], "return_logprob": [True]}, "return_logprob", "list of 2"),
    (G, scored(logprob_start_len=-2), "logprob_start_len", "got -2"),
    (G, scored(logprob_start_len=99), "logprob_start_len", "got 99"),
    (G, scored(top_logprobs_num=-1), "top_logprobs_num", "[0, 128], got -1"),
    (G, scored(top_logprobs_num=129), "top_logprobs_num", "got 129"),
    (G, scored(token_ids_logprob=[400]), "token_ids_logprob", "got 400"),
    (G, scored(token_ids_logprob=[1, [2]]), "token_ids_logprob", "mixture"),
    (G, scored(token_ids_logprob=[1] * 1025), "token_ids_logprob", "at most 1024"),
    (G, {"text": "x", "image_data": "cat.png"}, "image_data", "not supported"),
    (G, {"text": "x", "lora_path": "a"}, "lora_path", "not supported"),
    (G, {"text": "x", "input_embeds": [[0.5]]}, "input_embeds", "not supported"),
    (G, {"text": "x", "session_params": {"id": "a"}}, "session_params", "not supported"),
    (G, {"text": "x", "custom_logit_processor": "80"}, "custom_logit_processor", "not supported"),
    (G, {"text": "x", "return_hidden_states": True}, "return_hidden_states", "not supported"),
    (C, {}, "prompt", "missing required field prompt"),
    (C, {"prompt": None}, "prompt", "got null"),
    (C, {"prompt": []}, "prompt", "at least one token"),
    (C, {"prompt": ["a", 1]}, "prompt", "mixture"),
    (C, {"prompt": [1, [2]]}, "prompt", "mixture"),
    (C, {"prompt": [500]}, "prompt", "got 500"),
    (C, {"prompt": {"a": 1}}, "prompt", "got object"),
    (C, prompt(max_tokens=-1), "max_tokens", "got -1"),
    (C, prompt(max_tokens="5"), "max_tokens", "got str"),
    (C, prompt(temperature=-1), "temperature", "[0, inf), got -1"),
    (C, prompt(top_p=2), "top_p", "(0, 1], got 2"),
    (C, prompt(n=0), "n", "[1, 128], got 0"),
    (C, prompt(n=1000), "n", "got 1000"),
    (C, prompt(best_of=2), "best_of", "equal to n (1), got 2"),
    (C, prompt(suffix="end"), "suffix", "not supported"),
    (C, prompt(logprobs=-1), "logprobs", "[0, 128], got -1"),
    (C, prompt(logprobs=1000), "logprobs", "got 1000"),
    (C, prompt(logprobs=True), "logprobs", "got bool"),
    (C, prompt(seed="a"), "seed", "got str"),
    (C, prompt(logit_bias={"x": 1}), "logit_bias", "Expected int"),
    (C, prompt(stop=[1]), "stop[0]", "got int"),
    (C, prompt(stream_options=3), "stream_options", "got int"),
    (C, prompt(stream_options={"include_usage": 1}), "stream_options.include_usage", "got int"),
    (C, prompt(response_format={"type": "xml"}), "response_format.type", "Invalid enum value"),
    (C, prompt(response_format={"type": "json_schema"}), "response_format", "must be an object"),
    (C, prompt(min_tokens=5, max_tokens=2), "min_tokens", "got 5"),
    (C, prompt(lora_path="a"), "lora_path", "not supported"),
    (C, prompt(stop_regex=5), "stop_regex", "got int"),
    (C, prompt(stop_regex=["("]), "stop_regex", "not a regular expression"),
    (C, prompt(guided_json={}, guided_whitespace_pattern=" ?"), "guided_whitespace_pattern", "not supported"),
    (H, {}, "messages", "missing required field messages"),
    (H, {"messages": []}, "messages", "1 to 4096 turns, got 0"),
    (H, {"messages": [{}]}, "messages[0].role", "missing required field role"),
    (H, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "Invalid enum value 'king'"),
    (H, {"messages": [{"role": "user"}]}, "messages[0].content", "got null"),
    (H, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got int"),
    (
        H,
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {}}]}]},
        "messages[0].tool_calls",
        "only the assistant",
    ),
    (H, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "type text"),
    (
        H,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        "messages[0].content[0]",
        "got image_url",
    ),
    (H, {"messages": [{"role": "user", "content": "one " * 5000}]}, "messages", "too long"),
    (H, chat(max_tokens=-5), "max_tokens", "got -5"),
    (H, chat(max_completion_tokens=-5), "max_completion_tokens", "got -5"),
    (H, chat(top_logprobs=2), "top_logprobs", "needs logprobs: true"),
    (H, chat(logprobs=True, top_logprobs=500), "top_logprobs", "got 500"),
    (H, chat(logprobs=2), "logprobs", "got int"),
    (H, chat(tools=[{"type": "x", "function": {"name": "f"}}]), "tools[0].type", "Invalid enum value"),
    (H, chat(tools=[{"type": "function"}]), "tools[0].function", "missing required field"),
    (H, chat(tool_choice="required"), "tool_choice", "needs tools"),
    (H, chat(chat_template_kwargs=[]), "chat_template_kwargs", "got array"),
    (H, chat(continue_final_message=True), "continue_final_message", "last message of the assistant"),
    (H, chat(messages=[{"role": "system", "content": "no"}]), "messages", "template refuses these messages"),
    (H, chat(input_ids=[1]), "input_ids", "not supported"),
    (H, chat(functions=[{"name": "f"}]), "functions", "not supported"),
    (H, chat(function_call="auto"), "function_call", "not supported"),
    (H, chat(audio={"voice": "a", "format": "wav"}), "audio", "not supported"),
    (H, chat(stop_regex="a?"), "stop_regex", "must not match the empty text"),
    (H, chat(presence_penalty=5), "presence_penalty", "[-2, 2], got 5"),
    ("/tokenize", {"prompt": 5}, "prompt", "got int"),
    ("/tokenize", {"prompt": []}, "prompt", "at least one prompt"),
    ("/detokenize", {"tokens": [401]}, "tokens", "[0, 400)"),
    ("/detokenize", {"tokens": [1, [2]]}, "tokens", "mixture"),
    ("/detokenize", {"tokens": "x"}, "tokens", "got str"),
    ("/abort_request", {}, "rid", "abort_all"),
]


def check(answer: httpx.Response, status: int, field: str | None, words: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["object"] == "error"
    assert body["code"] == status
    error = body["error"]
    assert error["param"] == body["param"] == field
    assert error["message"] == body["message"]
    assert words in error["message"]
    assert error["retryable"] is False


@pytest.mark.parametrize(("path", "body", "field", "words"), BAD)
def test_a_bad_request_is_answered_with_the_name_of_its_field(
    echo: Any, path: str, body: Any, field: str, words: str
) -> None:
    check(echo.post(path, body), 400, field, words)


def test_a_chain_with_a_bad_pattern_is_refused_before_anything_is_computed(echo: Any) -> None:
    before = len(echo.worker.submits)
    body = {"segments": [{"text": "x"}, {"gen": "a"}, {"gen": "b", "sampling_params": {"stop_regex": "("}}]}
    check(echo.post(G, body), 400, "segments[2].sampling_params.stop_regex", "not a regular expression")
    assert len(echo.worker.submits) == before


STREAMS = [case for case in BAD if case[0] in (G, C, H) and isinstance(case[1], dict) and "stream" not in case[1]]


@pytest.mark.parametrize(("path", "body", "field", "words"), STREAMS)
def test_a_bad_request_for_a_stream_is_a_plain_error_too(
    echo: Any, path: str, body: Any, field: str, words: str
) -> None:
    check(echo.post(path, {**body, "stream": True}), 400, field, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"null", "Expected object, got null"),
        (b"{", "not valid JSON"),
        (b'{"text": "x"', "not valid JSON"),
        (b'{"text": "x"} trailing', "not valid JSON"),
        (b'{"text": NaN}', "not valid JSON"),
        (b"{'text': 'x'}", "not valid JSON"),
        (b'{"text": "\xff\xfe"}', "not valid JSON"),
        (b'{"text": "\\ud800"}', "not valid JSON"),
        (b'{"text": "x", "sampling_params": {"temperature": 1e999}}', "out of range"),
        (b"\x80\x04\x95", "not valid JSON"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested at most 64 deep"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested at most 64 deep"),
        (b'{"x":' + b"[" * 100_000, "nested at most 64 deep"),
        (b'{"x":[' + b"[]," * 600_000 + b"[]]}", "in few enough brackets"),
    ],
)
def test_a_body_that_is_no_json_is_a_400(echo: Any, content: bytes, words: str) -> None:
    answer = echo.http.post(G, content=content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_brackets_inside_strings_are_text(echo: Any) -> None:
    text = '[{"\\"' * 40
    body = {"text": text, "sampling_params": {"max_new_tokens": 1}, "x": [[1, "]"]] * 40}
    assert echo.post(G, body).status_code == 200


def test_a_body_that_is_too_large_is_refused_unread(echo: Any) -> None:
    """Both announced and in chunks, without being held in memory."""
    head = {"Content-Length": str(limits.BODY_BYTES + 1)}
    import socket

    with socket.create_connection(("127.0.0.1", echo.port), timeout=HANG_S) as s:
        s.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {head['Content-Length']}\r\n\r\n".encode())
        assert s.recv(4096).startswith(b"HTTP/1.1 413 ")

    def chunks() -> Any:
        for _ in range(limits.BODY_BYTES // 2**20 + 2):
            yield b" " * 2**20

    answer = echo.http.post(G, content=chunks())
    check(answer, 413, "body", str(limits.BODY_BYTES))


def test_compressed_bodies_are_refused(echo: Any) -> None:
    answer = echo.http.post(G, content=b"x", headers={"Content-Encoding": "gzip"})
    check(answer, 415, "content-encoding", "compressed")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/rerank", 404),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/generate", 405),
        ("DELETE", "/generate", 405),
        ("PUT", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/v1/completions", 405),
    ],
)
def test_wrong_paths_and_methods_have_the_same_error_shape(echo: Any, method: str, path: str, status: int) -> None:
    answer = echo.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == answer.json()["code"] == status
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("seconds", ["-1", "nan", "x", "99999"])
def test_a_flush_refuses_times_that_are_none(echo: Any, seconds: str) -> None:
    check(echo.get("/flush_cache", params={"timeout": seconds}), 400, "timeout", "[0, 3600]")


def test_bad_requests_harm_no_good_one(echo: Any) -> None:
    """Every bad body at once, good ones in between: all of these are answered in full."""
    answers: list[str] = []

    def good(i: int) -> None:
        body = {"text": f"one two {i}", "sampling_params": {"max_new_tokens": 50}}
        answers.append(echo.post(G, body).json()["text"])

    def bad(path: str, body: Any) -> None:
        echo.post(path, body)

    threads = [threading.Thread(target=good, args=(i,)) for i in range(20)]
    threads += [threading.Thread(target=bad, args=case[:2]) for case in BAD[::4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert sorted(answers) == sorted(f"one two {i}" for i in range(20))
    assert eventually(lambda: echo.front.open_requests == 0)
    assert json.loads(echo.post(G, {"text": "one"}).text)["text"] == "one"
