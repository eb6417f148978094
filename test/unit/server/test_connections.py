"""Clients that speak HTTP badly, slowly or not at all: an answer or an end, soon, and nobody else notices."""

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from server_doubles import HANG_S, eventually

from sglang.base.errors import FieldError
from sglang.server.connection import HEAD_BYTES, HEAD_S, PIPELINED, Connection, chunks
from sglang.server.http import read_body

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Hasty(Connection):
    head_s = 0.3


@pytest.fixture
def hasty(serving: Any) -> Iterator[Any]:
    with serving(connection=Hasty) as server:
        yield server


def dial(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S)


def post(path: str, body: Any) -> bytes:
    content = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(content), content)


def stream(tokens: int) -> bytes:
    return post("/generate", {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": tokens}})


def to_the_end(s: socket.socket) -> bytes:
    """All that comes until the server closes; fails when it does not."""
    data = b""
    try:
        while more := s.recv(1 << 16):
            data += more
    except ConnectionError:
        pass
    return data


@pytest.mark.parametrize("said", [b"", b"G", b"POST /generate HTTP/1.1\r\nHost: x\r\nX-A", HEALTH + b"GET /"])
def test_a_request_that_never_begins_is_hung_up_on(hasty: Any, said: bytes) -> None:
    began = time.monotonic()
    with hasty.held():
        s = dial(hasty)
        s.sendall(said[:-5])
    with s:
        time.sleep(0.1)
        with contextlib.suppress(ConnectionError):  # where this thread had to wait it is late
            s.sendall(said[-5:])
        heard = to_the_end(s)
    assert time.monotonic() - began < HEAD_S
    assert heard.startswith(b"HTTP/1.1 200") if HEALTH in said else heard == b""


def test_a_head_that_comes_in_drops_is_hung_up_on(hasty: Any) -> None:
    began = time.monotonic()
    with dial(hasty) as s, pytest.raises(ConnectionError):
        s.sendall(b"GET /health HTTP/1.1\r\n")
        for i in range(500):
            s.sendall(b"X-%d: y\r\n" % i)
            time.sleep(0.02)
    assert time.monotonic() - began < HEAD_S


def test_a_head_in_time_may_be_followed_by_silence_while_its_answer_is_made(serving: Any) -> None:
    with serving(connection=Hasty, script=lambda s: [10] * 40, step_s=0.02) as server:
        with server.held():
            s = dial(server)
            s.sendall(stream(40))
        with s:
            data = b""
            while not data.endswith(b"0\r\n\r\n") and (more := s.recv(1 << 16)):
                data += more
        assert b'"completion_tokens":40' in data


def test_a_head_without_end_is_hung_up_on(echo: Any) -> None:
    with dial(echo) as s:
        s.sendall(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(100 * HEAD_BYTES // 1000):
                s.sendall(b"X-Padding: " + b"y" * 1000 + b"\r\n")
                time.sleep(0.0005)
            if not s.recv(1):  # all of it went into buffers before the server had a look
                raise ConnectionError("the server hung up")
    assert echo.get("/health").status_code == 200


def test_requests_sent_together_are_answered_in_order(echo: Any) -> None:
    def ask(n: int) -> bytes:
        return post("/generate", {"text": "one two three", "sampling_params": {"max_new_tokens": n}})

    with dial(echo) as s:
        s.sendall(ask(1) + HEALTH + ask(2) + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        heard = to_the_end(s)
    assert heard.count(b"HTTP/1.1 200") == 4
    assert 0 < heard.index(b'"completion_tokens":1') < heard.index(b'"completion_tokens":2')


def test_too_many_requests_sent_ahead_end_the_connection(serving: Any) -> None:
    with serving(script=lambda s: [10] * 100_000, step_s=0.01) as server, dial(server) as s:
        s.sendall(stream(100_000))
        assert s.recv(100).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionError):
            s.sendall(HEALTH * max(PIPELINED + 2, 2 * HEAD_BYTES // len(HEALTH)))
        to_the_end(s)
        assert eventually(lambda: server.worker.running == 0 and server.front.open_requests == 0)


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\xff\xfe\xfd\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_a_400(echo: Any, said: bytes) -> None:
    with dial(echo) as s:
        s.sendall(said)
        assert to_the_end(s)[:12] in (b"HTTP/1.1 400", b"")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /%ff%fe HTTP/1.1\r\nHost: x",
        b"GET /v1/models/%00 HTTP/1.1\r\nHost: x",
        b"GET /v1/models/\xff HTTP/1.1\r\nHost: x",
        b"GET /generate?\xff=%ff HTTP/1.1\r\nHost: x",
        b"GET /v1/models/x HTTP/1.1\r\nHost: \xff\xfe\r\nOrigin: http://[",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: \xff\r\nContent-Length: 2",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2",
    ],
)
def test_bytes_that_are_no_text_are_a_4xx(echo: Any, head: bytes) -> None:
    with dial(echo) as s:
        s.sendall(head + b"\r\nConnection: close\r\n\r\n" + (b"{}" if b"POST" in head else b""))
        assert to_the_end(s).startswith(b"HTTP/1.1 4")


def test_a_body_has_a_time_to_come_in() -> None:
    async def silence() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(FieldError, match=r"within 0\.05 s") as raised:
        asyncio.run(read_body({"type": "http", "headers": []}, silence, within_s=0.05))
    assert raised.value.status == 408


def test_a_client_that_reads_nothing_holds_up_nobody_and_is_hung_up_on(serving: Any) -> None:
    """Its events are merged, not queued; the kernel ends the connection; its sequence is aborted."""
    full: set[Connection] = set()

    class Noting(Connection):
        def pause_writing(self) -> None:
            full.add(self)
            super().pause_writing()

    long = {"script": lambda s: [10 + i % 50 for i in range(10**6)], "step_s": 0.001}
    with serving(connection=Noting, stalled_s=5, **long) as server:
        deaf = [socket.socket() for _ in range(4)]
        for s in deaf:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.port))
            s.sendall(stream(10**6))
        assert eventually(lambda: server.worker.running == 4)
        assert eventually(lambda: len(full) == 4)
        for _ in range(3):
            answer = server.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 3}})
            assert answer.json()["meta_info"]["completion_tokens"] == 3
        assert server.worker.running == 4, "it was answered before anybody was hung up on"
        assert eventually(lambda: server.worker.running == server.front.open_requests == 0)
        assert len(server.worker.aborted) == 4
        for s in deaf:
            s.close()


