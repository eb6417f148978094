"""The worker's loop over the fake device of the scheduler's tests."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import FakeEngine, Landed, next_token
from test_schedule import budget

from sglang import schedule
from sglang.base.link import Link, pair
from sglang.base.messages import Abort, Failed, Flush, Flushed, FromWorker, Piece, Step, Stop, Submit, ToWorker, pack
from sglang.base.plan import Plan, Result
from sglang.base.sampling import SamplingParams
from sglang.worker.loop import last_words, serve
from sglang.worker.quiet import LEAST_S
from sglang.worker.report import Report

HANG_S = 100  # what takes longer hangs


class Device(FakeEngine):
    """Notes in which order steps are launched and waited for; fails at the step that it is told to."""

    def __init__(self, overlap: bool, fails_at: int | None = None):
        super().__init__(64, 1, 4)
        self.overlap = overlap
        self.fails_at = fails_at
        self.order: list[str] = []
        self.preparations: list[float] = []  # that are left: what pause each needs
        self.quiet_s: list[float] = []  # before each that was done
        self.long: threading.Event | None = None  # preparations begin with it, and last until somebody comes

    def prepare(self, quiet_s: float, wanted: Callable[[], bool]) -> float | None:
        if self.preparations and quiet_s >= self.preparations[0]:
            self.order.append("prepare")
            self.quiet_s.append(quiet_s)
            if self.long is not None:
                self.long.set()
                while not wanted():
                    time.sleep(0.001)
            del self.preparations[0]
        return self.preparations[0] if self.preparations else None

    def launch(self, plan: Plan) -> "Noted":  # type: ignore[override]  # a Landed that tells
        n = sum(event.startswith("launch") for event in self.order)
        if n == self.fails_at:
            raise RuntimeError("the device is on fire")
        self.order.append(f"launch {n}")
        return Noted(super().launch(plan), self.order, n)


class Noted:
    took_s = None

    def __init__(self, landed: Landed, order: list[str], n: int):
        self._landed, self._order, self._n = landed, order, n

    def done(self) -> bool:
        return self._landed.done()

    def wait(self) -> Result:
        self._order.append(f"wait {self._n}")
        return self._landed.wait()


class Running:
    """`serve` in a thread, and the front's end of its link."""

    def __init__(self, device: Device, overlap: bool = True):
        self.link: Link[FromWorker, ToWorker]
        self.link, far = pair()
        self.state = schedule.State(budget())
        self.error: BaseException | None = None

        def run() -> None:
            try:
                serve(far, self.state, device, Report(1000), overlap)
            except BaseException as error:
                self.error = error
                last_words(far, str(error))

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def steps(self, until: Any) -> list[Any]:
        """Messages up to the first of which `until` is true."""
        seen: list[Any] = []
        while True:
            for message in self.link.receive(20):
                seen.append(message)
                if until(message):
                    return seen

    def stop(self) -> None:
        self.link.send(Stop())
        self.thread.join(HANG_S)
        assert not self.thread.is_alive()


def submit(id: int, tokens: list[int], n: int) -> Submit:
    return Submit(id, pack(tokens), SamplingParams(max_new_tokens=n, temperature=0, ignore_eos=True))


def pieces_of(messages: list[Any], id: int) -> list[Piece]:
    return [piece for m in messages if isinstance(m, Step) for piece in m.pieces if piece.id == id]


def ended(id: int) -> Any:
    return lambda m: isinstance(m, Step) and any(p.id == id and p.finish for p in m.pieces)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sequence_is_served_token_by_token(overlap: bool) -> None:
    device = Device(overlap)
    running = Running(device)
    running.link.send(submit(1, [3, 4], 5))
    messages = running.steps(ended(1))
    tokens = [t for piece in pieces_of(messages, 1) for t in piece.tokens]
    known = [3, 4]
    for token in tokens:
        assert token == next_token(known)
        known.append(token)
    assert len(tokens) == 5
    [waited_s] = [s for m in messages for s in m.waited]
    assert 0 <= waited_s < HANG_S
    running.stop()


