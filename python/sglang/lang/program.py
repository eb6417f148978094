"""SglFunction: a program and who runs it: once, as a stream, in a batch, on an event loop."""

import asyncio
import inspect
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sglang.lang import loop, tracer
from sglang.lang.backends.base import BaseBackend
from sglang.lang.config import global_config
from sglang.lang.executor import Executor
from sglang.lang.ir import SAMPLING_NAMES, SglSamplingParams, overrides
from sglang.lang.run import Cancelled, NotGenerated, Run, inside
from sglang.lang.state import AsyncProgramState, ProgramState

log = logging.getLogger("sglang.lang")

BODIES = 256  # plain bodies of streaming runs that run at a time
IN_FLIGHT = 512  # programs of a batch that have begun and are not done, with num_threads="auto"
AHEAD = 200  # the same for generator_style=True, so that results do not pile up
PRECACHE_CHARS = 64  # a shorter common prefix is not worth a request
RUN_NAMES = SAMPLING_NAMES - {"dtype", "regex", "ebnf"}  # sampling arguments of run and run_batch

_bodies = loop.Pool(BODIES, "sglang-body")
_engines: "weakref.WeakKeyDictionary[Any, BaseBackend]" = weakref.WeakKeyDictionary()


def resolve(backend: Any) -> BaseBackend:
    """A backend from what users pass as one: a backend, something with an `endpoint` (Runtime), an Engine, or None."""
    backend = backend if backend is not None else global_config.default_backend
    assert backend is not None, "Please specify a backend: run(..., backend=...) or sglang.set_default_backend(...)"
    if isinstance(backend, BaseBackend):
        return backend
    if (endpoint := getattr(backend, "endpoint", None)) is not None:
        return resolve(endpoint)
    if hasattr(backend, "async_generate"):
        from sglang.lang.backends.engine import EngineBackend

        if backend not in _engines:
            _engines[backend] = EngineBackend(backend)
        return _engines[backend]
    raise TypeError(f"a backend must derive from BaseBackend, or be a Runtime or an Engine; got {type(backend)}")


