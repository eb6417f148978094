"""Link: a typed, ordered, two-way queue between the front and a worker.

Two makers: `listen`/`connect` over a zmq Unix-domain socket (processes), `pair` in memory (tests, one process).
Each side has a blocking and an asyncio way to read; a side uses one of them.
"""

import asyncio
import queue
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import zmq
import zmq.asyncio

from sglang.base.messages import FromWorker, ToWorker

In = TypeVar("In")
Out = TypeVar("Out")
Out_contra = TypeVar("Out_contra", contravariant=True)


class Link(Protocol[In, Out_contra]):
    def send(self, message: Out_contra) -> None:
        """Queue `message` for the other side. Never blocks."""
        ...

    def receive(self, timeout_s: float | None = 0.0) -> list[In]:
        """All messages that have arrived, oldest first; waits up to `timeout_s` for the first (None: for ever)."""
        ...

    async def receive_async(self) -> list[In]:
        """As `receive(None)`, for the event loop it is called from."""
        ...

    def close(self) -> None: ...


class Socket(Generic[In, Out]):
    """One end over zmq. `inward` is the union of message types this end accepts.

    Two one-way sockets, because a zmq socket that is sent on from one place and awaited in another may swallow the
    wake-up of the waiting one. Each end binds its inbox and connects its outbox: a connected PUSH queues until the
    other end is there, a bound one would refuse.
    """

    def __init__(self, address: str, inward: Any, inbox: str, outbox: str):
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._outbox = self._context.socket(zmq.PUSH)
        for socket in (self._inbox, self._outbox):
            socket.setsockopt(zmq.LINGER, 200)  # ms: last words leave, a dead peer does not hold us
            socket.set_hwm(0)
        self._outbox.setsockopt(zmq.RECONNECT_IVL, 10)  # ms: whoever starts first waits little for the other
        self._inbox.bind(f"{address}.{inbox}")
        self._outbox.connect(f"{address}.{outbox}")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(inward).decode
        self._awaited: zmq.asyncio.Socket | None = None

    def send(self, message: Out) -> None:
        self._outbox.send(self._encode(message), zmq.DONTWAIT)

    def receive(self, timeout_s: float | None = 0.0) -> list[In]:
        wait = -1 if timeout_s is None else int(timeout_s * 1000)
        if wait and not self._inbox.poll(wait):
            return []
        return self._drain()

    async def receive_async(self) -> list[In]:
        if self._awaited is None:
            self._awaited = zmq.asyncio.Socket.from_socket(self._inbox)
        first = self._decode(await self._awaited.recv())
        return [first, *self._drain()]

    def _drain(self) -> list[In]:
        messages: list[In] = []
        while True:
            try:
                messages.append(self._decode(self._inbox.recv(zmq.DONTWAIT)))
            except zmq.Again:
                return messages

    def close(self) -> None:
        self._inbox.close()
        self._outbox.close()
        self._context.term()


class Memory(Generic[In, Out]):
    """One end of an in-memory pair: plain objects, no encoding."""

    def __init__(self, inbox: "queue.SimpleQueue[In]", outbox: "queue.SimpleQueue[Out]"):
        self._inbox = inbox
        self._outbox = outbox
        self._wake: Callable[[], None] | None = None
        self.peer: Memory[Out, In] | None = None

    def send(self, message: Out) -> None:
        self._outbox.put(message)
        if self.peer is not None and self.peer._wake is not None:
            self.peer._wake()

    def receive(self, timeout_s: float | None = 0.0) -> list[In]:
        messages: list[In] = []
        try:
            if timeout_s != 0.0:
                messages.append(self._inbox.get(timeout=timeout_s))
            while True:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            return messages

    async def receive_async(self) -> list[In]:
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        self._wake = wake
        while not (messages := self.receive()):
            event.clear()
            if not (messages := self.receive()):
                await event.wait()
            else:
                return messages
        return messages

    def close(self) -> None:
        self._wake = None


def listen(address: str) -> Socket[FromWorker, ToWorker]:
    """The front's end. `address` is `ipc://PATH` in a directory only this user can enter."""
    return Socket(address, FromWorker, inbox="up", outbox="down")


def connect(address: str) -> Socket[ToWorker, FromWorker]:
    """The worker's end."""
    return Socket(address, ToWorker, inbox="down", outbox="up")


def pair() -> tuple[Memory[FromWorker, ToWorker], Memory[ToWorker, FromWorker]]:
    """(front's end, worker's end) in one process."""
    down: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    up: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
    front: Memory[FromWorker, ToWorker] = Memory(up, down)
    worker: Memory[ToWorker, FromWorker] = Memory(down, up)
    front.peer, worker.peer = worker, front
    return front, worker
