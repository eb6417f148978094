"""`sglang chat`: with a real server and a real engine, at a pipe and at a terminal."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang.chat import settled

pytestmark = pytest.mark.e2e

PACKAGE_ROOT = Path(__file__).parents[2] / "python"
COMMAND = [sys.executable, "-m", "sglang", "chat"]
WAIT_S = 100  # what takes longer hangs


def chat(lines: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags], input=lines, cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=WAIT_S
    )


class Terminal:
    """`sglang chat` at a pseudo-terminal."""

    def __init__(self, *flags: str):
        here, there = pty.openpty()
        environment = dict(os.environ, TERM="xterm", COLUMNS="100", LINES="40")
        self._process = subprocess.Popen(
            [*COMMAND, *flags], stdin=there, stdout=there, stderr=there, cwd=PACKAGE_ROOT, env=environment,
            start_new_session=True, preexec_fn=lambda: os.close(os.open(os.ttyname(there), os.O_RDWR)),
        )  # fmt: skip
        os.close(there)
        self._terminal = here
        self._seen = ""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str, key: str = "") -> None:
        """Until `text` is shown; what came before it is forgotten.

        key: pressed twice a second until then. At a prompt that has just appeared Python may miss a signal once.
        """
        deadline = time.monotonic() + WAIT_S
        press = 0.0
        while text not in self._seen:
            assert time.monotonic() < deadline, f"{text!r} did not come; there is {self._seen!r}"
            if key and time.monotonic() > press:
                self.type(key)
                press = time.monotonic() + 0.5
            if select.select([self._terminal], [], [], 0.5)[0]:
                came = self._read()
                assert came, f"{text!r} did not come before the end; there is {self._seen!r}"
                self._seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", came)
        self._seen = self._seen.partition(text)[2]

    def _read(self) -> str:
        """What has been shown; "" once the program has ended."""
        try:
            return os.read(self._terminal, 4096).decode(errors="replace")
        except OSError:
            return ""

    def end(self, key: str = "") -> int:
        """The exit code."""
        try:
            deadline = time.monotonic() + WAIT_S
            while self._process.poll() is None and time.monotonic() < deadline:
                self.type(key)
                if select.select([self._terminal], [], [], 0.5)[0]:
                    self._read()
                    time.sleep(0.1)
            return self._process.wait(1)
        finally:
            self._process.kill()
            os.close(self._terminal)


class Endless(BaseHTTPRequestHandler):
    """A server whose first answer never ends."""

    bodies: list[Any] = []
    left = threading.Event()

    def do_GET(self) -> None:
        self._begin("application/json")
        self.wfile.write(b'{"data": [{"id": "endless"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        asked = body["messages"][-1]["content"]
        if asked == "refuse this":
            self.send_error(400)
            return
        self._begin("text/event-stream")
        try:
            if asked == "fail half way":
                self.wfile.write(b'data: {"choices": [{"delta": {"content": "half an answer"}}]}\n\n')
                self.wfile.write(b'data: {"error": {"message": "the worker is gone"}}\n\n')
                return
            for i in range(2 if len(self.bodies) > 1 else 1_000_000):
                event = {"choices": [{"delta": {"content": f"piece{i} "}}]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.02)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.left.set()

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def endless() -> Iterator[str]:
    Endless.bodies.clear()
    Endless.left.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_lines_of_a_pipe_are_answered_one_by_one(served: Any):
    lines = "What is the capital of France?\n\nWhat is the capital of Japan?\n"
    ran = chat(lines, "--url", served.url, "--temperature", "0")
    assert (ran.returncode, ran.stderr) == (0, "")
    first, second = ran.stdout.splitlines()
    assert "Paris" in first and "Tokyo" in second


def test_a_conversation_is_remembered_until_it_is_cleared(served: Any):
    ask = "My name is Anna.\n{}What is my name?\n"
    assert "Anna" in chat(ask.format(""), "--url", served.url, "--temperature", "0").stdout.splitlines()[-1]
    ran = chat(ask.format("/clear\n"), "--url", served.url, "--temperature", "0")
    assert "Anna" not in ran.stdout.splitlines()[-1]
    assert "forgotten" in ran.stderr


def test_without_a_url_it_starts_an_engine_of_its_own():
    ran = chat(
        "What is the capital of Italy?\n/exit\nnever asked\n", "--temperature", "0", "--max-total-tokens", "4000"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    [answer] = ran.stdout.splitlines()
    assert "Rome" in answer


@pytest.mark.parametrize(
    ("flags", "says", "code"),
    [
        (["--url", "http://127.0.0.1:9"], "is the server running?", 1),
        (["--url", "localhost:30000"], "--url must begin with http", 2),
        (["--url", "http://127.0.0.1:9", "--dtype", "half"], "unknown argument --dtype", 2),
        (["--port", "80"], "--port: chat starts no HTTP server", 2),
        (["--admin-api-key", "k"], "--admin-api-key: chat starts no HTTP server", 2),
        (["--api-key", "x"], "--api-key goes with --url", 2),
        (["--max-total-tokens", "-3"], "--max-total-tokens must be at least 1", 2),
        (["/no/such/folder"], "--model-path /no/such/folder: no such folder", 2),
    ],
)
def test_what_cannot_work_is_said_in_one_line(flags: list[str], says: str, code: int):
    ran = chat("hello\n", *flags)
    assert says in ran.stderr and ran.stderr.count("\n") == 1
    assert (ran.returncode, ran.stdout) == (code, "")


def test_a_refusal_of_the_server_is_passed_on(served: Any):
    ran = chat("hello\n", "--url", served.url + "/v1/", "--temperature", "-1")
    assert ran.returncode == 1 and "temperature must be" in ran.stderr


def test_a_terminal_shows_answers_commands_and_mistakes(served: Any):
    terminal = Terminal("--url", served.url, "--temperature", "0")
    terminal.wait_for("/help tells the rest")
    terminal.wait_for("> ")
    terminal.type("What is the capital of Spain?\n")
    terminal.wait_for("Madrid")
    terminal.wait_for("a second")
    terminal.wait_for("> ")
    terminal.type("/hlep\n")
    terminal.wait_for("/hlep is not a command")
    terminal.wait_for("> ")
    terminal.type("/clear\n")
    terminal.wait_for("The conversation is forgotten.")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(endless: str):
    terminal = Terminal("--url", endless)
    terminal.wait_for("endless")
    terminal.wait_for("> ")
    terminal.type("go\n")
    terminal.wait_for("piece3")
    terminal.type("\x03")  # once: a second one might come to the prompt, and take what is typed there with it
    terminal.wait_for("(stopped)")
    assert Endless.left.wait(WAIT_S), "the server was not told"
    terminal.wait_for("> ")
    terminal.type("again \\\nand again\n")
    terminal.wait_for("piece1")
    terminal.wait_for("> ")
    terminal.wait_for("Ctrl-D or /exit ends", key="\x03")
    terminal.wait_for("> ")
    assert terminal.end(key="\x04") == 0
    asked, stopped, more = Endless.bodies[1]["messages"]
    assert asked == {"role": "user", "content": "go"}
    assert stopped["role"] == "assistant" and stopped["content"].startswith("piece0 piece1 piece2 piece3")
    assert more == {"role": "user", "content": "again \nand again"}


def test_a_refused_question_is_forgotten_and_half_an_answer_is_not(endless: str):
    terminal = Terminal("--url", endless, "--system", "Be kind.")
    terminal.wait_for("> ")
    terminal.type("refuse this\n")
    terminal.wait_for("error: HTTP 400")
    terminal.wait_for("> ")
    terminal.type("fail half way\n")
    terminal.wait_for("half an answer")
    terminal.wait_for("error: the worker is gone")
    terminal.wait_for("> ")
    terminal.type("go on\n")
    terminal.wait_for("piece1")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert [m["content"] for m in Endless.bodies[2]["messages"]] == [
        "Be kind.",
        "fail half way",
        "half an answer",
        "go on",
    ]


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one\n\ntwo", "one\n\n"),
        ("one\ntwo\n", ""),
        ("one\n\n```\na\n\nb", "one\n\n"),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("\n\n", ""),
    ],
)
def test_only_closed_blocks_of_markdown_are_settled(text: str, done: str):
    assert text[: settled(text)] == done
