"""What the backends of API models share: which messages they answer, which arguments they refuse, what they used."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from sglang.lang.backends.base import Meta, StateView
from sglang.lang.ir import SglSamplingParams
from sglang.lang.media import VIDEO, data_url

LOCAL = "a model behind sgl.Runtime or sgl.RuntimeEndpoint can"
_DEFAULTS = SglSamplingParams()


@dataclass
class TokenUsage:
    """Tokens that a backend's answers were charged for, since the start or the last `reset`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, prompt: int | None, completion: int | None) -> None:
        self.prompt_tokens += prompt or 0
        self.completion_tokens += completion or 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0


def refuse(params: SglSamplingParams, can: Collection[str], who: str) -> None:
    """Raises ValueError for an argument that is set and not among what `who` can serve."""
    for f in fields(params):
        value = getattr(params, f.name)
        if f.name not in can and not (value is None or value is False or value == getattr(_DEFAULTS, f.name)):
            raise ValueError(f"{who} cannot serve {f.name}={value!r}; {LOCAL}")


def turns(s: StateView, who: str, *, plain_text: bool = False, prefill: bool = False) -> list[dict[str, Any]]:
    """The messages that a chat model is to answer.

    plain_text: a program without roles is one message of the user's. prefill: the answer may go on from text that
    stands in the assistant's message. Raises RuntimeError where the model is not to speak, ValueError for a video.
    """
    refuse_video(s, who)
    if plain_text and s.cur_role is None and not s.messages_:
        return [{"role": "user", "content": _interleaved(s) if s.images_ else s.text_}]
    if s.cur_role != "assistant":
        raise RuntimeError(
            f"{who} is a chat model and answers in an assistant message only: s += sgl.assistant(sgl.gen(...))"
        )
    if s.open_text and not prefill:
        raise RuntimeError(
            f"{who} writes whole messages: in an assistant message one gen, with nothing before it, not after "
            f"{s.open_text!r}. On OpenAI models @sgl.function(num_api_spec_tokens=...) lifts this"
        )
    return s.messages_ + ([{"role": "assistant", "content": s.open_text}] if s.open_text else [])


def refuse_video(s: StateView, who: str) -> None:
    if any(image.startswith(VIDEO) for image in s.images_):
        raise ValueError(f"{who} takes no video: append frames of it with sgl.image; {LOCAL}")


def _interleaved(s: StateView) -> list[dict[str, Any]]:
    """A text without roles as the content of a message: its images stand where their tokens do."""
    content: list[dict[str, Any]] = []
    for i, piece in enumerate(s.text_.split(s.chat_template.image_token, len(s.images_))):
        if i:
            content.append({"type": "image_url", "image_url": {"url": data_url(s.images_[i - 1])}})
        if piece:
            content.append({"type": "text", "text": piece})
    return content


def meta(prompt: int | None, completion: int | None, reason: str | None, **more: Any) -> Meta:
    """Meta info in the words of the local server. Numbers that the provider does not tell are None."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "finish_reason": {"type": reason} if reason else None,
        **more,
    }


def image_type(data: str) -> str:
    """The media type of a base64-encoded image, by its first bytes: providers refuse a wrong one."""
    for start, kind in (("iVBOR", "png"), ("R0lGOD", "gif"), ("UklGR", "webp")):
        if data.startswith(start):
            return f"image/{kind}"
    return "image/jpeg"


def image_data(url: str) -> str:
    """The base64 part of a data: URL."""
    return url.partition("base64,")[2]
