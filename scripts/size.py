"""Code lines per room: no blanks, comments or docstrings. `make size`."""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "python" / "sglang"


def code_lines(source: str) -> int:
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines - {0})


def main() -> None:
    rooms: Counter[str] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        rooms[place.parts[0] if len(place.parts) > 1 else "(top level)"] += code_lines(path.read_text("utf-8"))
    for room, lines in sorted(rooms.items()):
        print(f"{lines:6d}  {room}")
    print(f"{sum(rooms.values()):6d}  in all")


if __name__ == "__main__":
    main()
