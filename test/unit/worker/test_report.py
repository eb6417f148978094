"""The lines operators read, and the end of a worker whose step hangs."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from test_schedule import Run, submit

from sglang.base.plan import Plan
from sglang.worker.report import Report


def follow(run: Run, report: Report, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.INFO, "sglang.worker"):
        told = 0
        while run.step():
            for plan in run.plans[told:]:
                report.step(plan, run.state, run.now)
            told = len(run.plans)
    return [record.getMessage() for record in caplog.records]


def test_prefills_and_decodes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    run.send(submit(1, [1, 2, 3, 4], 8))
    run.send(submit(2, [5, 6], 8))
    lines = follow(run, Report(2), caplog)
    assert lines[0].startswith("Prefill batch. #new-seq: 2, #new-token: 6, #cached-token: 0, cache hit rate: 0.00%")
    decodes = [line for line in lines if line.startswith("Decode batch. #running-req: 2")]
    assert decodes
    assert all("token usage: 0." in line and "gen throughput (token/s): 200.00" in line for line in decodes)


def test_debugging_tells_what_each_step_computed_and_how_long_it_took(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    run.send(submit(1, [1, 2, 3, 4], 8))
    run.step()
    run.send(submit(2, [5, 6], 8))
    run.step()
    with caplog.at_level(logging.DEBUG, "sglang.worker"):
        for plan, took_s in zip(run.plans, (None, 0.0125), strict=True):
            Report(2).step(plan, run.state, 7.0, took_s)
    lines = [line for record in caplog.records if (line := record.getMessage()).startswith("step at 7.0000: ")]
    assert [line.removeprefix("step at 7.0000: ").rpartition(",")[0] for line in lines] == [
        "0 decodes, 4 tokens of 1 prompts, device ms: not known",
        "1 decodes, 2 tokens of 1 prompts, device ms: 12.50",
    ]


def test_a_prefill_line_tells_what_the_cache_gave_since_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    report = Report(1000)
    for id in (1, 2):
        run.send(submit(id, [1, 2, 3, 4, 5, 6], 1))
        follow(run, report, caplog)
    lines = [record.getMessage() for record in caplog.records]
    assert "#new-token: 6, #cached-token: 0," in lines[0]
    assert "#cached-token: 5," in lines[1]


def test_retractions_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(pages=24, conservativeness=0.01)
    for id in range(3):
        run.send(submit(id, [id, id + 1, id + 2], 15))
    lines = follow(run, Report(1000), caplog)
    assert any(line.startswith("decode out of memory happened, #retracted_reqs: ") for line in lines)


def test_a_step_without_rows_of_prompts_is_no_prefill(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    one = np.ones(1, np.int32)
    nothing = np.zeros(0, np.int32)
    plan = Plan(0, one * 0, one, one, one.astype(bool), one, nothing, nothing, nothing)
    with caplog.at_level(logging.INFO, "sglang.worker"):
        Report(1000).step(plan, run.state, 0.0)
    assert not caplog.records


HANGS = """
import time
from sglang.worker.report import Report
report = Report(1, 0.2, lambda why: print("told:", why, flush=True))
report.beat(busy=False)
time.sleep(0.6)
print("idle is no hang", flush=True)
report.beat(busy=True)
time.sleep(600)
"""


def test_a_hanging_step_ends_the_process_with_its_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "idle is no hang"
    assert "--watchdog-timeout 0.2 s" in done.stdout
    assert "most recent call first" in done.stderr
