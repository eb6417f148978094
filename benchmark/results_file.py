"""One file per measurement, one schema, so that docs/benchmarks.md can be written from them (`benchmark/report.py`).

A script of this folder imports it as `from results_file import add_flag, save`:

    add_flag(parser, "cpu_decode")                # --save [NAME]; args.save is None without it
    ...
    if args.save:
        save(args.save, rows, units={"median": "ms"}, note="0.5B shape, bf16, prompt 128")

The file `benchmark/results/NAME.json` holds: name, title, date (UTC), commit, machine, versions, command, columns
(name and unit, in order), rows (dicts by column name; a missing column is an empty cell), plots, note.
"""

import argparse
import functools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("sglang", "torch", "transformers", "tokenizers", "uvicorn", "numpy", "llama-cpp-python", "triton")
PLOT_KEYS = {"x", "y", "by", "kind", "log", "title"}


def add_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """The flag --save [NAME]: absent None, alone `name`."""
    parser.add_argument(
        "--save",
        nargs="?",
        const=name,
        metavar="NAME",
        help=f"keep the figures in benchmark/results/NAME.json ({name})",
    )


def save(
    name: str,
    rows: list[dict[str, Any]],
    *,
    title: str = "",
    units: dict[str, str] | None = None,
    note: str = "",
    plots: list[dict[str, Any]] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write folder/NAME.json, replacing an older one, and return its path.

    rows: one dict per line of the table; columns come in the order in which keys first appear. Values: str, bool, int,
    float or None. units: column name -> unit shown in its heading. plots: each {"x": column, "y": column or list of
    columns, "by": column (optional: one series per value), "kind": "bar" or "line", "log": true for a logarithmic y}.
    Raises ValueError: a name that is no file name, no rows, a value no table can show, a unit or plot of no column.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name must be letters, digits, '_', '-' and '.', got {name!r}")
    if not rows:
        raise ValueError("rows must hold at least one row")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for row in rows:
        for key, value in row.items():
            if value is not None and not isinstance(value, str | bool | int | float):
                raise ValueError(f"rows: {key!r} must be text, number, bool or None, got {type(value).__name__}")
    for plot in plots or []:
        if unknown := set(plot) - PLOT_KEYS:
            raise ValueError(f"plots: unknown keys {sorted(unknown)}; known: {sorted(PLOT_KEYS)}")
        ys = plot["y"] if isinstance(plot["y"], list) else [plot["y"]]
        if missing := {plot["x"], *ys, *([plot["by"]] if "by" in plot else [])} - set(columns):
            raise ValueError(f"plots: no columns {sorted(missing)}; there are {columns}")
    if missing := set(units or {}) - set(columns):
        raise ValueError(f"units: no columns {sorted(missing)}; there are {columns}")
    content = {
        "name": name,
        "title": title or name.replace("_", " "),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "command": command(),
        "columns": [{"name": column, "unit": (units or {}).get(column, "")} for column in columns],
        "rows": [{key: rounded(value) for key, value in row.items()} for row in rows],
        "plots": plots or [],
        "note": note,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"saved {path}; python benchmark/report.py puts it into docs/benchmarks.md", file=sys.stderr)
    return path


def rounded(value: Any) -> Any:
    """Floats with six digits: more is noise in a file that people read."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@functools.cache
def commit() -> str:
    """Short hash of the checkout; "+" where tracked files under python/ were changed since; "" outside git."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("diff", "HEAD", "--name-only", ":/python") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def machine() -> str:
    """The GPU, CPU, cores this process may use, memory. A script that has imported torch has the GPU torch sees."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.*)", text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [found[1].strip() if found else platform.processor() or platform.machine(), f"{cores} cores"]
    if hasattr(os, "sysconf"):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    torch = sys.modules.get("torch")
    if torch is None and shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(ask, capture_output=True, text=True, timeout=60).stdout.split("\n")[:-1]
    else:
        count = torch.cuda.device_count() if torch is not None else 0
        gpus = [torch.cuda.get_device_name(i) for i in range(count)] if torch is not None else []
    return ", ".join([f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)] + parts)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def command() -> str:
    """What to type to measure again; of absolute paths only the last part, since they name somebody's disk."""

    def short(word: str) -> str:
        flag, equals, value = word.partition("=")
        if equals and flag.startswith("-"):
            return f"{flag}={short(value)}"
        return Path(word).name if word.startswith(("/", "~")) else word

    script = Path(sys.argv[0])
    here = Path(__file__).parent
    known = script.resolve().is_relative_to(here.parent)
    name = script.resolve().relative_to(here.parent).as_posix() if known else script.name
    return " ".join(["python", name, *(shlex.quote(short(word)) for word in sys.argv[1:])])
