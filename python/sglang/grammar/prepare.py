"""Rules -> automaton or grammar: the part of compiling that needs no vocabulary and may be long, in a process that can
be killed.

What is refused is refused by counting work, so it would be refused again; the time limit is for what nobody thought of.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from sglang.base.errors import FieldError
from sglang.base.limits import GRAMMAR_WORK
from sglang.grammar import automaton, contextfree, regex, schema, tags
from sglang.grammar.automaton import Automaton
from sglang.grammar.language import Alt, Node, Text
from sglang.grammar.rules import Rules
from sglang.grammar.work import TooLarge

PATIENCE = 6  # seconds of waiting for each of a child's time limit: it must leave a sixth of a core
BYTES = 2 << 30  # address space of a child
# Where every core computes, a tenth of one is the child's: others' tokens come a ninth later at most. With 5 it is a
# quarter, and a third later.
NICE = 10


class TimedOut(FieldError):
    """Compilation was stopped."""


def prepare(rules: Rules, steps: int = GRAMMAR_WORK) -> Automaton | str:
    """The automaton of rules, or the grammar (llguidance's) of those that need a stack. Raises FieldError; with fewer
    `steps` than all, TooLarge says only that they do not suffice."""
    if rules.kind == "ebnf":
        return contextfree.from_grammar(rules.text)
    try:
        return automaton.compile(_language(rules), rules.kind, steps)
    except (schema.NotRegular, TooLarge) as error:
        if isinstance(error, TooLarge) and (steps < GRAMMAR_WORK or rules.kind in ("regex", "choices")):
            raise
        return _with_stack(rules, error)


@functools.lru_cache(maxsize=4)  # the next try begins with it
def _language(rules: Rules) -> Node:
    match rules.kind:
        case "regex":
            return regex.parse(rules.text)
        case "choices":
            return Alt(tuple(map(Text, rules.choices)))
        case "json_schema":
            layout = schema.Layout.plain(rules.spaced)
            return schema.parse(schema.load(rules.text), strict=rules.strict, layout=layout)
        case "structural_tag":
            return tags.parse(tags.read(rules.text), rules.strict, rules.spaced)
        case "ebnf":
            raise AssertionError("a grammar needs a stack")


def _with_stack(rules: Rules, reason: Exception) -> str:
    tagged = tags.read(rules.text) if rules.kind == "structural_tag" else []
    whole = schema.load(rules.text) if not tagged else True
    if rules.strict and not tagged:
        schema.check_one_of(whole)
    try:
        if not tagged:
            return contextfree.from_schema(whole, rules.strict, rules.spaced)
        return contextfree.from_tags(
            [(t.trigger, t.begin, t.schema, t.end) for t in tagged], rules.strict, rules.spaced
        )
    except ValueError as error:
        if isinstance(reason, TooLarge):
            raise reason from None
        raise FieldError("json_schema", str(error), getattr(error, "status", 400)) from None


class Child:
    """A process that prepares, one at a time. Started again after it had to be killed. It takes about 40 MB."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._patience_s = PATIENCE * timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", f"from sglang.grammar.prepare import child; child({self._timeout_s})"]
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=1 << 16,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return self._process

    def prepare(self, rules: Rules, steps: int) -> Automaton | str:
        """As `prepare` does. Raises TimedOut as well."""
        process = self._process or self.start()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self._patience_s, process.kill)
        timer.start()
        try:
            _write(process.stdin, msgspec.msgpack.encode((rules, steps)))
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
            field, message, status, large = parts
            raise (TooLarge if large else FieldError)(field, message, status)
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

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    os.nice(NICE)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            rules, steps = msgspec.msgpack.decode(_read(source), type=tuple[Rules, int])
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, timeout_s)  # then SIGPROF ends the process
        answer = _answer(rules, steps)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sink, msgspec.msgpack.encode(answer))


def _answer(rules: Rules, steps: int) -> tuple[Any, ...]:
    try:
        made = prepare(rules, steps)
    except FieldError as error:
        return ("error", error.field, str(error), error.status, isinstance(error, TooLarge))
    except MemoryError:
        return ("error", rules.kind, f"{rules.kind} needs too much memory to compile", 400, False)
    except Exception as error:  # a fault of ours: one request's, not the child's end
        return ("error", rules.kind, f"{rules.kind} could not be compiled: {type(error).__name__}: {error}", 500, False)
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