def test_a_step_is_launched_before_the_last_one_is_read() -> None:
    device = Device(overlap=True)
    running = Running(device)
    running.link.send(submit(1, [3, 4], 4))
    running.steps(ended(1))
    running.stop()
    at = {event: i for i, event in enumerate(device.order)}
    assert at["launch 1"] < at["wait 0"] < at["launch 2"] < at["wait 1"]


def test_the_device_prepares_while_nobody_waits_until_it_has_done_all() -> None:
    device = Device(overlap=True)
    device.preparations = [0.0] * 3
    running = Running(device)
    while device.order.count("prepare") < 3:
        time.sleep(0.001)
    for id in (1, 2):
        running.link.send(submit(id, [1, 2, 3], 4))
        running.steps(ended(id))
    running.stop()
    assert device.order[:3] == ["prepare"] * 3
    assert "prepare" not in device.order[3:]


def test_what_a_step_showed_is_prepared_for_after_a_pause() -> None:
    device = Device(overlap=True)
    running = Running(device)
    for id in (1, 2):
        running.link.send(submit(id, [1, 2, 3], 4))
        running.steps(ended(id))
        device.preparations = [0.0, 2 * LEAST_S]
        while device.preparations:
            time.sleep(0.001)
    running.stop()
    assert [event[:7] for event in device.order if not event.startswith("wait")] == [
        *["launch "] * 4, "prepare", "prepare", *["launch "] * 4, "prepare", "prepare",
    ]  # fmt: skip
    for soon, later in (device.quiet_s[:2], device.quiet_s[2:]):
        assert soon >= LEAST_S
        assert later >= 2 * LEAST_S


def test_whoever_comes_while_the_device_prepares_is_served_at_once() -> None:
    device = Device(overlap=True)
    device.preparations, device.long = [0.0] * 2, threading.Event()
    running = Running(device)
    assert device.long.wait(HANG_S)
    running.link.send(submit(1, [1, 2, 3], 4))
    running.steps(ended(1))
    running.stop()
    assert device.order[0] == "prepare"
    assert device.order[1] == "launch 0"


def test_overlap_can_be_turned_off() -> None:
    device = Device(overlap=True)
    running = Running(device, overlap=False)
    running.link.send(submit(1, [3, 4], 3))
    running.steps(ended(1))
    running.stop()
    assert device.order == ["launch 0", "wait 0", "launch 1", "wait 1", "launch 2", "wait 2"]


def test_departures_are_told_while_nothing_runs() -> None:
    running = Running(Device(overlap=False))
    running.link.send(
        Submit(1, pack([1, 2]), SamplingParams(max_new_tokens=2, temperature=0, ignore_eos=True), hold=True)
    )
    seen = running.steps(ended(1))
    assert seen[-1].stats.used_tokens > 0, "a held sequence keeps its place"
    running.link.send(Abort(1))
    told = running.steps(lambda m: isinstance(m, Step))
    assert told[-1].stats.used_tokens == 0
    assert told[-1].stats.running == 0
    running.stop()


def test_the_cache_is_emptied_only_while_idle() -> None:
    running = Running(Device(overlap=False))
    running.link.send(submit(1, [1, 2, 3], 40))
    running.link.send(Flush(7))
    seen = running.steps(ended(1))
    assert Flushed(7, False) in seen
    running.link.send(Flush(8))
    assert running.steps(lambda m: isinstance(m, Flushed)) == [Flushed(8, True)]
    running.stop()


def test_a_failing_device_ends_the_worker_with_its_reason() -> None:
    running = Running(Device(overlap=False, fails_at=2))
    running.link.send(submit(1, [1, 2, 3], 40))
    seen = running.steps(lambda m: isinstance(m, Failed))
    assert seen[-1] == Failed("the device is on fire")
    running.thread.join(HANG_S)
    assert isinstance(running.error, RuntimeError)
