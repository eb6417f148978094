"""serve(): receive, plan, launch, commit, send, until told to stop.

Depth 1 (CUDA): step N + 1 is planned and launched before step N's tokens are read, so the device never waits for us;
and as late as that allows (`pace`), so that requests do not wait for a step that was planned before they came.
Depth 0 (CPU): a launch computes at once, so there is nothing to overlap with.
While nobody has come for a while (`quiet`) the device prepares for later steps.
"""

import time
from collections.abc import Callable
from typing import Protocol

from sglang import schedule
from sglang.base.link import Link
from sglang.base.messages import Failed, Flush, Flushed, FromWorker, Piece, Step, Stop, ToWorker
from sglang.base.plan import Plan, Result
from sglang.worker.grammars import Grammars
from sglang.worker.pace import Pace
from sglang.worker.quiet import Quiet
from sglang.worker.report import Report

RESOLUTION_S = 0.001  # of the wait for a message
LOOK_S = 0.003  # between two looks whether a step has ended that was thought to take longer
COMPILING_S = 0.001  # between two looks whether a constraint is compiled, where nothing else is to be done


class Flight(Protocol):
    @property
    def took_s(self) -> float | None:
        """Seconds of the device, after `wait`; None where a launch is all there is."""
        ...

    def done(self) -> bool: ...

    def wait(self) -> Result: ...


class Device(Protocol):
    """What the loop needs of an engine."""

    overlap: bool  # launches return before the device is done

    def launch(self, plan: Plan) -> Flight: ...

    def prepare(self, quiet_s: float, wanted: Callable[[], bool]) -> float | None:
        """Do a little of what later steps would wait for otherwise, while there is no step, and leave it soon once
        somebody is `wanted`. quiet_s: for how long nobody was.

        How long that must be for what is left to do; None: nothing is.
        """
        ...


def serve(
    link: Link[ToWorker, FromWorker],
    state: schedule.State,
    device: Device,
    report: Report,
    overlap: bool = True,
    clock: Callable[[], float] = time.monotonic,
    grammars: Grammars | None = None,
) -> None:
    """Run until a Stop arrives. Raises what the engine raises: a failed step is a failed worker.

    grammars: None where every request is free.
    """
    flying: tuple[Plan, Flight] | None = None
    overlap = overlap and device.overlap
    stalled = False  # nothing could be planned: only a message changes that
    quiet = Quiet(clock())
    unprepared: float | None = 0.0 if device.overlap else None  # the pause that what is left to prepare needs
    pace = Pace()

    messages: list[ToWorker] = []

    def come() -> bool:
        messages.extend(link.receive())
        return len(messages) > 0

    while True:
        waiting = flying is None and (stalled or state.idle)
        report.beat(busy=not waiting)
        compiling = grammars is not None and grammars.waiting > 0
        messages = []
        if waiting and unprepared is not None and not compiling:
            messages += link.receive(quiet.left(clock(), unprepared))
            if not messages and quiet.left(clock(), unprepared) > 0:
                continue
            if not messages:
                unprepared = device.prepare(quiet.lasted(clock()), come)
                quiet.prepared(disturbed=come())
                if not messages:
                    continue
        else:
            messages += link.receive((COMPILING_S if compiling else None) if waiting else 0.0)
        while flying is not None and not flying[1].done() and (spare := pace.spare(clock())) >= RESOLUTION_S:
            messages += link.receive(min(spare, LOOK_S))
        now = clock()
        pieces: list[Piece] = []
        for message in messages:
            match message:
                case Stop():
                    return
                case Flush():
                    link.send(Flushed(message.ticket, schedule.flush(state)))
                case _:
                    if grammars is None or not grammars.keep(message, pieces):
                        pieces += schedule.apply(state, message, now)
        if grammars is not None:
            for message, cursor in grammars.ready(pieces):
                pieces += schedule.apply(state, message, now, cursor)
        plan = schedule.plan(state, now)
        landed, flying = flying, None
        stalled = plan is None and landed is None
        if plan is not None:
            late = landed is None or landed[1].done()
            pace.planned(plan, now, clock(), late)
            flying = (plan, device.launch(plan))
            unprepared = 0.0 if device.overlap else None  # it may have shown what to be ready for
            if not overlap:
                landed, flying = flying, None
        if landed is not None:
            done, flight = landed
            began = clock()
            result = flight.wait()
            pace.landed(done, flight.took_s, flying[0] if flying is not None else None, began, clock())
            pieces += schedule.commit(state, done, result, clock())
            report.step(done, state, clock(), flight.took_s)
        if pieces or messages or landed is not None:
            stats = state.stats()
            stats.compiling = grammars.waiting if grammars is not None else 0
            waited, state.waited = state.waited, []
            link.send(Step(pieces, stats, waited))
        quiet.worked(clock())


def last_words(link: Link[ToWorker, FromWorker], reason: str, setting: bool = False) -> None:
    """Tell the front why the worker ends; it tells everybody who waits."""
    link.send(Failed(reason, setting))
