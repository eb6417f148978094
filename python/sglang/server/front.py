"""Front: request ids -> streams of outputs. What stands between HTTP (or `Engine`) and a worker.

Here: its life, and the ways in. What the worker is told is in `outbox`, what it says is brought to readers by
`delivery`; `streams` has the records that callers meet.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager

from sglang.base import limits
from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, FieldError, Overloaded, WorkerDied
from sglang.base.link import Link
from sglang.base.messages import Failed, Finish, Flush, Flushed, FromWorker, Ready, Side, Step, ToWorker
from sglang.grammar.search import Patterns, patterns_of
from sglang.server.delivery import Delivery
from sglang.server.metrics import Metrics
from sglang.server.outbox import INLINE_CHARS, Outbox
from sglang.server.streams import Frame, Group, Held, Output, Request, Sink, Stream
from sglang.text.tokenizer import Tokenizer

log = logging.getLogger("sglang.server")

LAST_WORDS_S = 0.25  # how much later than a process's end its last message may be read
SHUTTING_DOWN = "the server is shutting down"
ABORTED = Finish("abort", message="aborted by request")


class Front:
    """Call from one event loop; only `fail_soon` may be called from a thread."""

    def __init__(self, link: Link[FromWorker, ToWorker], tokenizer: Tokenizer, config: ServerConfig):
        self.tokenizer = tokenizer
        self.metrics = Metrics(config.model_name)
        self.failed: str | None = None  # why the worker is gone
        self.draining = False
        self._link = link
        self._truncate = config.allow_auto_truncate
        self._outbox = Outbox(link, tokenizer, self.metrics, config)
        self._streams = self._outbox.streams
        self._delivery = Delivery(self._outbox, self.metrics)
        self._open = 0  # readers
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

    async def encode(self, text: str, most: int | None = None, side: Side = "right") -> list[int]:
        """most: ids, for which the text is cut off on `side`."""
        if len(text) <= INLINE_CHARS:
            return self.tokenizer.encode(text, most=most, side=side)
        return await asyncio.to_thread(self.tokenizer.encode, text, most=most, side=side)

    async def compile_stops(self, requests: Iterable[Request]) -> None:
        """Sets their `patterns`. Raises FieldError."""
        done: dict[tuple[str, ...], Patterns | None] = {(): None}
        for request in requests:
            sources, name = request.sampling.stop_regex, request.stop_regex
            if sources not in done:
                if len(done) > limits.STOP_REGEX_KINDS:
                    raise FieldError(
                        name, f"{name}: one request may have at most {limits.STOP_REGEX_KINDS} different ones"
                    )
                await asyncio.sleep(0)  # others have a turn: it may take some milliseconds
                try:
                    done[sources] = patterns_of(sources)
                except FieldError as error:
                    raise FieldError(name, str(error)) from None
            request.patterns = done[sources]

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
        async with self._opened(requests, Group()) as group:
            while group.left:
                if not group.ready:
                    if group.error is not None:
                        raise group.error
                    group.waiter = loop.create_future()
                    await group.waiter
                ready, group.ready = group.ready, []
                now = time.monotonic()
                for stream in ready:
                    output = self._delivery.take(stream, now)
                    if output is not None:
                        yield stream.index, output

    async def push(self, requests: Sequence[Request], frame: Frame, sink: Sink) -> bytes:
        """As `run`, but writes `frame(index, output)` to the sink for each output; returns what is to be written last.

        What comes while the client is behind is written as one when it has caught up.
        """
        async with self._opened(requests, Group(sink, frame, self._delivery.has_room)) as group:
            group.waiter = asyncio.get_running_loop().create_future()
            if group.left and group.error is None:
                await group.waiter
            if group.error is not None:
                raise group.error
            return group.rest

    @asynccontextmanager
    async def _opened(self, requests: Sequence[Request], group: Group) -> AsyncIterator[Group]:
        """Submits the requests as streams of `group`; at the end forgets those that have not ended."""
        began = time.monotonic()
        streams: list[Stream] = []
        self._open += 1
        try:
            await self._submit(requests, streams, group, began)
            group.left = len(streams)
            yield group
        finally:
            group.ready = []  # what comes late finds nobody
            group.sink = None
            self._open -= 1
            for stream in streams:
                if not stream.ended:
                    self.metrics.aborted += 1
                    self._outbox.forget(stream)

    async def _submit(self, requests: Sequence[Request], streams: list[Stream], group: Group, began: float) -> None:
        """Sends the requests, and adds their streams to `streams`; all of them or, where one is refused, none.

        Their prompts are let go: as long as a request is open a list would take 40 bytes a token, and the garbage
        collector look at each of them.
        """
        facts = self.ready
        prompts = [
            await self.encode(facts.text_prompt + r.prompt, facts.text_tokens or None, facts.text_side)
            if isinstance(r.prompt, str)
            else r.prompt
            for r in requests
        ]
        if self._truncate:
            prompts = [self._fitting(tokens) for tokens in prompts]
        await self.compile_stops(requests)
        packed = [self._check(request, tokens) for request, tokens in zip(requests, prompts, strict=True)]
        for i, request in enumerate(requests):
            streams.append(self._outbox.submit(i, request, prompts[i], packed[i], group, began))
            request.prompt = ""

    def _fitting(self, tokens: list[int]) -> list[int]:
        """The beginning of a prompt, as much of it as leaves room for an answer, which a vector needs none of."""
        answer = 0 if self.ready.embedding else 1
        most = min(self.ready.context_length - answer, self.ready.total_tokens)
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
        if self.failed is None:
            self._outbox.release(held)

    def _admit(self) -> None:
        if self.failed is not None:
            raise WorkerDied(self.failed)
        if self.draining:
            raise Overloaded(SHUTTING_DOWN)

    def _check(self, request: Request, tokens: list[int]) -> bytes:
        """The tokens, packed. Raises FieldError, Overloaded (shutting down) or WorkerDied."""
        if request.held is None:
            self._admit()
        return self._outbox.check(request, tokens)

    def abort(self, rid: str) -> int:
        """End the sequences with this rid or group; their readers get a last output. How many there were."""
        found = [s for s in self._streams.values() if rid in (s.request.rid, s.request.group)]
        return self._delivery.stop(found, ABORTED)

    def abort_all(self, finish: Finish = ABORTED) -> int:
        return self._delivery.stop(list(self._streams.values()), finish)

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
        ticket = self._outbox.take_id()
        answer = self._flushes[ticket] = asyncio.get_running_loop().create_future()
        self._link.send(Flush(ticket))
        try:
            return await answer
        finally:
            del self._flushes[ticket]

    async def _read(self) -> None:
        try:
            while self.failed is None:
                for message in await self._link.receive_async():
                    self._dispatch(message)
                await self._delivery.write_all()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("the link to the worker broke")
            self.fail(f"{type(error).__name__}: {error}")

    def _dispatch(self, message: FromWorker) -> None:
        match message:
            case Step():
                self._delivery.file(message)
            case Ready():
                self._outbox.facts = message
                if message.lower_case:
                    self.tokenizer.make_lower()
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message)
            case Flushed():
                waiting = self._flushes.get(message.ticket)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message.ok)
            case Failed():
                self.fail(message.reason, message.setting)
