"""Rules -> Compiled, off the hot path: each rule once, remembered, in processes that can be killed.

`prepare` is the part that needs no vocabulary and may be long; it runs in a child. What is refused is refused by
counting work, so it would be refused again and the answer is remembered too; the time limit is for what nobody thought
of.

What is quick does not wait for what is not. There are lanes, each with a thread and a child of its own, and everything
begins in the first. What has had its slice of CPU time there gives way if others wait, and begins anew in the next
lane, whose slice is longer. What is alone is not interrupted. So time says who waits for whom, never what is refused.
"""

import contextlib
import io
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from sglang.base.errors import FieldError
from sglang.grammar import contextfree
from sglang.grammar.automaton import Automaton
from sglang.grammar.child import Child, Slow, TimedOut
from sglang.grammar.prepare import prepare
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Compiled, Rules
from sglang.grammar.shelf import Shelf
from sglang.grammar.vocab import Vocabulary

ENTRIES = 512
CACHE_BYTES = 512 << 20
TIMEOUT_S = 10.0  # of CPU time: a busy machine refuses nothing that an idle one allows


class Slice(NamedTuple):
    """What a lane's jobs may take before they give way to others; None: all that they need.

    seconds: of the child's CPU time. characters: of a grammar that the library reads in about that time; it cannot be
    interrupted. nice: of the child.
    """

    seconds: float | None
    characters: int | None
    nice: int


# Most patterns take less than the first slice, most schemas less than the second. Where every core computes, a child of
# nice 10 gets a tenth of one (with 5 it would be a quarter) and one of nice 14 a twentieth: with all three at work on
# the same core, others' tokens come a fifth later there.
LANES = (Slice(0.005, 1 << 12, 10), Slice(0.1, 1 << 14, 14), Slice(None, None, 14))


@dataclass(eq=False)
class Job:
    rules: Rules
    future: Future[Compiled] = field(default_factory=Future)
    wanted: bool = True  # somebody waits for it
    grammar: str | None = None  # what was prepared, where the library is to read it in another lane


class Lane:
    """Jobs in order of arrival, and the thread that does them: `work` runs there until it gets None.

    after: the lane for what takes too long here.
    """

    def __init__(self, slice: Slice, work: Callable[["Lane"], None], timeout_s: float, after: "Lane | None"):
        self.slice = slice
        self.after = after
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # A byte for each job that waits: the child sees without asking whether there is one.
        tail, head = os.pipe()
        for end in (tail, head):
            os.set_blocking(end, False)  # full: so many wait that it does not matter
        self._tail, self._head = io.FileIO(tail, "rb"), io.FileIO(head, "wb")
        self.child = Child(timeout_s, slice.seconds, slice.nice, tail)
        self._thread = threading.Thread(target=work, args=(self,), name="grammar", daemon=True)
        self._thread.start()

    def put(self, job: Job | None) -> None:
        self._head.write(b"\0")
        self._jobs.put(job)

    def get(self) -> Job | None:
        job = self._jobs.get()
        self._tail.read(1)
        return job

    def close(self) -> None:
        self.put(None)
        self._thread.join()
        self.child.stop()
        self._head.close()
        self._tail.close()


class Compiler:
    """Compiles for one vocabulary. Thread-safe; `close` it, or leave it to the process's end.

    separate: compile in child processes, which keep this one's interpreter free: one, and more once some constraints
    wait for others that take long. Each takes about 40 MB.
    shelf: where automata are kept beyond this process.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        separate: bool = True,
        entries: int = ENTRIES,
        cache_bytes: int = CACHE_BYTES,
        timeout_s: float = TIMEOUT_S,
        shelf: Shelf | None = None,
    ):
        self._shelf = shelf
        self.vocabulary = vocabulary
        self._separate = separate
        self._entries = entries
        self._cache_bytes = cache_bytes
        self._known: OrderedDict[Rules, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._engine: contextfree.Engine | None = None
        self._lanes: list[Lane] = []
        for slice in reversed(LANES if separate else LANES[-1:]):
            self._lanes.insert(0, Lane(slice, self._work, timeout_s, self._lanes[0] if self._lanes else None))
        if separate:
            self._lanes[0].child.start()

    def submit(self, rules: Rules) -> "Future[Compiled]":
        """Its result is Compiled, or raises FieldError. Equal rules share one compilation."""
        with self._lock:
            known = self._known.get(rules)
            if known is not None:
                self._known.move_to_end(rules)
                known.wanted = True
                return known.future
            job = self._known[rules] = Job(rules)
            self._forget()
        self._lanes[0].put(job)
        return job.future

    def drop(self, rules: Rules) -> None:
        """Nobody waits for it any more. It is not begun, nor begun again when it has to give way; else it goes on.

        Whoever submits it in time saves it: equal rules share one job.
        """
        with self._lock:
            if rules in self._known:
                self._known[rules].wanted = False

    def rehearse(self) -> None:
        """Make now what is needed once of the vocabulary, before anything is submitted.

        The library holds the interpreter while it does, half a second for 128k tokens: streams would stand still.
        """
        self.vocabulary.rehearse()
        with contextlib.suppress(Exception):  # whoever needs it is told why, then
            self._engine = contextfree.Engine(self.vocabulary)

    def compile(self, rules: Rules) -> Compiled:
        return self.submit(rules).result()

    def close(self) -> None:
        """What has not begun is cancelled."""
        with self._lock:
            for job in self._known.values():
                job.wanted = False
        for lane in self._lanes:  # from the first: it may still put jobs into the next
            lane.close()

    def _forget(self) -> None:
        """Called with the lock held. What still compiles is kept."""
        done = [(rules, job.future) for rules, job in self._known.items() if job.future.done()]
        held = sum(f.result().nbytes for _, f in done if f.exception() is None)
        for rules, future in done:
            if len(self._known) <= self._entries and held <= self._cache_bytes:
                return
            del self._known[rules]
            held -= future.result().nbytes if future.exception() is None else 0

    def _work(self, lane: Lane) -> None:
        while (job := lane.get()) is not None:
            with self._lock:
                if not job.wanted:
                    self._known.pop(job.rules, None)
                    job.future.cancel()
                    continue
            try:
                job.future.set_result(self._compiled(job, lane))
            except Slow:
                assert lane.after is not None
                lane.after.put(job)
            except BaseException as error:  # the asker's to handle, whatever it is
                if not isinstance(error, FieldError) or isinstance(error, TimedOut):
                    with self._lock:
                        self._known.pop(job.rules, None)  # another time it may go well
                job.future.set_exception(error)

    def _compiled(self, job: Job, lane: Lane) -> Compiled:
        """Raises Slow for what another lane is to do."""
        rules = job.rules
        prepared: Automaton | str | None = job.grammar
        if prepared is None and self._shelf is not None:
            prepared = self._shelf.find(rules)
        if prepared is None:
            prepared = lane.child.prepare(rules) if self._separate else prepare(rules)
            if self._shelf is not None and isinstance(prepared, Automaton):
                self._shelf.keep(rules, prepared)
        if isinstance(prepared, str):
            if lane.slice.characters is not None and len(prepared) > lane.slice.characters:
                job.grammar = prepared
                raise Slow
            if self._engine is None:
                self._engine = contextfree.Engine(self.vocabulary)
            return contextfree.ContextFreeCompiled(self._engine, prepared, rules.kind)
        compiled = RegularCompiled(prepared, self.vocabulary, rules.kind)
        # The masks that the first steps will ask for.
        compiled.mask(0)
        compiled.mask(prepared.walk(0, prepared.forced(0)))
        return compiled
