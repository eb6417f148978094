"""The one event loop of the language, in a thread of its own, and the bounded pool for what blocks.

Everything that waits for a backend waits here, so that a program in flight costs an object and not a thread.
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

CALLS = 64  # blocking calls of backends that run at a time
STUCK_S = 0.001  # after which a pool in which nothing moves grows
SLICE_S = 0.5  # a signal that comes just before a thread blocks does not wake it: Ctrl-C is seen after this
IDLE_S = 5.0  # how long a thread waits for further work before it ends

_start = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_closing: set[asyncio.Task[None]] = set()


def get() -> asyncio.AbstractEventLoop:
    """The loop; started by the first call."""
    if _loop is not None:
        return _loop
    return _new_loop()


def _new_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _start:
        if _loop is None:
            loop = asyncio.new_event_loop()
            # A transport that is collected closes its socket, and another connection gets the descriptor. Where a
            # client that closes itself at its end (openai's, anthropic's, google-genai's) is collected with it, that
            # closes the transport once more, on this loop: it forgets the descriptor, and the other connection waits
            # for its answer for ever. So none is collected while it is open: asyncio's own list of them is a weak one.
            setattr(loop, "_transports", {})  # noqa: B010  # not declared
            _thread = threading.Thread(target=loop.run_forever, daemon=True, name="sglang-lang")
            _thread.start()
            _loop = loop
    return _loop


def close_with(owner: object, close: Callable[[], Awaitable[Any]]) -> None:
    """Await `close()` on the loop when `owner` is gone. It must not refer to it."""
    weakref.finalize(owner, _close_soon, close).atexit = False


def _close_soon(close: Callable[[], Awaitable[Any]]) -> None:
    async def work() -> None:
        with suppress(Exception):
            await close()

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(work())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    if _loop is not None:  # else nothing was opened
        _loop.call_soon_threadsafe(begin)


def here() -> bool:
    """Whether this is the loop's own thread, which must never block."""
    return threading.current_thread() is _thread


def run(work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work` on the loop. Ctrl-C cancels it."""
    if here():
        work.close()
        raise RuntimeError("a blocking call inside an async program: await its async form (run_async, await s['x'])")
    outcome: Future[T] = Future()

    async def settle() -> None:
        try:
            outcome.set_result(await work)
        except BaseException as error:  # a SystemExit that is raised on the loop would end it
            outcome.set_exception(error)

    task = asyncio.run_coroutine_threadsafe(settle(), get())
    try:
        while not outcome.done():
            with suppress(TimeoutError):  # ours, or that of `work`, which is then raised below
                return outcome.result(SLICE_S)
        return outcome.result()
    except BaseException:
        task.cancel()
        raise


def block(on: "threading.Lock | threading.Semaphore") -> None:
    """Acquire `on`, however long that takes. Ctrl-C gets through."""
    while not on.acquire(timeout=SLICE_S):
        pass


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """An async iterator as a plain one; leaving early closes it."""

    async def step() -> tuple[T] | None:
        async for item in items:
            return (item,)
        return None

    async def close() -> None:
        if (aclose := getattr(items, "aclose", None)) is not None:
            await aclose()

    try:
        while (item := run(step())) is not None:
            yield item[0]
    finally:
        run(close())


class Pool:
    """Daemon threads, at most `size`: a body that hangs does not keep the interpreter alive.

    It grows only while nothing is taken up for a millisecond, since most work is over sooner than a thread is made; and
    then doubles, since whoever blocks is seldom alone.
    """

    def __init__(self, size: int, name: str):
        self.size = size
        self._name = name
        self._lock = threading.Lock()
        self._work: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition(self._lock)
        self._threads = 0
        self._idle = 0
        self._taken = 0
        self._watched = False

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, in a thread, with the caller's context variables."""
        context = copy_context()
        with self._lock:
            self._work.append(lambda: context.run(work))
            if self._idle >= len(self._work):
                self._ready.notify()
            elif self._threads == 0:
                self._grow(1)
            elif self._threads < self.size and not self._watched:
                self._watched = True
                get().call_soon_threadsafe(self._watch, -1)

    def clear(self) -> None:
        """Forget what has not begun."""
        with self._lock:
            self._work.clear()

    def _watch(self, taken: int) -> None:
        with self._lock:
            if not self._work or self._threads == self.size:
                self._watched = False
                return
            if self._taken == taken:
                self._grow(min(self._threads, self.size - self._threads, len(self._work)))
            get().call_later(STUCK_S, self._watch, self._taken)

    def _grow(self, count: int) -> None:
        for _ in range(max(1, count)):
            self._threads += 1
            threading.Thread(target=self._serve, daemon=True, name=self._name).start()

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._work:
                    self._idle += 1
                    self._ready.wait(IDLE_S)
                    self._idle -= 1
                if not self._work:
                    self._threads -= 1
                    return
                work = self._work.popleft()
                self._taken += 1
            work()
            del work


_calls = Pool(CALLS, "sglang-call")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(...)` in the pool of blocking calls. Cancelling stops waiting for it."""
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    _calls.submit(work)
    return await asyncio.wrap_future(future)
