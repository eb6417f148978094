"""The OpenAI routes: completions, chat completions, models.

A body becomes the same Requests as in the native API; what comes back is put into OpenAI's shapes, whole or in chunks.
"""

import asyncio
import time
import uuid
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request as HTTPRequest

from sglang.base import limits
from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError
from sglang.base.messages import Finish, Logprobs, Score
from sglang.base.sampling import CONSTRAINTS, SamplingParams, parse_sampling
from sglang.server import openai_types as oai
from sglang.server.constraints import constraints
from sglang.server.expand import are_ids, check_count, id_lists, names, sample
from sglang.server.front import Front
from sglang.server.http import MARK, Feed, Operation, encode, event, template
from sglang.server.streams import Output, Request
from sglang.server.tools import Choice, Found, Reader, call_id, choose, described, style

SAME_NAME = (
    "n", "temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "top_k",
    "min_p", "min_tokens", "repetition_penalty", "stop_token_ids", "ignore_eos", "no_stop_trim",
    "skip_special_tokens", "regex", "json_schema", "ebnf", "choices", "structural_tag", "dtype", "strict",
    "compact_json",
)  # fmt: skip
CHAT_NOT_SUPPORTED = ("input_ids", "functions", "function_call", "audio")
NOT_SUPPORTED = ("stop_regex", "lora_path", "session_params", "custom_logit_processor", "return_hidden_states")


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


class Tally:
    """Tokens of a job so far: every prompt counts once, whatever n is."""

    def __init__(self, job: Job, with_cached: bool):
        self._n = job.n
        self._with_cached = with_cached
        self._last: dict[int, Output] = {}

    def note(self, i: int, output: Output) -> None:
        self._last[i] = output

    def usage(self, only: int | None = None) -> oai.Usage:
        outputs = self._last if only is None else {only: self._last[only]}
        # Of the samples of a prompt the first tells what was cached: the others find what it has just computed.
        firsts = [output for i, output in outputs.items() if i % self._n == 0 or only is not None]
        prompt = sum(output.prompt_tokens for output in firsts)
        drawn = sum(len(output.tokens) for output in outputs.values())
        cached = oai.PromptDetails(sum(o.cached_tokens for o in firsts)) if self._with_cached else None
        return oai.Usage(
            prompt_tokens=prompt,
            completion_tokens=drawn,
            total_tokens=prompt + drawn,
            prompt_tokens_details=cached,
        )


