"""A run as one picture: what happened when, and how the latencies are spread. Needs the extra `plot` (matplotlib)."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sglang.bench.apis import Record
from sglang.bench.figures import samples

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
WAIT, WRITE, LINE = "#f0b429", "#2186eb", "#0a6c74"
COLOURS = {"ttft": WAIT, "tpot": LINE, "itl": WRITE, "e2e_latency": "#8719e0"}
NAMES = {
    "ttft": "first token",
    "tpot": "per token (mean of a request)",
    "itl": "between tokens",
    "e2e_latency": "whole answer",
}
MOST_BARS = 400  # more requests than this are thinned out evenly


def available() -> bool:
    return find_spec("matplotlib") is not None


def draw(records: Sequence[Record], result: dict[str, Any], path: Path) -> None:
    """Write the picture of a run to `path`; the suffix says the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "font.size": 9, "axes.edgecolor": QUIET, "axes.labelcolor": INK, "text.color": INK, "xtick.color": QUIET,
        "ytick.color": QUIET, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.titlelocation": "left",
        "axes.titlesize": 10, "axes.titleweight": "bold", "legend.frameon": False, "savefig.dpi": 150,
        "text.parse_math": False, "svg.hashsalt": "sglang",
    }  # fmt: skip
    good = sorted((r for r in records if not r.error and r.times), key=lambda r: (r.sent, r.times[0]))
    with matplotlib.rc_context(style):
        figure, ((a, b), (c, d)) = pyplot.subplots(2, 2, figsize=(12, 7.4), layout="constrained")
        figure.suptitle(headline(result), x=0.01, ha="left", fontsize=11, linespacing=1.6)
        if good:
            began = min(r.sent for r in good)
            _requests(a, good, began)
            _rate(b, good, began)
            _spread(c, good, ("ttft", "e2e_latency"), "Waiting")
            _spread(d, good, ("itl", "tpot"), "Writing")
        figure.savefig(path)
        pyplot.close(figure)


def headline(result: dict[str, Any]) -> str:
    """Two lines that say what was run and what came of it."""
    rate = "all at once" if result["request_rate"] == "inf" else f"{result['request_rate']:g} requests/s"
    most = f", at most {result['max_concurrency']} at a time" if result["max_concurrency"] else ""
    failed = f", {result['failed']} failed" if result["failed"] else ""
    return (
        f"{result['backend']} · {result['model']} · {result['num_prompts']} {result['dataset_name']} prompts, "
        f"{rate}{most}{failed}\n"
        f"{result['output_throughput']:,.0f} output tokens/s · {result['request_throughput']:.2f} requests/s · "
        f"first token {ms(result['median_ttft_ms'])} median, {ms(result['p99_ttft_ms'])} p99 · "
        f"between tokens {ms(result['median_itl_ms'])} median, {ms(result['p99_itl_ms'])} p99"
    )


def ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _requests(axes: Any, good: list[Record], began: float) -> None:
    """A line per request: waiting, then writing."""
    shown = [good[i] for i in np.unique(np.linspace(0, len(good) - 1, min(len(good), MOST_BARS)).astype(int))]
    y = np.arange(len(shown))
    sent, first, end = (np.array(v) - began for v in zip(*((r.sent, r.times[0], r.end) for r in shown), strict=True))
    axes.barh(y, first - sent, left=sent, height=0.9, color=WAIT, linewidth=0, label="waiting for the first token")
    axes.barh(y, end - first, left=first, height=0.9, color=WRITE, linewidth=0, label="writing")
    axes.set(title="Requests", xlabel="seconds", ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    _legend(axes)


def _rate(axes: Any, good: list[Record], began: float) -> None:
    """Tokens per second and requests under way, over time."""
    end = max(r.end for r in good) - began
    edges = np.linspace(0, end, 61)
    per_event = [r.output_tokens / len(r.times) for r in good]
    times = np.concatenate([np.asarray(r.times) - began for r in good])
    weights = np.concatenate([np.full(len(r.times), w) for r, w in zip(good, per_event, strict=True)])
    tokens, _ = np.histogram(times, edges, weights=weights)
    rate = tokens / np.diff(edges)
    axes.fill_between(edges, np.append(rate, rate[-1]), step="post", color=WRITE, alpha=0.25, linewidth=0)
    axes.step(edges, np.append(rate, rate[-1]), where="post", color=WRITE, linewidth=1.2)
    axes.set(title="Output tokens per second", xlabel="seconds", xlim=(0, end), ylim=(0, None))
    right = axes.twinx()
    begun, ended = (np.sort([getattr(r, name) - began for r in good]) for name in ("sent", "end"))
    running = np.searchsorted(begun, edges, "right") - np.searchsorted(ended, edges, "right")
    right.step(edges, running, where="post", color=QUIET, linewidth=1.2, linestyle=(0, (3, 2)))
    right.set_ylim(0, None)
    right.yaxis.get_major_locator().set_params(integer=True)
    right.set_ylabel("requests under way (dashed)", color=QUIET)
    right.grid(visible=False)


def _spread(axes: Any, good: list[Record], names: tuple[str, str], title: str) -> None:
    """Cumulative shares over a logarithmic time axis, with median and p99 marked."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found = samples(good)
    curves = {name: values for name in names if len(values := 1e3 * np.sort([v for v in found[name] if v > 0]))}
    for name, values in curves.items():
        share = np.arange(1, len(values) + 1) / len(values)
        axes.step(values, share, where="post", color=COLOURS[name], linewidth=1.8, label=NAMES[name])
    for quantile in (50, 99):
        marks = sorted((float(np.percentile(values, quantile)), name) for name, values in curves.items())
        for i, (at, name) in enumerate(marks):
            left = i == 0 and len(marks) > 1  # the smaller one speaks to the left, so that they do not overlap
            axes.plot(at, quantile / 100, "o", color=COLOURS[name], markersize=5)
            axes.annotate(
                ms(at), (at, quantile / 100), (-6 if left else 6, -3), textcoords="offset points", color=INK, va="top",
                ha="right" if left else "left", fontsize=8,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": COLOURS[name], "linewidth": 0.6},
            )  # fmt: skip
    ends = [end for values in curves.values() for end in (values[0], values[-1])]
    low, high = (min(ends) / 1.5, max(ends) * 2) if ends else (1, 10)
    axes.set(title=title, ylabel="share within the time", xscale="log", xlim=(low, max(high, 6 * low)), ylim=(0, 1.03))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ms(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 0.99], ["0", "25%", "50%", "75%", "90%", "99%"])
    _legend(axes)


def _legend(axes: Any) -> None:
    """In the line of the title, where no curve can be in its way."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.01, 0.99), ncols=2, fontsize=8, borderaxespad=0.2, handlelength=1.4
    )
