"""Drives the flow of a state: nodes come from the program's thread, answers from the loop's.

A state has no thread of its own. Whoever brings news (a node, an answer, impatience) takes the lock of the run, moves
the flow as far as it goes, and hands what it asks for to the loop. Readers wait on a bell that is rung when what they
wait for is there.
"""

import asyncio
import logging
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from types import TracebackType
from typing import Any, cast

from sglang.base.chat import ChatTemplate
from sglang.lang import loop
from sglang.lang.backends.base import BaseBackend, NotFused
from sglang.lang.interpreter import (
    Ask,
    Chain,
    Choose,
    Event,
    Generate,
    More,
    Next,
    Prefill,
    Until,
    Work,
    execute,
    fusable,
)
from sglang.lang.ir import Expr, Fork, Join, SglSamplingParams, sets
from sglang.lang.run import Cancelled, NotGenerated, Run, inside, ticker
from sglang.lang.transcript import Transcript, Where

log = logging.getLogger("sglang.lang")

_HERE = __name__.rpartition(".")[0]


def _where() -> Where | None:
    """The innermost frame that is not ours: the program's line."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_HERE):
        frame = frame.f_back
    return (frame, frame.f_lasti, frame.f_lineno) if frame is not None else None


class Executor(Transcript):
    """A state at work. What programs do to it is in `state.py`."""

    def __init__(
        self,
        run: Run,
        backend: BaseBackend,
        template: ChatTemplate,
        sampling: SglSamplingParams,
        fuse: bool = True,
        num_api_spec_tokens: int | None = None,
        parent: "Executor | None" = None,
    ):
        super().__init__(backend, template, sampling, fuse, num_api_spec_tokens)
        self.run = run
        self.started = parent is None
        self._parent = parent
        self._forked_at = parent.submitted if parent is not None else 0  # as many nodes of the parent come before
        self.closed = False
        self.lost: dict[str, int] = {}  # variables that were promised when it failed
        self._busy = False  # with a request; the flow waits for its events
        self._until: Until | None = None
        self._waiters: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self.stamps: dict[int, float] = {}  # when forks and joins of the history were done
        self._since = 0.0
        self._flow = execute(self)

    def child(self) -> "Executor":
        """A state that begins as a copy of this one, when the Fork that is submitted next is done."""
        child = Executor(
            self.run, self.backend, self.chat_template, self.sampling, self.fuse, self.num_api_spec_tokens, self
        )
        with self.run.lock:
            self.foresee(child)
        return child

    @property
    def hurried(self) -> bool:
        return self.pending[0][2] <= self.run.flushed

    def lap(self) -> float:
        before, self._since = self._since, time.monotonic()
        return self._since - before

    def done(self) -> None:
        if isinstance(self.pending[0][0], Fork | Join):
            self.stamps[self.executed] = time.monotonic()
        super().done()

    def branch(self, child: Transcript) -> None:
        super().branch(child)
        child = cast(Executor, child)
        child.started, child._parent = True, None
        if child.error_ is None and child.pending:
            child.pump(None)
        child.news()

    # From the program's thread

    def submit(self, *nodes: Expr) -> None:
        """Put `nodes` behind what is pending; what needs nobody's answer is done at once."""
        where = _where()
        with self.run.lock:
            if self.closed:
                raise RuntimeError("this fork has been joined: it cannot be continued")
            if self.run.cancelled is not None:
                raise Cancelled(str(self.run.cancelled)) from self.run.cancelled
            if self.error_ is not None:
                self._drop(nodes, self.error_)
                return
            for node in nodes:
                for name in sets(node):
                    self.promised[name] = self.promised.get(name, 0) + 1
                self.run.count += 1
                self.pending.append((node, where, self.run.count))
            self.submitted += len(nodes)
            if self in self.run.held and all(map(fusable, nodes)):
                return
            if self.started and not self._busy:
                self.pump(None)

    def _drop(self, nodes: Iterable[Expr], error: Exception) -> None:
        """What will not be done: states that were to be forked off have failed too."""
        for node in nodes:
            if isinstance(node, Fork):
                for child in node.children:
                    child.fail(error, quiet=True)

    def sync(self) -> None:
        """Wait for what has been submitted; outside of a running body, for the body too."""
        self.wait(self._done_when())

    async def sync_async(self) -> None:
        await self.wait_async(self._done_when())

    def end(self) -> None:
        """Nothing more will be submitted."""
        with self.run.lock:
            self.closed = True
            self.hurry()

    def _done_when(self) -> Callable[[], bool]:
        upto, outside = self.submitted, self.outside

        def done() -> bool:
            if self.error_ is not None:
                return True
            return self.settled and not self.run.open if outside else self.executed >= upto

        return done

    @property
    def outside(self) -> bool:
        """Whether the caller may see the body go on after it."""
        return self.run.open and self.run not in inside.get()

    def readable(self, name: str, outside: bool) -> bool:
        """Whether a reader of variable `name` has waited long enough."""
        if self.error_ is not None:
            return True
        if name in self.promised:
            return False
        return name in self.variables or (self.started and not (outside and self.run.open))

    def read(self, name: str) -> Any:
        """A variable that is `readable`. Raises KeyError where it has not been set, from the error that is to blame."""
        with self.run.lock:
            if name in self.variables and name not in self.lost:
                return self.variables[name]
            if self.error_ is not None:
                raise NotGenerated(f"{name!r} was not generated: {self.error_}") from self.error_
            known = ", ".join(map(repr, {**self.variables, **self.promised})) or "none"
            raise KeyError(f"no variable is called {name!r}; so far there are: {known}")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until `ready()`, which is asked with the lock after every change. Sends what is held back first."""
        if loop.here():
            raise RuntimeError("this would block the event loop: in an async program, await it")
        with self.run.lock:
            self.hurry()
            if ready():
                return
            bell = threading.Lock()
            bell.acquire()
            self._waiters.append((ready, bell.release))
        loop.block(bell)

    def when(self, ready: Callable[[], bool], ring: Callable[[], None]) -> None:
        """Call `ring`, which must be quick, when `ready()`."""
        with self.run.lock:
            if not ready():
                self._waiters.append((ready, ring))
                return
        ring()

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """As `wait`, on any event loop."""
        running = asyncio.get_running_loop()
        future: asyncio.Future[None] = running.create_future()

        def ring() -> None:
            running.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

        with self.run.lock:
            self.hurry()
            if ready():
                return
            self._waiters.append((ready, ring))
        await future

    # With the lock

    def hurry(self, upto: int | None = None) -> None:
        """Somebody waits for the nodes up to this one, or for all: nothing is held back for others to come along."""
        self.awaited = max(self.awaited, self.submitted if upto is None else upto)
        if self._parent is not None:
            self._parent.hurry(self._forked_at)
        self.run.flush()
        if self.pending and self.started and not self._busy:
            self.pump(None)

    def pump(self, event: Any) -> None:
        """Move the flow on: with an answer, or with None where there is a node or no patience left."""
        try:
            ask = self._flow.send(event)
            while isinstance(ask, Until) and all(child.settled for child in ask.children):
                ask = self._flow.send(None)
        except Exception as error:
            self.fail(error)
            return
        self._handle(ask)

    def fail(self, error: Exception, quiet: bool = False) -> None:
        """End this state: what is pending is dropped, who waits is told."""
        if self.error_ is not None:
            return
        at = ""
        if not quiet and self.pending and (where := self.pending[0][1]) is not None:
            error = error.with_traceback(TracebackType(error.__traceback__, *where))
            at = f" ({where[0].f_code.co_filename}, line {where[2]})"
        self.error_ = error
        dropped = [node for node, *_ in self.pending]
        self.pending.clear()
        self.lost, self.promised = self.promised, {}
        self._busy = False
        self.run.held.pop(self, None)
        self.run.working.pop(self, None)
        if not quiet:
            log.warning("Error in stream_executor: %s: %s%s", type(error).__name__, error, at)
        self._drop(dropped, error)
        self.news()

    def news(self) -> None:
        """Ring for those whose wait is over."""
        if self._waiters:
            left = []
            for ready, ring in self._waiters:
                if ready():
                    ring()
                else:
                    left.append((ready, ring))
            self._waiters = left

    def _handle(self, ask: Ask) -> None:
        match ask:
            case More(patient):
                self._rest()
                if patient:
                    self.run.held[self] = None
                    ticker.watch(self.run)
            case Next():
                pass
            case Until(children):
                self._work()
                self._until = ask
                for child in children:
                    cast(Executor, child)._waiters.append((lambda child=child: child.settled, self._child_settled))
            case _:
                self._work()
                self._since = time.monotonic()
                if loop.here():
                    self._begin(ask)
                else:
                    loop.get().call_soon_threadsafe(self._begin, ask)
        self.news()

    def _rest(self) -> None:
        self._busy = False
        self.run.working.pop(self, None)

    def _work(self) -> None:
        self._busy = True
        self.run.held.pop(self, None)
        self.run.working[self] = None

    def _child_settled(self) -> None:
        until = self._until
        if until is not None and self.error_ is None and all(child.settled for child in until.children):
            self._until = None
            self.pump(None)

    # On the loop

    def _begin(self, ask: Ask) -> None:
        if self.error_ is not None:
            return
        task = loop.get().create_task(self._serve(ask))
        self.run.tasks.add(task)
        task.add_done_callback(self.run.tasks.discard)

    async def _serve(self, ask: Ask) -> None:
        if isinstance(ask, Generate | Choose | Chain):
            self.parent, self.rid = self.rid, uuid.uuid4().hex
        try:
            match ask:
                case Generate(params):
                    await self._generate(params)
                case Choose(node):
                    decision = await self.backend.async_select(self, node.choices, node.temperature, node.method)
                    self._deliver(Event(0, decision.decision, decision.meta_info, True))
                case Chain():
                    await self._chain(ask)
                case Prefill(text):
                    await self.backend.async_cache_prefix(text)
                    self._deliver(None)
                case Work(function):
                    self._deliver(await loop.in_thread(function))
                case _:
                    raise AssertionError(ask)
        except asyncio.CancelledError:
            with self.run.lock:
                self.fail(Cancelled("the request was cancelled"))
            raise
        except Exception as error:
            with self.run.lock:
                self.fail(error)
        except BaseException as error:  # SystemExit, say: from here it would end the loop, and all programs with it
            reason = RuntimeError(f"the backend raised {error!r}")
            reason.__cause__ = error
            with self.run.lock:
                self.fail(reason)

    async def _generate(self, params: SglSamplingParams) -> None:
        if not self.run.stream:
            text, meta = await self.backend.async_generate(self, params)
            self._deliver(Event(0, text, meta, True))
            return
        if params.n != 1:
            raise RuntimeError(f"n must be 1 in a streaming run, got {params.n}")
        whole, meta = "", None
        async with _closing(self.backend.async_generate_stream(self, params)) as pieces:
            async for piece, meta in pieces:
                whole += piece
                self._deliver(Event(0, whole, meta, False))
        self._deliver(Event(0, whole, meta, True))

    async def _chain(self, chain: Chain) -> None:
        done = 0
        try:
            async with _closing(self.backend.async_chain(self, chain.segments, self.run.stream)) as pieces:
                async for index, text, meta, last in pieces:
                    self._deliver(Event(index, text, meta, last))
                    done += last
        except NotFused as error:
            with self.run.lock:
                self.rid = self.parent
                self._handle(self._flow.throw(error))
            return
        if done < chain.outputs:
            raise RuntimeError(f"the answer ended after {done} of {chain.outputs} gens and selects")

    def _deliver(self, event: Any) -> None:
        with self.run.lock:
            if self.error_ is None:
                self.pump(event)


def _closing(pieces: AsyncIterator[Any]) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
    """Closes an async generator at the end; other async iterators have nothing to close."""
    return aclosing(cast(Any, pieces)) if hasattr(pieces, "aclose") else nullcontext(pieces)
