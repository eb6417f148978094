"""EngineBackend: programs over an `sgl.Engine` in this process, without HTTP."""

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template_by_model_path
from sglang.lang.backends.base import NotFused
from sglang.lang.backends.jinja import template_of_model
from sglang.lang.backends.native import Body, NativeBackend


class EngineBackend(NativeBackend):
    """`engine` takes the fields of `/generate` as keywords of `async_generate`, and gives the same dicts."""

    segments = True

    def __init__(self, engine: Any, chat_template: ChatTemplate | None = None):
        self._engine = engine
        config = engine.config
        self.chat_template = (
            chat_template
            or template_of_model(config.chat_template, config.tokenizer_path)
            or get_chat_template_by_model_path(config.model_path)
        )

    def get_model_name(self) -> str:
        return self._engine.config.model_path

    def get_chat_template(self) -> ChatTemplate:
        return self.chat_template

    def flush_cache(self) -> bool:
        return self._engine.flush_cache()

    def get_server_args(self) -> Body:
        return self._engine.get_server_info()

    def shutdown(self) -> None:
        self._engine.shutdown()

    async def _post(self, body: Body) -> Any:
        with _one_by_one(body):
            return await self._ask(body)

    async def _events(self, body: Body) -> AsyncIterator[Body]:
        with _one_by_one(body):
            events = await self._ask(body)
            try:
                async for event in events:
                    yield event
            finally:
                if inspect.isasyncgen(events):
                    await events.aclose()

    async def _ask(self, body: Body) -> Any:
        fields = {name: value for name, value in body.items() if name not in ("text", "sampling_params")}
        return await self._engine.async_generate(body.get("text"), body.get("sampling_params"), **fields)


@contextmanager
def _one_by_one(body: Body) -> Iterator[None]:
    """A chain that is refused is asked gen by gen: those before a bad one are answered."""
    try:
        yield
    except ValueError:
        if "segments" in body:
            raise NotFused from None
        raise
