"""Rules -> Compiled, off the hot path: each rule once, remembered, in a process that can be killed.

`prepare` is the part that needs no vocabulary and may be long; it runs in a child. What is refused is refused by
counting work, so it would be refused again and the answer is remembered too; the time limit is for what nobody thought
of.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from sglang.base.errors import FieldError
from sglang.grammar import automaton, contextfree, regex, schema, tags
from sglang.grammar.automaton import Automaton
from sglang.grammar.language import Alt, Text
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Compiled, Rules
from sglang.grammar.shelf import Shelf
from sglang.grammar.vocab import Vocabulary
from sglang.grammar.work import TooLarge

ENTRIES = 512
CACHE_BYTES = 512 << 20
TIMEOUT_S = 10.0  # of CPU time: a busy machine refuses nothing that an idle one allows
PATIENCE = 6  # seconds of waiting for each of these: it must leave a sixth of a core
CHILD_BYTES = 2 << 30  # address space
# Where every core computes, a tenth of one is the child's: others' tokens come a ninth later at most. With 5 it is a
# quarter, and a third later.
CHILD_NICE = 10


class TimedOut(FieldError):
    """Compilation was stopped."""


def prepare(rules: Rules) -> Automaton | str:
    """The automaton of rules, or the grammar (llguidance's) of those that need a stack. Raises FieldError."""
    match rules.kind:
        case "regex":
            return automaton.compile(regex.parse(rules.text), "regex")
        case "choices":
            return automaton.compile(Alt(tuple(map(Text, rules.choices))), "choices")
        case "ebnf":
            return contextfree.from_grammar(rules.text)
        case "json_schema":
            read = schema.load(rules.text)
            layout = schema.Layout.plain(rules.spaced)
            try:
                return automaton.compile(schema.parse(read, strict=rules.strict, layout=layout), "json_schema")
            except (schema.NotRegular, TooLarge) as error:
                if rules.strict:
                    schema.check_one_of(read)
                return _with_stack(lambda: contextfree.from_schema(read, rules.strict, rules.spaced), error)
        case "structural_tag":
            found = tags.read(rules.text)
            try:
                return automaton.compile(tags.parse(found, rules.strict, rules.spaced), tags.NAME)
            except (schema.NotRegular, TooLarge) as error:
                listed = [(t.trigger, t.begin, t.schema, t.end) for t in found]
                return _with_stack(lambda: contextfree.from_tags(listed, rules.strict, rules.spaced), error)


def _with_stack(build: Any, reason: Exception) -> str:
    try:
        return build()
    except ValueError as error:
        if isinstance(reason, TooLarge):
            raise reason from None
        raise FieldError("json_schema", str(error), getattr(error, "status", 400)) from None


class Compiler:
    """Compiles for one vocabulary. Thread-safe; `close` it, or leave it to the process's end.

    separate: compile in a child process, which costs a process of about 40 MB and keeps this one's interpreter free.
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
        self._todo: queue.SimpleQueue[tuple[Rules, Future[Compiled]] | None] = queue.SimpleQueue()
        self._engine: contextfree.Engine | None = None
        self._child = _Child(timeout_s) if separate else None
        self._thread = threading.Thread(target=self._work, name="grammar", daemon=True)
        self._thread.start()

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
        self._todo.put((rules, future))
        return future

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
        self._todo.put(None)
        self._thread.join()

    def _forget(self) -> None:
        """Called with the lock held. What still compiles is kept."""
        done = [(r, f) for r, f in self._known.items() if f.done()]
        held = sum(f.result().nbytes for _, f in done if f.exception() is None)
        for rules, future in done:
            if len(self._known) <= self._entries and held <= self._cache_bytes:
                return
            del self._known[rules]
            held -= future.result().nbytes if future.exception() is None else 0

    def _work(self) -> None:
        while (job := self._todo.get()) is not None:
            rules, future = job
            try:
                future.set_result(self._compiled(rules))
            except BaseException as error:  # the asker's to handle, whatever it is
                if not isinstance(error, FieldError) or isinstance(error, TimedOut):
                    with self._lock:
                        self._known.pop(rules, None)  # another time it may go well
                future.set_exception(error)
        if self._child is not None:
            self._child.stop()

    def _compiled(self, rules: Rules) -> Compiled:
        prepared = None if self._shelf is None else self._shelf.find(rules)
        if prepared is None:
            prepared = prepare(rules) if self._child is None else self._child.prepare(rules)
            if self._shelf is not None and isinstance(prepared, Automaton):
                self._shelf.keep(rules, prepared)
        if isinstance(prepared, str):
            if self._engine is None:
                self._engine = contextfree.Engine(self.vocabulary)
            return contextfree.ContextFreeCompiled(self._engine, prepared, rules.kind)
        compiled = RegularCompiled(prepared, self.vocabulary, rules.kind)
        # The masks that the first steps will ask for.
        compiled.mask(0)
        compiled.mask(prepared.walk(0, prepared.forced(0)))
        return compiled


class _Child:
    """A process that prepares, one at a time. Restarted after it had to be killed."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._patience_s = PATIENCE * timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", f"from sglang.grammar.compiler import child; child({self._timeout_s})"]
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=1 << 16,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return self._process

    def prepare(self, rules: Rules) -> Automaton | str:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self._patience_s, process.kill)
        timer.start()
        try:
            _write(process.stdin, msgspec.msgpack.encode(rules))
            answer = _read(process.stdout)
        except (EOFError, OSError):
            self.stop()
            raise TimedOut(
                rules.kind, f"{rules.kind} took more than {self._timeout_s:g} s or too much memory to compile"
            ) from None
        finally:
            timer.cancel()
        kind, *parts = msgspec.msgpack.decode(answer)
        if kind == "error":
            field, message, status = parts
            raise FieldError(field, message, status)
        if kind == "grammar":
            return parts[0]
        table, accepts, only = parts
        return Automaton(
            np.frombuffer(table, np.int16).reshape(-1, 256), np.frombuffer(accepts, bool), np.frombuffer(only, np.int16)
        )

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:  # unsent bytes for a dead process
                        continue


def child(timeout_s: float) -> None:
    """The child's life: rules in, automata out, until the pipe closes, or it has computed one thing for too long."""
    import resource  # where it is missing, only this child is

    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    os.nice(CHILD_NICE)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            rules = msgspec.msgpack.decode(_read(source), type=Rules)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, timeout_s)  # then SIGPROF ends the process
        answer = _answer(rules)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sink, msgspec.msgpack.encode(answer))


def _answer(rules: Rules) -> tuple[Any, ...]:
    try:
        made = prepare(rules)
    except FieldError as error:
        return ("error", error.field, str(error), error.status)
    except MemoryError:
        return ("error", rules.kind, f"{rules.kind} needs too much memory to compile", 400)
    except Exception as error:  # a fault of ours: one request's, not the child's end
        return ("error", rules.kind, f"{rules.kind} could not be compiled: {type(error).__name__}: {error}", 500)
    if isinstance(made, str):
        return ("grammar", made)
    return ("automaton", made.table.tobytes(), made.accepts.tobytes(), made.only.tobytes())


def _write(pipe: Any, data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _read(pipe: BinaryIO | Any) -> bytes:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    data = pipe.read(int.from_bytes(head, "little"))
    return data
