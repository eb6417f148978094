"""A program as a tree of steps, on paper: lines of text, or a picture.

`tracer.py` makes the steps of a program that has not run, `explain.py` those of a state that has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape


@dataclass(slots=True)
class Cost:
    """What an answer took: tokens of its prompt that came from the cache or were computed, tokens written, seconds.
    None where nobody told."""

    cached: int | None = None
    computed: int | None = None
    written: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        told = [
            f"{self.cached} cached" if self.cached is not None else "",
            f"{self.computed} computed" if self.computed is not None else "",
            f"{self.written} generated" if self.written is not None else "",
            f"{self.seconds:.3f} s" if self.seconds is not None else "",
        ]
        return ", ".join(filter(None, told))


@dataclass(slots=True)
class Step:
    """One node. asks: the model is asked. branches: what each state of a fork does, or the one program that is called.
    joins: the branches of the fork before it come together here."""

    label: str
    asks: bool = False
    joins: bool = False
    cost: Cost = field(default_factory=Cost)
    branches: list[list["Step"]] = field(default_factory=list)

    def __str__(self) -> str:
        cost = str(self.cost)
        return f"{self.label}  [{cost}]" if cost else self.label


def lines(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        yield str(step)
        for i, branch in enumerate(step.branches):
            last = i == len(step.branches) - 1
            yield f"{'└' if last else '├'}─ [{i}]"
            for line in lines(branch):
                yield f"{' ' if last else '│'}    {line}"


# Pixels, of a 12-pixel monospace font.
_CHAR, _ROW, _BOX, _GAP, _PAD = 7.3, 20, 40, 18, 14
_MOST = 56  # characters of a label that are shown; a tooltip has the rest
_CACHED, _COMPUTED, _WRITTEN = "#9fc5e8", "#0b5394", "#38761d"


def svg(title: str, steps: Sequence[Step]) -> str:
    """The steps from top to bottom, the states of a fork side by side between two bars. What asks the model is a box,
    under whose label a bar shows its tokens: from the cache, computed, generated."""
    picture = _Picture(max((_tokens(step.cost) for step in _all(steps)), default=0))
    width = max(_width(steps), len(title) * _CHAR, 300)
    picture.text(_PAD, _PAD, title, "#000", bold=True)
    x = float(_PAD)
    for name, color in (("from the cache", _CACHED), ("computed", _COMPUTED), ("generated", _WRITTEN)):
        picture.add(f'<rect x="{x:g}" y="{_PAD + _ROW + 4}" width="10" height="10" fill="{color}"/>')
        picture.text(x + 14, _PAD + _ROW, name, "#666")
        x += 14 + (len(name) + 2) * _CHAR
    end = picture.column(steps, _PAD, _PAD + 2 * _ROW, width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 2 * _PAD:.0f}" height="{end + _PAD:.0f}" '
        f'font-family="monospace" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(picture.parts)}</svg>"
    )


class _Picture:
    def __init__(self, most_tokens: int):
        self.parts: list[str] = []
        self._most = max(most_tokens, 1)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, text: str, color: str, bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        title = f"<title>{escape(text)}</title>" if len(text) > _MOST else ""
        shown = escape(_cut(text))
        self.add(f'<text x="{x:g}" y="{y + 14:g}" fill="{color}" xml:space="preserve"{weight}>{shown}{title}</text>')

    def line(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self.add(f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="#999"/>')

    def column(self, steps: Sequence[Step], x: float, y: float, width: float) -> float:
        """The steps of one state below each other; where the next would stand."""
        ends: list[tuple[float, float]] = []  # where the branches of the last fork stopped
        for step in steps:
            if step.joins:
                for at, end in ends:
                    self.line(at, end, at, y)
                ends = []
            y = self._box(step, x, y) if step.asks else self._row(step, x, y, width)
            if step.branches:
                bar, left = y, x
                y += _GAP
                for branch in step.branches:
                    own = _width(branch)
                    self.line(left + own / 2, bar, left + own / 2, y)
                    ends.append((left + own / 2, self.column(branch, left, y, own)))
                    left += own + _GAP
                y = max(end for _, end in ends[-len(step.branches) :]) + _GAP
        return y

    def _row(self, step: Step, x: float, y: float, width: float) -> float:
        splits = step.joins or len(step.branches) > 0
        if splits:
            self.add(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{_ROW - 2}" rx="3" fill="#eee"/>')
        self.text(x + 6, y, str(step), "#000" if splits else "#666", bold=splits)
        return y + _ROW

    def _box(self, step: Step, x: float, y: float) -> float:
        width = _width([step])
        self.add(
            f'<rect x="{x:g}" y="{y + 1:g}" width="{width:g}" height="{_BOX - 4}" rx="4" fill="#f3f8fd" '
            f'stroke="{_COMPUTED}"/>'
        )
        self.text(x + 6, y, step.label, _COMPUTED, bold=True)
        cost = step.cost
        at, full = x + 6, min(width - 12, 40 * _CHAR)
        for tokens, color in ((cost.cached, _CACHED), (cost.computed, _COMPUTED), (cost.written, _WRITTEN)):
            long = (tokens or 0) / self._most * full
            if long:
                self.add(f'<rect x="{at:g}" y="{y + _BOX - 9:g}" width="{long:g}" height="3" fill="{color}"/>')
            at += long
        if told := str(cost):
            self.text(x + 6, y + 14, told, "#666")
        return y + _BOX


def _width(steps: Sequence[Step]) -> float:
    """Of the widest step, or of branches side by side."""
    widest = 60.0
    for step in steps:
        shown = max(len(_cut(step.label if step.asks else str(step))), len(str(step.cost)))
        side = sum(map(_width, step.branches)) + _GAP * max(len(step.branches) - 1, 0)
        widest = max(widest, shown * _CHAR + 12, side)
    return widest


def _all(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        for branch in step.branches:
            yield from _all(branch)


def _tokens(cost: Cost) -> int:
    return (cost.cached or 0) + (cost.computed or 0) + (cost.written or 0)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"
