"""Pace, against a simulated device that runs one step after another."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from sglang.base.plan import Plan
from sglang.worker.pace import Pace

STEPS = itertools.count()


def plan(rows: int, prompt: int = 0) -> Plan:
    none = np.empty(0, np.int32)
    counts = np.ones(rows, np.int32)
    counts[0] += prompt
    tokens = np.zeros(counts.sum(), np.int32)
    return Plan(next(STEPS), counts, counts, counts, counts > 0, tokens, none, none, none)


class Run:
    """The loop's own order: wait as the pace says, plan and launch, wait for the step before."""

    def __init__(self, took: Callable[[Plan], float], host: float):
        self.took, self.host = took, host
        self.hosts: dict[int, float] = {}  # of steps whose launch takes longer
        self.pace = Pace()
        self.now = self.ends = 0.0
        self.flying: Plan | None = None
        self.gaps: list[float] = []
        self.spares: list[float] = []

    def step(self, plan: Plan) -> None:
        spare = 0.0
        if self.flying is not None:
            spare = max(0.0, self.pace.spare(self.now))
            self.now += spare
        began = self.now
        self.now += self.hosts.get(len(self.gaps), self.host)
        self.gaps.append(max(0.0, self.now - self.ends))
        self.spares.append(spare)
        before, self.flying = self.flying, plan
        before_ends = self.ends
        self.ends = max(self.now, self.ends) + self.took(plan)
        self.pace.launched(plan, began, self.now, alone=before is None)
        if before is not None:
            waited = max(0.0, before_ends - self.now)
            self.now += waited
            self.pace.landed(before, plan, waited, self.now)


@pytest.mark.parametrize("host", [0.0002, 0.001, 0.004])
def test_most_of_a_step_is_spare_and_the_device_does_not_wait(host: float) -> None:
    run = Run(lambda plan: 0.015, host)
    for _ in range(400):
        run.step(plan(64))
    assert sum(run.gaps[100:]) / 300 < 0.0002, "the device waited"
    assert np.mean(run.spares[100:]) > 0.7 * (0.015 - host) - 0.002


def test_a_host_slower_than_the_device_is_not_told_to_wait_for_ever() -> None:
    run = Run(lambda plan: 0.004, host=0.006)
    for _ in range(400):
        run.step(plan(64))
    assert np.mean(run.spares[100:]) < 0.0005, "what the host does not have it cannot spare"


def test_steps_of_all_kinds_leave_few_gaps() -> None:
    dice = random.Random(1)
    run = Run(lambda plan: (0.004 + 22e-6 * len(plan.tokens)) * dice.uniform(0.97, 1.03), 0.001)
    for _ in range(1000):
        run.step(plan(dice.randrange(30, 60), dice.choice([0, 0, 300, 700, 2000])))
    total = sum(run.gaps[200:])
    assert total < 0.01 * (run.now - 0.0), f"{total} s of {run.now}"
    assert np.mean(run.spares[200:]) > 0.004


def test_a_kind_that_was_never_seen_is_planned_for_at_once() -> None:
    pace = Pace()
    pace.launched(plan(8), 1.0, 1.001, alone=True)
    assert pace.spare(1.0) <= 0


@pytest.mark.parametrize("slow_device", [False, True])
def test_a_step_that_took_seconds_once_is_not_waited_for_again(slow_device: bool) -> None:
    """Its launch did, or the device itself."""
    run = Run(lambda plan: 2.0 if slow_device and len(run.gaps) in (20, 21, 22, 23) else 0.01, 0.001)
    run.hosts = {} if slow_device else dict.fromkeys((20, 21, 22, 23), 2.0)
    for _ in range(60):
        run.step(plan(64))
    assert sum(run.gaps[24:]) < (2.1 if slow_device else 0.1)
    assert np.mean(run.spares[40:]) > 0.005
