"""The OpenAI routes: completions, chat completions, models.

`openai_jobs` turns a body into the same Requests as in the native API; what comes back is put into OpenAI's shapes
here, whole or in chunks.
"""

import time
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from starlette.requests import Request as HTTPRequest

from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError
from sglang.base.messages import Finish, Score
from sglang.server import openai_types as oai
from sglang.server.front import Front
from sglang.server.http import MARK, Feed, Operation, encode, event, template
from sglang.server.openai_jobs import Job, Jobs
from sglang.server.streams import Output, Request
from sglang.server.tools import Choice, Found, Reader, call_id


class Tally:
    """Tokens of a job so far: every prompt counts once, whatever n is."""

    def __init__(self, job: Job, with_cached: bool):
        self._n = job.n
        self._with_cached = with_cached
        self._last: dict[int, Output] = {}

    def note(self, i: int, output: Output) -> None:
        """Wanted of the outputs with which somebody looks at the usage, and of the last of each sequence."""
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
        self._jobs = Jobs(front, config)

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
        job, echoes = await self._jobs.completion(body)
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
        job = await self._jobs.chat(body)
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
