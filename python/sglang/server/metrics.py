"""What /metrics says: the worker's last Stats, and times measured where users feel them, in the front.

Counting is a few integer additions on the event loop; the text format is made when somebody asks.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sglang.base.messages import Stats

FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)
BETWEEN_TOKENS_S = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
REQUEST_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
RATE_WINDOW_S = 1.0

GAUGES = {
    "num_running_reqs": "Sequences being computed.",
    "num_queue_reqs": "Sequences waiting.",
    "num_used_tokens": "KV tokens of running sequences.",
    "num_cached_tokens": "KV tokens that the prefix cache holds and no sequence uses.",
    "max_total_num_tokens": "Size of the KV pool in tokens.",
    "token_usage": "Share of the KV pool that running sequences use.",
    "gen_throughput": "Generated tokens per second.",
    "cache_hit_rate": "Share of prompt tokens served from the prefix cache since start.",
}
COUNTERS = {  # the name in /metrics gains _total
    "prompt_tokens": "Prompt tokens of admitted sequences.",
    "generation_tokens": "Generated tokens.",
    "cached_tokens": "Prompt tokens served from the prefix cache.",
    "evicted_tokens": "KV tokens dropped from the prefix cache.",
    "jump_forward_tokens": "Generated tokens that a constraint forced, without a step of their own.",
    "num_retractions": "Sequences sent back to the queue because KV memory ran out.",
    "num_requests": "Sequences submitted.",
    "num_aborted_requests": "Sequences whose client left or cancelled before the end.",
}


class Histogram:
    """Counts per bucket; `bounds` are the buckets' upper ends."""

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, help: str, model: str) -> Metric:
        family = HistogramMetricFamily(name, help, labels=["model_name"])
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        family.add_metric([model], list(zip(ends, accumulate(self._counts), strict=True)), self._sum)
        return family


class Metrics:
    def __init__(self, model: str):
        self.stats = Stats()
        self.requests = 0
        self.aborted = 0
        self.queued = Histogram(FIRST_TOKEN_S)
        self.first_token = Histogram(FIRST_TOKEN_S)
        self.between_tokens = Histogram(BETWEEN_TOKENS_S)
        self.request = Histogram(REQUEST_S)
        self._model = model
        self._mark = (0.0, 0)  # time, generated tokens
        self._rate = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)  # pyright: ignore[reportArgumentType]  # a collector by having collect()

    def step(self, stats: Stats, now: float) -> None:
        self.stats = stats
        since, tokens = self._mark
        if now - since >= RATE_WINDOW_S:
            idle = now - since > 10 * RATE_WINDOW_S  # the window began before a pause: it says nothing of now
            self._rate = 0.0 if idle else (stats.generated_tokens - tokens) / (now - since)
            self._mark = (now, stats.generated_tokens)

    def gauges(self, now: float) -> dict[str, float]:
        s = self.stats
        return {
            "num_running_reqs": s.running,
            "num_queue_reqs": s.waiting,
            "num_used_tokens": s.used_tokens,
            "num_cached_tokens": s.cached_tokens,
            "max_total_num_tokens": s.total_tokens,
            "token_usage": s.used_tokens / max(s.total_tokens, 1),
            "gen_throughput": self._rate if now - self._mark[0] < 3 * RATE_WINDOW_S else 0.0,
            "cache_hit_rate": s.prompt_cached_tokens / max(s.prompt_tokens, 1),
        }

    def counters(self) -> dict[str, int]:
        s = self.stats
        return {
            "prompt_tokens": s.prompt_tokens,
            "generation_tokens": s.generated_tokens,
            "cached_tokens": s.prompt_cached_tokens,
            "evicted_tokens": s.evicted_tokens,
            "jump_forward_tokens": s.jumped_tokens,
            "num_retractions": s.retractions,
            "num_requests": self.requests,
            "num_aborted_requests": self.aborted,
        }

    def collect(self) -> Iterator[Metric]:
        """prometheus_client's collector protocol."""
        import time

        for name, value in self.gauges(time.monotonic()).items():
            gauge = GaugeMetricFamily(f"sglang:{name}", GAUGES[name], labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, value in self.counters().items():
            counter = CounterMetricFamily(f"sglang:{name}", COUNTERS[name], labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        for histogram, name, help in (
            (self.queued, "queue_time_seconds", "From the arrival of a sequence at the scheduler to its admission."),
            (self.first_token, "time_to_first_token_seconds", "From the arrival of a request to its first token."),
            (self.between_tokens, "inter_token_latency_seconds", "Between two tokens of a sequence."),
            (self.request, "e2e_request_latency_seconds", "From the arrival of a request to its last token."),
        ):
            yield histogram.family(f"sglang:{name}", help, self._model)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
