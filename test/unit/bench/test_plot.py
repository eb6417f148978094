"""The picture of a run exists for every run, however little there is to show. What it looks like is for eyes."""

import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from sglang.bench.apis import Job, Record
from sglang.bench.figures import figures
from sglang.bench.plot import draw, ms

MANY = [
    Record(Job([1], 9, 5), sent=i / 10, end=i / 10 + 2, times=[i / 10 + 1 + t / 7 for t in range(5)], input_tokens=9,
           output_tokens=5)
    for i in range(500)
]  # fmt: skip
ONE_TOKEN = [Record(Job([1], 1, 1), sent=5.0, end=5.1, times=[5.05], input_tokens=1, output_tokens=1)]
FAILED = [Record(Job([1], 1, 1), sent=5.0, end=5.1, error="HTTP 500: no")]


@pytest.mark.parametrize("records", [MANY, ONE_TOKEN, FAILED, ONE_TOKEN + FAILED])
def test_every_run_can_be_drawn(records: list[Record], tmp_path: Path):
    pytest.importorskip("matplotlib")
    run = {"backend": "sglang", "model": "some$model_name", "num_prompts": len(records), "dataset_name": "random",
           "request_rate": "inf", "max_concurrency": None}  # fmt: skip
    draw(records, run | figures(records), tmp_path / "run.svg")
    assert xml.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")


def test_times_are_written_in_a_unit_that_reads_well():
    assert [ms(value) for value in (None, 0.01234, 12.34, 999, 1000, 61_500)] == [
        "–", "0.0123 ms", "12.3 ms", "999 ms", "1 s", "61.5 s"
    ]  # fmt: skip
