"""The server as users run it: a process with a port, a model and signals."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from live_server import ENDLESS, FAR, HANG_S

pytestmark = pytest.mark.e2e


def eventually(condition: Callable[[], bool], timeout_s: float = HANG_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def generate(server: Any, **body: Any) -> httpx.Response:
    return httpx.post(server.url + "/generate", json=body, timeout=2 * HANG_S)


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


STOPPED = {"max_new_tokens": 40, "temperature": 0, "stop_regex": [r"[.,]\s", r"\n\w"]}


@pytest.mark.parametrize("constraint", [{}, {"regex": r"[\w ,.\n]+"}], ids=["free", "constrained"])
def test_a_pattern_ends_an_answer_where_it_matches_first(served: Any, constraint: dict[str, str]) -> None:
    text = "Q: What is the capital of France?\nA:"
    free = {**STOPPED, **constraint, "stop_regex": None}
    whole = generate(served, text=text, sampling_params=free).json()["text"]
    found = re.search("|".join(STOPPED["stop_regex"]), whole)
    assert found is not None
    for kept, end in ((False, found.start()), (True, found.end())):
        body = {"text": text, "sampling_params": {**STOPPED, **constraint, "no_stop_trim": kept}}
        answer = generate(served, **body).json()
        assert answer["text"] == whole[:end]
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": found.group()}
        frames = generate(served, **body, stream=True).text.split("\n\n")[:-2]
        texts = [json.loads(frame[6:])["text"] for frame in frames]
        assert texts[-1] == whole[:end]
        assert all(whole[:end].startswith(text) for text in texts)
    assert eventually(lambda: state(served)["running"] == 0), "the worker was told"


def test_a_pattern_ends_openais_answers(served: Any) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="EMPTY") as client:
        asked: dict[str, Any] = {"model": "default", "prompt": "Once upon a time,", "temperature": 0, "max_tokens": 40}
        whole = client.completions.create(**asked).choices[0].text
        extra = {"stop_regex": "e[ .,]"}
        found = re.search(extra["stop_regex"], whole)
        assert found is not None
        [choice] = client.completions.create(**asked, extra_body=extra).choices
        assert (choice.text, choice.finish_reason) == (whole[: found.start()], "stop")
        assert choice.model_extra is not None and choice.model_extra["matched_stop"] == found.group()
        chunks = client.completions.create(**asked, extra_body=extra, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: found.start()]
        with pytest.raises(openai.BadRequestError, match="stop_regex is not a regular expression"):
            client.completions.create(**asked, extra_body={"stop_regex": "("})


def test_prompt_and_output_logprobs_come_from_the_model(served: Any) -> None:
    """A token's output log-probability is what the same token gets as part of a prompt."""
    params = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    ids = httpx.post(served.url + "/tokenize", json={"prompt": "Once upon a time,"}, timeout=HANG_S).json()["tokens"]
    first = generate(served, input_ids=ids, sampling_params=params, return_logprob=True).json()
    drawn = first["meta_info"]["output_token_logprobs"]
    params = {"max_new_tokens": 0}
    whole = [*ids, *first["output_ids"]]
    again = generate(served, input_ids=whole, sampling_params=params, return_logprob=True, logprob_start_len=0).json()
    known = again["meta_info"]["input_token_logprobs"]
    assert known[0][0] is None
    assert [t for _, t, _ in known] == whole
    assert [lp for lp, _, _ in known[len(ids) :]] == pytest.approx([lp for lp, _, _ in drawn], abs=1e-4)


def test_a_prompt_longer_than_the_context_is_a_400(served: Any) -> None:
    length = httpx.get(served.url + "/get_model_info", timeout=HANG_S).json()["max_model_len"]
    answer = generate(served, input_ids=[5] * length)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input_ids"
    assert f"{length} tokens" in answer.json()["error"]["message"]


def state(server: Any) -> dict[str, Any]:
    return httpx.get(server.url + "/get_server_info", timeout=HANG_S).json()["internal_states"][0]


def test_two_hundred_clients_that_vanish_in_a_stream_leave_no_slot_in_use(served: Any) -> None:
    """Half say goodbye, half reset the connection; then nothing runs, waits or holds memory, and answers are right."""
    known = generate(served, text="The capital of France is", sampling_params={"temperature": 0}).json()
    before = served.metric("sglang:num_aborted_requests_total")
    port = int(served.url.rsplit(":", 1)[1])
    clients: list[socket.socket] = []
    worker = worker_pid(served)
    # It stands still until all have asked, so that the first has not got its whole answer before the last one asks.
    os.kill(worker, signal.SIGSTOP)
    try:
        for i in range(200):
            body = {"text": f"Story number {i}:", "stream": True, "sampling_params": {**ENDLESS, "max_new_tokens": 150}}
            path = "/generate"
            if i % 2:
                body = {"prompt": f"Story number {i}:", "stream": True, "max_tokens": 150, "ignore_eos": True}
                path = "/v1/completions"
            content = json.dumps(body).encode()
            s = socket.create_connection(("127.0.0.1", port), timeout=HANG_S)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            s.sendall(head.encode() + content)
            clients.append(s)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert all(s.recv(64).startswith(b"HTTP/1.1 200") for s in clients)
    for i, s in enumerate(clients):
        if i % 4 < 2:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends a reset
        s.close()
    assert eventually(lambda: served.metric("sglang:num_aborted_requests_total") == before + 200)
    assert eventually(lambda: state(served)["running"] == state(served)["waiting"] == 0)
    assert state(served)["used_tokens"] == 0
    assert httpx.get(served.url + "/flush_cache", timeout=HANG_S).status_code == 200
    assert eventually(lambda: state(served)["cached_tokens"] == 0)
    again = generate(served, text="The capital of France is", sampling_params={"temperature": 0}).json()
    assert again["output_ids"] == known["output_ids"]


