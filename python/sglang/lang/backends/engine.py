"""EngineBackend: programs over an `sgl.Engine` in this process, without HTTP."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template_by_model_path
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

    async def async_cache_prefix(self, prefix_str: str) -> None:
        """Nothing: the engine shares the prefix of requests that arrive together."""

    async def _post(self, body: Body) -> Any:
        return await self._engine.async_generate(body.pop("text", None), body.pop("sampling_params", None), **body)

    async def _events(self, body: Body) -> AsyncIterator[Body]:
        events = await self._engine.async_generate(body.pop("text", None), body.pop("sampling_params", None), **body)
        try:
            async for event in events:
                yield event
        finally:
            if inspect.isasyncgen(events):
                await events.aclose()
