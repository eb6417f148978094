"""What scripts around programs import: `sglang.utils` and `sglang.test.test_utils`."""

import argparse
import sys
from pathlib import Path

import pytest
from lang_doubles import Scripted

import sglang as sgl
from sglang.test import test_utils
from sglang.utils import dump_state_text, launch_server_cmd, read_jsonl, terminate_process, wait_for_server

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    log_message = lambda *_: None
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
http.server.HTTPServer((flags["--host"], int(flags["--port"])), Handler).serve_forever()
"""


def test_lines_of_json_and_texts_of_states(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"q": "Wie spät ist es?"}\n\n# a remark\n[1, 2]\n', encoding="utf-8")
    assert list(read_jsonl(file)) == [{"q": "Wie spät ist es?"}, [1, 2]]

    @sgl.function
    def ask(s: sgl.ProgramState, q: str) -> None:
        s += q + sgl.gen("a")

    states = ask.run_batch([("one ",), ("two ",)], backend=Scripted())
    dump_state_text(tmp_path / "b.txt", states)
    dump_state_text(tmp_path / "b.txt", ["three"], mode="a")
    written = (tmp_path / "b.txt").read_text()
    assert all(state.text() in written for state in states) and written.index("two") < written.index("three")


def test_a_server_is_started_waited_for_and_ended(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    process, port = launch_server_cmd(f"{sys.executable} {tmp_path}/server.py")
    wait_for_server(f"http://127.0.0.1:{port}", timeout=100, process=process)
    terminate_process(process)
    assert process.poll() is not None
    with pytest.raises(RuntimeError, match="before it answered"):
        wait_for_server(f"http://127.0.0.1:{port}", process=process)
    with pytest.raises(TimeoutError):
        wait_for_server(f"http://127.0.0.1:{port}", timeout=0.1)


def test_the_command_line_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--parallel", "3", "--questions", "q.jsonl", "--backend", "gpt-4"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions")
    args = test_utils.add_common_sglang_args_and_parse(parser)
    assert (args.parallel, args.questions, args.result_file, args.port) == (3, "q.jsonl", "result.jsonl", 30000)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert isinstance(test_utils.select_sglang_backend(args), sgl.OpenAI)
    args.backend, args.host, args.port = "srt", "127.0.0.1", 9
    with pytest.raises(RuntimeError, match=r"http://127\.0\.0\.1:9"):
        test_utils.select_sglang_backend(args)
    args.backend = "other"
    with pytest.raises(ValueError, match="other"):
        test_utils.select_sglang_backend(args)
