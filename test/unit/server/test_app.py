"""Who may come in, what happens when the server is full, dies or stops."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_doubles import HANG_S, EchoWorker, eventually

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, WorkerDied
from sglang.base.link import pair
from sglang.base.messages import Stop
from sglang.server.app import build_app, check_tls, serve
from sglang.server.connection import Connection
from sglang.server.front import Front
from sglang.text import tokenizer as text

KEYED = ServerConfig(model_path="m", random_seed=1, api_key="s3cret")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
        {"X-API-Key": ""},
        {"X-API-Key": "s3cret2"},
        {"X-API-Key": "é".encode()},
    ],
)
def test_without_the_key_nothing_is_answered(serving: Any, headers: dict[str, str]) -> None:
    with serving(config=KEYED) as server:
        for path in ("/generate", "/v1/completions", "/v1/models", "/get_server_args", "/nothing"):
            answer = server.http.request("GET" if "v1/m" in path else "POST", path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "AuthenticationError"
        assert server.worker.submits == []


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer s3cret"}, {"authorization": "bearer s3cret"}, {"X-API-Key": "s3cret"}]
)
def test_the_key_may_come_in_either_header(serving: Any, headers: dict[str, str]) -> None:
    with serving(config=KEYED) as server:
        assert server.post("/generate", {"text": "one"}, headers=headers).status_code == 200


def test_health_and_metrics_need_no_key(serving: Any) -> None:
    with serving(config=KEYED) as server:
        for path in ("/health", "/health_generate", "/metrics", "/ping"):
            assert server.get(path).status_code == 200


async def test_who_asks_before_the_model_is_there_is_told_to_come_back(tokenizer_folder: Path) -> None:
    ours, _ = pair()
    app = build_app(Front(ours, text.load(str(tokenizer_folder)), KEYED), KEYED)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        key = {"X-API-Key": "s3cret"}
        for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/generate"), ("GET", "/metrics")):
            early = await client.request(method, path, headers=key)
            assert early.status_code == 503
            assert early.json()["error"]["message"] == "the server is starting"
            assert early.headers["retry-after"]
        assert (await client.get("/v1/models")).status_code == 401


@pytest.mark.parametrize("key", [None, "s3cret"])
def test_control_needs_the_key_of_who_controls(serving: Any, key: str | None) -> None:
    admin = {"Authorization": "Bearer r00t"}
    usual = {} if key is None else {"X-API-Key": key}
    with serving(config=replace(KEYED, api_key=key, admin_api_key="r00t")) as server:
        for path in ("/flush_cache", "/abort_request"):
            assert server.post(path, {"abort_all": True}, headers=usual).status_code == 401
            assert server.post(path, {"abort_all": True}, headers=admin).status_code == 200
        for headers in (usual, admin):
            assert server.post("/generate", {"text": "one"}, headers=headers).status_code == 200
        assert server.post("/generate", {"text": "one"}).status_code == (200 if key is None else 401)
        assert "r00t" not in server.get("/get_server_args", headers=admin).text


def test_without_a_key_any_header_will_do(echo: Any) -> None:
    assert echo.get("/v1/models", headers={"Authorization": "Bearer EMPTY"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://localhost:30000", "localhost:30000", True),
        ("http://127.0.0.1:30000", "127.0.0.1:30000", True),
        ("http://[::1]:30000", "[::1]:30000", True),
        ("http://evil.example", "127.0.0.1:30000", False),
        ("http://localhost:8080", "localhost:30000", False),
        ("http://rebound.example:30000", "rebound.example:30000", False),
        ("null", "127.0.0.1:30000", False),
    ],
)
def test_pages_of_other_origins_are_refused(echo: Any, origin: str, host: str, allowed: bool) -> None:
    answer = echo.post("/generate", {"text": "one"}, headers={"Origin": origin, "Host": host})
    assert answer.status_code == (200 if allowed else 403)
    assert "access-control-allow-origin" not in answer.headers


def test_a_key_or_a_public_address_lets_its_own_pages_in(serving: Any) -> None:
    page = {"Origin": "https://llm.example", "Host": "llm.example"}
    with serving(config=KEYED) as server:
        headers = {**page, "X-API-Key": "s3cret"}
        assert server.post("/generate", {"text": "one"}, headers=headers).status_code == 200
    with serving(config=ServerConfig(model_path="m", random_seed=1, host="0.0.0.0")) as server:
        assert server.post("/generate", {"text": "one"}, headers=page).status_code == 200


def test_a_full_queue_is_a_503_with_a_time_to_come_back(serving: Any) -> None:
    with serving(queue=1, script=lambda s: [10] * 100_000, step_s=0.001) as server:
        long = {"text": "x", "sampling_params": {"max_new_tokens": 100_000}, "stream": True}
        with server.http.stream("POST", "/generate", json=long) as first:
            chunks = first.iter_raw()
            assert next(chunks)
            for path, body in (
                ("/generate", {"text": "x"}),
                ("/generate", {"text": "x", "stream": True}),
                ("/v1/completions", {"prompt": "x", "stream": True}),
            ):
                refused = httpx.post(server.url + path, json=body, timeout=HANG_S)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert refused.json()["error"]["retryable"] is True
        assert eventually(lambda: server.worker.running == 0)
        assert server.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 1}}).status_code == 200


def test_a_dead_worker_is_a_500_with_its_reason_and_ends_streams_with_an_error_event(serving: Any) -> None:
    with serving(script=lambda s: [10] * 100_000, step_s=0.001) as server:
        answers: list[httpx.Response] = []

        def ask(body: dict[str, Any], path: str) -> None:
            answers.append(httpx.post(server.url + path, json=body, timeout=HANG_S))

        many = {"max_new_tokens": 100_000}
        threads = [
            threading.Thread(target=ask, args=args)
            for args in (
                ({"text": "x", "sampling_params": many}, "/generate"),
                ({"text": "x", "sampling_params": many, "stream": True}, "/generate"),
                ({"prompt": "x", "max_tokens": 100_000, "stream": True}, "/v1/completions"),
            )
        ]
        for thread in threads:
            thread.start()
        assert eventually(lambda: server.worker.running == 3)
        time.sleep(0.02)
        server.worker.die("CUDA error: out of memory")
        for thread in threads:
            thread.join(HANG_S)
        assert len(answers) == 3
        for answer in answers:
            if answer.headers["content-type"] == "application/json":
                assert answer.status_code == 500
                error = answer.json()["error"]
            else:
                assert answer.status_code == 200
                last, done, _ = answer.text.split("\n\n")[-3:]
                assert done == "data: [DONE]"
                error = json.loads(last[6:])["error"]
            assert "CUDA error: out of memory" in error["message"]
            assert error["retryable"] is True
        for path in ("/health", "/health_generate"):
            assert server.get(path).status_code == 500
        later = server.post("/generate", {"text": "x"})
        assert later.status_code == 500
        assert "out of memory" in later.text


class Served:
    """serve() itself, in the main thread of the test (signals go there), over a worker double."""

    def __init__(self, folder: Path, drain_s: float, config: ServerConfig | None = None, **script: Any):
        self.config = config or ServerConfig(model_path="m", random_seed=1, drain_timeout=drain_s)
        ours, theirs = pair()
        self.worker = EchoWorker(theirs, **script).start()
        self.front = Front(ours, text.load(str(folder)), self.config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if self.config.ssl_certfile else "http"
        self.url = f"{scheme}://127.0.0.1:{self.listener.getsockname()[1]}"
        self.trust = ssl.create_default_context()
        self._ours = ours

    def run(self, scenario: Any) -> float:
        """Serve until scenario(self), in a thread, has made it stop; the seconds from its end to ours."""
        ended: list[float] = []
        failures: list[BaseException] = []
        over = threading.Event()

        def act() -> None:
            try:
                assert httpx.get(self.url + "/health", timeout=HANG_S, verify=self.trust).status_code == 200
                scenario(self)
            except BaseException as error:
                failures.append(error)
                if not over.is_set():  # nobody else would catch it
                    os.kill(os.getpid(), signal.SIGTERM)
            ended.append(time.monotonic())

        async def main() -> None:
            await self.front.start()
            try:
                await serve(build_app(self.front, self.config), self.front, self.config, [self.listener])
            finally:
                over.set()
                await self.front.close()

        thread = threading.Thread(target=act)
        thread.start()
        try:
            asyncio.run(main())
        finally:
            stopped = time.monotonic()
            thread.join(HANG_S)
            self.listener.close()
            self._ours.send(Stop())
            self.worker.join()
        if failures:
            raise failures[0]
        return stopped - ended[0]


def test_a_drain_finishes_what_runs_and_refuses_what_comes(tokenizer_folder: Path) -> None:
    served = Served(tokenizer_folder, drain_s=10 * HANG_S, script=lambda s: [10] * 40)
    answers: list[Any] = []

    def scenario(server: Served) -> None:
        body = {"text": "x", "sampling_params": {"max_new_tokens": 40}}
        post = partial(httpx.post, server.url + "/generate", json=body, timeout=HANG_S)
        reader = threading.Thread(target=lambda: answers.append(post()))
        server.worker.pause()
        reader.start()
        assert eventually(lambda: server.worker.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(lambda: server.front.draining)
        refused = post()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        get = partial(httpx.get, timeout=HANG_S)
        assert get(server.url + "/health").status_code == 200, "alive until the last request has ended"
        assert get(server.url + "/health_generate").status_code == 503, "no longer ready"
        server.worker.go_on()
        reader.join(HANG_S)

    served.run(scenario)
    assert answers[0].json()["meta_info"]["completion_tokens"] == 40


def test_a_drain_has_an_end_and_streams_hear_of_it(tokenizer_folder: Path) -> None:
    served = Served(tokenizer_folder, drain_s=0.2, script=lambda s: [10] * 100_000, step_s=0.01)
    heard: list[str] = []
    begun = threading.Event()

    def scenario(server: Served) -> None:
        body = {"text": "x", "sampling_params": {"max_new_tokens": 100_000}, "stream": True}

        def read() -> None:
            with httpx.stream("POST", server.url + "/generate", json=body, timeout=HANG_S) as answer:
                for text in answer.iter_text():
                    heard.append(text)
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(HANG_S)
        os.kill(os.getpid(), signal.SIGTERM)
        reader.join(HANG_S)

    served.run(scenario)
    last, done = "".join(heard).split("\n\n")[-3:-1]
    assert done == "data: [DONE]"
    error = json.loads(last[6:])["error"]
    assert (error["message"], error["code"], error["retryable"]) == ("the server is shutting down", 503, True)


def test_a_second_signal_ends_at_once(tokenizer_folder: Path) -> None:
    served = Served(tokenizer_folder, drain_s=10 * HANG_S, script=lambda s: [10] * 100_000, step_s=0.01)

    def scenario(server: Served) -> None:
        body = {"text": "x", "sampling_params": {"max_new_tokens": 100_000}}

        def ask() -> None:
            with pytest.raises(httpx.HTTPError):
                httpx.post(server.url + "/generate", json=body, timeout=2 * HANG_S).raise_for_status()

        threading.Thread(target=ask).start()
        assert eventually(lambda: server.worker.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(lambda: server.front.draining)
        os.kill(os.getpid(), signal.SIGTERM)

    assert served.run(scenario) < HANG_S


def test_answers_do_not_wait_for_acknowledgements(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header and body leave in two writes: on a kept connection the second must not wait 40 ms for the first.

    The option of each connection tells; a request may take 40 ms for other reasons too, on a busy machine.
    """
    found: list[int] = []
    made = Connection.connection_made

    def noting(self: Connection, transport: Any) -> None:
        made(self, transport)
        found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Connection, "connection_made", noting)

    def scenario(server: Served) -> None:
        httpx.get(server.url + "/health", timeout=HANG_S)
        os.kill(os.getpid(), signal.SIGTERM)

    Served(tokenizer_folder, drain_s=1).run(scenario)
    assert found[1:] == [1], "the first may have come before the server"


