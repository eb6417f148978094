"""from sglang.utils import read_jsonl: what scripts and notebooks around programs share."""

import json
import shlex
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_jsonl(filename: str | Path) -> Iterator[Any]:
    """The value of each line; empty lines and those that begin with # are skipped."""
    with open(filename, encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                yield json.loads(line)


def dump_state_text(filename: str | Path, states: Iterable[Any], mode: str = "w") -> None:
    """Write the texts of states (or strings) into a file, each below its number."""
    with open(filename, mode, encoding="utf-8") as file:
        for i, state in enumerate(states):
            text = state if isinstance(state, str) else state.text()
            file.write(f"==== {i} ====\n{text.rstrip()}\n\n")


def launch_server_cmd(
    command: str, host: str = "127.0.0.1", port: int | None = None
) -> tuple["subprocess.Popen[bytes]", int]:
    """Start `command`, a server's command line, on a port (a free one by default). The process, and the port."""
    at = port or _free_port(host)
    words = [*shlex.split(command), "--host", host, "--port", str(at)]
    return subprocess.Popen(words, start_new_session=True), at


def _free_port(host: str) -> int:
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def wait_for_server(
    base_url: str, timeout: float | None = None, process: "subprocess.Popen[bytes] | None" = None
) -> None:
    """Until the server answers. Raises TimeoutError, or RuntimeError where `process` ends before."""
    import httpx

    began = time.monotonic()
    while True:
        try:
            if httpx.get(base_url.rstrip("/") + "/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        if process is not None and (code := process.poll()) is not None:
            raise RuntimeError(f"the server ended with code {code} before it answered")
        if timeout is not None and time.monotonic() - began > timeout:
            raise TimeoutError(f"{base_url} did not answer within {timeout:g} s")
        time.sleep(0.1)


def terminate_process(process: "subprocess.Popen[bytes]", timeout: float = 20) -> None:
    """End a server of `launch_server_cmd`, by force where it does not within `timeout` seconds."""
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def print_highlight(text: Any) -> None:
    """Print, in a notebook in bold."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        print(text)
        return
    if get_ipython() is None:
        print(text)
    else:
        import html

        display(HTML(f"<strong>{html.escape(str(text))}</strong>"))
