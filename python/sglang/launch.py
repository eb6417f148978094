"""Composes rooms into processes: a front (HTTP or `sgl.Engine`) and its worker.

The only file that knows who runs where. A worker is a child process started with `python -m sglang.launch_worker`
(no fork, no pickle, no `__main__` guard needed); it ends when its standard input closes, so it never outlives us.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sglang.base.age import age
from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, FieldError, WorkerDied
from sglang.base.link import Link, listen, pair
from sglang.base.messages import FromWorker, Ready, Stop, ToWorker

if TYPE_CHECKING:
    from sglang.server.front import Front

log = logging.getLogger("sglang")


class WorkerHandle(Protocol):
    """A running worker as the front sees it."""

    @property
    def link(self) -> Link[FromWorker, ToWorker]: ...

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Call `on_death(reason)` from another thread when the worker has ended, for whatever reason."""
        ...

    def stop(self) -> None:
        """End it; safe to call twice."""
        ...


class Worker:
    """A worker in a process of its own."""

    def __init__(self, config: ServerConfig):
        from sglang.worker.process import encode_config

        # The folder is ours alone (0700): nobody else can reach the sockets in it.
        self._folder = tempfile.mkdtemp(prefix="sglang-")
        address = f"ipc://{self._folder}/link"
        self.link = listen(address)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_worker", address], stdin=subprocess.PIPE, env=environment
        )
        assert self.process.stdin is not None
        self.process.stdin.write(encode_config(config))
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
        from sglang.launch_worker import explain, lexicon
        from sglang.worker.build import build
        from sglang.worker.loop import last_words, serve
        from sglang.worker.report import Report

        try:
            state, engine, grammars = build(config, lambda: lexicon(config))
            self._far_link.send(engine.ready)
            report = Report(config.decode_log_interval)
            overlap = not config.disable_overlap_schedule
            try:
                serve(self._far_link, state, engine, report, overlap, grammars=grammars)
            finally:
                grammars.close()
        except ConfigError as error:
            last_words(self._far_link, explain(config, error), setting=True)
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


FIRED_UP = "The server is fired up and ready to roll!"  # scripts wait for this line
PORT_TRIES = 100
GIB = 2**30


def launch_server(config: ServerConfig) -> int:
    """Serve until a signal or the worker's end. Returns the exit code: 0, 1 (the worker died), 2 (a bad setting)."""
    logging.basicConfig(
        level=config.log_level.upper(), format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        config = config.resolve()
        worker = Worker(config)  # first: it imports torch while we import the rest
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(_serve(config, worker))
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerDied as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        worker.stop()


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (the extra `fast`): a sixth more streamed tokens from the same core."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def _serve(config: ServerConfig, worker: WorkerHandle) -> None:
    from sglang.offline import load_tokenizer
    from sglang.server.app import build_app, check_tls, serve
    from sglang.server.front import Front

    check_tls(config)
    listener = _bind(config)
    front = Front(worker.link, load_tokenizer(config), config)
    worker.watch(front.fail_soon)
    # Answering from now on, with 503 until the model is there: who asks too early is told so, and not left hanging.
    serving = asyncio.create_task(serve(build_app(front, config), front, config, [listener]))
    starting = asyncio.create_task(_start(front, config, listener))
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await serving
    finally:
        starting.cancel()
        await front.close()
        await asyncio.gather(serving, starting, return_exceptions=True)


async def _start(front: "Front", config: ServerConfig, listener: socket.socket) -> None:
    ready = await front.start()
    came = age()
    if not config.skip_server_warmup:
        await _warm_up(front)
    log.info("start: %.1f s since the command, of which the first answer %.1f s", age(), age() - came)
    _announce(config, ready, listener)


def _bind(config: ServerConfig) -> socket.socket:
    """A listening socket on the port asked for, or on the next free one. Raises ConfigError."""
    for port in range(config.port, min(config.port + PORT_TRIES, 65536)):
        try:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            listener = socket.create_server((config.host, port), family=family, backlog=2048)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"--host {config.host} --port {port}: {error.strerror or error}") from None
            continue
        if port != config.port:
            log.warning("port %d is taken, using %d", config.port, port)
        return listener
    raise ConfigError(f"--port {config.port}: no free port from there to {config.port + PORT_TRIES - 1}")


async def _warm_up(front: "Front") -> None:
    """A first answer of our own: what is slow once is slow now, and a model that cannot answer is not announced."""
    from sglang.base.sampling import SamplingParams
    from sglang.server.streams import Request

    embeds = front.ready.embedding > 0
    sampling = SamplingParams(max_new_tokens=0 if embeds else 8, temperature=0.0)
    first = Request(prompt="The capital city of France is", sampling=sampling, interval=0, embeds=embeds)
    try:
        async for _ in front.generate(first):
            pass
    except FieldError as error:
        hint = "--tokenizer-path must be the model's own, --context-length more than a few tokens"
        raise ConfigError(f"the server's own first prompt is refused: {error} ({hint})") from None
    await front.flush()


def _announce(config: ServerConfig, ready: Ready, listener: socket.socket) -> None:
    scheme = "https" if config.ssl_certfile else "http"
    address = f"{scheme}://{config.host}:{listener.getsockname()[1]}"
    log.info(
        "max_total_num_tokens=%d, max_prefill_tokens=%d, context_len=%d",
        ready.total_tokens,
        config.max_prefill_tokens,
        ready.context_length,
    )
    log.info(
        "model=%s arch=%s dtype=%s device=%s weights=%.2fGiB kv=%.2fGiB (%d tokens) loaded in %.1fs, serving on %s",
        config.model_name,
        ready.architecture,
        ready.dtype,
        ready.device,
        ready.weight_bytes / GIB,
        ready.kv_bytes / GIB,
        ready.total_tokens,
        ready.load_s,
        address,
    )
    log.info(FIRED_UP)
