"""Composes rooms into processes: a front (HTTP or `sgl.Engine`) and its worker.

The only file that knows who runs where. A worker is a child process started with `python -m sglang.worker.process`
(no fork, no pickle, no `__main__` guard needed); it ends when its standard input closes, so it never outlives us.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Protocol

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.base.link import Link, listen, pair
from sglang.base.messages import FromWorker, Stop, ToWorker

log = logging.getLogger("sglang")


class WorkerHandle(Protocol):
    """A running worker as the front sees it."""

    link: Link[FromWorker, ToWorker]

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Call `on_death(reason)` from another thread when the worker has ended, for whatever reason."""
        ...

    def stop(self) -> None:
        """End it; safe to call twice."""
        ...


class Worker:
    """A worker in a process of its own."""

    def __init__(self, config: ServerConfig):
        from sglang.worker import process

        # The folder is ours alone (0700): nobody else can reach the sockets in it.
        self._folder = tempfile.mkdtemp(prefix="sglang-")
        address = f"ipc://{self._folder}/link"
        self.link = listen(address)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", process.__name__, address], stdin=subprocess.PIPE, env=environment
        )
        assert self.process.stdin is not None
        self.process.stdin.write(process.encode_config(config))
        self.process.stdin.flush()

    def watch(self, on_death: Callable[[str], None]) -> None:
        def wait() -> None:
            code = self.process.wait()
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            on_death(f"the worker process ended ({cause})")

        threading.Thread(target=wait, daemon=True, name="worker-watch").start()

    def stop(self, timeout_s: float = 5.0) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(Exception):
                self.link.send(Stop())
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.link.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ThreadWorker:
    """A worker in a thread of this process: for tests, debuggers and profilers."""

    def __init__(self, config: ServerConfig):
        self.link, self._far_link = pair()
        self._ended = threading.Event()
        self._reason = "the worker thread ended"
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True, name="worker")
        self._thread.start()

    def _run(self, config: ServerConfig) -> None:
        from sglang.worker.build import build
        from sglang.worker.loop import last_words, serve
        from sglang.worker.report import Report

        try:
            state, engine = build(config)
            self._far_link.send(engine.ready)
            serve(self._far_link, state, engine, Report(config.decode_log_interval), not config.disable_overlap_schedule)
        except ConfigError as error:
            last_words(self._far_link, str(error), setting=True)
        except Exception as error:
            log.exception("the worker thread failed")
            self._reason = f"{type(error).__name__}: {error}"
            last_words(self._far_link, self._reason)
        finally:
            self._ended.set()

    def watch(self, on_death: Callable[[str], None]) -> None:
        def wait() -> None:
            self._ended.wait()
            on_death(self._reason)

        threading.Thread(target=wait, daemon=True, name="worker-watch").start()

    def stop(self) -> None:
        self.link.send(Stop())
        self._thread.join(10)
