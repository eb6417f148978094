"""A real HTTP server on a real socket that speaks the vendors' wire formats, for the tests of the API backends.

It is strict where the vendors are: an unknown parameter, a missing key, a bad role order is the vendor's 400 or 401 in
the vendor's shape. What arrived is kept in `requests`; `fail` and `cut_streams` plant faults.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from wire_model import Scripted

Json = dict[str, Any]
ErrorShape = Callable[[int, str], Json]
Endpoint = Callable[["WireServer", Request, Json], Response]


class Refusal(Exception):
    """An answer other than 200, in the vendor's own shape."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Received:
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Json


@dataclass
class WireServer:
    model: Scripted
    requests: list[Received] = field(default_factory=list)
    cut_streams_after: int | None = None  # events; the connection then breaks
    blocked: str | None = None  # prompts with this text get no answer (Gemini)
    url: str = ""
    _faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def reset(self, model: Scripted) -> None:
        """Forget all requests and faults."""
        self.model, self.requests, self._faults = model, [], []
        self.cut_streams_after = self.blocked = None

    def fail(self, status: int, *, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Answer the next `times` requests with an error."""
        self._faults += [(status, headers or {})] * times

    @property
    def bodies(self) -> list[Json]:
        return [request.body for request in self.requests]

    def route(self, path: str, endpoint: Endpoint, error: ErrorShape) -> Route:
        async def serve(request: Request) -> Response:
            body = json.loads(await request.body())
            received = Received(request.url.path, dict(request.query_params), dict(request.headers), body)
            self.requests.append(received)
            if self._faults:
                status, headers = self._faults.pop(0)
                return JSONResponse(error(status, "planted"), status, headers)
            try:
                return endpoint(self, request, body)
            except Refusal as e:
                return JSONResponse(error(e.status, str(e)), e.status)

        return Route(path, serve, methods=["POST"])

    def stream(self, events: list[str]) -> Response:
        """Server-sent events, one write each."""

        async def body():
            for i, event in enumerate(events):
                if i == self.cut_streams_after:
                    raise ConnectionResetError("planted")
                yield event.encode()

        return StreamingResponse(body(), media_type="text/event-stream")


@contextmanager
def wire_server(model: Scripted) -> Iterator[WireServer]:
    """A server of all vendors on one free port, in a thread."""
    import wire_anthropic
    import wire_gemini
    import wire_openai

    server = WireServer(model)
    routes = [r for vendor in (wire_openai, wire_anthropic, wire_gemini) for r in vendor.routes(server)]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none"
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.002)
    server.url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        web.should_exit = True
        thread.join(5)


def require(condition: object, message: str, status: int = 400) -> None:
    if not condition:
        raise Refusal(status, message)


def known(body: Json, allowed: set[str]) -> None:
    """Vendors refuse parameters they do not have."""
    unknown = sorted(set(body) - allowed)
    require(not unknown, f"Unrecognized request argument supplied: {', '.join(unknown)}")