def certify(folder: Path, *more: str) -> tuple[str, str]:
    """(key, certificate): files for 127.0.0.1, made by openssl with `more` arguments."""
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    command = "openssl req -x509 -newkey rsa:2048 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -days 1"
    subprocess.run(
        [*command.split(), *(more or ("-nodes",)), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    return key, certificate


@pytest.mark.parametrize("with_clients_known", [False, True])
def test_with_a_certificate_it_speaks_https(tokenizer_folder: Path, tmp_path: Path, with_clients_known: bool) -> None:
    key, certificate = certify(tmp_path)
    config = ServerConfig(
        model_path="m", random_seed=1, ssl_keyfile=key, ssl_certfile=certificate,
        ssl_ca_certs=certificate if with_clients_known else None,
    )  # fmt: skip
    check_tls(config)
    served = Served(tokenizer_folder, 1, config)
    served.trust.load_verify_locations(certificate)
    if with_clients_known:
        served.trust.load_cert_chain(certificate, key)

    def scenario(server: Served) -> None:
        answer = httpx.post(server.url + "/generate", json={"text": "one"}, verify=server.trust, timeout=HANG_S)
        assert answer.json()["text"] == "one"
        stranger = ssl.create_default_context(cafile=certificate)
        try:
            assert httpx.get(server.url + "/health", verify=stranger, timeout=HANG_S).status_code == 200
            assert not with_clients_known
        except httpx.HTTPError:
            assert with_clients_known
        os.kill(os.getpid(), signal.SIGTERM)

    served.run(scenario)


def test_certificates_that_cannot_be_read_are_settings(tmp_path: Path) -> None:
    key, certificate = certify(tmp_path, "-passout", "pass:secret")
    (tmp_path / "no.pem").write_text("no certificate")
    good = ServerConfig(ssl_keyfile=key, ssl_certfile=certificate, ssl_keyfile_password="secret")
    check_tls(good)
    for change, flag in (
        ({"ssl_keyfile_password": None}, "--ssl-keyfile"),
        ({"ssl_keyfile_password": "wrong"}, "--ssl-keyfile"),
        ({"ssl_certfile": "/nowhere"}, "--ssl-certfile /nowhere"),
        ({"ssl_certfile": str(tmp_path / "no.pem")}, "--ssl-certfile"),
        ({"ssl_ca_certs": "/nowhere"}, "--ssl-ca-certs /nowhere"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_tls(replace(good, **change))
        assert flag in str(caught.value) and "\n" not in str(caught.value)


def test_an_idle_server_stops_at_the_first_signal(tokenizer_folder: Path) -> None:
    served = Served(tokenizer_folder, drain_s=10 * HANG_S)
    assert served.run(lambda _: os.kill(os.getpid(), signal.SIGINT)) < HANG_S


def test_a_server_whose_worker_died_ends_with_the_cause(tokenizer_folder: Path) -> None:
    served = Served(tokenizer_folder, drain_s=60)
    with pytest.raises(WorkerDied, match="lost the device"):
        served.run(lambda server: server.worker.die("lost the device"))
