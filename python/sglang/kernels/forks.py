"""A process that forks one for every kernel to be compiled: both ends of it.

Much of Triton's compiler is Python, so that threads wait for each other. What is compiled elsewhere is found in
Triton's cache on disk. The process imports what compilers need while weights are read, and never uses the device.
"""

import ast
import contextlib
import gc
import hashlib
import importlib
import logging
import os
import pkgutil
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

log = logging.getLogger("sglang.kernels")
PATIENCE_S = 60  # for one kernel, the imports among it


class Forks:
    """Ready some seconds after it was made; what is asked for before is begun then."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads would not be there after a fork
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sglang.kernels.forks import live; live()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._lock = threading.Lock()
        self._asked: dict[int, Future[None]] = {}
        self._ended = False
        threading.Thread(target=self._listen, daemon=True, name="forks").start()

    def compile(self, source: Any, target: Any, options: dict[str, Any]) -> None:
        """Returns when Triton's cache has the kernel, or it is known not to come. Of Triton: an ASTSource of a
        function that its module has under its name, a GPUTarget, options of its backend. Thread-safe.
        """
        what = (source.fn.__module__, source.fn.__name__, source.signature, source.constants, source.attrs)
        line = repr((*what, options, (target.backend, target.arch, target.warp_size)))
        try:
            ast.literal_eval(line)
        except (ValueError, SyntaxError):
            return  # a constant that is no plain value
        done: Future[None] = Future()
        with self._lock:
            if self._ended:
                return
            number = len(self._asked)
            self._asked[number] = done
            with contextlib.suppress(OSError):  # it has ended, which `_listen` sees
                assert self._process.stdin is not None
                self._process.stdin.write(f"{number} {line}\n".encode())
                self._process.stdin.flush()
        with contextlib.suppress(TimeoutError):
            done.result(PATIENCE_S)

    def close(self) -> None:
        with self._lock:
            self._ended = True
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for number in answers:
                self._asked[int(number)].set_result(None)
        with self._lock:
            if not self._ended:
                log.warning("The process that compiles kernels has ended: threads do it, which takes longer")
            self._ended = True
        for one in self._asked.values():
            if not one.done():
                one.set_result(None)


def is_cached(source: Any, target: Any, options: dict[str, Any]) -> bool:
    """Whether Triton's cache on disk has that kernel."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_key, get_cache_manager

    backend = make_backend(target)
    key = get_cache_key(source, backend, backend.parse_options(dict(options)), get_cache_invalidating_env_vars())
    name = f"{source.name[:150]}.json"
    files = get_cache_manager(hashlib.sha256(key.encode()).hexdigest()).get_group(name)
    return name in (files or {})


class Driver:
    """Of a device that is only compiled for."""

    def __init__(self, target: Any):
        self._target = target

    def get_current_target(self) -> Any:
        return self._target


def live() -> None:
    """The process's life: a number and a kernel in a line come in; numbers go out as these are done, or have failed;
    until the pipe closes."""
    from triton.runtime.cache import triton_key

    import sglang.kernels

    triton_key()  # of all its files, once for all
    for module in pkgutil.iter_modules(sglang.kernels.__path__, "sglang.kernels."):
        importlib.import_module(module.name)
    gc.disable()  # it would walk, and so copy, all that was imported
    look, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # without a handler nothing is written to the pipe
    signal.set_wakeup_fd(wake)
    _fork(_make_driver)
    at_work: dict[int, bytes] = {}  # process: number
    rest = b""
    while True:
        for pipe in select.select([0, look], [], [])[0]:
            data = os.read(pipe, 1 << 16)
            if pipe == look:
                _answer(at_work)
            elif not data:
                return
            else:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    number, _, what = line.partition(b" ")
                    try:
                        at_work[_begin(what)] = number
                    except Exception:  # a function that its module does not have, say
                        os.write(1, number + b"\n")


def _begin(what: bytes) -> int:
    """A process that compiles it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from triton.runtime import driver

    module, name, signature, constants, attrs, options, target = ast.literal_eval(what.decode())
    target = GPUTarget(*target)
    driver.set_active(Driver(target))  # type: ignore[arg-type]
    source = ASTSource(getattr(importlib.import_module(module), name), signature, constants, attrs)
    with contextlib.suppress(Exception):
        is_cached(source, target, options)  # hashes much of Triton's and of our files once, not in each process
    return _fork(lambda: compile(source, target, options))


def _make_driver() -> None:
    """A C compiler makes what Triton calls the device's driver by. It is not called."""
    from triton.backends.nvidia.driver import CudaUtils

    CudaUtils()


def _fork(work: Callable[[], object]) -> int:
    if process := os.fork():
        return process
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        work()
    finally:  # what failed is done again where it is needed, which says what is wrong
        os._exit(0)


def _answer(at_work: dict[int, bytes]) -> None:
    while at_work:
        process, _ = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        if process in at_work:
            os.write(1, at_work.pop(process) + b"\n")
