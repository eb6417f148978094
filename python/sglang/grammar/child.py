"""A process that prepares constraints: both ends of it.

It can be killed, keeps its parent's interpreter free, and can be made to give up what takes long when others wait.
"""

import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import msgspec
import numpy as np

from sglang.base.errors import FieldError
from sglang.grammar.automaton import Automaton
from sglang.grammar.prepare import prepare, rehearse
from sglang.grammar.rules import Rules

PATIENCE = 6  # seconds of waiting for each second of computing: the machine must leave a sixth of a core
CHILD_BYTES = 2 << 30  # address space
LOOK_S = 0.002  # between two looks whether somebody waits


class TimedOut(FieldError):
    """Compilation was stopped."""


class Slow(BaseException):
    """It takes long, and others wait. Not an Exception: nothing on its way may take it for a fault of its own."""


class Child:
    """Prepares one at a time. Started when first needed, and again after it had to be killed.

    timeout_s: of CPU time for one, then it is killed. slice_s: of CPU time, after which one gives way to others;
    None: to nobody. waiting: the end of a pipe that has something to read while somebody waits.
    """

    def __init__(self, timeout_s: float, slice_s: float | None, nice: int, waiting: int):
        self._timeout_s = timeout_s
        self._slice_s = slice_s
        self._nice = nice
        self._waiting = waiting
        self._patience_s = PATIENCE * timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        life = f"{self._timeout_s}, {self._slice_s}, {self._waiting}"
        # Nice before anything is imported, which takes as long as many constraints.
        code = f"import os; os.nice({self._nice}); from sglang.grammar.child import live; live({life})"
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=1 << 16,
            pass_fds=(self._waiting,),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return self._process

    def prepare(self, rules: Rules) -> Automaton | str:
        """Raises FieldError, and Slow."""
        process = self._process or self.start()
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
        if kind == "slow":
            raise Slow
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


def live(timeout_s: float, slice_s: float | None, waiting: int) -> None:
    """The child's life: rules in, automata out, until the pipe closes, or it has computed one thing for too long.

    What takes long is interrupted wherever it is: reading a large schema is no counted work, and would hold up others
    as well.
    """
    import resource  # where it is missing, only this child is

    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    rehearse()  # an import that is interrupted may be broken, and a table that is would be begun again each time
    due: float | None = None  # when what is computed now has had its share of CPU time

    def look(_number: int, _frame: FrameType | None) -> None:
        if due is None:
            return
        if time.process_time() >= due and select.select([waiting], [], [], 0)[0]:
            raise Slow
        signal.setitimer(signal.ITIMER_REAL, LOOK_S)  # once: no second one comes while Slow is on its way

    signal.signal(signal.SIGALRM, look)
    # Not sys.stdout: it may be unbuffered, and a signal cuts such writes short.
    source, sink = sys.stdin.buffer, io.BufferedWriter(io.FileIO(1, "wb"))
    while True:
        try:
            rules = msgspec.msgpack.decode(_read(source), type=Rules)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, timeout_s)  # then SIGPROF ends the process
        try:
            if slice_s is not None:
                due = time.process_time() + slice_s
                signal.setitimer(signal.ITIMER_REAL, LOOK_S)
            answer = _answer(rules)
            due = None
        except Slow:
            answer = ("slow",)
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
