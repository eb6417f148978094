"""A client's connection: what it may make the server wait for and keep.

uvicorn bounds none of these. Bodies are bounded where they are read (`http.read_body`), an answer that nobody reads by
the kernel: after `STALLED_S` without a byte taken it ends the connection, and its request is aborted like any other
whose client has left.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from sglang.base import limits

HEAD_S = 20.0  # from the first byte of a request, or from connecting, to the end of its headers
HEAD_BYTES = 1 << 16
PIPELINED = 64  # requests sent ahead of the answers to those before
STALLED_S = 60
UNSENT_BYTES = 1 << 18  # of an answer, kept by the kernel: by itself it would keep up to 4 MiB for each client
IDLE_S = 60  # after which the kernel asks a silent client's machine whether it is there, and then every
PROBE_S = 15  # seconds


class Connection(AutoHTTPProtocol):  # pyright: ignore[reportUntypedBaseClass]  # whichever parser is installed
    """A connection of uvicorn's that ends when a request's head takes too long or is too large."""

    head_s = HEAD_S  # a test may have less patience
    cycle: Any  # of uvicorn's: the last request that has begun
    transport: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of a request that has not begun
        self._answered: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            # uvicorn tells the last request only; with others sent ahead that is not the one being answered.
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)  # pyright: ignore[reportAttributeAccessIssue]  # httptools' alone

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        early = cycle is not None and not cycle.response_complete and not cycle.more_body
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._wait_no_more()
            ahead: Any = getattr(self, "pipeline", None)
            if ahead is None:  # h11 keeps what comes early as it is
                self._head = self._head + len(data) if early else 0
                too_much = self._head > HEAD_BYTES
            else:
                self._head = 0
                too_much = ahead and (len(ahead) > PIPELINED or len(cycle.body) > limits.BODY_BYTES)
            if too_much:
                self._end()
            return
        self._wait()
        if cycle is None or not cycle.more_body:  # else it is the rest of a body that was refused
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._end()

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(self.head_s, self._end)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        self.transport.abort()


def chunks(send: Any) -> Callable[[bytes], bool]:
    """Writes a chunk of an answer that `send` has begun straight to the transport; False: that is for `send` to do.

    uvicorn's `send` takes a message, a coroutine and a dozen checks a chunk: more than all else an event costs. With
    h11, or a middleware around `send`, all is for `send`.
    """
    cycle: Any = getattr(send, "__self__", None)
    if getattr(cycle, "chunked_encoding", None) is not True:
        return _refuse
    flow, write = cycle.flow, cycle.transport.write

    def chunk(data: bytes) -> bool:
        if flow.write_paused or cycle.disconnected:
            return False
        write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    return chunk


def _refuse(data: bytes) -> bool:
    return False


def allow_connections() -> None:
    """As many open files as the system lets this process have: the usual limit of 1,024 is that of old programs."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS has limits beside this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def prepare(listener: socket.socket, stalled_s: float = STALLED_S) -> None:
    """Options of a listening socket that the accepted ones inherit."""
    # asyncio sets it only where a socket names its protocol, which these do not; and without it every event after the
    # first waits for the client's delayed acknowledgement, some 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (  # not everywhere
        ("TCP_USER_TIMEOUT", int(stalled_s * 1000)),
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", PROBE_S),
    ):
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
