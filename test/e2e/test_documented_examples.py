"""The examples of README and docs, run as they stand against a real server with the demo model.

A fenced block below `<!-- run -->` is run; below `<!-- run: WORDS -->` its output must have these words.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
MARKED = re.compile(
    r"^<!-- run(?:: (?P<words>[^\n]+))? -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SHELL = """\
curl() { command curl -sS --fail-with-body "$@"; }
sglang() { "$PYTHON" -m sglang "$@"; }
"""
RUN_S = 200  # some start a server of their own, and the machine may be busy


class Example(NamedTuple):
    page: str
    line: int
    language: str
    code: str
    words: str


def examples() -> list[Example]:
    found: list[Example] = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        for match in MARKED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(
                Example(str(page.relative_to(ROOT)), line, match["language"], match["code"], match["words"] or "")
            )
        assert text.count("<!-- run") == sum(example.page == str(page.relative_to(ROOT)) for example in found), (
            f"{page}: a lost marker"
        )
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"{example.page}:{example.line}")
def test_a_documented_example_runs(example: Example, served: Any, tmp_path: Path) -> None:
    if example.language == "bash" and "curl" in example.code and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    code = re.sub(r"http://(localhost|127\.0\.0\.1):30000", served.url, example.code)
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "python"), PYTHON=sys.executable)
    match example.language:
        case "python":
            file = tmp_path / "example.py"
            file.write_text(code)  # a file, as for users: programs are read by their source
            command = [sys.executable, str(file)]
        case "bash":
            command = ["bash", "-euo", "pipefail", "-c", SHELL + code]
        case other:
            raise AssertionError(f"nothing runs {other}")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.strip(), "it printed nothing"
    assert example.words in ran.stdout, ran.stdout
