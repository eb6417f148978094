"""The HTTP application: its routes, who may call them, and how it starts, drains and stops."""

import asyncio
import gc
import hashlib
import hmac
import ipaddress
import logging
import signal
import socket
import ssl
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, Overloaded, WorkerDied
from sglang.server.connection import Connection, allow_connections, prepare
from sglang.server.embeddings import Embeddings
from sglang.server.front import Front
from sglang.server.http import RAW_SEND, Operation, error_response
from sglang.server.native import Native
from sglang.server.openai import OpenAI
from sglang.server.openapi import document
from sglang.server.page import page

log = logging.getLogger("sglang.server")

COLLECT = (20_000, 10, 20)  # allocations between two collections of the young; of these, and so on
KEEP_ALIVE_S = 75  # longer than common proxies and clients keep an idle connection, so that they close it, not we
LAST_BYTES_S = 3  # after the drain: what connections get to carry away their last events
CONTROL_PATHS = ("/flush_cache", "/abort_request")  # what they do, others feel
OPEN_PATHS = ("/health", "/metrics", "/ping")


def build_app(front: Front, config: ServerConfig) -> Starlette:
    """Every route over `front`; until it has started they answer 503."""
    version = _version()
    operations = [*Native(front, config, version).operations(), *OpenAI(front, config).operations()]
    operations += Embeddings(front, config).operations()
    description: dict[str, Any] = document(operations, "sglang", version)

    async def openapi(_: HTTPRequest) -> dict[str, Any]:
        return description

    operations.sort(key=lambda operation: operation.body is None)  # a path is compared with one after the other
    operations.append(Operation(("/openapi.json",), openapi, "This description.", answer=dict[str, Any]))
    return _App(
        routes=[*(route for operation in operations for route in operation.routes()), page()],
        middleware=[Middleware(Guard, front=front, config=config)],
        exception_handlers={HTTPException: _refuse},
    )


class _App(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[RAW_SEND] = send
        await super().__call__(scope, receive, send)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


async def _refuse(_: HTTPRequest, error: Exception) -> Response:
    return error_response(error)


class Guard:
    """Lets in who has the key, and no web page of another origin: browsers send what any page tells them to.

    And nobody before there is a model to ask.
    """

    def __init__(self, app: ASGIApp, front: Front, config: ServerConfig):
        self._app = app
        self._front = front
        self._key = _digest(config.api_key.encode()) if config.api_key else None
        self._admin_key = _digest(config.admin_api_key.encode()) if config.admin_api_key else None
        # Without a key and bound to this machine, only pages of this machine: a name of somebody else's that
        # resolves to 127.0.0.1 is how foreign pages reach local servers (DNS rebinding).
        self._local_pages = self._key is None and _is_loopback(config.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (self._app if refusal is None else error_response(refusal))(scope, receive, send)

    def _refusal(self, scope: Scope) -> HTTPException | Overloaded | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if b"origin" in headers:
            origin = _netloc(headers[b"origin"].decode("latin-1"))
            host = headers.get(b"host", b"").decode("latin-1")
            if origin != host or (self._local_pages and not _is_loopback(host)):
                return HTTPException(403, "requests from pages of another origin are refused")
        controls = self._admin_key is not None and scope["path"] in CONTROL_PATHS
        starting = None
        if not self._front.up and self._front.failed is None:
            starting = Overloaded("the server is starting")
        if not controls and (self._key is None or scope["path"] == "/" or scope["path"].startswith(OPEN_PATHS)):
            return starting
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b""))
        for held in (self._admin_key, None if controls else self._key):
            if held is not None and hmac.compare_digest(given, held):
                return starting
        return HTTPException(401, "a valid API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _netloc(url: str) -> str:
    """Of an origin; "" of what is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    """Whether `host`, with or without a port, names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_tls(config: ServerConfig) -> None:
    """Read the files of --ssl-… as they will be read later, while what is wrong with them is still a setting.

    Raises ConfigError.
    """
    if config.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    flag = f"--ssl-certfile {config.ssl_certfile}, --ssl-keyfile {config.ssl_keyfile}"
    try:
        # Without a password of ours OpenSSL would ask for one on the terminal.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, config.ssl_keyfile_password or "")
        if config.ssl_ca_certs is not None:
            flag = f"--ssl-ca-certs {config.ssl_ca_certs}"
            context.load_verify_locations(config.ssl_ca_certs)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{flag}: {getattr(error, 'strerror', None) or error}") from None


async def serve(app: ASGIApp, front: Front, config: ServerConfig, sockets: list[socket.socket]) -> None:
    """Serve until a signal or the worker's end.

    SIGTERM or SIGINT: new requests get a 503, running ones `config.drain_timeout` seconds to end; a second signal ends
    at once. Raises WorkerDied when the worker went first.
    """
    allow_connections()
    for listener in sockets:
        prepare(listener)
    level = config.log_level_http or config.log_level
    server = _Server(
        uvicorn.Config(
            app,
            http=Connection,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning" if level == "info" else level,  # its start and stop lines would only repeat ours
            access_log=level == "debug",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_BYTES_S,
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
            ssl_ca_certs=config.ssl_ca_certs,
            ssl_cert_reqs=ssl.CERT_REQUIRED if config.ssl_ca_certs else ssl.CERT_NONE,
            ssl_keyfile_password=config.ssl_keyfile_password,
        ),
        front,
        config.drain_timeout,
    )
    watch = asyncio.create_task(server.watch())
    # A walk of the garbage collector over all that was loaded would hold up every stream, and each message of the
    # worker, with a list per token, would soon bring on the next.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    try:
        await server.serve(sockets=sockets)
    finally:
        watch.cancel()
    if front.failed is not None:
        raise WorkerDied(front.failed)


class _Server(uvicorn.Server):
    """uvicorn that drains before it stops: by itself it would close the port first and know no limit."""

    def __init__(self, config: uvicorn.Config, front: Front, drain_s: float):
        super().__init__(config)
        self._front = front
        self._drain_s = drain_s
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
        log.info("signal=%s %s", signal.Signals(sig).name, "stopping now" if self._signals > 1 else "draining")

    async def watch(self) -> None:
        """Stop when the worker is gone, or when a signal came and the open requests have ended."""
        while self._signals == 0 and self._front.failed is None:
            await asyncio.sleep(0.05)
        if self._front.failed is None:
            await self._front.drain(self._drain_s)
        deadline = asyncio.get_running_loop().time() + LAST_BYTES_S
        while self._front.open_requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)  # readers still write their last event
        self.should_exit = True
