"""Front: request ids -> streams of outputs. The one owner of what is open between HTTP (or `Engine`) and a worker.

A step of the worker arrives as one message with a Piece per sequence. Pieces are filed first; then every reader that
has some gets all that has come as one Output per sequence, so a slow client, or a loop that is behind, gets fewer and
larger outputs and never a queue of stale ones. Readers come in two kinds: `run` is an iterator, whose task is woken;
`push` writes each output to a Sink from here, which costs an event stream no task switch per token.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Protocol

import msgspec
from msgspec import Struct

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, FieldError, Overloaded, WorkerDied
from sglang.base.link import Link
from sglang.base.messages import (
    AT_END,
    Abort,
    Extend,
    Failed,
    Finish,
    Flush,
    Flushed,
    FromWorker,
    Logprobs,
    Piece,
    Ready,
    Resume,
    Score,
    Step,
    Submit,
    ToWorker,
)
from sglang.base.sampling import SEED_BITS, SamplingParams
from sglang.server.metrics import Metrics
from sglang.text.detokenizer import Detokenizer
from sglang.text.tokenizer import Tokenizer

log = logging.getLogger("sglang.server")

INLINE_CHARS = 2048  # a longer text is tokenised in a thread: it would hold up the streams for about a millisecond
NEVER = 1 << 62
WRONG_KIND = {  # by whether a vector is wanted
    True: "this server generates text; vectors come from one started with --is-embedding",
    False: "this server makes vectors and generates no text: it answers /v1/embeddings and /encode",
}
ROUND = 32  # readers served before the loop looks after others: about half a millisecond
REST_S = 0.02  # at most; after a round of writing a pause as long as it, so that others get half of the loop
LAST_WORDS_S = 0.25  # how much later than a process's end its last message may be read
SHUTTING_DOWN = "the server is shutting down"
ABORTED = Finish("abort", message="aborted by request")


class Held(Struct):
    """A sequence that keeps its place and its KV in the worker from one generation of a chain to the next."""

    id: int = 0  # what the worker knows it by; 0: there is none
    tokens: list[int] = []
    ahead: "Ahead | None" = None
    guesses: bool = True  # no guess has been wrong


class Ahead(Struct):
    """How a held sequence goes on, told to the worker before its generation has ended: it loses no step over it.

    A guess: only the whole text, encoded anew, says which tokens its continuation has. `expected`: those that the guess
    is right for, once the generation has ended as the worker takes it; None: it has ended otherwise.
    """

    stream: "_Stream"
    tokens: list[int]
    expected: list[int] | None = None


class Request(Struct, kw_only=True):
    """One sequence to generate.

    `held`: the sequence that this one goes on with where their tokens agree; it is held again unless `last`.
    `then`: the text that is to follow, and the request that continues it, where they are known already.
    `interval`: tokens between two outputs, the first and the last always come; 0: the last alone.
    `source`, `constraint`: what the caller calls the prompt and the constraint, for error messages.
    `group`: a name that abort() knows it by as well.
    """

    prompt: str | list[int]
    sampling: SamplingParams = SamplingParams()
    logprobs: Logprobs | None = None
    rid: str = ""
    group: str = ""
    interval: int = 1
    namespace: str = ""
    source: str = "prompt"
    constraint: str = "sampling_params"
    held: Held | None = None
    last: bool = True
    then: "tuple[str, Request] | None" = None
    embeds: bool = False  # a vector is wanted, and no text


class Output(Struct, gc=False):
    """What a sequence has gained since its last Output (`delta`, `new`, `scores`), and all of it (`text`, `tokens`).

    `tokens` is shared with later outputs: read it before asking for the next one. It holds a matched stop token,
    `text` does not. `prompt_scores` comes once, with the first output. `first`: there was none before.
    Under a constraint the last tokens may have been replaced by others that spell the same and more (`new` has those);
    `text` only grows. `jumped`: how many of `tokens` were not drawn.
    """

    rid: str
    delta: str
    text: str
    new: list[int]
    tokens: list[int]
    scores: list[Score]
    prompt_scores: list[Score]
    finish: Finish | None
    prompt_tokens: int
    cached_tokens: int
    latency_s: float
    jumped: int = 0
    first: bool = False
    embedding: bytes = b""


class Sink(Protocol):
    """Where events are written to."""

    def write(self, data: bytes, on_room: Callable[[], None]) -> bool:
        """Never waits. False: `data` is taken, but no more before `on_room` is called."""
        ...


Frame = Callable[[int, Output], bytes]  # (index of the request, what it gained) -> an event


def _nothing() -> None: ...


class _Group:
    """The streams of one reader. `sink`, `frame`: of a reader that is written to; `rest`: the bytes of its end."""

    __slots__ = ("due", "error", "frame", "left", "on_room", "ready", "rest", "sink", "waiter", "waits")

    def __init__(
        self, sink: Sink | None = None, frame: Frame | None = None, on_room: "Callable[[_Group], None] | None" = None
    ) -> None:
        self.ready: list[_Stream] = []
        self.waiter: asyncio.Future[None] | None = None
        self.error: Exception | None = None
        self.left = 0  # streams that have not ended
        self.sink = sink
        self.frame = frame
        self.on_room: Callable[[], None] = _nothing if on_room is None else partial(on_room, self)
        self.rest = b""
        self.due = False  # it has something to be written, and a turn
        self.waits = False  # for its client

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Stream:
    """A sequence: what has come and was not yet read, and the state of its text."""

    __slots__ = (
        "began", "cached", "delta", "detokenizer", "ended", "group", "id", "index", "interval", "jumped", "last",
        "new", "no_stop_trim", "paused", "pending", "pieces", "plain", "prompt_scores", "prompt_tokens", "queued",
        "request", "sampling", "scores", "sent", "text", "tokens", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        index: int,
        request: Request,
        sampling: SamplingParams,
        group: _Group,
        detokenizer: Detokenizer,
    ):
        self.id = id
        self.index = index
        self.request = request
        self.sampling = sampling  # as the worker is told
        self.prompt_tokens = 0
        self.group = group
        self.detokenizer = detokenizer
        self.interval = request.interval
        self.no_stop_trim = request.sampling.no_stop_trim
        # Stop strings are found by reading, so their sequences are read at every piece.
        self.wanted = 1 if request.sampling.stop or request.interval else NEVER
        # Every token is an output, as it came.
        self.plain = request.interval == 1 and not request.sampling.stop and request.logprobs is None
        self.began = self.last = 0.0
        self.pieces: list[Piece] = []
        self.pending = 0  # tokens in `pieces`
        self.queued = False  # in group.ready
        self.ended = False  # the worker has forgotten it
        self.paused = False  # the worker waits to hear whether it has ended
        self.sent = False  # an Output was made
        self.text = ""
        self.tokens: list[int] = []
        self.delta = ""  # this and the next three: not yet in an Output
        self.new: list[int] = []
        self.scores: list[Score] = []
        self.prompt_scores: list[Score] = []
        self.cached = 0
        self.jumped = 0

    def take(self, now: float) -> Output | None:
        """Everything that has come, as one Output; None while none is due. Raises what the worker refused with."""
        if self.plain and self.sent and len(self.pieces) == 1:
            piece = self.pieces[0]
            if piece.tokens and piece.finish is None and not piece.replaced and not piece.jumped:
                return self._take_plain(piece.tokens, now)
        return self._take_all(now)

    def _take_plain(self, new: list[int], now: float) -> Output:
        """What `_take_all` does in the case of nearly all tokens, at a third of its cost."""
        self.pieces.clear()
        self.pending = 0
        self.queued = False
        delta = self.detokenizer.push(new, False).delta
        tokens = self.tokens
        tokens += new
        self.text = text = self.text + delta
        return Output(
            self.request.rid, delta, text, new, tokens, [], [], None, self.prompt_tokens, self.cached, now - self.began,
            self.jumped,
        )  # fmt: skip

    def _take_all(self, now: float) -> Output | None:
        new: list[int] = []
        scores: list[Score] = []
        finish: Finish | None = None
        embedding = b""
        for piece in self.pieces:
            if piece.replaced:
                self._take_back(piece.replaced - len(new))
                del new[max(0, len(new) - piece.replaced) :]
            self.jumped += piece.jumped
            new += piece.tokens
            scores += piece.scores
            if piece.prompt_scores:
                self.prompt_scores = piece.prompt_scores
            if piece.cached_tokens:
                self.cached = piece.cached_tokens
            finish = piece.finish
            self.paused = piece.paused
            embedding = piece.embedding
        self.pieces.clear()
        self.pending = 0
        self.queued = False
        ends = finish is not None and finish.type == "stop" and isinstance(finish.matched, int)
        stop_token = ends and not self.no_stop_trim
        got = self.detokenizer.push(new[:-1] if stop_token else new, finish is not None)
        if got.stop is not None:
            finish = Finish("stop", got.stop)
            del new[got.tokens_used :], scores[got.tokens_used :]
        elif finish is not None and finish.type == "abort" and finish.status:
            raise _refusal(finish, self.request)
        self.tokens += new
        self.text += got.delta
        self.delta += got.delta
        self.new += new
        self.scores += scores
        if not self.request.sampling.stop:
            self.wanted = self.interval or NEVER
        due = finish is not None or (self.interval and (not self.sent or len(self.new) >= self.interval))
        if not due:
            return None
        output = Output(
            rid=self.request.rid,
            delta=self.delta,
            text=self.text,
            new=self.new,
            tokens=self.tokens,
            scores=self.scores,
            prompt_scores=self.prompt_scores,
            finish=finish,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            latency_s=now - self.began,
            jumped=self.jumped,
            first=not self.sent,
            embedding=embedding,
        )
        self.sent = True
        self.delta, self.new, self.scores, self.prompt_scores = "", [], [], []
        return output

    def _take_back(self, n: int) -> None:
        """The last `n` tokens, already read, are replaced."""
        if n > 0:
            self.detokenizer.take_back(self.tokens[-n:])
            del self.tokens[-n:], self.new[max(0, len(self.new) - n) :]


def _refusal(finish: Finish, request: Request) -> Exception:
    if finish.status == 503:
        return Overloaded(finish.message)
    if finish.status < 500:
        blamed = request.constraint if finish.field == "constraint" else request.source
        return FieldError(blamed, finish.message, finish.status)
    return RuntimeError(finish.message)


class Front:
    """Call from one event loop; only `fail_soon` may be called from a thread."""

    def __init__(self, link: Link[FromWorker, ToWorker], tokenizer: Tokenizer, config: ServerConfig):
        self.tokenizer = tokenizer
        self.metrics = Metrics(config.model_name)
        self.failed: str | None = None  # why the worker is gone
        self.draining = False
        self._link = link
        self._log_requests = config.log_requests
        self._truncate = config.allow_auto_truncate
        self._seeds = random.Random(config.random_seed)
        self._streams: dict[int, _Stream] = {}
        self._due: list[_Group] = []  # to be written to
        self._open = 0  # readers
        self._next_id = 0
        self._flushes: dict[int, asyncio.Future[bool]] = {}
        self._ready: asyncio.Future[Ready] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def ready(self) -> Ready:
        """The worker's facts. Valid after start()."""
        assert self._ready is not None, "start() first"
        return self._ready.result()

    @property
    def up(self) -> bool:
        return self.failed is None and self._ready is not None and self._ready.done()

    @property
    def open_requests(self) -> int:
        return self._open

    async def start(self) -> Ready:
        """Wait for the worker. Raises ConfigError for an impossible setting, WorkerDied otherwise."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._reader = asyncio.create_task(self._read(), name="front")
        return await asyncio.shield(self._ready)

    async def close(self) -> None:
        """End every open stream and stop reading. The link and the worker are the caller's to close."""
        self.fail(SHUTTING_DOWN)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def fail(self, reason: str, setting: bool = False) -> None:
        """The worker is gone: whoever waits gets `reason`. The first reason stays."""
        if self.failed is not None:
            return
        self.failed = reason
        for stream in self._streams.values():
            stream.group.error = WorkerDied(reason)
            stream.group.wake()
        self._streams.clear()
        for waiting in (self._ready, *self._flushes.values()):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConfigError(reason) if setting else WorkerDied(reason))
                waiting.exception()  # marks it as seen: nobody has to wait for it

    def fail_soon(self, reason: str) -> None:
        """As `fail`, from any thread; a worker's own last words, if they are on their way, come first."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(loop.call_later, LAST_WORDS_S, self.fail, reason)

    async def encode(self, text: str) -> list[int]:
        if len(text) <= INLINE_CHARS:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The outputs of one sequence; the last has `finish`. Closing it early aborts the sequence.

        Raises FieldError, Overloaded, WorkerDied.
        """
        async with aclosing(self.run([request])) as outputs:
            async for _, output in outputs:
                yield output

    async def run(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Output], None]:
        """As `generate` for sequences that stand and fall together; yields (index, output) as they come."""
        loop = asyncio.get_running_loop()
        async with self._opened(requests, _Group()) as group:
            while group.left:
                if not group.ready:
                    if group.error is not None:
                        raise group.error
                    group.waiter = loop.create_future()
                    await group.waiter
                ready, group.ready = group.ready, []
                now = time.monotonic()
                for stream in ready:
                    output = self._take(stream, now)
                    if output is not None:
                        yield stream.index, output

    async def push(self, requests: Sequence[Request], frame: Frame, sink: Sink) -> bytes:
        """As `run`, but writes `frame(index, output)` to the sink for each output; returns what is to be written last.

        What comes while the client is behind is written as one when it has caught up.
        """
        async with self._opened(requests, _Group(sink, frame, self._has_room)) as group:
            group.waiter = asyncio.get_running_loop().create_future()
            if group.left and group.error is None:
                await group.waiter
            if group.error is not None:
                raise group.error
            return group.rest

    @asynccontextmanager
    async def _opened(self, requests: Sequence[Request], group: _Group) -> AsyncIterator[_Group]:
        """Submits the requests as streams of `group`; at the end forgets those that have not ended."""
        began = time.monotonic()
        streams: list[_Stream] = []
        self._open += 1
        try:
            prompts = [await self.encode(r.prompt) if isinstance(r.prompt, str) else r.prompt for r in requests]
            if self._truncate:
                prompts = [self._fitting(tokens) for tokens in prompts]
            for request, tokens in zip(requests, prompts, strict=True):
                self.check(request, tokens)  # all of them before the first is sent
            for request, tokens in zip(requests, prompts, strict=True):
                streams.append(self._submit(len(streams), request, tokens, group, began))
            group.left = len(streams)
            yield group
        finally:
            group.ready = []  # what comes late finds nobody
            group.sink = None
            self._open -= 1
            for stream in streams:
                if not stream.ended:
                    self.metrics.aborted += 1
                    self._forget(stream)

    def _take(self, stream: _Stream, now: float) -> Output | None:
        output = stream.take(now)
        if output is not None and output.finish is not None:
            stream.group.left -= 1
            self._end(stream, output, now)
        elif stream.paused:
            stream.paused = False
            self._link.send(Resume(stream.id))
        return output

    def _fitting(self, tokens: list[int]) -> list[int]:
        """The beginning of a prompt, as much of it as leaves room for an answer."""
        most = min(self.ready.context_length - 1, self.ready.total_tokens)
        if len(tokens) > most:
            log.warning("a prompt of %d tokens is cut to %d (--allow-auto-truncate)", len(tokens), most)
        return tokens[:most]

    @contextmanager
    def chain(self) -> Iterator[Held]:
        """A place for the sequence of a chain, which counts as open from its first generation to its last.

        Raises Overloaded (shutting down) or WorkerDied.
        """
        self._admit()
        held = Held()
        self._open += 1
        try:
            yield held
        finally:
            self._open -= 1
            self.release(held)

    def release(self, held: Held) -> None:
        """Its KV goes to the prefix cache, its place to somebody else."""
        ahead, held.ahead = held.ahead, None
        ids = [held.id] if ahead is None else [held.id, ahead.stream.id]
        held.id = 0
        if ahead is not None:
            self._streams.pop(ahead.stream.id, None)
        if self.failed is None:
            for id in filter(None, ids):
                self._link.send(Abort(id))

    def _admit(self) -> None:
        if self.failed is not None:
            raise WorkerDied(self.failed)
        if self.draining:
            raise Overloaded(SHUTTING_DOWN)

    def check(self, request: Request, tokens: list[int]) -> None:
        """What the model's vocabulary refuses; lengths are the scheduler's to judge, which knows its memory too.

        Raises FieldError, Overloaded (shutting down) or WorkerDied.
        """
        if request.held is None:
            self._admit()
        facts, name = self.ready, request.source
        if request.embeds != (facts.embedding > 0):
            raise FieldError("model", WRONG_KIND[request.embeds])
        if not tokens:
            raise FieldError(name, f"{name} must have at least one token")
        known = range(facts.vocab_size)
        wanted = request.logprobs or Logprobs()
        for field, ids in (
            (name, tokens),
            ("stop_token_ids", request.sampling.stop_token_ids),
            ("logit_bias", request.sampling.logit_bias),
            ("token_ids_logprob", wanted.ids),
        ):
            for bad in (min(ids, default=0), max(ids, default=0)):
                if bad not in known:
                    raise FieldError(field, f"{field} must hold token ids in [0, {facts.vocab_size}), got {bad}")
        if wanted.start > len(tokens):
            raise FieldError(
                "logprob_start_len",
                f"logprob_start_len must be in [-1, {len(tokens)}] (prompt length), got {wanted.start}",
            )

    def abort(self, rid: str) -> int:
        """End the sequences with this rid or group; their readers get a last output. How many there were."""
        found = [s for s in self._streams.values() if rid in (s.request.rid, s.request.group)]
        return self._stop(found, ABORTED)

    def abort_all(self, finish: Finish = ABORTED) -> int:
        return self._stop(list(self._streams.values()), finish)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let the open requests end within `timeout_s`, then end them with a 503."""
        self.draining = True
        deadline = time.monotonic() + timeout_s
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.abort_all(Finish("abort", message=SHUTTING_DOWN, status=503))

    async def flush(self) -> bool:
        """Empty the prefix cache; False: refused, because requests are running or waiting."""
        if self.failed is not None:
            raise WorkerDied(self.failed)
        ticket = self._take_id()
        answer = self._flushes[ticket] = asyncio.get_running_loop().create_future()
        self._link.send(Flush(ticket))
        try:
            return await answer
        finally:
            del self._flushes[ticket]

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _submit(self, index: int, request: Request, tokens: list[int], group: _Group, began: float) -> _Stream:
        if not request.rid:
            request.rid = uuid.uuid4().hex
        held = request.held
        ahead = held.ahead if held is not None else None
        if held is not None and ahead is not None and ahead.expected == tokens:
            stream = self._adopt(held, ahead, group)
        else:
            stream = self._open_stream(index, request, group)
            stream.began = began
            self._send(stream, tokens)
        stream.prompt_tokens = len(tokens)
        self.metrics.requests += 1
        if self._log_requests:
            prompt = self.tokenizer.decode(tokens, skip_special_tokens=False)
            log.info("request rid=%s prompt=%r sampling=%s", request.rid, prompt, request.sampling)
        if held is not None:
            held.tokens = list(tokens)
            if request.then is not None and held.guesses:
                self._send_ahead(held, stream, *request.then)
        return stream

    def _open_stream(self, index: int, request: Request, group: _Group) -> _Stream:
        sampling = request.sampling
        if sampling.seed is None or sampling.n != 1:
            # A sequence that is retracted and resumed must go on as it would have: it needs a seed of its own.
            seed = self._seeds.getrandbits(SEED_BITS) if sampling.seed is None else sampling.seed
            sampling = msgspec.structs.replace(sampling, seed=seed, n=1)
        detokenizer = Detokenizer(
            self.tokenizer,
            skip_special_tokens=sampling.skip_special_tokens,
            spaces_between_special_tokens=sampling.spaces_between_special_tokens,
            stop=sampling.stop,
            no_stop_trim=sampling.no_stop_trim,
        )
        stream = _Stream(self._take_id(), index, request, sampling, group, detokenizer)
        self._streams[stream.id] = stream
        return stream

    def _send(self, stream: _Stream, tokens: list[int]) -> None:
        request, sampling = stream.request, stream.sampling
        held, hold = request.held, request.held is not None and not request.last
        if held is None or not held.id:
            self._link.send(Submit(stream.id, tokens, sampling, request.logprobs, hold, request.namespace))
            return
        stream.cached = keep = _common(held.tokens, tokens)
        instead_of = 0
        if held.ahead is not None:
            instead_of = held.ahead.stream.id
            self._streams.pop(instead_of, None)
            held.ahead, held.guesses = None, False
        self._link.send(
            Extend(stream.id, held.id, keep, tokens[keep:], sampling, request.logprobs, hold, ahead=instead_of)
        )

    def _send_ahead(self, held: Held, stream: _Stream, text: str, request: Request) -> None:
        """Tell the worker how `stream` goes on, if that can be guessed: by `text`, which `request` continues."""
        free = not (stream.sampling.constraint or request.sampling.constraint)  # else it waits to be compiled
        tokens = self._behind(text) if free and request.logprobs is None else None
        if tokens is None:
            return
        try:
            self.check(request, [*held.tokens, *tokens])
        except (FieldError, Overloaded, WorkerDied):
            return  # as it will be told when its turn comes
        then = self._open_stream(0, request, _Group())
        self._link.send(Extend(then.id, stream.id, AT_END, tokens, then.sampling, hold=not request.last))
        held.ahead = Ahead(then, tokens)

    def _behind(self, text: str) -> list[int] | None:
        """The tokens of `text` as it stands behind other text, None where that depends on it or takes long."""
        if len(text) > INLINE_CHARS:
            return None
        alone = self.tokenizer.encode("a")
        both = self.tokenizer.encode("a" + text)
        return both[len(alone) :] if both[: len(alone)] == alone else None

    def _adopt(self, held: Held, ahead: Ahead, group: _Group) -> _Stream:
        """The guess was right: `group` reads what is being generated already."""
        stream = ahead.stream
        held.id, held.ahead = stream.id, None
        stream.cached = len(ahead.expected or []) - len(ahead.tokens)
        group.error = stream.group.error
        stream.group = group
        if stream.queued:
            group.ready.append(stream)
        return stream

    def _end(self, stream: _Stream, output: Output, now: float) -> None:
        self.metrics.request.observe(now - stream.began)
        held = stream.request.held
        if held is not None and not stream.request.last:
            held.id = stream.id
            held.tokens += output.tokens
            finish = output.finish
            if finish is not None and isinstance(finish.matched, int) and not stream.no_stop_trim:
                held.tokens.pop()  # the stop token is no text
            if held.ahead is not None and stream.ended and not (finish and isinstance(finish.matched, str)):
                held.ahead.expected = held.tokens + held.ahead.tokens
            stream.ended = True  # after a stop string the worker goes on until it is told how
            self._streams.pop(stream.id, None)
        elif held is not None:
            held.id = 0
        if not stream.ended:  # a stop string: the worker does not know
            self._forget(stream)
        if self._log_requests:
            log.info("finished rid=%s finish=%s text=%r", output.rid, output.finish, output.text)

    def _forget(self, stream: _Stream) -> None:
        stream.ended = True
        if self._streams.pop(stream.id, None) is not None:
            self._link.send(Abort(stream.id))

    def _stop(self, streams: list[_Stream], finish: Finish) -> int:
        streams = [stream for stream in streams if not _is_ahead(stream)]  # those go with the one before them
        for stream in streams:
            self._forget(stream)
            self.metrics.aborted += 1
            self._hand_over(stream, Piece(stream.id, [], finish))
        due, self._due = self._due, []
        for group in due:
            self._write(group)
        return len(streams)

    async def _read(self) -> None:
        try:
            while self.failed is None:
                for message in await self._link.receive_async():
                    self._dispatch(message)
                if self._due:
                    due, self._due = self._due, []
                    await self._write_all(due)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("the link to the worker broke")
            self.fail(f"{type(error).__name__}: {error}")

    async def _write_all(self, due: list[_Group]) -> None:
        """Every reader its turn; between some of them, and for as long as it took after all, others have theirs."""
        busy, began = 0.0, time.thread_time()  # ours, not what woken clients take of our core meanwhile
        for i in range(0, len(due), ROUND):
            if i:
                busy += time.thread_time() - began
                await asyncio.sleep(0)
                began = time.thread_time()
            for group in due[i : i + ROUND]:
                self._write(group)
        busy += time.thread_time() - began
        if len(due) > ROUND:
            await asyncio.sleep(min(busy, REST_S))

    def _write(self, group: _Group) -> None:
        """What has come for a reader that is written to, unless its client is behind."""
        group.due = False
        sink, frame = group.sink, group.frame
        if sink is None or frame is None or group.waits or not group.ready or group.error is not None:
            return
        ready, group.ready = group.ready, []
        now = time.monotonic()
        data = b""
        try:
            for stream in ready:
                output = self._take(stream, now)
                if output is not None:
                    event = frame(stream.index, output)
                    data = data + event if data else event
            if not group.left:
                group.rest = data
                group.wake()
            elif data:
                group.waits = not sink.write(data, group.on_room)
        except Exception as error:  # of this reader, not of the others
            group.error = error
            group.wake()

    def _has_room(self, group: _Group) -> None:
        group.waits = False
        self._write(group)

    def _dispatch(self, message: FromWorker) -> None:
        match message:
            case Step():
                now = time.monotonic()
                streams, metrics = self._streams, self.metrics
                metrics.step(message.stats, now)
                gaps: dict[float, int] = {}  # when sequences had their last token -> how many of them have one now
                for waited_s in message.waited:
                    metrics.queued.observe(waited_s)
                for piece in message.pieces:
                    stream = streams.get(piece.id)
                    if stream is None:
                        continue  # forgotten while its token was on the way
                    if piece.finish is not None:
                        stream.ended = True
                        del streams[piece.id]
                        if (held := stream.request.held) is not None and held.ahead is not None:
                            held.ahead.stream.began = now
                    if count := len(piece.tokens):
                        if stream.last and count == 1:  # most had it together
                            gaps[stream.last] = gaps.get(stream.last, 0) + 1
                        elif stream.last:
                            metrics.between_tokens.observe((now - stream.last) / count, count)
                        else:
                            metrics.first_token.observe(now - stream.began)
                        stream.last = now
                    self._hand_over(stream, piece)
                for last, count in gaps.items():
                    metrics.between_tokens.observe(now - last, count)
            case Ready():
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message)
            case Flushed():
                waiting = self._flushes.get(message.ticket)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message.ok)
            case Failed():
                self.fail(message.reason, message.setting)

    def _hand_over(self, stream: _Stream, piece: Piece) -> None:
        stream.pieces.append(piece)
        stream.pending += len(piece.tokens)
        if stream.queued or (piece.finish is None and stream.pending < stream.wanted):
            return
        stream.queued = True
        group = stream.group
        group.ready.append(stream)
        if group.frame is None:
            group.wake()
        elif not group.due and not group.waits:
            group.due = True
            self._due.append(group)


def _is_ahead(stream: _Stream) -> bool:
    held = stream.request.held
    return held is not None and held.ahead is not None and held.ahead.stream is stream


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