def test_two_thousand_streams_that_vanish_leave_nothing_behind(serving: Any) -> None:
    """No sequence, reader, task, timer or connection; and all of them had been given tokens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 2000
    if hard != resource.RLIM_INFINITY and hard < 2 * count + 200:
        pytest.skip(f"both ends are in this process, which may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count + 200), hard))
    with serving(script=lambda s: [10] * 100_000, step_s=0.05) as server:
        tasks = server.call(lambda: len(asyncio.all_tasks()))
        server.worker.pause()
        clients: list[socket.socket] = []
        for i in range(count):
            s = dial(server)
            s.sendall(stream(100_000))
            clients.append(s)
            if i % 100 == 99:
                assert eventually(lambda n=i: server.worker.running == n + 1)  # the backlog is smaller
        server.worker.go_on()
        for s in clients:
            assert s.recv(12) == b"HTTP/1.1 200"
        for i, s in enumerate(clients):
            if i % 2:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends a reset
            s.close()
        assert eventually(lambda: server.worker.running == 0 and server.front.open_requests == 0)
        assert set(server.worker.aborted) == {submit.id for submit in server.worker.submits}
        assert eventually(lambda: server.call(lambda: len(asyncio.all_tasks())) <= tasks)
        assert server.call(lambda: len(server.front._streams) + len(server.front._delivery._due)) == 0
        answer = server.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 3}})
        assert answer.json()["meta_info"]["completion_tokens"] == 3


def test_a_client_that_falls_behind_gets_fewer_and_larger_events(serving: Any) -> None:
    with serving(script=lambda s: [10 + i % 50 for i in range(30_000)], chunk=10) as server:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(HANG_S)
        s.connect(("127.0.0.1", server.port))
        s.sendall(post("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 30_000}))
        assert eventually(lambda: len(server.worker.submits) == 1 and server.worker.running == 0)
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n"):
            data += s.recv(1 << 20)
        s.close()
        events = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b'data: {"id')]
        text = "".join(event["choices"][0]["text"] for event in events)
        assert text == server.tokenizer.decode([10 + i % 50 for i in range(30_000)], continues=True)
        assert len(events) < 3000, "of 3,000 steps"


def test_streams_of_a_loop_that_is_behind_are_merged_and_late_ones_are_not_lost(serving: Any) -> None:
    with serving(script=lambda s: [10 + i % 50 for i in range(200)], step_s=0.005) as server:
        heard: list[str] = []

        def read() -> None:
            body = {"prompt": "x", "stream": True, "max_tokens": 200}
            heard.append(httpx.post(server.url + "/v1/completions", json=body, timeout=HANG_S).text)

        def behind() -> None:
            """The loop stands still while the worker makes half of the steps."""
            server.worker.go_on()
            assert eventually(lambda: server.worker.steps >= 100)

        server.worker.pause()
        readers = [threading.Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        assert eventually(lambda: server.worker.running == 8)
        server.call(behind)
        for reader in readers:
            reader.join(HANG_S)
        counts = [text.count('"text"') for text in heard]
        assert len(heard) == 8
        assert max(counts) <= 101
        whole = server.tokenizer.decode([10 + i % 50 for i in range(200)], continues=True)
        for text in heard:
            events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
            assert "".join(event["choices"][0]["text"] for event in events) == whole


class Roundabout(Connection):
    """A server that hands out another `send` than its own, as one with a middleware does."""

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            async def passed_on(message: Any) -> None:
                await send(message)

            await app(scope, receive, passed_on)

        super()._start_asgi_task(cycle, around)


@pytest.mark.parametrize("connection", [Connection, Roundabout])
def test_events_have_one_framing_whatever_writes_them(serving: Any, connection: type[Connection]) -> None:
    """Chunks go past the server's `send` where they can: a client sees no difference."""
    script = {"script": lambda s: [10 + i for i in range(40)], "steady": True}
    with serving(connection=connection, **script) as server, dial(server) as s:
        s.sendall(stream(40).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        head, _, rest = to_the_end(s).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    events = 0
    while True:
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) :]
        assert rest.startswith(b"\r\n")
        rest = rest[2:]
        if not chunk:
            break
        assert chunk.startswith(b"data: ")
        assert chunk.endswith(b"\n\n")
        events += chunk.count(b"data: {")
    assert not rest
    assert events > 10


def test_chunks_go_past_send_until_the_client_is_behind() -> None:
    """While the transport is full or gone, `send` must wait or say so."""
    written: list[bytes] = []
    flow = SimpleNamespace(write_paused=False)
    transport = SimpleNamespace(write=written.append)

    class Cycle(SimpleNamespace):
        async def send(self, message: Any) -> None: ...

    answer = Cycle(chunked_encoding=True, disconnected=False, flow=flow, transport=transport)
    chunk = chunks(answer.send)
    assert chunk(b"x" * 26)
    flow.write_paused = True
    assert not chunk(b"y")
    flow.write_paused = False
    answer.disconnected = True
    assert not chunk(b"z")
    assert written == [b"1a\r\n" + b"x" * 26 + b"\r\n"]
    assert not chunks(Cycle(chunked_encoding=False).send)(b"x"), "a body whose length was said"