class OpenAI:
    def __init__(self, front: Front, config: ServerConfig):
        self._front = front
        self._config = config
        self._tokenizer = front.tokenizer
        self._started = int(time.time())
        self._style = style(config.tool_call_parser, self._tokenizer.chat_template)

    def operations(self) -> list[Operation]:
        post = ("POST",)
        return [
            Operation(
                ("/v1/completions",),
                self.completions,
                "Complete a prompt.",
                oai.CompletionRequest,
                oai.Completion,
                True,
                post,
            ),
            Operation(
                ("/v1/chat/completions",),
                self.chat,
                "Answer a conversation.",
                oai.ChatRequest,
                oai.ChatCompletion,
                True,
                post,
            ),
            Operation(("/v1/models",), self.models, "The model that is served.", answer=oai.ModelList),
            Operation(
                ("/v1/models/{id:path}",), self.model, "The model that is served, by name.", answer=oai.ModelCard
            ),
        ]

    async def models(self, _: HTTPRequest) -> oai.ModelList:
        return oai.ModelList(data=[self._card()])

    async def model(self, request: HTTPRequest) -> oai.ModelCard:
        name = request.path_params["id"]
        if name != self._config.model_name:
            raise FieldError(
                "id", f"the model {name!r} does not exist; this server has {self._config.model_name!r}", 404
            )
        return self._card()

    def _card(self) -> oai.ModelCard:
        name = self._config.model_name
        return oai.ModelCard(id=name, created=self._started, root=name, max_model_len=self._front.ready.context_length)

    async def completions(self, body: oai.CompletionRequest) -> oai.Completion | Feed:
        job, echoes = await self._completion_job(body)
        if body.stream:
            return self._completion_feed(job, echoes)
        tally = Tally(job, self._config.enable_cache_report)
        choices: dict[int, oai.CompletionChoice] = {}
        async with aclosing(self._front.run(job.requests)) as outputs:
            async for i, output in outputs:
                tally.note(i, output)
                choices[i] = self._completion_choice(job, i, output, echoes)
        done = self._completion(job, [choices[i] for i in sorted(choices)], tally.usage())
        done.metadata = oai.Metadata()
        return done

    async def _completion_job(self, body: oai.CompletionRequest) -> tuple[Job, list[str]]:
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

    def _completion_choice(self, job: Job, i: int, output: Output, echoes: list[str]) -> oai.CompletionChoice:
        """What `output` adds, as a choice."""
        reason, matched = _reason(output.finish)
        text = output.delta
        if echoes and output.first:
            text = echoes[i // job.n] + text
        wanted = job.requests[i].logprobs
        scores = self._completion_logprobs(output.prompt_scores + output.scores, wanted.top) if wanted else None
        return oai.CompletionChoice(index=i, text=text, logprobs=scores, finish_reason=reason, matched_stop=matched)

    def _completion(
        self, job: Job, choices: list[oai.CompletionChoice], usage: oai.Usage | UnsetType | None
    ) -> oai.Completion:
        return oai.Completion(id=job.id, created=job.created, model=job.model, choices=choices, usage=usage)

    def _completion_feed(self, job: Job, echoes: list[str]) -> Feed:
        tally = Tally(job, self._config.enable_cache_report)
        marked = [oai.CompletionChoice(index=i, text=MARK) for i in _templates(job)]
        around = [template(self._completion(job, [m], _running_usage(job, tally, None))) for m in marked]

        def frame(i: int, output: Output) -> bytes:
            if around and output.finish is None and not output.first:
                before, after = around[i]
                return before + encode(output.delta) + after
            tally.note(i, output)
            choice = self._completion_choice(job, i, output, echoes)
            return event(self._completion(job, [choice], _running_usage(job, tally, i)))

        def last() -> bytes:
            return event(self._completion(job, [], tally.usage())) if job.wants_usage else b""

        return Feed(lambda sink: self._front.push(job.requests, frame, sink), last)

    def _completion_logprobs(self, scores: list[Score], top: int) -> oai.CompletionLogprobs:
        text = self._tokenizer.token_text
        return oai.CompletionLogprobs(
            tokens=[text(s.token) for s in scores],
            token_logprobs=[s.logprob for s in scores],
            # Two tokens may have one text: the likelier one, which comes first, keeps the key.
            top_logprobs=[{text(t): lp for t, lp in reversed(s.top)} if s.top else None for s in scores],
            text_offset=[-1] * len(scores),
        )

    async def chat(self, body: oai.ChatRequest) -> oai.ChatCompletion | Feed:
        job = await self._chat_job(body)
        if body.stream:
            return self._chat_feed(job)
        tally = Tally(job, self._config.enable_cache_report)
        choices: dict[int, oai.ChatChoice] = {}
        async with aclosing(self._front.run(job.requests)) as outputs:
            async for i, output in outputs:
                tally.note(i, output)
                reason, matched = _reason(output.finish)
                message = _message(job.tools, output.text)
                if message.tool_calls and reason == "stop":
                    reason = "tool_calls"
                choices[i] = oai.ChatChoice(
                    index=i,
                    message=message,
                    logprobs=self._chat_logprobs(job.requests[i], output),
                    finish_reason=reason or "stop",
                    matched_stop=matched,
                )
        return oai.ChatCompletion(
            id=job.id,
            created=job.created,
            model=job.model,
            choices=[choices[i] for i in sorted(choices)],
            usage=tally.usage(),
        )

    async def _chat_job(self, body: oai.ChatRequest) -> Job:
        for name in CHAT_NOT_SUPPORTED:
            if getattr(body, name):
                raise FieldError(name, f"{name} is not supported by this server")
        tools = choose(body, self._style)
        tokens = await self._chat_tokens(body, tools)
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

    async def _chat_tokens(self, body: oai.ChatRequest, tools: Choice) -> list[int]:
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

    def _chat_feed(self, job: Job) -> Feed:
        tally = Tally(job, self._config.enable_cache_report)
        readers = [Reader(job.tools) for _ in job.requests] if job.tools.names else []
        marked = [oai.ChunkChoice(index=i, delta=oai.Delta(content=MARK)) for i in _templates(job)]
        around = [template(self._chunk(job, m, _running_usage(job, tally, None))) for m in marked]

        def frame(i: int, output: Output) -> bytes:
            if around and output.finish is None and not output.first and (output.new or output.delta):
                before, after = around[i]
                return before + encode(output.delta) + after
            tally.note(i, output)
            return self._chat_frame(job, tally, readers[i] if readers else None, i, output)

        def last() -> bytes:
            return event(self._chunk(job, None, tally.usage())) if job.wants_usage else b""

        return Feed(lambda sink: self._front.push(job.requests, frame, sink), last)

    def _chat_frame(self, job: Job, tally: Tally, reader: Reader | None, i: int, output: Output) -> bytes:
        """What `output` adds, in as many chunks as it takes."""
        usage = _running_usage(job, tally, i)
        reason, matched = _reason(output.finish)
        scores = self._chat_logprobs(job.requests[i], output)
        choices: list[oai.ChunkChoice] = []
        if output.first:
            choices.append(oai.ChunkChoice(index=i, delta=oai.Delta(role="assistant", content="")))
        if output.new or output.delta or (reader is not None and reason is not None):
            deltas = [oai.Delta(content=output.delta)]
            if reader is not None:
                found = reader.push(output.delta, reason is not None)
                deltas = [_delta(piece) for piece in found] or [oai.Delta(content="")]
            for delta in deltas:
                choices.append(oai.ChunkChoice(index=i, delta=delta, logprobs=scores))
                scores = None
        if reader is not None and reader.calls and reason == "stop":
            reason = "tool_calls"
        if reason is not None:
            last = oai.ChunkChoice(index=i, delta=oai.Delta(), finish_reason=reason, matched_stop=matched)
            choices.append(last)
        return b"".join(event(self._chunk(job, choice, usage)) for choice in choices)

    def _chunk(self, job: Job, choice: oai.ChunkChoice | None, usage: oai.Usage | UnsetType | None) -> oai.ChatChunk:
        choices = [] if choice is None else [choice]
        return oai.ChatChunk(id=job.id, created=job.created, model=job.model, choices=choices, usage=usage)

    def _chat_logprobs(self, request: Request, output: Output) -> oai.ChatLogprobs | None:
        if request.logprobs is None:
            return None
        text, raw = self._tokenizer.token_text, self._tokenizer.token_bytes
        return oai.ChatLogprobs(
            [
                oai.TokenLogprob(
                    token=text(s.token),
                    bytes=list(raw(s.token)),
                    logprob=s.logprob,
                    top_logprobs=[oai.TopLogprob(token=text(t), bytes=list(raw(t)), logprob=lp) for t, lp in s.top],
                )
                for s in output.scores
            ]
        )

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
        rids = names(body.rid or id, [n] * len(prompts))
        requests = [
            Request(
                prompt=prompt,
                sampling=sample(sampling, k),
                logprobs=logprobs,
                rid=rids[p][k],
                group=id,
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


def _message(tools: Choice, text: str) -> oai.ChatMessage:
    """A whole answer, its calls taken out of the text."""
    if not tools.names:
        return oai.ChatMessage(content=text)
    said: list[str] = []
    calls: list[oai.ToolCall] = []
    for piece in Reader(tools).push(text, True):
        if piece.name:
            function = oai.CalledFunction(name=piece.name, arguments="")
            calls.append(oai.ToolCall(id=call_id(), index=len(calls), type="function", function=function))
        elif piece.call < 0:
            said.append(piece.text)
        else:
            calls[-1].function.arguments += piece.text  # pyright: ignore[reportOperatorIssue]  # a string here
    content = "".join(said)
    if not calls:
        return oai.ChatMessage(content=content)
    return oai.ChatMessage(content=(content.strip() and content) or None, tool_calls=calls)


def _delta(piece: Found) -> oai.Delta:
    if piece.call < 0:
        return oai.Delta(content=piece.text)
    if not piece.name:
        function = oai.CalledFunction(arguments=piece.text)
        return oai.Delta(tool_calls=[oai.ToolCall(index=piece.call, function=function)])
    function = oai.CalledFunction(name=piece.name)
    return oai.Delta(tool_calls=[oai.ToolCall(index=piece.call, id=call_id(), type="function", function=function)])


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


def _templates(job: Job) -> range:
    """Of which sequences all events but the first and the last differ in their text alone."""
    alike = not job.wants_running_usage and not job.tools.names and job.requests[0].logprobs is None
    return range(len(job.requests)) if alike else range(0)


def _reason(finish: Finish | None) -> tuple[str | None, int | str | None]:
    return (None, None) if finish is None else (finish.type, finish.matched)


def _running_usage(job: Job, tally: Tally, i: int | None) -> oai.Usage | UnsetType | None:
    """`usage` of a chunk of sequence i: the numbers so far where asked for; null where the last chunk will have them;
    else absent."""
    if job.wants_running_usage and i is not None:
        return tally.usage(i)
    return None if job.wants_usage else UNSET
