"""Records of requests -> the figures of a run, and the table that people read.

TTFT: from sending to the first token. ITL: between two events that carry tokens. TPOT: from the first token to the
last, over the tokens after the first. E2E: from sending to the end of the reply. Of requests that failed only the
number is told.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sglang.bench.apis import Record

WIDTH = 50
LATENCIES = {
    "e2e_latency": "End-to-End Latency",
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-Token Latency",
}


def gaps(record: Record) -> list[float]:
    """Seconds between neighbouring token events."""
    return [b - a for a, b in pairwise(record.times)]


def samples(records: Sequence[Record]) -> dict[str, list[float]]:
    """Every latency of the requests that ended well, in seconds, by the keys of LATENCIES."""
    good = [r for r in records if not r.error]
    return {
        "e2e_latency": [r.end - r.sent for r in good],
        "ttft": [r.times[0] - r.sent for r in good if r.times],
        "tpot": [(r.times[-1] - r.times[0]) / (r.output_tokens - 1) for r in good if r.times and r.output_tokens > 1],
        "itl": [gap for r in good for gap in gaps(r)],
    }


def figures(records: Sequence[Record], streamed: bool = True) -> dict[str, Any]:
    """The numbers of a run, by the names of the JSON result. Latencies in ms, None where there is nothing to tell.

    Without streaming there is one event, at the end: TTFT, TPOT and ITL mean nothing then.
    """
    good = [r for r in records if not r.error]
    duration = max(r.end for r in records) - min(r.sent for r in records) if records else 0.0
    tokens_in, tokens_out = sum(r.input_tokens for r in good), sum(r.output_tokens for r in good)
    events = sum(len(r.times) for r in good)
    cached = [r.cached_tokens for r in good if r.cached_tokens is not None]
    found: dict[str, Any] = {
        "completed": len(good),
        "failed": len(records) - len(good),
        "duration": duration,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "cached_tokens": sum(cached) if cached else None,
        "short_answers": sum(r.output_tokens < r.job.output_tokens for r in good),
        "request_throughput": _rate(len(good), duration),
        "input_throughput": _rate(tokens_in, duration),
        "output_throughput": _rate(tokens_out, duration),
        "total_throughput": _rate(tokens_in + tokens_out, duration),
        "concurrency": _rate(sum(r.end - r.sent for r in good), duration),
        "tokens_per_event": tokens_out / events if events and streamed else None,
        "max_client_delay_ms": 1e3 * max((r.late for r in records), default=0.0),
    }
    for name, values in samples(records).items():
        found |= statistics(name, values if streamed or name == "e2e_latency" else [])
    return found


def statistics(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """mean, median, std, p90, p95, p99 and max in ms; percentiles are interpolated between samples."""
    names = ("mean", "median", "std", "p90", "p95", "p99", "max")
    if not values:
        return {f"{statistic}_{name}_ms": None for statistic in names}
    ms = 1e3 * np.asarray(values)
    middle, p90, p95, p99 = np.percentile(ms, [50, 90, 95, 99])
    numbers = (ms.mean(), middle, ms.std(), p90, p95, p99, ms.max())
    return {f"{statistic}_{name}_ms": float(number) for statistic, number in zip(names, numbers, strict=True)}


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def table(result: dict[str, Any]) -> str:
    """The result as a block of text."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]

    def line(label: str, value: Any, digits: int = 2) -> None:
        if value is not None:
            shown = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
            lines.append(f"{label:<40} {shown:<9}".rstrip())

    line("Backend:", result["backend"])
    line("Traffic request rate:", result["request_rate"])
    line("Max request concurrency:", result["max_concurrency"] or "not set")
    line("Successful requests:", result["completed"])
    line("Failed requests:", result["failed"] or None)
    line("Benchmark duration (s):", result["duration"])
    line("Total input tokens:", result["total_input_tokens"])
    line("Cached input tokens:", result["cached_tokens"])
    line("Total generated tokens:", result["total_output_tokens"])
    line("Answers shorter than asked:", result["short_answers"] or None)
    line("Request throughput (req/s):", result["request_throughput"])
    line("Input token throughput (tok/s):", result["input_throughput"])
    line("Output token throughput (tok/s):", result["output_throughput"])
    line("Total token throughput (tok/s):", result["total_throughput"])
    line("Concurrency:", result["concurrency"])
    line("Tokens per event:", result["tokens_per_event"])
    for name, title in LATENCIES.items():
        if result[f"mean_{name}_ms"] is None:
            continue
        short = {"e2e_latency": "E2E Latency"}.get(name, name.upper())
        lines.append(f"{title:-^{WIDTH}}")
        for statistic in ("mean", "median", "p90", "p99", *(["max"] if name == "itl" else [])):
            label = statistic.upper() if statistic[0] == "p" else statistic.capitalize()
            line(f"{label} {short} (ms):", result[f"{statistic}_{name}_ms"])
    lines.append("=" * WIDTH)
    return "\n".join(lines)
