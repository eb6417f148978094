"""A body of the OpenAI routes -> the sequences it asks for, under OpenAI's names and limits."""

import asyncio
import time
import uuid
from typing import Any

import msgspec

from sglang.base import limits
from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError
from sglang.base.messages import Logprobs
from sglang.base.sampling import CONSTRAINTS, SamplingParams, parse_sampling
from sglang.server import openai_types as oai
from sglang.server.constraints import constraints
from sglang.server.expand import are_ids, check_count, id_lists, names, parent_name, sample
from sglang.server.front import Front
from sglang.server.streams import Request
from sglang.server.tools import Choice, choose, described, style

SAME_NAME = (
    "n", "temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "top_k",
    "min_p", "min_tokens", "repetition_penalty", "stop_token_ids", "stop_regex", "ignore_eos", "no_stop_trim",
    "skip_special_tokens", "regex", "json_schema", "ebnf", "choices", "structural_tag", "dtype", "strict",
    "compact_json",
)  # fmt: skip
CHAT_NOT_SUPPORTED = ("input_ids", "functions", "function_call", "audio")
NOT_SUPPORTED = (
    "lora_path", "session_params", "custom_logit_processor", "return_hidden_states",
    "guided_whitespace_pattern",
)  # fmt: skip


class Job:
    """The sequences of one body, `n` to a prompt, and what every part of the answer repeats."""

    def __init__(self, body: oai.SamplingFields, requests: list[Request], n: int, id: str):
        self.requests = requests
        self.n = n
        self.tools = Choice([])
        self.id = id
        self.model = body.model
        self.created = int(time.time())
        options = body.stream_options
        self.wants_usage = options is not None and options.include_usage
        self.wants_running_usage = options is not None and options.continuous_usage_stats


class Jobs:
    """Raises FieldError for what a body must not say, with its field."""

    def __init__(self, front: Front, config: ServerConfig):
        self._front = front
        self._config = config
        self._tokenizer = front.tokenizer
        self._style = style(config.tool_call_parser, self._tokenizer.chat_template)

    async def completion(self, body: oai.CompletionRequest) -> tuple[Job, list[str]]:
        """The job, and where `echo` is wanted what its prompts are as text."""
        if body.best_of not in (None, body.n or 1):
            raise FieldError("best_of", f"best_of must be equal to n ({body.n or 1}), got {body.best_of}")
        if body.suffix:
            raise FieldError("suffix", "suffix is not supported by this server")
        prompts = _prompts(body.prompt)
        sampling = _sampling(body, {"max_tokens": body.max_tokens})
        check_count("prompt", len(prompts), len(prompts) * sampling.n)
        logprobs = None
        if body.logprobs is not None:
            _check_top("logprobs", body.logprobs)
            logprobs = Logprobs(start=0 if body.echo else -1, top=body.logprobs)
        tokens = [await self._front.encode(p) if isinstance(p, str) else p for p in prompts]
        job = self._job(body, tokens, sampling, logprobs, "prompt")
        echoes = [p if isinstance(p, str) else self._tokenizer.decode(p) for p in prompts] if body.echo else []
        return job, echoes

    async def chat(self, body: oai.ChatRequest) -> Job:
        for name in CHAT_NOT_SUPPORTED:
            if getattr(body, name):
                raise FieldError(name, f"{name} is not supported by this server")
        tools = choose(body, self._style)
        tokens = await self._tokens(body, tools)
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        # Without a limit an answer may fill the context: the scheduler knows where that ends.
        given: dict[str, int | None] = {field: limits.MAX_NEW_TOKENS if limit is None else limit}
        sampling = _sampling(body, given, self._front.ready.sampling)
        sampling = msgspec.structs.replace(sampling, stop=(*sampling.stop, *self._tokenizer.chat_stop_strings))
        if tools.names:
            sampling = _with_tools(sampling, tools)
        check_count("messages", 1, sampling.n)
        logprobs = None
        if body.top_logprobs is not None:
            _check_top("top_logprobs", body.top_logprobs)
            if body.top_logprobs and not body.logprobs:
                raise FieldError("top_logprobs", "top_logprobs needs logprobs: true")
        if body.logprobs:
            logprobs = Logprobs(top=body.top_logprobs or 0)
        job = self._job(body, [tokens], sampling, logprobs, "messages")
        job.tools = tools
        if tools.schema is not None:
            for request in job.requests:
                request.constraint = "tools"
        return job

    async def _tokens(self, body: oai.ChatRequest, tools: Choice) -> list[int]:
        if isinstance(body.messages, str):
            return await self._front.encode(body.messages)
        if not 1 <= len(body.messages) <= limits.MESSAGES:
            raise FieldError("messages", f"messages must have 1 to {limits.MESSAGES} turns, got {len(body.messages)}")
        turns = [_turn(i, message) for i, message in enumerate(body.messages)]
        if body.continue_final_message and turns[-1]["role"] != "assistant":
            raise FieldError("continue_final_message", "continue_final_message needs a last message of the assistant")
        extra = body.chat_template_kwargs or {}
        if body.reasoning_effort is not None and self._tokenizer.chat_template:  # some templates tell it to the model
            extra = {"reasoning_effort": body.reasoning_effort, **extra}
        leave_open = bool(body.continue_final_message)
        native = self._tokenizer.renders_tools
        if not native:
            turns = described(turns, tools.tools)
        shown = tools.tools if native and tools.tools else None

        def encode() -> list[int]:
            text = self._tokenizer.render_chat(turns, tools=shown, continue_final_message=leave_open, extra=extra)
            return self._tokenizer.encode_chat(text)

        return await asyncio.to_thread(encode)

    def _job(
        self,
        body: oai.SamplingFields,
        prompts: list[list[int]],
        sampling: SamplingParams,
        logprobs: Logprobs | None,
        source: str,
    ) -> Job:
        spelled = (source for source, said in constraints(body) if sampling.constraint in said)
        constraint = next(spelled, sampling.constraint)
        for name in NOT_SUPPORTED:
            if getattr(body, name):
                raise FieldError(name, f"{name} is not supported by this server")
        n = sampling.n
        id = body.rid if isinstance(body.rid, str) else uuid.uuid4().hex
        rids, parent = names(body.rid or id, [n] * len(prompts)), parent_name(body.parent)
        requests = [
            Request(
                prompt=prompt,
                sampling=sample(sampling, k),
                logprobs=logprobs,
                rid=rids[p][k],
                group=id,
                parent=parent,
                interval=self._config.stream_interval if body.stream else 0,
                namespace=body.cache_salt or "",
                source=source,
                constraint=constraint,
            )
            for p, prompt in enumerate(prompts)
            for k in range(n)
        ]
        return Job(body, requests, n, id)


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """A text, texts, token ids or lists of them -> one entry per prompt."""
    if isinstance(prompt, str):
        return [prompt]
    if are_ids(prompt):
        return [prompt]  # pyright: ignore[reportReturnType]  # every element is a number
    kinds = set(map(type, prompt))
    if kinds == {str}:
        return prompt  # pyright: ignore[reportReturnType]  # every element is of that kind
    if str in kinds:
        raise FieldError("prompt", "prompt must hold texts or token ids, not a mixture")
    return [*id_lists("prompt", prompt)[0]]  # pyright: ignore[reportArgumentType]


