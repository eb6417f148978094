"""Results keep themselves in one schema, and the page is written from them and nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import report
import results_file

SCRIPTS = Path(results_file.__file__).parent
ROWS: list[dict[str, Any]] = [
    {"batch": 1, "engine": "a|b", "speed": 1234.5, "ok": True},
    {"batch": 16, "engine": "other", "speed": 0.0312345678, "extra": None},
]


def save(folder: Path, **more: Any) -> dict[str, Any]:
    path = results_file.save("some_name", ROWS, units={"speed": "token/s"}, folder=folder, **more)
    return json.loads(path.read_text())


def test_a_result_holds_what_is_needed_to_judge_and_repeat_it(tmp_path: Path):
    result = save(tmp_path, note="On a quiet machine.")
    assert [column["name"] for column in result["columns"]] == ["batch", "engine", "speed", "ok", "extra"]
    assert result["columns"][2]["unit"] == "token/s"
    assert result["rows"][1]["speed"] == 0.0312346
    assert "cores" in result["machine"]
    assert result["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert result["command"].startswith("python ")


def test_a_command_names_nobodys_disk(monkeypatch: pytest.MonkeyPatch):
    script = str(SCRIPTS / "cpu_decode.py")
    monkeypatch.setattr(sys, "argv", [script, "--model-path", "/home/me/models/qwen", "--out=/srv/x", "--note", "a b"])
    assert results_file.command() == "python benchmark/cpu_decode.py --model-path qwen --out=x --note 'a b'"


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([], {}, "rows"),
        ([{"a": [1]}], {}, "'a' must be text"),
        ([{"a": 1}], {"units": {"b": "ms"}}, "units"),
        ([{"a": 1}], {"plots": [{"x": "a", "y": "b"}]}, "plots"),
        ([{"a": 1}], {"plots": [{"x": "a", "y": "a", "colour": 1}]}, "colour"),
    ],
)
def test_what_no_table_could_show_is_refused(tmp_path: Path, rows: Any, more: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        results_file.save("x", rows, folder=tmp_path, **more)
    with pytest.raises(ValueError, match="name"):
        results_file.save("../x", [{"a": 1}], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_has_each_result_in_its_place(tmp_path: Path):
    results = {"some_name": save(tmp_path)}
    first = report.page("# Title\n\nWords.\n", results)
    assert first.startswith("# Title\n\nWords.\n\n<!-- result: some_name -->\n### some name\n")
    assert r"|     1 | a\|b   |           1,234 | yes |" in first.replace(" –", "–")
    assert report.page(first, results) == first, "writing twice changes nothing"
    moved = first.replace("Words.", "Other words.") + "\nAfter.\n"
    results["some_name"]["rows"][0]["speed"] = 77.25
    second = report.page(moved, results)
    assert "77.2" in second
    assert "1,234" not in second
    assert second.startswith("# Title\n\nOther words.")
    assert second.endswith("\nAfter.\n")


def test_a_place_without_its_result_is_an_error(tmp_path: Path):
    results = {"some_name": save(tmp_path)}
    for broken in ("<!-- result: gone -->\n<!-- end: gone -->\n", "<!-- result: some_name -->\n"):
        with pytest.raises(ValueError, match=r"gone|some_name"):
            report.page(broken, results)


def test_a_table_reads_well_as_text():
    lines = report.table(["name", "n"], [["a", "1"], ["longer", "100"]], [False, True])
    assert lines == ["| name   |   n |", "| ------ | --: |", "| a      |   1 |", "| longer | 100 |"]


def test_a_plot_is_the_same_file_each_time(tmp_path: Path):
    pytest.importorskip("matplotlib")
    plots = [{"x": "batch", "y": "speed", "by": "engine"}, {"x": "batch", "y": "speed", "kind": "line", "log": True}]
    result = save(tmp_path, plots=plots)
    for number in range(2):
        draws = []
        for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
            report.draw(result, number, path)
            draws.append(path.read_bytes())
        assert draws[0] == draws[1]
        assert b"batch" in draws[0]


def test_the_page_of_this_repository_is_up_to_date():
    ran = subprocess.run([sys.executable, str(SCRIPTS / "report.py"), "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
