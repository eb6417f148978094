"""Writes what documentation can be made of code: `make docs`. A test says whether it is current.

docs/server_arguments.md: the fields of ServerConfig. docs/model_support.md: the registered families, between markers.
"""

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from sglang.base import config, known_flags
from sglang.base.config import ServerConfig, kinds_of, spell

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """\
# Server arguments

<!-- Written by scripts/docs.py from python/sglang/base/config.py: change it there, then `make docs`. -->

The flags of `python -m sglang.launch_server` and `sglang serve`. In Python they are keywords with underscores:
`sgl.Engine(max_total_tokens=4096)`. A flag may be shortened as long as it stays unique (`--mem-frac 0.7`). The model
may also be named first, without `--model-path`: `sglang serve ./my-model`.

An impossible setting stops the start with one line that names the flag and what would work, and exit code 2. What the
flags for memory and scheduling do to speed is told in [hyperparameter_tuning.md](hyperparameter_tuning.md).
"""


OTHERS = """\
## Flags of other releases

No flag is read and then ignored. `python -m sglang.launch_server` also takes `--config FILE`, YAML or JSON that holds
flags (`tp-size: 1`); what stands on the command line wins.
"""


def sections() -> dict[str, list["dataclasses.Field[Any]"]]:
    """Fields by the comment that stands above them in the source."""
    fields = {f.name: f for f in dataclasses.fields(ServerConfig)}
    found: dict[str, list[dataclasses.Field[Any]]] = {}
    title = ""
    for line in inspect.getsource(ServerConfig).splitlines():
        if match := re.fullmatch(r"    # (.+)", line):
            title = match[1]
        elif (match := re.match(r"    (\w+): ", line)) and match[1] in fields:
            found.setdefault(title, []).append(fields.pop(match[1]))
    assert not fields, f"not found in {config.__file__}: {list(fields)}"
    return found


def row(f: "dataclasses.Field[Any]") -> str:
    names = ", ".join(f"`{name}`" for name in (spell(f.name), *f.metadata["aliases"]))
    [kind] = [kind for kind in kinds_of(f) if kind is not None]
    if kind is bool:
        values = "switch"
    elif get_origin(kind) is Literal:
        values = ", ".join(f"`{choice}`" for choice in get_args(kind))
    else:
        values = {int: "integer", float: "number", str: "text"}[kind]
    default = "" if f.default in (None, "", False) else f"`{f.default}`"
    return " | ".join(["", names, values, default, f.metadata["help"].replace("|", "\\|"), ""]).strip()


def server_arguments(_: str) -> str:
    parts = [HEAD]
    for title, fields in sections().items():
        table = "\n".join(row(f) for f in fields)
        parts.append(f"## {title}\n\n| flag | value | default | meaning |\n|---|---|---|---|\n{table}\n")
    always = "\n".join(f"| `{flag}` | {why} |" for flag, why in known_flags.ALWAYS.items())
    refused = "\n".join(f"| `{flag}` | {why} |" for flag, why in known_flags.REFUSED.items())
    parts.append(f"{OTHERS}\n| accepted | for it is always so |\n|---|---|\n{always}\n")
    parts.append(f"| refused | instead |\n|---|---|\n{refused}\n")
    return "\n".join(parts)


def model_support(page: str) -> str:
    """The page with its table of families renewed: the file's first sentence and the names in `architectures`."""
    import sglang.models.families  # noqa: F401 - fills the registry
    from sglang.models.spec import FAMILIES

    files: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        files.setdefault(family.build.__module__, []).append(name)
    rows = []
    for module in sorted(files):
        about = (sys.modules[module].__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()
        names = ", ".join(f"`{name}`" for name in sorted(files[module]))
        path = f"python/{module.replace('.', '/')}.py"
        rows.append(f"| [{module.rsplit('.', 1)[1]}](../{path}) | {about} | {names} |")
    table = "| file | what it says | `architectures` in config.json |\n|---|---|---|\n" + "\n".join(rows)
    before, begin, rest = page.partition("<!-- families -->\n")
    _, end, after = rest.partition("<!-- end of families -->")
    return f"{before}{begin}{table}\n{end}{after}"


PAGES = {"server_arguments.md": server_arguments, "model_support.md": model_support}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the pages that are made of code.")
    parser.add_argument("--check", action="store_true", help="only say which are not current; exit code 1 if any")
    check = parser.parse_args().check
    old = []
    for name, write in PAGES.items():
        is_now = (DOCS / name).read_text()
        should_be = write(is_now)
        if is_now != should_be:
            old.append(name)
            if not check:
                (DOCS / name).write_text(should_be)
    if check and old:
        print(f"not current: {', '.join(old)}; `make docs` writes them")
    return 1 if check and old else 0


if __name__ == "__main__":
    raise SystemExit(main())
