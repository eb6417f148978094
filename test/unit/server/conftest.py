"""A server on a real socket over the worker double, shared by the tests of this folder."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from server_doubles import HANG_S, EchoWorker, make_tokenizer

from sglang.base.config import ServerConfig
from sglang.base.link import pair
from sglang.base.messages import Stop
from sglang.server.app import build_app
from sglang.server.connection import STALLED_S, Connection, prepare
from sglang.server.front import Front
from sglang.text import tokenizer as text


@dataclass
class Running:
    """A served front: its address, its worker and what runs on its event loop."""

    url: str
    port: int
    worker: EchoWorker
    front: Front
    tokenizer: text.Tokenizer
    loop: asyncio.AbstractEventLoop

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=HANG_S)

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return self.http.post(path, json=body, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.http.get(path, **kwargs)

    @cached_property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="EMPTY", max_retries=0, http_client=self.http)

    def call(self, work: Callable[[], Any]) -> Any:
        """`work()` on the server's loop."""

        async def run() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(HANG_S)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The server's loop stands still: what clients do in here comes to it at one moment, however busy the machine.

        Nothing that waits for the server may be done in here.
        """
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            leave.wait(HANG_S)

        self.loop.call_soon_threadsafe(hold)
        assert entered.wait(HANG_S)
        try:
            yield
        finally:
            leave.set()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> text.Tokenizer:
    return text.load(str(tokenizer_folder))


@contextlib.contextmanager
def serve(
    folder: Path,
    config: ServerConfig | None = None,
    connection: type[Connection] = Connection,
    stalled_s: float = STALLED_S,
    steady: bool = False,
    **script: Any,
) -> Iterator[Running]:
    """steady: the worker is never a step ahead of the front, so that no two tokens reach a stream together."""
    config = config or ServerConfig(model_path="some/model", random_seed=1)
    ours, theirs = pair()
    tokenizer = text.load(str(folder))
    worker = EchoWorker(theirs, **script).start()
    listener = socket.create_server(("127.0.0.1", 0))
    prepare(listener, stalled_s)
    port = listener.getsockname()[1]
    ready = threading.Event()
    running: list[Running] = []
    servers: list[uvicorn.Server] = []

    async def settle() -> None:
        while not ours._inbox.empty():
            await asyncio.sleep(0)
        for _ in range(10):  # whom the front has woken
            await asyncio.sleep(0)

    async def main() -> None:
        if steady:
            loop = asyncio.get_running_loop()
            worker.settled = lambda: asyncio.run_coroutine_threadsafe(settle(), loop).result(HANG_S)
        front = Front(ours, tokenizer, config)
        await front.start()
        server = uvicorn.Server(
            uvicorn.Config(
                build_app(front, config), http=connection, lifespan="off", ws="none", log_config=None, access_log=False
            )
        )
        servers.append(server)
        running.append(Running(f"http://127.0.0.1:{port}", port, worker, front, tokenizer, asyncio.get_running_loop()))
        ready.set()
        await server.serve(sockets=[listener])
        await front.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(HANG_S)
    try:
        yield running[0]
    finally:
        running[0].http.close()
        servers[0].should_exit = servers[0].force_exit = True
        thread.join(HANG_S)
        ours.send(Stop())
        worker.join()
        listener.close()


Serve = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture
def serving(tokenizer_folder: Path) -> Serve:
    """serving(config=…, script=…, …): a server of the test's own."""

    def make(**options: Any) -> contextlib.AbstractContextManager[Running]:
        return serve(tokenizer_folder, **options)

    return make


@pytest.fixture(scope="session")
def echo(tokenizer_folder: Path) -> Iterator[Running]:
    """A shared server whose model repeats the prompt."""
    with serve(tokenizer_folder) as running:
        yield running
