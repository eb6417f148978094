"""The door: reads bodies under limits, answers errors in one shape, streams events, notices clients that leave.

An `Operation` is one function with its Structs; the routes and /openapi.json are both made of the list of them.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from sglang.base import limits
from sglang.base.errors import FieldError, Overloaded, WorkerDied
from sglang.server.connection import chunks

log = logging.getLogger("sglang.server")
T = TypeVar("T")

Frames = AsyncGenerator[bytes, None]  # server-sent events, each with its blank line
DONE = b"data: [DONE]\n\n"
RAW_SEND = "sglang.send"  # in a scope: the server's own `send`, past the middleware that looks at each message
START = "http.response.start"
BODY = "http.response.body"
encode = msgspec.json.Encoder().encode

BODY_S = 120.0  # the largest body in this time is 2 Mbit/s
MARKS = 1 << 20  # brackets and braces in a body: a bound on the time that measuring its depth can take
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_JSON = (b"content-type", b"application/json")
_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


@dataclass(frozen=True)
class Feed:
    """Events that are written where they come into being, without a task that is woken for each.

    run: writes events to the Sink it is given and returns those of the end; `last` makes what follows all of them.
    """

    run: "Callable[[Sink], Coroutine[Any, Any, bytes]]"
    last: Callable[[], bytes] = bytes


@dataclass(frozen=True)
class Operation:
    """One endpoint.

    handle: with `body` an async function of the decoded body, which returns a value to encode, or Frames or a Feed to
    stream; it is cancelled when its client leaves. Without `body` an async function of the Starlette request.
    """

    paths: tuple[str, ...]
    handle: Callable[[Any], Coroutine[Any, Any, Any]]
    summary: str
    body: type | None = None
    answer: Any = None
    streams: bool = False
    methods: tuple[str, ...] = ("GET",)

    def routes(self) -> list[BaseRoute]:
        target = _Endpoint(self) if self.body is not None else _plain(self)
        return [Route(path, target, methods=list(self.methods)) for path in self.paths]


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: int
    retryable: bool = False


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """What every error looks like: `error` as the native API and OpenAI have it, its fields again where older
    OpenAI-style clients of this server look for them."""

    error: ErrorDetail
    object: str = "error"
    message: str
    type: str
    param: str | None = None
    code: int


NAMES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    503: "ServiceUnavailableError",
}


def error_detail(error: Exception) -> ErrorDetail:
    """Every exception as an error; what we do not know is a 500 and goes to the log."""
    match error:
        case FieldError():
            code, param = error.status, error.field
        case Overloaded():
            code, param = 503, None
        case HTTPException():
            code, param = error.status_code, None
        case WorkerDied():
            code, param = 500, None
        case _:
            log.error("unexpected error", exc_info=error)
            code, param = 500, None
    message = error.detail if isinstance(error, HTTPException) else str(error) or type(error).__name__
    name = "WorkerDied" if isinstance(error, WorkerDied) else NAMES.get(code, "InternalServerError")
    retryable = isinstance(error, Overloaded | WorkerDied)
    return ErrorDetail(message=message, type=name, param=param, code=code, retryable=retryable)


def error_response(error: Exception) -> Response:
    detail = error_detail(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    body = ErrorAnswer(error=detail, message=detail.message, type=detail.type, param=detail.param, code=detail.code)
    return Response(encode(body), detail.code, headers, "application/json")


def event(value: Any) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


MARK = uuid.uuid4().hex  # no client can guess it, so none can send it
_QUOTED_MARK = f'"{MARK}"'.encode()


def template(value: Any) -> list[bytes]:
    """The event of `value`, cut where it holds MARK: what stands around the parts that differ from event to event."""
    return event(value).split(_QUOTED_MARK)


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, within_s: float = BODY_S) -> bytes:
    """The whole body. Raises FieldError 408, 413 or 415, ClientGone."""
    headers = dict(scope["headers"])
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise FieldError("content-encoding", "compressed bodies are not accepted", 415)
    length = headers.get(b"content-length", b"0")
    size = int(length) if length.isdigit() else 0
    parts: list[bytes] = []
    deadline = asyncio.get_running_loop().time() + within_s
    while size <= limits.BODY_BYTES:
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise FieldError("body", f"the body did not come within {within_s:g} s", 408) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
        size = max(size, sum(map(len, parts)))
    raise FieldError("body", f"the body may have at most {limits.BODY_BYTES} bytes", 413)


def decode(body: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """JSON -> Struct. Raises FieldError that names the field."""
    if _too_deep(body):
        raise FieldError("body", f"JSON may be nested at most {limits.JSON_DEPTH} deep, and in few enough brackets")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text, _, where = str(error).replace("`", "").partition(" - at $")
        _, _, missing = text.partition("missing required field ")
        field = ".".join(part for part in (where.removeprefix("."), missing) if part) or "body"
        raise FieldError(field, f"{field}: {text}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FieldError("body", f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise FieldError("body", f"JSON may be nested at most {limits.JSON_DEPTH} deep") from None


def _too_deep(body: bytes) -> bool:
    """Whether JSON is nested deeper than the limit, found by passes in C: each takes the innermost brackets away."""
    most = limits.JSON_DEPTH
    if len(body.split(b"[", most + 1)) + len(body.split(b"{", most + 1)) - 2 <= most:  # sooner than `count` counts all
        return False
    marks = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    if len(marks) > MARKS:
        return True
    for _ in range(most):
        fewer = marks.replace(b"[]", b"").replace(b"{}", b"")
        if not fewer:
            return False
        if len(fewer) == len(marks):
            return False  # brackets that do not match: the decoder says where
        marks = fewer
    return True


class _Endpoint:
    """The ASGI application of an operation with a body."""

    def __init__(self, operation: Operation):
        assert operation.body is not None
        self._handle = operation.handle
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(operation.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive)
            answer = self._answer(decode(body, self._decoder), send, scope.get(RAW_SEND, send))
            await while_connected(receive, answer)
        except ClientGone:
            return
        except FieldError as error:
            await error_response(error)(scope, receive, send)

    async def _answer(self, body: Any, send: Send, raw_send: Send) -> None:
        try:
            answer = await self._handle(body)
            del body  # see Front._submit: while its answer is streamed, nobody needs a prompt
            if isinstance(answer, AsyncGenerator):
                await send_events(cast(Frames, answer), send)
                return
            if isinstance(answer, Feed):
                await send_feed(answer, raw_send)
                return
            response = answer if isinstance(answer, Response) else None
            content = encode(answer) if response is None else b""
        except Exception as error:
            response, content = error_response(error), b""
        if response is not None:
            await response({"type": "http"}, _never, send)
            return
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
        await send({"type": "http.response.body", "body": content})


async def send_events(frames: Frames, send: Send) -> None:
    """Stream `frames`. What goes wrong before the first is raised, so it can be a plain error; later it is an event."""
    async with aclosing(frames):
        frame = await anext(frames)
        await send({"type": START, "status": 200, "headers": list(_EVENTS)})
        try:
            await send({"type": BODY, "body": frame, "more_body": True})
            async for frame in frames:
                await send({"type": BODY, "body": frame, "more_body": True})
        except Exception as error:
            frame = event({"error": error_detail(error)})
            await send({"type": BODY, "body": frame, "more_body": True})
        await send({"type": BODY, "body": DONE})


async def send_feed(feed: Feed, send: Send) -> None:
    """As `send_events`; the last events leave together."""
    sink = Sink(send)
    try:
        try:
            end = await feed.run(sink)
            end += feed.last()
        except Exception as error:
            if not sink.started:
                raise
            end = event({"error": error_detail(error)})
        await sink.finish(end + DONE)
    finally:
        sink.close()


class Sink:
    """A client's event stream, written to by who has something to write.

    An ASGI server's `send` waits only while the client is behind. So it is run here up to where it waits, mostly its
    end; the rest, if there is one, becomes a task. Where the server is ours, most events need no `send` at all.
    """

    def __init__(self, send: Send):
        self.started = False
        self._send = send
        self._chunk: Callable[[bytes], bool] | None = None  # once the answer has begun
        self._waiting: asyncio.Task[None] | None = None

    def write(self, data: bytes, on_room: Callable[[], None]) -> bool:
        """Never waits. False: `data` is taken, but no more before `on_room` is called."""
        if self._chunk is not None and self._chunk(data):
            return True
        sending = self._send({"type": BODY, "body": data, "more_body": True}) if self.started else self._begin(data)
        rest = _advance(cast(Coroutine[Any, Any, None], sending))
        if rest is None:
            return True
        self._waiting = asyncio.ensure_future(self._go_on(rest, on_room))
        return False

    async def finish(self, data: bytes) -> None:
        if self._waiting is not None:
            await self._waiting
        if not self.started:
            await self._begin()
        await self._send({"type": BODY, "body": data})

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    async def _begin(self, data: bytes = b"") -> None:
        self.started = True
        await self._send({"type": START, "status": 200, "headers": list(_EVENTS)})
        self._chunk = chunks(self._send)
        if data:
            await self._send({"type": BODY, "body": data, "more_body": True})

    async def _go_on(self, rest: "_Rest", on_room: Callable[[], None]) -> None:
        await rest
        self._waiting = None
        on_room()


class _Rest:
    """A coroutine that has begun; to await it is to run it from where it waits to its end."""

    def __init__(self, work: Coroutine[Any, Any, None], awaited: Any):
        self._work = work
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        awaited = self._awaited
        while True:
            try:
                came = yield awaited
            except BaseException as error:
                step, value = self._work.throw, error
            else:
                step, value = self._work.send, came
            try:
                awaited = step(value)
            except StopIteration:
                return


def _advance(work: Coroutine[Any, Any, None]) -> _Rest | None:
    """Runs `work` up to where it waits; None: it has ended."""
    try:
        return _Rest(work, work.send(None))
    except StopIteration:
        return None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Cancels it and raises ClientGone when the client hangs up first.

    Starlette cancels no handler by itself, so a client that leaves would otherwise be computed for to the end.
    `work` begins at once, in the caller's task: of requests that come together, the first is then with the worker
    before the last has been read.
    """
    task, working = asyncio.current_task(), True
    assert task is not None

    def leave(_: object) -> None:
        if working:
            task.cancel()

    gone = asyncio.ensure_future(_hang_up(receive))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone.done() or task.uncancel():  # somebody else's
            raise
        raise ClientGone from None
    finally:
        working = False
        gone.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    raise AssertionError("a finished response reads nothing")


def _plain(operation: Operation) -> Callable[[HTTPRequest], Coroutine[Any, Any, Response]]:
    async def endpoint(request: HTTPRequest) -> Response:
        try:
            answer = await operation.handle(request)
        except Exception as error:
            return error_response(error)
        return answer if isinstance(answer, Response) else Response(encode(answer), media_type="application/json")

    return endpoint
