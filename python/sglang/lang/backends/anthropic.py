"""Anthropic's models, over the Messages API."""

import json
from collections.abc import AsyncIterator
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template
from sglang.lang import loop
from sglang.lang.backends.api import TokenUsage, image_data, image_type, meta, refuse, turns
from sglang.lang.backends.base import AsyncBackend, Meta, StateView
from sglang.lang.ir import SglSamplingParams

CAN = {"max_new_tokens", "stop", "temperature", "top_p", "top_k", "json_schema"}
REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class Anthropic(AsyncBackend):
    def __init__(self, model_name: str, *args: Any, **kwargs: Any):
        """args, kwargs: what anthropic.Anthropic takes: api_key, base_url, timeout, max_retries, …

        Raises ImportError without the extra.
        """
        try:
            import anthropic
        except ImportError as e:
            raise ImportError('the Anthropic backend needs: pip install "sglang[anthropic]"') from e
        self.model_name = model_name
        self.token_usage = TokenUsage()
        kwargs.setdefault("max_retries", 3)
        self.client: Any = anthropic.AsyncAnthropic(*args, **kwargs)  # Any: `create` has no overload for a dict
        loop.close_with(self, self.client.close)
        self._who = f"Anthropic({model_name!r})"

    def get_model_name(self) -> str:
        return self.model_name

    def get_chat_template(self) -> ChatTemplate:
        return get_chat_template("claude")

    def shutdown(self) -> None:
        loop.run(self.client.close())

    async def async_generate(self, s: StateView, sampling_params: SglSamplingParams) -> tuple[str, Meta | None]:
        result = await self.client.messages.create(**self._request(s, sampling_params))
        text = "".join(block.text for block in result.content if block.type == "text")
        end = self._end(text, sampling_params)
        used = (result.usage.input_tokens, result.usage.output_tokens)
        self.token_usage.add(*used)
        return text[:end], meta(*used, "stop" if end < len(text) else reason(result.stop_reason))

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Meta | None]]:
        text, given, ended, prompt, completion = "", 0, None, None, None
        async with await self.client.messages.create(**self._request(s, sampling_params), stream=True) as stream:
            async for event in stream:
                if event.type == "message_start":
                    prompt, completion = event.message.usage.input_tokens, event.message.usage.output_tokens
                elif event.type == "message_delta":
                    completion, ended = event.usage.output_tokens, event.delta.stop_reason
                elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                    text += event.delta.text
                    if (end := self._end(text, sampling_params)) < len(text):
                        text, ended = text[:end], "stop_sequence"
                        break
                    # What is blank may yet become a stop.
                    sure = len(text.rstrip()) if self._own_stops(sampling_params) else len(text)
                    if sure > given:
                        yield text[given:sure], meta(prompt, completion, None)
                        given = sure
        self.token_usage.add(prompt, completion)
        if ended is None:
            raise RuntimeError(f"{self._who}: the stream ended before the answer did")
        yield text[given:], meta(prompt, completion, reason(ended))

    def _request(self, s: StateView, p: SglSamplingParams) -> dict[str, Any]:
        refuse(p, CAN, self._who)
        messages = turns(s, self._who, plain_text=True, prefill=True)
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        messages = messages if system is None else messages[1:]
        if any(message["role"] == "system" for message in messages):
            raise ValueError(f"{self._who} takes a system message only at the beginning")
        request: dict[str, Any] = {
            "model": self.model_name,
            "max_tokens": p.max_new_tokens,
            "messages": [{**message, "content": content(message["content"])} for message in messages],
        }
        if system:
            request["system"] = system
        if stops := [stop for stop in p.stop if stop.strip()]:
            request["stop_sequences"] = stops
        # Not arguments of every version of the SDK, and newer models refuse them: only what the program asks for.
        more: dict[str, Any] = {}
        if p.temperature != 1.0:
            more["temperature"] = p.temperature
        if p.top_p != 1.0:
            more["top_p"] = p.top_p
        if p.top_k > 0:
            more["top_k"] = p.top_k
        if p.json_schema is not None:
            more["output_config"] = {"format": {"type": "json_schema", "schema": json.loads(p.json_schema)}}
        if more:
            request["extra_body"] = more
        return request

    def _own_stops(self, p: SglSamplingParams) -> list[str]:
        """The stops that the API refuses, because they are blank: we look for them ourselves."""
        return [stop for stop in p.stop if stop and not stop.strip()]

    def _end(self, text: str, p: SglSamplingParams) -> int:
        """Where a stop of ours ends `text`."""
        return min([text.find(stop) for stop in self._own_stops(p) if stop in text], default=len(text))


def reason(stop_reason: str | None) -> str | None:
    return REASONS.get(stop_reason or "", stop_reason)


def content(parts: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A message's content as Anthropic writes it: images are base64 with their type."""
    if isinstance(parts, str):
        return parts
    blocks: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "image_url":
            data = image_data(part["image_url"]["url"])
            blocks.append({"type": "image", "source": {"type": "base64", "media_type": image_type(data), "data": data}})
        elif part["text"]:
            blocks.append({"type": "text", "text": part["text"]})
    return blocks
