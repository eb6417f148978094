"""explain: a program, or what has become of it, as a tree on paper."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sglang.lang.interpreter import Transcript
from sglang.lang.ir import Fork, Gen, Join, Select
from sglang.lang.program import SglFunction
from sglang.lang.state import State
from sglang.lang.tracer import describe


class Explanation:
    """Prints as text, shows itself as a drawing in a notebook."""

    def __init__(self, lines: Sequence[str]):
        self.lines = list(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    __repr__ = __str__

    def _repr_svg_(self) -> str:
        return svg(self.lines)


def explain(program: SglFunction | State, *, plot: str | Path | None = None, **kwargs: Any) -> Explanation:
    """The graph of a program as far as it is known before it runs (`kwargs`: arguments that are known), or, of a
    state that has been run, what was done: with tokens from the cache, tokens generated and seconds where the backend
    tells them. `plot`: also write it to this .svg file."""
    if isinstance(program, SglFunction):
        lines = program.trace(**kwargs).lines()
    else:
        program.stream_executor.wait(lambda: program.stream_executor.settled)
        lines = list(_done(program.stream_executor))
    explanation = Explanation(lines)
    if plot is not None:
        Path(plot).write_text(explanation._repr_svg_())
    return explanation


def _done(s: Transcript) -> Iterator[str]:
    for node in s.history:
        match node:
            case Fork(children):
                yield f"fork {len(children)}"
                for i, child in enumerate(children):
                    last = i == len(children) - 1
                    yield f"{'└' if last else '├'}─ [{i}]"
                    for line in _done(child):
                        yield f"{' ' if last else '│'}    {line}"
            case Join(_, mode):
                yield f"join {mode}"
            case Gen(name) | Select(name):
                value = s.variables.get(name or "")
                yield f"{describe(node)} -> {value!r}{_costs(s.meta_info.get(name))}"
            case _:
                yield describe(node)
    if s.error_ is not None:
        yield f"... {type(s.error_).__name__}: {s.error_}"


def _costs(meta: dict[str, Any] | None) -> str:
    meta = meta or {}
    told = []
    if (prompt := meta.get("prompt_tokens")) is not None:
        cached = meta.get("cached_tokens")
        told.append(f"prompt {prompt}" + (f" ({cached} cached)" if cached is not None else ""))
    if (made := meta.get("completion_tokens")) is not None:
        told.append(f"generated {made}")
    if (seconds := meta.get("e2e_latency")) is not None:
        told.append(f"{seconds:.3f} s")
    return f"  [{', '.join(told)}]" if told else ""


_LINE, _CHAR, _PAD = 18, 7.3, 12  # pixels, of a 12-pixel monospace font


def svg(lines: Sequence[str]) -> str:
    """The lines as a picture; those that ask the model stand out."""
    width = max(map(len, lines), default=0) * _CHAR + 2 * _PAD
    height = len(lines) * _LINE + 2 * _PAD
    rows = []
    for i, line in enumerate(lines):
        asks = line.lstrip(" │├└─").startswith(("gen ", "select "))
        weight = ' font-weight="bold" fill="#0b5394"' if asks else ""
        y = _PAD + (i + 0.75) * _LINE
        rows.append(f'<text x="{_PAD}" y="{y:g}" xml:space="preserve"{weight}>{escape(line)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'font-family="monospace" font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(rows)}</svg>'
    )