class SglFunction:
    """A program. `run` and the others take its arguments, and sampling arguments (max_new_tokens=..., stop=...) that
    hold for every gen which says nothing else."""

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: dict[str, Any] | None = None,
        fuse: bool | None = None,
    ):
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bind_arguments = bind_arguments or {}
        self.fuse = fuse
        self._signature = inspect.signature(func)
        parameters = list(self._signature.parameters.values())
        assert parameters and parameters[0].name == "s", f"the first parameter of {func.__name__} must be called s"
        self.arg_names = [p.name for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._free = self._signature.replace(parameters=[p for p in parameters if p.name not in self.bind_arguments])
        self.is_async = inspect.iscoroutinefunction(func)
        self.__name__ = func.__name__
        self.__doc__ = func.__doc__

    def bind(self, **kwargs: Any) -> "SglFunction":
        """The program with these arguments filled in. Raises TypeError for one that it does not have."""
        self.check_names(kwargs)
        return SglFunction(self.func, self.num_api_spec_tokens, {**self.bind_arguments, **kwargs}, self.fuse)

    def check_names(self, names: Iterable[str]) -> None:
        """Raises TypeError for what is not an argument of the program."""
        if not self._takes_any and (unknown := [name for name in names if name not in self.arg_names]):
            raise TypeError(f"{self.__name__} has no argument {unknown[0]}; it has: {', '.join(self.arg_names)}")

    def arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """The arguments of a call, with None for `s`: positional ones fill what is not bound, in order.

        Raises TypeError where they do not fit.
        """
        named = {**self.bind_arguments, **kwargs}
        bound = {name: named.pop(name) for name in self.bind_arguments if name in self.arg_names}
        try:
            given = self._free.bind(None, *args, **named)
        except TypeError as error:
            raise TypeError(
                f"the arguments of {self.__name__} mismatch the signature {self._signature}: {error}"
            ) from None
        return inspect.BoundArguments(self._signature, {**bound, **given.arguments})  # type: ignore[arg-type]  # a dict

    def run(self, *args: Any, stream: bool = False, backend: Any = None, **kwargs: Any) -> ProgramState:
        """Run the body here and return its state; generation may still go on. With `stream` the body runs elsewhere
        and the state comes at once, to be iterated. What the body raises is raised."""
        if tracer.tracing():
            return self._nested(args, kwargs)
        if loop.here():
            raise RuntimeError(f"{self.__name__}.run(...) would block the event loop: await run_async(...)")
        call = self._prepare(args, kwargs, backend, stream)
        if stream:
            call.start(lambda: None)
        elif self.is_async:
            loop.run(call.body_async())
        else:
            call.body()
        return call.state

    async def run_async(self, *args: Any, stream: bool = False, backend: Any = None, **kwargs: Any) -> ProgramState:
        """`run` for event loops: the state is complete (or streams). An async body runs on the caller's loop."""
        if tracer.tracing():
            return self._nested(args, kwargs)
        call = self._prepare(args, kwargs, backend, stream)
        if stream:
            call.start(lambda: None)
            return call.state
        if self.is_async:
            await call.body_async()
        else:
            await _in_body_thread(call)
        await call.root.sync_async()
        return call.state

    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        backend: Any = None,
        num_threads: str | int = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **sampling: Any,
    ) -> Any:
        """Run the program for each item, a dict of arguments or a sequence of positional ones; states in that order.

        num_threads: how many programs are under way at a time; "auto": some hundred, of which as many bodies run as
        16 per core allow. An item whose generation fails keeps its error (`state.error()`), the others go on; an
        exception of a body's own ends the batch and is raised. generator_style: yields states as they are done.
        """
        items = [self._item(i, item) for i, item in enumerate(batch_kwargs)]
        if tracer.tracing():
            return [self._nested(args, kwargs) for args, kwargs in items]
        if isinstance(num_threads, str):
            if num_threads != "auto":
                raise ValueError(f'num_threads must be "auto" or a number, got {num_threads!r}')
            threads, limit = max(96, 16 * (os.cpu_count() or 1)), AHEAD if generator_style else IN_FLIGHT
        else:
            if num_threads < 1:
                raise ValueError(f"num_threads must be at least 1, got {num_threads}")
            threads = limit = num_threads
        found = resolve(backend) if items else None
        if found is not None and len(items) > 1 and not found.shares_prefixes:
            _precache(self, found)
        calls = (self._prepare(args, kwargs, found, False, sampling) for args, kwargs in items)
        states = _Batch(calls, len(items), threads, limit, progress_bar).states()
        if generator_style:
            return (state for _, state in states)
        results: list[Any] = [None] * len(items)
        for i, state in states:
            results[i] = state
        return results

    def trace(self, backend: Any = None, **kwargs: Any) -> "tracer.Trace":
        """The program's graph: what it does with these arguments, and with unknown values where none are given, as
        far as that does not depend on what is generated. Never asks a backend for anything but its chat template."""
        self.check_names(kwargs)
        named = {name: tracer.Unknown(name) for name in self.arg_names} | self.bind_arguments | kwargs
        return tracer.trace(self, (), named, _template_of(backend))

    def cache(self, backend: Any = None) -> None:
        """Have the backend cache the constant beginning of the program's prompt, if it has one."""
        found = resolve(backend)
        if prefix := self.trace(backend=found).prefix():
            loop.run(found.async_cache_prefix(prefix))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `run`."""
        return self.run(*args, **kwargs)

    def _nested(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What a run is while another program is traced: a trace of its own, which becomes a part of that one."""
        own = {name: kwargs[name] for name in kwargs if name not in self._sampling_names}
        return tracer.nested(self, self.arguments(args, own))

    @property
    def _sampling_names(self) -> frozenset[str]:
        """What a run takes for itself: what the function calls `temperature` or `n` is its own."""
        return RUN_NAMES.difference(self.arg_names)

    def _item(self, i: int, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = () if isinstance(item, dict) else tuple(item) if isinstance(item, list | tuple) else (item,)
        kwargs = item if isinstance(item, dict) else {}
        try:
            self.arguments(args, kwargs)
        except TypeError as error:
            raise TypeError(f"item {i}: {error}") from None
        return args, kwargs

    def _prepare(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        backend: Any,
        stream: bool,
        sampling: dict[str, Any] | None = None,
    ) -> "_Call":
        if sampling is None:
            sampling = {name: kwargs.pop(name) for name in self._sampling_names & kwargs.keys()}
        elif unknown := [name for name in sampling if name not in RUN_NAMES]:
            raise TypeError(f"run_batch has no argument {unknown[0]}")
        arguments = self.arguments(args, kwargs)
        found = resolve(backend)
        assert not (stream and self.num_api_spec_tokens and found.spec == "chat"), (
            "num_api_spec_tokens does not stream with chat models: variables are known when the message ends"
        )
        run = Run(stream, self.__name__)
        fuse = global_config.enable_fusion if self.fuse is None else self.fuse
        params = SglSamplingParams().but(overrides(sampling))
        root = Executor(run, found, found.get_chat_template(), params, fuse, self.num_api_spec_tokens)
        return _Call(self, root, arguments)


class _Call:
    """One run of a program, prepared."""

    def __init__(self, program: SglFunction, root: Executor, arguments: inspect.BoundArguments):
        self._program = program
        self._args = arguments.args[1:]
        self._kwargs = arguments.kwargs
        self.root = root
        self.state = ProgramState(root)
        self.error: BaseException | None = None  # what the body raised

    def body(self) -> None:
        """Run a plain body here."""
        token = inside.set((*inside.get(), self.root.run))
        try:
            self.root.backend.begin_program(self.root)
            self.state.ret_value = self._program.func(self.state, *self._args, **self._kwargs)
        except BaseException as error:
            self._broke(error)
            raise
        finally:
            inside.reset(token)
            self._ended()

    async def body_async(self) -> None:
        token = inside.set((*inside.get(), self.root.run))
        try:
            self.root.backend.begin_program(self.root)
            state = AsyncProgramState(self.root)
            self.state.ret_value = await self._program.func(state, *self._args, **self._kwargs)
        except BaseException as error:
            self._broke(error)
            raise
        finally:
            inside.reset(token)
            self._ended()

    def start(self, then: Callable[[], None], pool: loop.Pool | None = None) -> None:
        """Run the body elsewhere: a plain one in a thread of `pool`, an async one on the loop. What it raises is kept
        in `error`. A stream begun inside of another program has a thread of its own: it must not wait for its parent.
        """
        self.root.run.open = self.root.run.stream
        if self._program.is_async:

            async def work_async() -> None:
                try:
                    await self.body_async()
                except BaseException as error:
                    self.error = error
                then()

            asyncio.run_coroutine_threadsafe(work_async(), loop.get())
            return

        def work() -> None:
            try:
                self.body()
            except BaseException as error:
                self.error = error
            then()

        if pool is None:
            pool = loop.Pool(1, "sglang-body") if inside.get() else _bodies
        pool.submit(work)

    def _broke(self, error: BaseException) -> None:
        run = self.root.run
        run.body_error = error
        reason = error.__cause__ if isinstance(error, NotGenerated) else error
        run.cancel(reason if isinstance(reason, Exception) else Cancelled(f"the program ended: {reason!r}"), self.root)

    def _ended(self) -> None:
        self.root.run.body_ended(self.root)
        self.root.backend.end_program(self.root)
        if global_config.verbosity >= 2:
            self.root.wait(lambda: self.root.settled)
            print(self.root.text_)


async def _in_body_thread(call: _Call) -> None:
    running = asyncio.get_running_loop()
    ended = running.create_future()

    def then() -> None:
        running.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(None))

    call.start(then)
    try:
        await ended
    except asyncio.CancelledError:
        call.root.run.cancel(Cancelled("run_async was cancelled"), call.root)
        raise
    if call.error is not None:
        raise call.error


