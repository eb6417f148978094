"""An HTTP/1.1 client for load: each piece of a reply is handed over at once, with the time it came.

Why not httpx: see `benchmark/client_cost.py`, which measures both.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple, cast
from urllib.parse import urlsplit

clock = time.perf_counter
Sink = Callable[[bytes, float], None]  # a piece of the body, and when it came
HEAD_BYTES = 1 << 16


class Lost(ConnectionError):
    """The connection ended before the reply did. `unused`: nothing of the reply had come."""

    def __init__(self, message: str, unused: bool):
        super().__init__(message)
        self.unused = unused


class Head(NamedTuple):
    status: int
    headers: dict[bytes, bytes]  # names in lower case


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[Head] | None = None
        self._sink: Sink = lambda data, now: None
        self._rest = b""
        self._head: Head | None = None
        self._read: Callable[[bytes, float], None] = self._read_head
        self._left = 0

    async def send(self, request: bytes, sink: Sink) -> Head:
        """The reply's head, once its whole body has gone to `sink`. Raises Lost."""
        self._waiter = asyncio.get_running_loop().create_future()
        self._sink, self._rest, self._head, self._read = sink, b"", None, self._read_head
        self._transport.write(request)
        try:
            return await self._waiter
        finally:
            if not self._waiter.done() or self._waiter.cancelled():
                self._transport.abort()
            self._waiter = None

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._read(data, clock())
        except ValueError as error:
            self._fail(f"not a reply of an HTTP server: {error}")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._head is not None and self._read == self._read_to_the_end:
            self._finish()
        self._fail(f"the server closed the connection{f' ({exc})' if exc else ''}")

    def _fail(self, message: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Lost(message, self._head is None and not self._rest))

    def _finish(self) -> None:
        if self._waiter is not None and not self._waiter.done() and self._head is not None:
            self._waiter.set_result(self._head)

    def _read_head(self, data: bytes, now: float) -> None:
        self._rest += data
        end = self._rest.find(b"\r\n\r\n")
        if end < 0:
            if len(self._rest) > HEAD_BYTES:
                raise ValueError(f"more than {HEAD_BYTES} bytes of headers")
            return
        first, *lines = self._rest[:end].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError(f"it starts with {first[:40]!r}")
        pairs = (line.partition(b":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        status = int(rest[:3])
        data, self._rest = self._rest[end + 4 :], b""
        if status < 200:  # 100 Continue and the like: the reply proper comes after it
            if data:
                self._read_head(data, now)
            return
        self._head = Head(status, headers)
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._read = self._read_chunks
        elif b"content-length" in headers:
            self._left = int(headers[b"content-length"])
            self._read = self._read_length
        else:
            self._read = self._read_to_the_end
        self._read(data, now)

    def _read_chunks(self, data: bytes, now: float) -> None:
        data = self._rest + data if self._rest else data
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:end].partition(b";")[0], 16)
            if size == 0:
                if data.find(b"\r\n\r\n", end) >= 0:  # after trailers, if there are any
                    self._finish()
                break
            begin = end + 2
            if len(data) < begin + size + 2:
                break
            self._sink(data[begin : begin + size], now)
            at = begin + size + 2
        self._rest = data[at:]

    def _read_length(self, data: bytes, now: float) -> None:
        if data:
            self._left -= len(data)
            self._sink(data, now)
        if self._left <= 0:
            self._finish()

    def _read_to_the_end(self, data: bytes, now: float) -> None:
        if data:
            self._sink(data, now)


class Client:
    """Sends requests to one server. Connections are kept and used again; there are as many as requests at a time."""

    def __init__(self, base_url: str, headers: dict[str, str] | None = None):
        """base_url: http[s]://host[:port][/prefix]. Raises ValueError for anything else."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"must be http://HOST[:PORT] or https://…, got {base_url!r}")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Content-Type": "application/json", **(headers or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[Connection] = []

    def encode(self, path: str, body: bytes) -> bytes:
        """The bytes of a POST request."""
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        return head.encode("latin-1") + body

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        return connection

    async def open(self, n: int) -> None:
        """Have `n` connections open, so that no request's time has the opening in it. Raises OSError."""
        while len(self._idle) < n:
            batch = min(64, n - len(self._idle))  # few enough for any listener's backlog
            self._idle += await asyncio.gather(*(self.connect() for _ in range(batch)))

    async def send(self, request: bytes, sink: Sink) -> Head:
        """Send what `encode` made; the reply's body goes to `sink` as it comes. Raises OSError."""
        while True:
            connection = self._take()
            fresh = connection is None
            connection = connection or await self.connect()
            try:
                head = await connection.send(request, sink)
            except Lost as error:
                if error.unused and not fresh:
                    continue  # the server had given up the idle connection
                raise
            if head.headers.get(b"connection", b"").lower() == b"close":
                connection.close()
            else:
                self._idle.append(connection)
            return head

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class Events:
    """Bytes of an event stream in, the data of each event out."""

    def __init__(self, note: Sink):
        self._note = note
        self.rest = b""  # what no blank line has ended yet
        self.done = False  # "[DONE]" has come

    def feed(self, data: bytes, now: float) -> None:
        data = self.rest + data if self.rest else data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self.rest = data.split(b"\n\n")
        for event in events:
            value = event[5:].strip() if event.startswith(b"data:") else _data(event)
            if value == b"[DONE]":
                self.done = True
            elif value:
                self._note(value, now)


def _data(event: bytes) -> bytes:
    """The data lines of an event that has other lines too (event:, id:, comments)."""
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
