"""The programs of the project's description, as `seed/programs.md` keeps them, run from files as their users do."""

import re
import runpy
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "seed" / "programs.md"
ADDRESS = re.compile(r"http://(localhost|127\.0\.0\.1):30000")  # where the programs look for a local server
_PART = re.compile(r"^(?:#+ (?P<heading>[^\n]+)|```\w*\n(?P<code>.*?)^```)$", re.MULTILINE | re.DOTALL)


def programs() -> dict[str, str]:
    """Heading -> the block below it, word for word."""
    found: dict[str, str] = {}
    heading = ""
    for part in _PART.finditer(PAGE.read_text()):
        if part["code"] is None:
            heading = part["heading"]
            continue
        assert heading not in found, f"two blocks below {heading!r}"
        found[heading] = part["code"]
    return found


IMPORT = "Language Feature"  # the block that those of the single features build on
UNCLOSED = "Multi Modality"  # one bracket is missing where the description shows it


def feature(heading: str, folder: Path) -> dict[str, Any]:
    """What a feature's block defines, behind the import that stands before them all."""
    code = programs()[heading]
    return run(programs()[IMPORT] + (code.rstrip() + ")\n" if heading == UNCLOSED else code), folder)


def run(code: str, folder: Path) -> dict[str, Any]:
    """Runs `code` from a file in `folder`, so that its lines stand in tracebacks; its names."""
    file = folder / "program.py"
    file.write_text(code)
    return runpy.run_path(str(file))
