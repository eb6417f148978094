"""Rules -> Compiled, off the hot path: each rule once, remembered, prepared in processes that can be killed.

Nobody can say how long a constraint will take, and many come from strangers. So each is tried with a few steps of work
first; one that needs more is tried again with more of them, behind all that have had fewer, and those that are really
long have a process of their own. A short one waits for short ones at most, however many long ones there are. Tables of
what needs a stack are made by a library, which takes as long as it likes: in a thread of their own.
"""

import contextlib
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from sglang.base.errors import FieldError
from sglang.base.limits import GRAMMAR_WORK
from sglang.grammar import contextfree
from sglang.grammar.automaton import Automaton
from sglang.grammar.prepare import Child, TimedOut, prepare
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Compiled, Rules
from sglang.grammar.shelf import Shelf
from sglang.grammar.vocab import Vocabulary
from sglang.grammar.work import TooLarge

ENTRIES = 512
CACHE_BYTES = 512 << 20
TIMEOUT_S = 10.0  # of CPU time: a busy machine refuses nothing that an idle one allows
# Steps of one try after another: some 8 ms, 60 ms, a second. Of 428 patterns from real use the first suffices for all
# but one; a JSON schema of 60 fields needs half as many as the second has.
TRIES = (GRAMMAR_WORK // 128, GRAMMAR_WORK // 16, GRAMMAR_WORK)
WHOLE = len(TRIES) - 1
SHORT = 1 << 14  # characters: only reading more than that takes longer than a first try


@dataclass(order=True)
class _Job:
    """Of those that wait, the one with the fewest tries behind it comes first, of these the oldest."""

    tries: int
    number: int
    rules: Rules = field(compare=False)
    future: "Future[Compiled]" = field(compare=False)
    grammar: str = field(default="", compare=False)  # what they are prepared as, for the library


class _Lane:
    """A thread, and what waits for it. child: where it has things prepared; None: it does so itself."""

    def __init__(self, child: Child | None, work: Callable[["_Lane"], None]):
        self.child = child
        self.jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self.thread = threading.Thread(target=work, args=(self,), name="grammar", daemon=True)


_LAST = _Job(-1, -1, Rules("regex"), Future())  # ends a lane, before all that waits there


class Compiler:
    """Compiles for one vocabulary. Thread-safe; `close` it, or leave it to the process's end.

    separate: compile in child processes, one for what is long once there is any; they keep this one's interpreter free.
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
        self._entries = entries
        self._cache_bytes = cache_bytes
        self._known: OrderedDict[Rules, Future[Compiled]] = OrderedDict()
        self._lock = threading.Lock()
        self._under_way: set[Rules] = set()
        self._numbers = itertools.count()
        self._engine: contextfree.Engine | None = None
        children = [Child(timeout_s), Child(timeout_s)] if separate else []  # for what is short, for what is long
        self._lanes = [_Lane(child, self._work) for child in (*children, None)]
        for lane in self._lanes:
            lane.thread.start()
        for child in children[:1]:
            child.start()

    def submit(self, rules: Rules) -> "Future[Compiled]":
        """Its result is Compiled, or raises FieldError. Equal rules share one compilation."""
        with self._lock:
            known = self._known.get(rules)
            if known is not None:
                self._known.move_to_end(rules)
                return known
            future: Future[Compiled] = Future()
            self._known[rules] = future
            self._forget()
        tries = 0 if len(self._lanes) > 1 and len(rules.text) + sum(map(len, rules.choices)) <= SHORT else WHOLE
        self._queue(_Job(tries, next(self._numbers), rules, future))
        return future

    def drop(self, rules: Rules) -> None:
        """Nobody waits for them any more: they are not compiled, unless that is under way."""
        with self._lock:
            future = self._known.get(rules)
            if future is not None and rules not in self._under_way and future.cancel():
                del self._known[rules]

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
        """What waits is cancelled."""
        with self._lock:
            for rules in [rules for rules, future in self._known.items() if not future.done()]:
                if rules not in self._under_way:
                    self._known.pop(rules).cancel()
        for lane in self._lanes:
            lane.jobs.put(_LAST)
        for lane in self._lanes:
            lane.thread.join()

    def _queue(self, job: _Job) -> None:
        lane = -1 if job.grammar else min(job.tries // WHOLE, len(self._lanes) - 1)
        self._lanes[lane].jobs.put(job)

    def _forget(self) -> None:
        """Called with the lock held. What still compiles is kept."""
        done = [(r, f) for r, f in self._known.items() if f.done()]
        held = sum(f.result().nbytes for _, f in done if f.exception() is None)
        for rules, future in done:
            if len(self._known) <= self._entries and held <= self._cache_bytes:
                return
            del self._known[rules]
            held -= future.result().nbytes if future.exception() is None else 0

    def _work(self, lane: _Lane) -> None:
        while (job := lane.jobs.get()) is not _LAST:
            with self._lock:
                if job.future.cancelled():
                    continue
                self._under_way.add(job.rules)
            found = None
            try:
                found = self._further(job, lane.child)
                if not isinstance(found, _Job):
                    job.future.set_result(found)
            except BaseException as error:  # the asker's to handle, whatever it is
                if not isinstance(error, FieldError) or isinstance(error, TimedOut):
                    with self._lock:
                        self._known.pop(job.rules, None)  # another time it may go well
                job.future.set_exception(error)
            with self._lock:
                self._under_way.discard(job.rules)
            if isinstance(found, _Job):
                self._queue(found)
        if lane.child is not None:
            lane.child.stop()

    def _further(self, job: _Job, child: Child | None) -> Compiled | _Job:
        """What it asks for, or what another lane is to do."""
        rules = job.rules
        prepared = job.grammar or (None if self._shelf is None else self._shelf.find(rules))
        if prepared is None:
            try:
                prepared = prepare(rules) if child is None else child.prepare(rules, TRIES[job.tries])
            except TooLarge:
                if job.tries == WHOLE:
                    raise
                return replace(job, tries=job.tries + 1)
            if self._shelf is not None and isinstance(prepared, Automaton):
                self._shelf.keep(rules, prepared)
        if isinstance(prepared, str) and child is not None:
            return replace(job, grammar=prepared)
        if isinstance(prepared, str):
            if self._engine is None:
                self._engine = contextfree.Engine(self.vocabulary)
            return contextfree.ContextFreeCompiled(self._engine, prepared, rules.kind)
        compiled = RegularCompiled(prepared, self.vocabulary, rules.kind)
        # The masks that the first steps will ask for.
        compiled.mask(0)
        compiled.mask(prepared.walk(0, prepared.forced(0)))
        return compiled
