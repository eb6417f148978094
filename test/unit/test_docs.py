"""README and docs: links lead somewhere, commands and flags exist, and what is made of code is current.

The examples themselves are run by test/e2e/test_documented_examples.py.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sglang import cli, launch_server
from sglang.engine import pool
from sglang.schedule import policy, state

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?P<link>[^)\s]+)\)|(?:src|href)=\"(?P<source>[^\"]+)\"")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def headings(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    """Our commands in blocks of shell and between backticks; comments cut off, continued lines joined."""
    text = page.read_text()
    blocks = [code for language, code in FENCED.findall(text) if language in ("", "bash", "sh")]
    lines = [line.split(" #")[0] for code in blocks for line in code.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *INLINE.findall(FENCED.sub("", text))]:
        if match := re.search(r"(^|[|;&] *|(?<= ))(python3? -m sglang\S*|(sglang|make) (?=[a-z])).*", line.strip()):
            found.append(match[0].lstrip("|;& "))
    return found


@by_name
def test_links_lead_to_files_and_headings(page: Path):
    for match in LINK.finditer(page.read_text()):
        link = match["link"] or match["source"]
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), f"{link}: no such heading in {sorted(headings(target))}"


@by_name
def test_commands_exist_and_their_flags_too(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
            continue
        if words[0] == "sglang":
            assert words[1] in cli.COMMANDS, line
            rest = words[2:] if words[1] == "serve" else None
        else:
            assert importlib.util.find_spec(words[2]) is not None, line
            rest = words[3:] if words[2] == "sglang.launch_server" else None
        if rest is not None and not {"...", "…"} & set(rest):
            launch_server.server_parser().parse_args(rest)


@by_name
def test_scripts_that_are_named_exist(page: Path):
    for name in re.findall(r"python3? ((?:benchmark|scripts)/\S+\.py)", page.read_text()):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", ["hyperparameter_tuning.md", "troubleshooting.md"])
def test_flags_that_are_explained_exist(name: str):
    known = launch_server.server_parser().format_help()
    for flag in re.findall(r"`(--[a-z-]+)", (ROOT / "docs" / name).read_text()):
        assert re.search(rf"{flag}\b", known), flag


def test_numbers_that_are_explained_are_those_of_the_code():
    text = (ROOT / "docs" / "hyperparameter_tuning.md").read_text()
    for said in (
        f"({pool.CPU_CHUNK} on a CPU, {pool.CUDA_CHUNK} on CUDA)",
        f"at most {pool.CUDA_BESIDE} tokens in all while",
        f"({pool.CPU_SLOTS} on a CPU, {pool.CUDA_SLOTS} on CUDA)",
        f"of the device ({pool.CUDA_FRACTION})",
        f"loaded ({pool.CPU_FRACTION})",
        f"at most {pool.CPU_MOST // pool.GIB} GiB",
        f"starts at {state.RATIO_BASE} ×",
        f"falls by {state.RATIO_DECAY:.4f} a step",
        f"rises by {state.RATIO_JUMP}",
        f"more than {policy.PATIENCE_S:g} s",
        f"more than {policy.LONG_QUEUE} waiting",
    ):
        assert said in text, said
    assert state.RATIO_FLOOR == 0.2, "down to a fifth of that"


def test_log_lines_that_are_explained_are_those_of_the_code():
    text = (ROOT / "docs" / "hyperparameter_tuning.md").read_text()
    source = re.sub(r'"\s+"', "", (ROOT / "python" / "sglang" / "worker" / "report.py").read_text())  # joined literals
    [block] = [code for language, code in FENCED.findall(text) if language == "text"]
    for line in block.splitlines():
        shape = re.escape(re.sub(r"\d+(\.\d+)?", "NUMBER", line)).replace("NUMBER", r"%\.?\d*[df](?:%(?=%))?")
        assert re.search(shape, source), line


def test_the_index_names_every_page():
    text = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES[2:] if page.name != "README.md" and f"({page.name})" not in text] == []


def test_pages_made_of_code_are_current():
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check"],
        env={"PYTHONPATH": str(ROOT / "python"), "PATH": ""}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
