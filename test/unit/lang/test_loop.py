"""The loop of the language: what is collected, or dropped, leaves others' connections alone."""

import asyncio
import gc
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from open_connections import closed, open_to
from wire_generate import Wire, reply, serve

import sglang as sgl
from sglang.lang import loop


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Nothing is collected but where a test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Client:
    """Closes itself when it is collected, as clients of vendors do; in a cycle, as they are."""

    async def open(self, port: int) -> None:
        self.myself = self
        self.transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
        self.transport.pause_reading()  # the loop's selector holds it no more

    async def close(self) -> None:
        self.transport.close()

    def __del__(self) -> None:
        asyncio.get_running_loop().create_task(self.close())


@pytest.mark.usefixtures("by_hand")
def test_a_client_that_is_collected_takes_no_descriptor_from_another_connection() -> None:
    async def scenario(port: int) -> list[bytes]:
        await Client().open(port)
        gc.collect()
        running, heard = asyncio.get_running_loop(), list[bytes]()
        pairs = [socket.socketpair() for _ in range(4)]  # one of them has the descriptor, if it was given up
        for here, _ in pairs:
            here.setblocking(False)
            running.add_reader(here, lambda here=here: heard.append(here.recv(9)))
        await asyncio.sleep(0.05)  # the client closes itself
        for _, there in pairs:
            there.send(b"x")
        await asyncio.sleep(0.05)
        for here, there in pairs:
            running.remove_reader(here)
            here.close()
            there.close()
        return heard

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert loop.run(scenario(server.getsockname()[1])) == [b"x"] * 4


@pytest.mark.usefixtures("by_hand")
def test_an_endpoint_that_is_dropped_closes_its_connections() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.gen("a")

    with serve(Wire(lambda body: reply())) as wire:
        endpoint = sgl.RuntimeEndpoint(wire.url)
        assert program.run(backend=endpoint)["a"] == "hi"
        own = open_to(wire.url)
        assert len(own) == 1
        del endpoint
        gc.collect()
        assert closed(own)
