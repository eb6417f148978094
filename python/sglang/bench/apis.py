"""How each kind of server is asked, and how its replies are read: three APIs, and the names of servers that speak them.

Token counts are the server's own (`usage`, `meta_info`): one event may carry several tokens, or none that can be shown.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

Style = Literal["native", "completions", "chat"]


class Job(NamedTuple):
    """One request to send. group: jobs of one group share a prefix."""

    prompt: list[int] | str
    input_tokens: int
    output_tokens: int
    group: int = 0


@dataclass(slots=True)
class Record:
    """One request. Times in seconds of one clock; `times`: of each event that carried tokens."""

    job: Job
    sent: float = 0.0
    end: float = 0.0
    late: float = 0.0  # sent so long after it was due
    times: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    text: str = ""
    error: str = ""


class Options(NamedTuple):
    """What all requests of a run share."""

    model: str
    stream: bool
    ignore_eos: bool
    keep_text: bool
    extra: dict[str, Any]


class Backend(NamedTuple):
    style: Style
    port: int
    flush: str | None = None  # POST here empties the prefix cache
    takes_ids: bool = True  # prompts may be token ids
    ignores_eos: bool = True  # knows ignore_eos


BACKENDS = {
    "sglang": Backend("native", 30000, "/flush_cache"),
    "sglang-native": Backend("native", 30000, "/flush_cache"),
    "sglang-oai": Backend("completions", 30000, "/flush_cache"),
    "sglang-oai-chat": Backend("chat", 30000, "/flush_cache", takes_ids=False),
    "vllm": Backend("completions", 8000, "/reset_prefix_cache"),
    "vllm-chat": Backend("chat", 8000, "/reset_prefix_cache", takes_ids=False),
    "lmdeploy": Backend("completions", 23333, takes_ids=False),
    "lmdeploy-chat": Backend("chat", 23333, takes_ids=False),
    "openai": Backend("completions", 8000, takes_ids=False, ignores_eos=False),
    "openai-chat": Backend("chat", 8000, takes_ids=False, ignores_eos=False),
}
PATHS: dict[Style, str] = {"native": "/generate", "completions": "/v1/completions", "chat": "/v1/chat/completions"}


def body(style: Style, job: Job, options: Options) -> dict[str, Any]:
    """The request: greedy, to its full length where the end token can be ignored."""
    eos = {"ignore_eos": True} if options.ignore_eos else {}
    if style == "native":
        prompt = {"text": job.prompt} if isinstance(job.prompt, str) else {"input_ids": job.prompt}
        sampling = {"temperature": 0.0, "max_new_tokens": job.output_tokens, **eos}
        made = {**prompt, "sampling_params": sampling, "stream": options.stream}
    else:
        if style == "chat":
            prompt = {"messages": [{"role": "user", "content": job.prompt}]}
        else:
            prompt = {"prompt": job.prompt}
        usage = {"stream_options": {"include_usage": True}} if options.stream else {}
        made = {"model": options.model, **prompt, "temperature": 0.0, "max_tokens": job.output_tokens,
                "stream": options.stream, **usage, **eos}  # fmt: skip
    return merge(made, options.extra)


def merge(into: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` over `into`; objects that both have are merged, so one sampling parameter can be changed alone."""
    both = {key: merge(into[key], value) if isinstance(value, dict) and isinstance(into.get(key), dict) else value
            for key, value in extra.items()}  # fmt: skip
    return {**into, **both}


class _Meta(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: Any = None


class _Native(Struct):
    meta_info: _Meta | None = None
    error: Any = None


class _NativeText(Struct):
    text: str = ""


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _OpenAI(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_native = msgspec.json.Decoder(_Native).decode
_native_text = msgspec.json.Decoder(_NativeText).decode
_openai = msgspec.json.Decoder(_OpenAI).decode

Reader = Callable[[bytes, float], None]


def reader(style: Style, record: Record, options: Options) -> Reader:
    """What takes the data of each event of a stream (or the whole of a reply that is not one) and notes it in `record`.

    It raises msgspec.MsgspecError for what is no such event.
    """

    def native(data: bytes, now: float) -> None:
        event = _native(data)
        meta = event.meta_info
        if event.error is not None or meta is None:
            record.error = error_text(event.error) if event.error is not None else "a reply without meta_info"
            return
        if meta.completion_tokens > record.output_tokens:
            record.times.append(now)
        record.input_tokens, record.output_tokens = meta.prompt_tokens, meta.completion_tokens
        record.cached_tokens = meta.cached_tokens
        if meta.finish_reason is not None:
            if isinstance(meta.finish_reason, dict) and meta.finish_reason.get("type") == "abort":
                record.error = f"aborted: {meta.finish_reason.get('message')}"
            if options.keep_text:
                record.text = _native_text(data).text  # cumulative: the last one is the whole

    def openai(data: bytes, now: float) -> None:
        event = _openai(data)
        if event.error is not None:
            record.error = error_text(event.error)
        if event.usage is not None:
            record.input_tokens, record.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
            details = event.usage.prompt_tokens_details
            record.cached_tokens = details.cached_tokens if details else None
        for choice in event.choices[:1]:
            delta = choice.delta or choice.message
            if delta is None:
                text, shown = choice.text or "", bool(choice.text) or choice.finish_reason is None
            else:
                text = (delta.reasoning_content or "") + (delta.content or "")
                # The event that only opens the answer says its role and nothing else.
                shown = bool(text) or (delta.content is not None and delta.role is None)
            if shown:
                record.times.append(now)
            if options.keep_text:
                record.text += text

    return native if style == "native" else openai


def error_text(error: Any) -> str:
    """The message of an error object of any of these servers."""
    while isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("detail") or str(error)
    return str(error)


def refusal(status: int, content: bytes) -> str:
    """What a reply that is not 200 says."""
    try:
        said = error_text(msgspec.json.decode(content))
    except msgspec.MsgspecError:
        said = content[:300].decode("utf-8", "replace").strip()
    return f"HTTP {status}: {said or 'no message'}"
