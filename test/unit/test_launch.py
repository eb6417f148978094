"""How a server starts and refuses to start; a process of its own each, as users have it."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.launch import ThreadWorker, _bind


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglang.launch_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def test_a_taken_port_means_the_next_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if port > 65000:
            pytest.skip("no room above this port")
        listener = _bind(ServerConfig(port=port))
        with listener:
            assert port < listener.getsockname()[1] <= port + 100


def test_a_host_that_is_not_ours_is_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 --port 30000"):
        _bind(ServerConfig(host="192.0.2.1"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model-path", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--mem-fraction-static", "1.5"], "--mem-fraction-static"),
        (["--max-total-tokens", "3", "--page-size", "16"], "--max-total-tokens 3"),
        (["--chat-template", "no-such-template"], "no-such-template"),
        (["--port", "0"], "--port must be in [1, 65535]"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--quantization", "squeezellm"], "--quantization squeezellm"),
        (["--quantization", "awq"], "--quantization awq"),
        (["--ssl-keyfile", "/nowhere/key", "--ssl-certfile", "/nowhere/cert"], "--ssl-certfile /nowhere/cert"),
        (["--device", "cpu", "--attention-backend", "triton"], "--attention-backend triton"),
        (["--device", "cpu", "--attention-backend", "flashinfer"], "--attention-backend flashinfer"),
    ],
)
def test_a_wrong_setting_is_one_line_and_code_2(flags: list[str], says: str) -> None:
    done = launch(*flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if re.search("error:", line)]
    assert len(errors) == 1


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NoSuchForCausalLM"]}))
    done = launch("--model-path", str(tmp_path))
    assert done.returncode == 2
    assert "NoSuchForCausalLM" in done.stderr or "tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_in_a_thread_refuses_like_a_process() -> None:
    from sglang.offline import Engine

    with pytest.raises(ConfigError, match="--max-total-tokens"):
        Engine(worker=ThreadWorker, max_total_tokens=3, page_size=16)
