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

    LOOK = 0.003

    def __init__(self, took: Callable[[Plan], float], host: float, launch: float = 0.0005):
        """took: of the device; host: of planning; launch: from a plan to the first kernels, and again to the last."""
        self.took, self.host, self.launch = took, host, launch
        self.hosts: dict[int, float] = {}  # of steps whose launch takes longer, and they with it
        self.pace = Pace()
        self.now = self.ends = 0.0
        self.flying: tuple[Plan, float] | None = None
        self.gaps: list[float] = []
        self.spares: list[float] = []

    def step(self, plan: Plan) -> None:
        spared = 0.0
        while self.flying is not None and self.now < self.ends and (spare := self.pace.spare(self.now)) > 0:
            waited = min(spare, self.LOOK)
            self.now, spared = self.now + waited, spared + waited
        began = self.now
        self.now += self.host
        before = self.flying
        self.pace.planned(plan, began, self.now, late=before is None or self.now >= self.ends)
        slow = self.hosts.get(len(self.gaps), 0.0)
        begins = max(self.now + self.launch, self.ends)
        self.gaps.append(begins - self.ends)
        self.spares.append(spared)
        before_ends, took = self.ends, max(self.took(plan), slow)
        self.ends, self.flying = begins + took, (plan, took)
        self.now += 2 * self.launch + slow
        if before is not None:
            waiting = self.now
            self.now = max(self.now, before_ends)
            self.pace.landed(before[0], before[1], plan, waiting, self.now)


@pytest.mark.parametrize("host", [0.0002, 0.001, 0.004])
@pytest.mark.parametrize("launch", [0.0002, 0.001, 0.004])
def test_most_of_a_step_is_spare_and_the_device_waits_little(host: float, launch: float) -> None:
    run = Run(lambda plan: 0.015, host, launch)
    for _ in range(400):
        run.step(plan(64))
    assert sum(run.gaps[100:]) / 300 < max(0.0001, launch - 0.001)
    assert np.mean(run.spares[100:]) > 0.015 - host - 2 * launch - 0.002


def test_a_host_slower_than_the_device_is_not_told_to_wait() -> None:
    run = Run(lambda plan: 0.004, host=0.006)
    for _ in range(400):
        run.step(plan(64))
    assert sum(run.spares[10:]) == 0


def test_steps_of_all_kinds_leave_few_gaps() -> None:
    dice = random.Random(1)
    run = Run(lambda plan: (0.004 + 22e-6 * len(plan.tokens)) * dice.uniform(0.97, 1.03), 0.001)
    for _ in range(1000):
        run.step(plan(dice.randrange(30, 60), dice.choice([0, 0, 300, 700, 2000])))
    total = sum(run.gaps[200:])
    assert total < 0.01 * run.now, f"{total} s of {run.now}"
    assert np.mean(run.spares[200:]) > 0.004


def test_a_kind_that_was_never_seen_is_planned_for_at_once() -> None:
    pace = Pace()
    pace.planned(plan(8), 1.0, 1.001, late=True)
    assert pace.spare(1.001) <= 0


@pytest.mark.parametrize("slow_device", [False, True])
def test_a_step_that_took_seconds_once_is_not_waited_for_again(slow_device: bool) -> None:
    """Its launch did, or the device itself."""
    run = Run(lambda plan: 2.0 if slow_device and len(run.gaps) in (20, 21, 22, 23) else 0.01, 0.001)
    run.hosts = {} if slow_device else dict.fromkeys((20, 21, 22, 23), 2.0)
    for _ in range(60):
        run.step(plan(64))
    assert sum(run.gaps[24:]) < 0.02
    assert np.mean(run.spares[40:]) > 0.005
