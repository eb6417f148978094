"""A call of a program: what its states share, and the clock that ends their patience."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any, Protocol

from sglang.lang import loop
from sglang.lang.config import global_config

inside: ContextVar[tuple["Run", ...]] = ContextVar("inside", default=())  # the runs whose bodies are running here


class Cancelled(RuntimeError):
    """The run was ended before it was done: its body raised, or Ctrl-C."""


class NotGenerated(KeyError):
    """A variable that was to be generated and will not be; the cause is the error that ended its state."""


class State(Protocol):
    """What a run knows of its states. All with the lock."""

    def pump(self, event: Any) -> None: ...

    def fail(self, error: Exception, quiet: bool = False) -> None: ...

    def hurry(self) -> None: ...

    def news(self) -> None: ...


class Run:
    """One call of a program: its states share the lock, and end together when it is cancelled.

    open: the body still runs while others may read (a streaming run); they wait for what it has not said yet.
    """

    def __init__(self, stream: bool = False, name: str = ""):
        self.stream = stream
        self.name = name
        self.open = False
        self.lock = threading.Lock()
        self.held: dict[State, None] = {}  # those that hold a gen back, for others to come along
        self.working: dict[State, None] = {}  # those that wait for an answer
        self.tasks: set[asyncio.Task[None]] = set()
        self.cancelled: Exception | None = None
        self.body_error: BaseException | None = None
        self.count = 0  # of nodes
        self.flushed = 0  # the number of the last one that does not wait

    def flush(self) -> None:
        """Send what is held back, and hold back nothing that is there by now. With the lock."""
        self.flushed = self.count
        for executor in [*self.held]:
            if executor in self.held:
                executor.pump(None)

    def flush_idle(self) -> None:
        with self.lock:
            self.flush()

    def body_ended(self, root: State) -> None:
        with self.lock:
            self.open = False
            root.hurry()
            root.news()

    def cancel(self, reason: Exception, root: State) -> None:
        """End `root` and every state that is not done; requests under way are dropped."""
        with self.lock:
            if self.cancelled is not None:
                return
            self.cancelled = reason
            for executor in [root, *self.held, *self.working]:
                executor.fail(reason, quiet=True)

        def drop() -> None:
            for task in self.tasks:
                task.cancel()

        loop.get().call_soon_threadsafe(drop)


class Ticker:
    """Flushes runs to which nothing was added between two ticks. Sleeps while nothing is held anywhere.

    The loop sleeps between ticks, so that a program is not taken for idle while we keep it from running.
    """

    def __init__(self) -> None:
        self._runs: dict[Run, int] = {}  # what `count` was at the last tick
        self._awake = False

    def watch(self, run: Run) -> None:
        self._runs.setdefault(run, -1)
        if not self._awake:
            self._awake = True
            loop.get().call_soon_threadsafe(self._tick)

    def _tick(self) -> None:
        for run, seen in list(self._runs.items()):
            if not run.held:
                self._runs.pop(run, None)
            elif run.count == seen:
                self._runs.pop(run, None)
                run.flush_idle()
            else:
                self._runs[run] = run.count
        self._awake = False
        if self._runs:  # also what came in between the last two lines
            self._awake = True
            asyncio.get_running_loop().call_later(global_config.fusion_idle_s, self._tick)


ticker = Ticker()
