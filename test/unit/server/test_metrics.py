"""What the numbers mean, without a server."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sglang.base.messages import Stats
from sglang.server.metrics import BETWEEN_TOKENS_S, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(name, bucket end or "") -> value, read by Prometheus' own parser."""
    text = metrics.render().decode()
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["model_name"] == 'a "b"'
            found[sample.name.removeprefix("sglang:"), sample.labels.get("le", "")] = sample.value
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics('a "b"')


def test_a_histogram_counts_up_to_the_end_of_each_bucket(metrics: Metrics) -> None:
    end = BETWEEN_TOKENS_S[3]
    metrics.between_tokens.observe(end)  # belongs to the bucket that it ends
    metrics.between_tokens.observe(end * 1.01, times=2)
    metrics.between_tokens.observe(1000.0)
    found = samples(metrics)
    name = "inter_token_latency_seconds"
    assert found[f"{name}_bucket", str(BETWEEN_TOKENS_S[2])] == 0
    assert found[f"{name}_bucket", str(end)] == 1
    assert found[f"{name}_bucket", str(BETWEEN_TOKENS_S[4])] == 3
    assert found[f"{name}_bucket", "+Inf"] == found[f"{name}_count", ""] == 4
    assert found[f"{name}_sum", ""] == pytest.approx(end * 3.02 + 1000)


def test_counters_and_gauges_are_the_workers(metrics: Metrics) -> None:
    stats = Stats(
        running=3, waiting=5, used_tokens=25, cached_tokens=7, total_tokens=100, prompt_tokens=40,
        prompt_cached_tokens=10, generated_tokens=9, retractions=2, evicted_tokens=6, jumped_tokens=4,
    )  # fmt: skip
    metrics.step(stats, 1.0)
    found = {name: value for (name, end), value in samples(metrics).items() if not end}
    expected = {
        "num_running_reqs": 3, "num_queue_reqs": 5, "num_used_tokens": 25, "num_cached_tokens": 7,
        "max_total_num_tokens": 100, "token_usage": 0.25, "cache_hit_rate": 0.25, "prompt_tokens_total": 40,
        "cached_tokens_total": 10, "generation_tokens_total": 9, "num_retractions_total": 2,
        "evicted_tokens_total": 6, "jump_forward_tokens_total": 4,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_time_in_the_queue_is_told_by_the_worker(metrics: Metrics) -> None:
    for waited_s in (0.5, 0.002):
        metrics.queued.observe(waited_s)
    found = samples(metrics)
    assert found["queue_time_seconds_count", ""] == 2
    assert found["queue_time_seconds_bucket", "0.005"] == 1


def test_throughput_is_of_the_last_seconds_and_falls_to_zero_when_idle(metrics: Metrics) -> None:
    for i in range(31):
        metrics.step(Stats(generated_tokens=50 * i), 100 + i / 10)
    assert metrics.gauges(103.0)["gen_throughput"] == pytest.approx(500)
    assert metrics.gauges(110.0)["gen_throughput"] == 0
    metrics.step(Stats(generated_tokens=1501), 200.0)
    assert metrics.gauges(200.0)["gen_throughput"] == 0, "the pause is no part of the rate"
    metrics.step(Stats(generated_tokens=1601), 201.0)
    assert metrics.gauges(201.0)["gen_throughput"] == pytest.approx(100)
