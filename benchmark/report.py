"""Write docs/benchmarks.md's tables and plots from benchmark/results/*.json: `python benchmark/report.py [--check]`.

Each result stands between `<!-- result: NAME -->` and `<!-- end: NAME -->`; what is outside of them is left alone. A
result that has no such place yet gets one at the end; a place whose file is gone is an error. Plots need matplotlib.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from results_file import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
COLOURS = ("#2186eb", "#f0b429", "#0a6c74", "#8719e0", "#e12d39", "#7b8794", "#3ebd93", "#102a43")
PLACE = re.compile(r"<!-- result: (\S+) -->\n(.*?)<!-- end: \1 -->\n", re.DOTALL)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by name, oldest name first in the alphabet. Raises ValueError for a file that is no result."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        missing = {"name", "title", "date", "commit", "machine", "versions", "command", "columns", "rows"} - set(result)
        if missing or result["name"] != path.stem:
            raise ValueError(f"{path.name}: not a result of results_file.save ({', '.join(sorted(missing)) or 'name'})")
        found[path.stem] = result
    return found


def page(old: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with every result in its place. Raises ValueError for a place without a result."""
    placed = {match[1] for match in PLACE.finditer(old)}
    named = set(re.findall(r"<!-- (?:result|end): (\S+) -->", old))
    if broken := (named - placed) | (placed - set(results)):
        raise ValueError(f"{PAGE.name}: places that are broken or have no result: {', '.join(sorted(broken))}")
    new = PLACE.sub(lambda match: place(results[match[1]]), old)
    for name in results.keys() - placed:
        new = new.rstrip("\n") + "\n\n" + place(results[name])
    return new


def place(result: dict[str, Any]) -> str:
    name = result["name"]
    return f"<!-- result: {name} -->\n{section(result)}<!-- end: {name} -->\n"


def section(result: dict[str, Any]) -> str:
    """One result as Markdown: what, where, table, plots, how to repeat it."""
    columns = result["columns"]
    heads = [f"{c['name']} ({c['unit']})" if c["unit"] else c["name"] for c in columns]
    rows = [[cell(row.get(c["name"])) for c in columns] for row in result["rows"]]
    numbers = [all(isinstance(row.get(c["name"]), int | float | None) for row in result["rows"]) for c in columns]
    lines = [f"### {result['title']}", "", *table(heads, rows, numbers), ""]
    lines += [
        line
        for i in range(len(result.get("plots") or []))
        for line in (f"![{result['title']}]({image(result, i)})", "")
    ]
    if result.get("note"):
        lines += [result["note"], ""]
    commit = f", commit {result['commit']}" if result["commit"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += [f"<sub>{result['machine']} · {result['date']} UTC{commit} · `{result['command']}` · {versions}</sub>", ""]
    return "\n".join(lines)


def table(heads: list[str], rows: list[list[str]], right: list[bool]) -> list[str]:
    """A Markdown table whose source can be read too. right: columns set flush right."""
    widths = [max(3, len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]

    def line(cells: list[str]) -> str:
        fill = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "| " + " | ".join(fill) + " |"

    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]
    return [line([head.replace("|", r"\|") for head in heads]), line(rule), *map(line, rows)]


def cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        case _:
            return str(value).replace("|", r"\|").replace("\n", " ")


def image(result: dict[str, Any], number: int) -> str:
    """A plot's path beside the page."""
    return f"benchmarks/{result['name']}{'' if number == 0 else f'_{number + 1}'}.svg"


def draw(result: dict[str, Any], number: int, path: Path) -> None:
    """Write plot `number` of a result as SVG; the same result gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plot = result["plots"][number]
    style: dict[Any, Any] = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": "#e4e7eb", "axes.axisbelow": True, "axes.edgecolor": "#7b8794", "axes.titlelocation": "left",
        "axes.titleweight": "bold", "legend.frameon": False, "svg.hashsalt": "sglang", "svg.fonttype": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(8, 3.8), layout="constrained")
        found = series(result, plot)
        xs = list(dict.fromkeys(row[plot["x"]] for row in result["rows"]))
        for i, (label, points) in enumerate(found.items()):
            colour = COLOURS[i % len(COLOURS)]
            if plot.get("kind", "bar") == "line":
                at = sorted(points)
                axes.plot(at, [points[x] for x in at], "o-", color=colour, label=label, linewidth=1.8, markersize=4)
                continue
            width = 0.8 / len(found)
            places = [xs.index(x) + (i - (len(found) - 1) / 2) * width for x in points]
            bars = axes.bar(places, list(points.values()), width * 0.92, color=colour, label=label)
            axes.bar_label(bars, [cell(float(y)) for y in points.values()], fontsize=8, padding=2)
        if plot.get("kind", "bar") == "bar":
            axes.set_xticks(range(len(xs)), [cell(x) for x in xs])
            axes.grid(visible=False, axis="x")
        if plot.get("log"):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, None)
        axes.set(title=plot.get("title") or result["title"], xlabel=labelled(result, plot["x"]))
        axes.set_ylabel(labelled(result, plot["y"]) if isinstance(plot["y"], str) else "")
        if len(found) > 1:
            figure.legend(loc="outside lower center", ncols=min(4, len(found)), fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def series(result: dict[str, Any], plot: dict[str, Any]) -> dict[str, dict[Any, float]]:
    """Label -> x -> y. One series per y column, or per value of the column `by`."""
    ys = plot["y"] if isinstance(plot["y"], list) else [plot["y"]]
    found: dict[str, dict[Any, float]] = {}
    for row in result["rows"]:
        for y in ys:
            if row.get(y) is not None:
                words = ([cell(row[plot["by"]])] if "by" in plot else []) + (
                    [y] if len(ys) > 1 or "by" not in plot else []
                )
                found.setdefault(", ".join(words), {})[row[plot["x"]]] = row[y]
    return found


def labelled(result: dict[str, Any], column: str) -> str:
    unit = next(c["unit"] for c in result["columns"] if c["name"] == column)
    return f"{column} ({unit})" if unit else column


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is not up to date")
    args = parser.parse_args()
    try:
        results = read(RESULTS)
        old = PAGE.read_text() if PAGE.exists() else "# Benchmarks\n"
        new = page(old, results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        print("up to date" if new == old else f"{PAGE.name} is not up to date: run benchmark/report.py")
        return int(new != old)
    PAGE.write_text(new)
    for result in results.values():
        for number in range(len(result.get("plots") or [])):
            draw(result, number, PAGE.parent / image(result, number))
    print(f"{PAGE.name}: {len(results)} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
