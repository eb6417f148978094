"""The server as users run it: a process with a port, a model and signals."""

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.e2e

LONG = {"max_new_tokens": 900, "ignore_eos": True, "temperature": 0}


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def generate(server: Any, **body: Any) -> httpx.Response:
    return httpx.post(server.url + "/generate", json=body, timeout=60)


def worker_pid(server: Any) -> int:
    [pid] = subprocess.check_output(["pgrep", "-P", str(server.process.pid)], text=True).split()
    return int(pid)


def test_the_readmes_first_request_is_answered(served: Any) -> None:
    params = {"max_new_tokens": 16, "temperature": 0}
    answer = generate(served, text="Once upon a time,", sampling_params=params).json()
    assert answer["text"]
    assert answer["meta_info"]["completion_tokens"] == len(answer["output_ids"]) <= 16


def test_the_readmes_openai_program_runs(served: Any) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="EMPTY") as client:
        text = client.completions.create(
            model="default", prompt="The capital of France is", temperature=0, max_tokens=8
        )
        assert text.choices[0].text
        messages = [
            {"role": "system", "content": "You are a helpful AI assistant"},
            {"role": "user", "content": "List 3 countries and their capitals."},
        ]
        asked: dict[str, Any] = {"model": "default", "messages": messages, "temperature": 0, "max_tokens": 16}
        whole = client.chat.completions.create(**asked)
        streamed = client.chat.completions.create(**asked, stream=True)
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert joined == whole.choices[0].message.content


def test_a_streamed_answer_is_the_plain_answer(served: Any) -> None:
    body = {"text": "Once upon a time,", "sampling_params": {"max_new_tokens": 40, "temperature": 0}}
    whole = generate(served, **body).json()
    frames = generate(served, **body, stream=True).text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    last = json.loads(frames[-3][6:])
    assert (last["text"], last["output_ids"]) == (whole["text"], whole["output_ids"])


def test_prompt_and_output_logprobs_come_from_the_model(served: Any) -> None:
    """A token's output log-probability is what the same token gets as part of a prompt."""
    params = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    ids = httpx.post(served.url + "/tokenize", json={"prompt": "Once upon a time,"}).json()["tokens"]
    first = generate(served, input_ids=ids, sampling_params=params, return_logprob=True).json()
    drawn = first["meta_info"]["output_token_logprobs"]
    params = {"max_new_tokens": 0}
    whole = [*ids, *first["output_ids"]]
    again = generate(served, input_ids=whole, sampling_params=params, return_logprob=True, logprob_start_len=0).json()
    known = again["meta_info"]["input_token_logprobs"]
    assert known[0][0] is None
    assert [t for _, t, _ in known] == whole
    assert [lp for lp, _, _ in known[len(ids) :]] == pytest.approx([lp for lp, _, _ in drawn], abs=1e-3)


def test_a_prompt_longer_than_the_context_is_a_400(served: Any) -> None:
    length = httpx.get(served.url + "/get_model_info").json()["max_model_len"]
    answer = generate(served, input_ids=[5] * length)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input_ids"
    assert f"{length} tokens" in answer.json()["error"]["message"]


def test_clients_that_leave_free_their_sequences(served: Any) -> None:
    before = served.metric("sglang:num_aborted_requests_total")
    content = json.dumps({"text": "x", "stream": True, "sampling_params": {**LONG, "n": 2}}).encode()
    port = int(served.url.rsplit(":", 1)[1])
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port)) as s:
            head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
            s.sendall(head + content)
            assert s.recv(64).startswith(b"HTTP/1.1 200")
    assert eventually(lambda: served.metric("sglang:num_aborted_requests_total") == before + 10)
    assert eventually(lambda: httpx.get(served.url + "/flush_cache").status_code == 200)


def test_sigterm_lets_a_running_request_end_and_exits_zero(start_server: Any) -> None:
    with start_server() as server:
        answers: list[httpx.Response] = []
        reader = threading.Thread(target=lambda: answers.append(generate(server, text="x", sampling_params=LONG)))
        reader.start()
        assert eventually(lambda: server.metric("sglang:num_running_reqs") == 1)
        server.process.send_signal(signal.SIGTERM)
        reader.join(60)
        assert answers[0].json()["meta_info"]["completion_tokens"] == 900
        assert server.process.wait(20) == 0


def test_a_killed_worker_answers_with_the_reason_and_ends_the_server(start_server: Any) -> None:
    with start_server() as server:
        answers: list[httpx.Response] = []
        reader = threading.Thread(target=lambda: answers.append(generate(server, text="x", sampling_params=LONG)))
        reader.start()
        assert eventually(lambda: server.metric("sglang:num_running_reqs") == 1)
        subprocess.check_call(["kill", "-9", str(worker_pid(server))])
        reader.join(20)
        assert answers[0].status_code == 500
        assert "worker" in answers[0].json()["error"]["message"]
        assert server.process.wait(20) not in (0, None)


def test_a_key_guards_the_server_and_is_never_shown(start_server: Any) -> None:
    with start_server("--api-key", "s3cret-key") as server:
        assert generate(server, text="x").status_code == 401
        with openai.OpenAI(base_url=server.url + "/v1", api_key="s3cret-key") as client:
            assert client.models.list().data
        shown = httpx.get(server.url + "/get_server_args", headers={"X-API-Key": "s3cret-key"})
        assert shown.status_code == 200
        assert "s3cret-key" not in shown.text
        assert "s3cret-key" not in server.log
