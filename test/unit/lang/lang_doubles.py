"""A backend that answers by a script, without a model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template
from sglang.base.choices import ChoicesDecision, Method, token_length_normalized
from sglang.lang.backends.base import AsyncBackend, NotFused, Segment, StateView
from sglang.lang.ir import Select, SglSamplingParams, Text

HANG_S = 60.0  # what takes longer hangs: a busy machine may keep a thread waiting for seconds

Script = Callable[[str, SglSamplingParams], str]


def count(text: str, params: SglSamplingParams) -> str:
    """How long the prompt was: every answer shows what it was made from."""
    return f"<{len(text)}>"


class Scripted(AsyncBackend):
    """`script(prompt, params)` is the answer, after `delay` seconds; prompts are in `asked`, the kinds of requests in
    `requests`. chains: it takes several gens at once; "refused" takes them until it sees one. meet: nobody is answered
    before so many are under way."""

    def __init__(
        self,
        script: Script = count,
        delay: float = 0.0,
        chains: bool | str = False,
        template: str = "default",
        spec: Any = None,
        meet: int = 0,
    ):
        self.script = script
        self.delay = delay
        self.fuses = bool(chains)
        self._refuses = chains == "refused"
        self.template = get_chat_template(template)
        self.spec = spec
        self.meet = meet
        self._met = asyncio.Event()
        self.asked: list[str] = []
        self.params: list[SglSamplingParams] = []
        self.requests: list[str] = []
        self.prefixes: list[str] = []
        self.running = self.most = 0
        self.dropped = 0

    def get_chat_template(self) -> ChatTemplate:
        return self.template

    async def _answer(self, text: str, params: SglSamplingParams) -> str:
        self.asked.append(text)
        self.params.append(params)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.running >= self.meet:
                self._met.set()
            elif self.most < self.meet:
                await asyncio.wait_for(self._met.wait(), HANG_S)
            await asyncio.sleep(self.delay)
            return self.script(text, params)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        finally:
            self.running -= 1

    async def async_generate(self, s: StateView, sampling_params: SglSamplingParams) -> tuple[Any, Any]:
        self.requests.append("generate")
        return await self._answer(s.text_, sampling_params), {"prompt_tokens": len(s.text_)}

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Any]]:
        self.requests.append("stream")
        for i, letter in enumerate(await self._answer(s.text_, sampling_params)):
            await asyncio.sleep(0)
            yield letter, {"completion_tokens": i + 1}

    async def async_select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        self.requests.append("select")
        self.asked.append(s.text_)
        return ChoicesDecision(max(choices, key=len), {"of": len(choices)})

    async def async_chain(
        self, s: StateView, segments: Sequence[Segment], stream: bool
    ) -> AsyncIterator[tuple[int, str, Any, bool]]:
        self.requests.append("chain")
        if self._refuses:
            self.fuses = False
            raise NotFused
        text, index = s.text_, 0
        for segment in segments:
            if isinstance(segment, Text):
                text += segment.value
                continue
            if isinstance(segment, Select):
                value = max(segment.choices, key=len)
            else:
                value = await self._answer(text, segment.params)
                if stream:
                    for i in range(1, len(value)):
                        await asyncio.sleep(0)
                        yield index, value[:i], {}, False
            yield index, value, {"prompt_tokens": len(text)}, True
            text += value
            index += 1

    async def async_cache_prefix(self, prefix_str: str) -> None:
        self.prefixes.append(prefix_str)
