"""Every program of the project's description, word for word, on the demo model; only the server's address is changed.

Those that need an API model are run by test/unit/lang/backends/test_api_programs.py.
"""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import seed_programs

import sglang as sgl

pytestmark = pytest.mark.e2e

SCRIPTS = {  # those that end by themselves, and words of what they print
    "OpenAI Compatible API": ["Paris", "CompletionUsage"],
    "Using Local Models": [
        "system : You are a helpful assistant.", "user : What is the capital of the United States?", "assistant : ",
        "user : List two local attractions.",
    ],
    "Streaming": ["Q: What is the capital of France?\nA: Paris"],
}  # fmt: skip
FEATURES = {"Control Flow", "Parallelism", "Multi Modality", "Constrained Decoding", "JSON Decoding", "Batching"}
ELSEWHERE = {"Quick Start", "Using OpenAI Models", "Language Feature"}  # curl; an API model; the import alone


@pytest.fixture(autouse=True)
def backend(served: Any) -> Iterator[sgl.RuntimeEndpoint]:
    """Where the description's programs name none."""
    endpoint = sgl.RuntimeEndpoint(served.url)
    sgl.set_default_backend(endpoint)
    yield endpoint
    sgl.set_default_backend(None)


def test_each_of_the_descriptions_programs_is_run_by_a_test_of_this_file() -> None:
    assert seed_programs.programs().keys() == SCRIPTS.keys() | FEATURES | ELSEWHERE
    assert seed_programs.programs()[seed_programs.IMPORT] == "import sglang as sgl\n"


@pytest.mark.parametrize("heading", SCRIPTS)
def test_a_script(heading: str, served: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = seed_programs.ADDRESS.sub(served.url, seed_programs.programs()[heading])
    seed_programs.run(seed_programs.programs()[seed_programs.IMPORT] + code, tmp_path)
    printed = capsys.readouterr().out
    for words in SCRIPTS[heading]:
        assert words in printed


def test_the_request_by_hand(served: Any) -> None:
    command = seed_programs.ADDRESS.sub(served.url, seed_programs.programs()["Quick Start"])
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=200)
    if ran.returncode == 127:
        pytest.skip("curl is not installed")
    answer = json.loads(ran.stdout)
    assert answer["text"] and answer["meta_info"]["completion_tokens"] <= 16


def test_control_flow(tmp_path: Path) -> None:
    tool_use = seed_programs.feature("Control Flow", tmp_path)["tool_use"]
    state = tool_use.run("What is 12 + 7", temperature=0, max_new_tokens=16)
    assert state["tool"] == "calculator" and "12 + 7" in state["expression"] and "word" not in state
    state = tool_use.run("Who is the president of France", temperature=0, max_new_tokens=16)
    assert state["tool"] == "search engine" and state["word"] and "expression" not in state


def test_parallelism(tmp_path: Path) -> None:
    text = seed_programs.feature("Parallelism", tmp_path)["tip_suggestion"].run(temperature=0).text()
    assert re.fullmatch(r"Here are two tips(?s:.+)\n\nTip 1:(?s:.+)\nTip 2:(?s:.+)\nIn summary(?s:.+)", text)


def test_a_picture_is_refused_clearly_until_pictures_are_served(tmp_path: Path) -> None:
    code = seed_programs.programs()[seed_programs.UNCLOSED]
    with pytest.raises(SyntaxError, match="never closed"):
        ast.parse(code)
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    error = seed_programs.feature(seed_programs.UNCLOSED, tmp_path)["image_qa"].run(str(picture), "What is it?").error()
    assert isinstance(error, RuntimeError) and "400" in str(error) and "image_data" in str(error)


def test_constrained_decoding(tmp_path: Path) -> None:
    answer = seed_programs.feature("Constrained Decoding", tmp_path)["regular_expression_gen"].run()["answer"]
    assert re.fullmatch(r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)", answer)


def test_json_decoding(tmp_path: Path) -> None:
    names = seed_programs.feature("JSON Decoding", tmp_path)
    output = names["character_gen"].run("Harry Potter", temperature=0)["json_output"]
    assert re.fullmatch(names["character_regex"], output)
    assert json.loads(output)["house"] == "Gryffindor"


def test_batching(tmp_path: Path) -> None:
    states = seed_programs.feature("Batching", tmp_path)["states"]
    assert [state.error() for state in states] == [None] * 3
    assert [state.text().split("\n")[0] for state in states] == [
        f"Q: What is the capital of {place}?" for place in ("the United Kingdom", "France", "Japan")
    ]
    assert all(state["answer"] and "\n" not in state["answer"] for state in states)
