"""The maths of the report, on records whose figures are known by hand."""

import math

import numpy as np
import pytest

from sglang.bench.apis import Job, Record
from sglang.bench.figures import figures, statistics, table

FIRST = Record(Job([1], 10, 4), sent=100.0, end=101.5, times=[100.5, 100.75, 101.0, 101.25], input_tokens=10,
               output_tokens=4)  # fmt: skip
# Seven tokens in three events, as a server with a stream interval sends them.
SECOND = Record(Job([1], 20, 7), sent=100.25, end=102.0, times=[100.5, 101.0, 101.75], input_tokens=20, output_tokens=7,
                cached_tokens=8)  # fmt: skip
FAILED = Record(Job([1], 5, 5), sent=100.0, end=104.0, error="HTTP 503: full")
META = {"backend": "sglang", "request_rate": "inf", "max_concurrency": None}


def test_latencies_are_what_their_names_say():
    found = figures([FIRST, SECOND])
    assert found["mean_ttft_ms"] == pytest.approx((500 + 250) / 2)
    assert found["mean_e2e_latency_ms"] == pytest.approx((1500 + 1750) / 2)
    assert found["mean_tpot_ms"] == pytest.approx((750 / 3 + 1250 / 6) / 2), "tokens count, not events"
    assert found["median_itl_ms"] == pytest.approx(np.median([250, 250, 250, 500, 750]))
    assert found["max_itl_ms"] == pytest.approx(750)
    assert found["tokens_per_event"] == pytest.approx(11 / 7)


def test_rates_are_totals_over_the_time_from_the_first_sending_to_the_last_end():
    found = figures([FIRST, SECOND])
    assert found["duration"] == pytest.approx(2)
    assert (found["total_input_tokens"], found["total_output_tokens"], found["cached_tokens"]) == (30, 11, 8)
    assert found["output_throughput"] == pytest.approx(5.5)
    assert found["total_throughput"] == pytest.approx(20.5)
    assert found["request_throughput"] == pytest.approx(1)
    assert found["concurrency"] == pytest.approx((1.5 + 1.75) / 2)


def test_a_failed_request_is_counted_and_nothing_else_of_it():
    found = figures([FIRST, SECOND, FAILED])
    assert (found["completed"], found["failed"]) == (2, 1)
    assert found["mean_ttft_ms"] == figures([FIRST, SECOND])["mean_ttft_ms"]
    assert found["duration"] == pytest.approx(4)


def test_percentiles_are_interpolated():
    found = statistics("x", [i / 1000 for i in range(101)])
    assert (found["median_x_ms"], found["p90_x_ms"], found["p99_x_ms"]) == pytest.approx((50, 90, 99))
    assert found["std_x_ms"] == pytest.approx(math.sqrt((101**2 - 1) / 12))


@pytest.mark.parametrize("records", [[], [FAILED]])
def test_nothing_to_tell_is_told_as_nothing(records: list[Record]):
    found = figures(records)
    assert found["completed"] == found["output_throughput"] == 0
    assert found["mean_ttft_ms"] is None
    assert "TTFT" not in table({**META, **found})


def test_without_streaming_only_the_whole_answer_has_a_time():
    found = figures([FIRST], streamed=False)
    assert found["mean_e2e_latency_ms"] == pytest.approx(1500)
    assert found["mean_ttft_ms"] is found["mean_itl_ms"] is found["tokens_per_event"] is None


def test_the_table_names_every_field():
    text = table({**META, **figures([FIRST, SECOND, FAILED])})
    lines = text.splitlines()
    assert {len(lines[0]), len(lines[-1])} == {50}
    for line in ("Successful requests:                     2", "Failed requests:                         1",
                 "Total input tokens:                      30", "Output token throughput (tok/s):         2.75",
                 "Mean TTFT (ms):                          375.00", "P99 ITL (ms):                            740.00",
                 "Median E2E Latency (ms):                 1625.00"):  # fmt: skip
        assert line in lines
    assert "Max request concurrency:                 not set" in lines
