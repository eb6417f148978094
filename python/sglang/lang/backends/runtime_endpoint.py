"""RuntimeEndpoint: programs over a server of ours, or one that speaks the same `/generate`."""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx

from sglang.base.chat import ChatTemplate, get_chat_template, get_chat_template_by_model_path
from sglang.lang import loop
from sglang.lang.backends.base import NotFused
from sglang.lang.backends.jinja import template_of_model
from sglang.lang.backends.native import Body, NativeBackend

CONNECTIONS = 256  # requests of this process that are under way at a time; more wait here, in order
_INFO_S = 60.0  # a server that answers nothing about itself for so long is not there


class RuntimeEndpoint(NativeBackend):
    """A running server at `base_url`.

    api_key: sent as a Bearer token (auth_token is its older name). verify: False, or a CA file, for TLS.
    chat_template_name: a built-in template; else the one of the model's tokenizer where this machine can read it,
    else by the model's path. fusion: whether chains of gens travel as one request, where the server can.
    Raises RuntimeError where the server does not answer.
    """

    def __init__(
        self,
        base_url: str,
        auth_token: str | None = None,
        api_key: str | None = None,
        verify: bool | str | None = None,
        chat_template_name: str | None = None,
        fusion: bool = True,
    ):
        self.base_url = base_url.rstrip("/")
        self.fusion = fusion
        key = api_key or auth_token
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._verify = _tls(verify) if base_url.startswith("https") else False
        self.model_info: Body = self._ask("GET", "/get_model_info").json()
        self.segments = self.model_info.get("segments") is True
        self.chat_template = (
            get_chat_template(chat_template_name) if chat_template_name else self._template_of(self.model_info)
        )
        # A client for each request under way: the pool inside of one takes time for every connection it has.
        self._clients: list[httpx.AsyncClient] = []
        loop.close_with(self, partial(_close, self._clients))
        self._slots = _Slots(CONNECTIONS)

    def get_model_name(self) -> str:
        return self.model_info["model_path"]

    def get_chat_template(self) -> ChatTemplate:
        return self.chat_template

    def flush_cache(self) -> bool:
        return self._ask("POST", "/flush_cache", check=False).status_code == 200

    def get_server_args(self) -> Body:
        return self._ask("GET", "/get_server_info").json()

    def get_server_info(self) -> Body:
        return self.get_server_args()

    def start_profile(self) -> None:
        self._ask("POST", "/start_profile")

    def stop_profile(self) -> None:
        self._ask("POST", "/stop_profile")

    def _template_of(self, info: Body) -> ChatTemplate:
        path = info.get("tokenizer_path") or info["model_path"]
        return template_of_model(info.get("chat_template"), path) or get_chat_template_by_model_path(info["model_path"])

    def _ask(
        self, method: str, path: str, body: Body | None = None, check: bool = True, timeout_s: float | None = _INFO_S
    ) -> httpx.Response:
        url = self.base_url + path
        try:
            answer = httpx.request(
                method, url, json=body, headers=self._headers, verify=self._verify, timeout=timeout_s
            )
        except httpx.HTTPError as error:
            raise RuntimeError(f"{url}: no server answers ({error or type(error).__name__})") from error
        if check and answer.status_code != 200:
            raise RuntimeError(f"{url}: {answer.status_code} {_told(answer.text)}")
        return answer

    async def _post(self, body: Body) -> Any:
        async with self._sent(body) as answer:
            return json.loads(await answer.aread())

    async def _events(self, body: Body) -> AsyncIterator[Body]:
        async with self._sent(body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(f"{self.base_url}/generate: {_told(data)}")
                yield event
        raise RuntimeError(f"{self.base_url}/generate: the stream broke off")

    @asynccontextmanager
    async def _sent(self, body: Body) -> AsyncIterator[httpx.Response]:
        url = f"{self.base_url}/generate"
        async with self._slots.one(first="parent" in body):
            client = self._clients.pop() if self._clients else self._new_client()
            try:
                async with client.stream("POST", url, json=body) as answer:
                    if answer.status_code != 200:
                        text = (await answer.aread()).decode(errors="replace")
                        if "segments" in body and answer.status_code in (400, 422):
                            # One by one, the gens before a bad one are answered, and it fails at its own line.
                            self.segments = self.segments and not self._not_known(text)
                            raise NotFused
                        raise RuntimeError(f"{url}: {answer.status_code} {_told(text)}")
                    yield answer
            except httpx.HTTPError as error:
                raise RuntimeError(f"{url}: {type(error).__name__}: {error}") from error
            finally:
                self._clients.append(client)

    def _new_client(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(None, connect=60.0)  # an answer may take as long as it takes
        return httpx.AsyncClient(headers=self._headers, verify=self._verify, timeout=timeout)

    @staticmethod
    def _not_known(text: str) -> bool:
        """Whether a refusal means that the server has never heard of segments, not that one of them is wrong."""
        try:
            answer = json.loads(text)
            return (answer.get("error") or answer).get("param", "text") == "text"
        except (ValueError, AttributeError):
            return True

    def __repr__(self) -> str:
        return f"RuntimeEndpoint({self.base_url!r})"


class _Slots:
    """So many at a time. Those that come `first` need not wait for others: a program that has begun ends before others
    begin, as the server has it too.
    """

    def __init__(self, count: int):
        self._free = count
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque())

    @asynccontextmanager
    async def one(self, first: bool) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting[not first].append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it came as well
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        for waiting in self._waiting:
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1


async def _close(clients: list[httpx.AsyncClient]) -> None:
    for client in clients:
        await client.aclose()


def _tls(verify: bool | str | None) -> bool | ssl.SSLContext:
    """Made once: reading the certificates of the system takes tens of milliseconds."""
    if verify is False:
        return False
    return ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)


def _told(text: str) -> str:
    """A body as the server sent it, in one line where it is JSON."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text