def test_a_queue_that_is_full_answers_503_until_it_is_not(start_server: Any) -> None:
    with start_server("--max-running-requests", "1", "--max-queued-requests", "2", *FAR) as server:
        readers = [
            threading.Thread(target=lambda: generate(server, text="x", sampling_params=ENDLESS, rid="long"))
            for _ in range(3)
        ]
        readers[0].start()
        assert eventually(lambda: state(server)["running"] == 1)  # until then it waits too
        for reader in readers[1:]:
            reader.start()
        assert eventually(lambda: (state(server)["running"], state(server)["waiting"]) == (1, 2))
        for path, body in (("/generate", {"text": "y"}), ("/v1/completions", {"prompt": "y"})):
            refused = httpx.post(server.url + path, json=body, timeout=HANG_S)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "2 requests are waiting" in refused.json()["error"]["message"]
        aborted = httpx.post(server.url + "/abort_request", json={"rid": "long"}, timeout=HANG_S).json()
        assert aborted == {"aborted": 3}
        for reader in readers:
            reader.join(HANG_S)
        assert generate(server, text="y").status_code == 200


def test_a_server_that_loads_says_so_and_can_be_stopped() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # So many layers that it loads for a while: we may be kept from asking for seconds.
    slow = ("--load-format", "dummy", "--json-model-override-args", '{"num_hidden_layers": 400}')
    command = [sys.executable, "-m", "sglang.launch_server", "--port", str(port), "--max-total-tokens", "2000", *slow]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        early = None
        while early is None:
            assert process.poll() is None
            with contextlib.suppress(httpx.ConnectError):
                early = httpx.get(f"http://127.0.0.1:{port}/health", timeout=HANG_S)
        assert (early.status_code, early.json()["error"]["message"]) == (503, "the server is starting")
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
    finally:
        process.kill()


def test_sigterm_lets_a_running_request_end_and_exits_zero(start_server: Any) -> None:
    body = {"text": "x", "stream": True, "sampling_params": {**ENDLESS, "max_new_tokens": 900}}
    with start_server("--drain-timeout", str(2 * HANG_S)) as server:
        last = ""
        with httpx.stream("POST", server.url + "/generate", json=body, timeout=HANG_S) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    if not last:
                        server.process.send_signal(signal.SIGTERM)
                    last = line
        assert json.loads(last[6:])["meta_info"]["completion_tokens"] == 900
        assert server.process.wait(HANG_S) == 0
        with pytest.raises(httpx.ConnectError):
            generate(server, text="x")


def test_a_killed_worker_answers_with_the_reason_and_ends_the_server(start_server: Any) -> None:
    with start_server("--drain-timeout", str(10 * HANG_S), *FAR) as server:
        answers: list[httpx.Response] = []
        reader = threading.Thread(target=lambda: answers.append(generate(server, text="x", sampling_params=ENDLESS)))
        reader.start()
        assert eventually(lambda: server.metric("sglang:num_running_reqs") == 1)
        subprocess.check_call(["kill", "-9", str(worker_pid(server))])
        assert server.process.wait(HANG_S) == 1
        reader.join(HANG_S)
        assert answers[0].status_code == 500
        assert answers[0].json()["error"]["message"] == "the worker process ended (signal 9)"
        assert server.log.rstrip().endswith("error: the worker process ended (signal 9)")


def test_a_key_guards_the_server_and_is_never_shown(start_server: Any) -> None:
    with start_server("--api-key", "s3cret-key") as server:
        assert generate(server, text="x").status_code == 401
        with openai.OpenAI(base_url=server.url + "/v1", api_key="s3cret-key") as client:
            assert client.models.list().data
        shown = httpx.get(server.url + "/get_server_args", headers={"X-API-Key": "s3cret-key"}, timeout=HANG_S)
        assert shown.status_code == 200
        assert "s3cret-key" not in shown.text
        assert "s3cret-key" not in server.log


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--load-format", "dummy", "--json-model-override-args", '{"vocab_size": 64}'), "token ids in [0, 64)"),
        (("--context-length", "4"), "context length (4 tokens)"),
    ],
)
def test_a_server_that_cannot_answer_its_own_prompt_says_why(flags: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "sglang.launch_server", "--max-total-tokens", "2000", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
