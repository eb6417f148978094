"""A real server, started as users start it, shared by the tests of this folder."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from live_server import HANG_S

PACKAGE_ROOT = Path(__file__).parents[2] / "python"
START_S = 200  # generous: a loaded two-core machine imports torch in 20 s


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Served:
    """A running server: its address, process and what it has printed."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    flags: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def metric(self, name: str) -> float:
        """The value of one sample of /metrics, labels ignored."""
        for line in httpx.get(self.url + "/metrics", timeout=HANG_S).text.splitlines():
            if line.startswith((name + " ", name + "{")):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")


@contextlib.contextmanager
def serve(folder: Path, *flags: str) -> Iterator[Served]:
    """Start `python -m sglang.launch_server` with `flags`, wait until it answers, stop it at the end.

    In float32 where they do not say otherwise: in bfloat16 a near tie may turn with the rows beside it, or with how
    many of its tokens were computed at once, and many tests compare texts.
    """
    port = free_port()
    log_path = folder / f"server-{port}.log"
    environment = dict(
        os.environ, PYTHONPATH=str(PACKAGE_ROOT), OMP_NUM_THREADS="1"
    )  # several servers share the machine
    command = [sys.executable, "-m", "sglang.launch_server", "--port", str(port), "--dtype", "float32", *flags]
    with log_path.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    served = Served(f"http://127.0.0.1:{port}", process, log_path, list(flags))
    try:
        deadline = time.monotonic() + START_S
        while "ready to roll" not in served.log:
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{served.log}"
            assert time.monotonic() < deadline, f"the server did not start in {START_S} s:\n{served.log}"
            time.sleep(0.05)
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model."""
    with serve(tmp_path_factory.mktemp("server"), "--max-total-tokens", "40000") as running:
        yield running


@pytest.fixture(scope="session")
def random_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model's shape and tokenizer with one layer of random weights: it says anything."""
    small = ("--load-format", "dummy", "--json-model-override-args", '{"num_hidden_layers": 1}')
    with serve(tmp_path_factory.mktemp("random"), "--max-total-tokens", "40000", *small) as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """start_server(*flags): a server of the test's own, which it may kill."""

    def start(*flags: str) -> contextlib.AbstractContextManager[Served]:
        return serve(tmp_path, "--max-total-tokens", "20000", *flags)

    return start


@pytest.fixture(scope="session")
def any_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """As `start_server`, for fixtures that several tests share."""
    return lambda *flags: serve(tmp_path_factory.mktemp("server"), *flags)
