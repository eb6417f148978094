"""Clients that leave, at every moment of a request: the worker hears of it, and the server holds nothing."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from server_doubles import HANG_S, eventually

from sglang.server.http import ClientGone, while_connected


@pytest.fixture
def endless(serving: Any) -> Iterator[Any]:
    """A worker that never comes to an end by itself."""
    with serving(script=lambda s: [10] * 100_000, step_s=0.001) as server:
        yield server


def send(port: int, path: str, body: Any) -> socket.socket:
    content = json.dumps(body).encode()
    s = socket.create_connection(("127.0.0.1", port), timeout=HANG_S)
    s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(content)) + content)
    return s


def body(path: str, stream: bool, **more: Any) -> dict[str, Any]:
    match path:
        case "/generate":
            return {"text": "x", "stream": stream, "sampling_params": {"max_new_tokens": 100_000, **more}}
        case "/v1/completions":
            return {"prompt": "x", "stream": stream, "max_tokens": 100_000, **more}
        case _:
            return {"messages": [{"role": "user", "content": "x"}], "stream": stream, **more}


def all_forgotten(server: Any, count: int) -> bool:
    submitted = {submit.id for submit in server.worker.submits}
    return (
        len(submitted) == count
        and set(server.worker.aborted) == submitted
        and server.front.open_requests == 0
        and server.worker.running == 0
    )


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_is_no_longer_computed_for(endless: Any, path: str, stream: bool, n: int) -> None:
    s = send(endless.port, path, body(path, stream, n=n))
    assert eventually(lambda: endless.worker.running == n)
    if stream:
        assert s.recv(100).startswith(b"HTTP/1.1 200")
    s.close()
    assert eventually(lambda: all_forgotten(endless, n))
    assert endless.front.metrics.aborted == n


def test_a_client_that_leaves_before_its_first_token_is_forgotten(endless: Any) -> None:
    endless.worker.pause()
    for stream in (False, True):
        s = send(endless.port, "/generate", body("/generate", stream))
        assert eventually(lambda: endless.worker.running == 1)
        s.close()
        assert eventually(lambda: endless.worker.running == 0)
    assert eventually(lambda: all_forgotten(endless, 2))


def test_a_client_that_leaves_in_the_middle_of_its_body_starts_nothing(endless: Any) -> None:
    s = socket.create_connection(("127.0.0.1", endless.port), timeout=HANG_S)
    s.sendall(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"text": "x')
    time.sleep(0.05)
    s.close()
    assert endless.get("/health").status_code == 200
    assert endless.worker.submits == []


def test_two_hundred_clients_that_vanish_leave_nothing_behind(endless: Any) -> None:
    """At random moments, by a reset or a goodbye, streaming or not: all are aborted, and others are served."""
    chance = random.Random(3)
    clients: list[socket.socket] = []
    paths = ["/generate", "/v1/completions", "/v1/chat/completions"]
    for i in range(200):
        path = paths[i % 3]
        clients.append(send(endless.port, path, body(path, stream=i % 4 != 0)))
    assert eventually(lambda: endless.worker.running == 200)
    chance.shuffle(clients)
    for client in clients:
        if chance.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends a reset
        client.close()
    assert eventually(lambda: all_forgotten(endless, 200))
    answer = endless.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 3}})
    assert answer.json()["meta_info"]["completion_tokens"] == 3


def test_a_client_that_reads_slowly_loses_nothing(serving: Any) -> None:
    """The socket fills up, outputs are merged; the last event has all of it."""
    with serving(script=lambda s: [10 + i % 50 for i in range(2000)], chunk=1) as server:
        params = {"max_new_tokens": 2000}
        s = send(server.port, "/generate", {"text": "x", "stream": True, "sampling_params": params})
        time.sleep(0.3)
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n"):
            data += s.recv(1 << 20)
        s.close()
        frames = [f for f in data.split(b"data: ")[1:] if not f.startswith(b"[DONE]")]
        last = json.loads(frames[-1][: frames[-1].rindex(b"}") + 1])
        assert last["meta_info"]["completion_tokens"] == 2000
        assert last["meta_info"]["finish_reason"] == {"type": "length", "length": 2000}
        assert server.worker.aborted == []


def test_a_request_is_on_its_way_before_the_next_is_looked_at() -> None:
    seen: list[str] = []

    async def connected() -> Any:
        await asyncio.sleep(60)

    async def work(name: str) -> str:
        seen.append(f"{name} begins")
        await asyncio.sleep(0)
        return name

    async def request(name: str) -> str:
        seen.append(f"{name} comes")
        return await while_connected(connected, work(name))

    async def main() -> list[str]:
        return await asyncio.gather(request("a"), request("b"))

    assert asyncio.run(main()) == ["a", "b"]
    assert seen == ["a comes", "a begins", "b comes", "b begins"]


@pytest.mark.parametrize("leaves", [True, False])
def test_who_left_is_told_from_who_was_cancelled(leaves: bool) -> None:
    cancelled: list[str] = []

    async def receive() -> Any:
        await asyncio.sleep(0.01 if leaves else 60)
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("work")
            raise

    async def request() -> str:
        try:
            await while_connected(receive, work())
        except ClientGone:
            await asyncio.sleep(0)  # it can wait again
            return "gone"
        return "done"

    async def main() -> str:
        task = asyncio.ensure_future(request())
        if not leaves:
            asyncio.get_running_loop().call_later(0.01, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"

    assert asyncio.run(main()) == ("gone" if leaves else "cancelled")
    assert cancelled == ["work"]