class _Batch:
    """Programs under way, at most `limit`. The caller's thread begins them; whoever ends one leaves its number."""

    def __init__(self, calls: Iterator[_Call], count: int, threads: int, limit: int, progress_bar: bool):
        self._calls = calls
        self._count = count
        self._limit = limit
        self._pool = loop.Pool(min(threads, max(count, 1)), "sglang-batch")
        self._alone = limit == 1
        self._running: dict[int, _Call] = {}
        self._done: deque[int] = deque()
        self._news = threading.Semaphore(0)
        self._bar = progress_bar

    def states(self) -> Iterator[tuple[int, ProgramState]]:
        bar = _bar(self._count) if self._bar else None
        begun = 0
        try:
            while begun < self._count or self._running:
                while begun < self._count and len(self._running) < self._limit:
                    self._begin(begun, next(self._calls))
                    begun += 1
                loop.block(self._news)
                i = self._done.popleft()
                call = self._running.pop(i)
                if call.error is not None and not isinstance(call.error, NotGenerated):
                    raise call.error
                if bar is not None:
                    bar.update(1)
                yield i, call.state
        finally:
            self._pool.clear()
            for call in self._running.values():
                call.root.run.cancel(Cancelled("the batch was ended"), call.root)
            if bar is not None:
                bar.close()

    def _begin(self, i: int, call: _Call) -> None:
        self._running[i] = call

        def done() -> None:
            self._done.append(i)
            self._news.release()

        def body_ended() -> None:
            if call.error is not None:
                done()
            else:
                call.root.when(lambda: call.root.settled, done)

        call.start(body_ended, self._pool)


def _bar(count: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=count)


def _precache(program: SglFunction, backend: BaseBackend) -> None:
    if not global_config.enable_precache_with_tracing:
        return
    prefix = program.trace(backend=backend).prefix()
    if len(prefix) <= PRECACHE_CHARS:
        return
    try:
        loop.run(backend.async_cache_prefix(prefix))
    except Exception as error:
        log.warning("the common prefix was not cached: %s", error)


def _template_of(backend: Any) -> Any:
    from sglang.base.chat import get_chat_template

    if backend is None and global_config.default_backend is None:
        return get_chat_template("default")
    return resolve(backend).get_chat_template()
