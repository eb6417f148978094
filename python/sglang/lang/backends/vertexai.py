"""Google's Gemini models on Vertex AI, through the google-genai SDK."""

import base64
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template
from sglang.lang import loop
from sglang.lang.backends.api import TokenUsage, image_data, image_type, meta, refuse, turns
from sglang.lang.backends.base import AsyncBackend, Meta, StateView
from sglang.lang.ir import SglSamplingParams

CAN = {
    "max_new_tokens", "stop", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "json_schema",
}  # fmt: skip
REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}


class VertexAI(AsyncBackend):
    def __init__(
        self,
        model_name: str,
        safety_settings: Mapping[Any, Any] | Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        """The project is GCP_PROJECT_ID's, the place GCP_LOCATION's (us-central1 where unset), the credentials Google's
        application default ones.

        safety_settings: {category: threshold} or the SDK's list. kwargs: what genai.Client takes.
        Raises ImportError without the extra, ValueError without a project.
        """
        try:
            from google import genai
        except ImportError as e:
            raise ImportError('the VertexAI backend needs: pip install "sglang[vertexai]"') from e
        project = kwargs.pop("project", None) or os.environ.get("GCP_PROJECT_ID")
        if not project:
            raise ValueError("VertexAI needs the Google Cloud project: set the environment variable GCP_PROJECT_ID")
        self.model_name = model_name
        self.token_usage = TokenUsage()
        if isinstance(safety_settings, Mapping):
            safety_settings = [{"category": key, "threshold": value} for key, value in safety_settings.items()]
        self._safety = safety_settings
        kwargs.setdefault("location", os.environ.get("GCP_LOCATION", "us-central1"))
        kwargs.setdefault("http_options", {"retry_options": {"attempts": 4}})
        self.client = genai.Client(vertexai=True, project=project, **kwargs)
        loop.close_with(self, self.client.aio.aclose)
        self._who = f"VertexAI({model_name!r})"

    def get_model_name(self) -> str:
        return self.model_name

    def shutdown(self) -> None:
        loop.run(self.client.aio.aclose())

    def get_chat_template(self) -> ChatTemplate:
        return get_chat_template("default")

    async def async_generate(self, s: StateView, sampling_params: SglSamplingParams) -> tuple[str, Meta | None]:
        result = await self.client.aio.models.generate_content(**self._request(s, sampling_params))
        text, reason = self._read(result)
        if reason is None:
            raise RuntimeError(f"{self._who} gave no answer: {result.prompt_feedback}")
        return text, self._meta(result, reason)

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Meta | None]]:
        ended, result = None, None
        async for result in await self.client.aio.models.generate_content_stream(**self._request(s, sampling_params)):
            text, reason = self._read(result)
            ended = reason or ended
            yield text, None if ended is None else self._meta(result, ended)
        if ended is None:
            raise RuntimeError(
                f"{self._who}: the stream ended before the answer did: {getattr(result, 'prompt_feedback', None)}"
            )

    def _request(self, s: StateView, p: SglSamplingParams) -> dict[str, Any]:
        refuse(p, CAN, self._who)
        config: dict[str, Any] = {"max_output_tokens": p.max_new_tokens, "temperature": p.temperature, "top_p": p.top_p}
        if p.stop:
            config["stop_sequences"] = list(p.stop)
        if p.top_k > 0:
            config["top_k"] = p.top_k
        config |= {
            name: getattr(p, name) for name in ("frequency_penalty", "presence_penalty") if getattr(p, name) != 0
        }
        if p.json_schema is not None:
            config |= {"response_mime_type": "application/json", "response_json_schema": json.loads(p.json_schema)}
        if self._safety is not None:
            config["safety_settings"] = list(self._safety)
        messages = turns(s, self._who, plain_text=True)
        if messages and messages[0]["role"] == "system":
            config["system_instruction"] = messages[0]["content"]
            messages = messages[1:]
        if any(message["role"] == "system" for message in messages):
            raise ValueError(f"{self._who} takes a system message only at the beginning")
        roles = {"user": "user", "assistant": "model"}
        contents = [{"role": roles[m["role"]], "parts": parts(m["content"])} for m in messages]
        return {"model": self.model_name, "contents": contents, "config": config}

    def _read(self, result: Any) -> tuple[str, str | None]:
        """The text of an answer or of a piece of it, without the model's thoughts; why it ended, None before that."""
        if not result.candidates:
            return "", None
        first = result.candidates[0]
        found = (first.content.parts if first.content else None) or []
        text = "".join(part.text for part in found if part.text and not part.thought)
        reason = first.finish_reason.value if first.finish_reason else None
        if reason not in (None, *REASONS) and not text:
            raise RuntimeError(f"{self._who} gave no answer: finish_reason={reason}")
        return text, REASONS.get(reason, reason) if reason else None

    def _meta(self, result: Any, reason: str) -> Meta:
        used = result.usage_metadata
        counts = (used.prompt_token_count, used.candidates_token_count) if used else (None, None)
        self.token_usage.add(*counts)
        return meta(*counts, reason)


def parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message's content as Gemini writes it."""
    if isinstance(content, str):
        return [{"text": content}]
    return [
        picture(image_data(part["image_url"]["url"])) if part["type"] == "image_url" else {"text": part["text"]}
        for part in content
        if part.get("text") != ""
    ]


def picture(data: str) -> dict[str, Any]:
    return {"inline_data": {"mime_type": image_type(data), "data": base64.b64decode(data)}}