def _sampling(
    body: oai.SamplingFields, length: dict[str, int | None], defaults: dict[str, float] | None = None
) -> SamplingParams:
    raw: dict[str, Any] = {name: getattr(body, name) for name in SAME_NAME} | length
    for name, value in (defaults or {}).items():
        if raw[name] is None:
            raw[name] = value
    held = next((name for name in CONSTRAINTS if raw.get(name) is not None), None)
    spelled: dict[str, str] = {}  # field -> what the caller calls it
    for source, fields in constraints(body):
        if not fields.keys().isdisjoint(CONSTRAINTS):
            if held is not None:
                raise FieldError(source, f"{source} cannot be combined with {held}: at most one constraint a request")
            held = source
        for name, value in fields.items():
            if raw.get(name) is not None:
                raise FieldError(source, f"{source} cannot be combined with {name}")
            raw[name], spelled[name] = value, source
    try:
        return parse_sampling(raw, "")
    except FieldError as error:
        name = error.field.partition("[")[0]
        raise FieldError(spelled.get(name, error.field), str(error)) from None


def _with_tools(sampling: SamplingParams, tools: Choice) -> SamplingParams:
    if tools.style.special:
        sampling = msgspec.structs.replace(sampling, skip_special_tokens=False)
    if tools.schema is None:
        return sampling
    if sampling.constraint:
        raise FieldError("tool_choice", f"tool_choice cannot demand a call beside {sampling.constraint}")
    return msgspec.structs.replace(sampling, json_schema=tools.schema, strict=tools.strict)


def _turn(i: int, message: oai.Message) -> dict[str, Any]:
    """A message as chat templates take it."""
    field = f"messages[{i}]"
    if message.tool_calls and message.role != "assistant":
        raise FieldError(f"{field}.tool_calls", f"{field}.tool_calls: only the assistant calls")
    if message.content is None and not message.tool_calls:
        raise FieldError(f"{field}.content", f"{field}.content must be a string or a list of parts, got null")
    content: str | list[dict[str, Any]] = message.content if isinstance(message.content, str) else []
    if isinstance(message.content, list):
        for k, part in enumerate(message.content):
            if part.type != "text" or part.text is None:
                where = f"{field}.content[{k}]"
                raise FieldError(where, f"{where}: only parts of type text are supported, got {part.type}")
        content = [{"type": "text", "text": part.text} for part in message.content]
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(f"{field}.tool_calls[{k}]", call) for k, call in enumerate(message.tool_calls)]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _call(field: str, call: oai.ToolCall) -> dict[str, Any]:
    """A call that was made, as chat templates take it: arguments are an object."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        except msgspec.DecodeError:
            where = f"{field}.function.arguments"
            raise FieldError(where, f"{where} must be a JSON object, as text") from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name or None, "arguments": arguments}}


def _check_top(field: str, value: int) -> None:
    if not 0 <= value <= limits.TOP_LOGPROBS:
        raise FieldError(field, f"{field} must be in [0, {limits.TOP_LOGPROBS}], got {value}")
