"""The pause before the device prepares, on a clock of our own."""

import random

from sglang.worker.quiet import LEAST_S, MOST_S, Quiet


def test_at_the_start_there_is_no_pause_and_after_work_there_is() -> None:
    quiet = Quiet(3.0)
    assert quiet.left(3.0, 0.0) == 0
    assert quiet.left(3.0, 1.0) == 1
    quiet.prepared(False)
    assert quiet.left(3.0, 0.0) == 0
    quiet.worked(4.0)
    assert quiet.left(4.0, 0.0) == LEAST_S
    assert quiet.left(4.5, 0.0) == 0
    assert quiet.lasted(4.5) == 0.5


def test_the_pause_grows_where_somebody_comes_and_shrinks_where_nobody_does() -> None:
    quiet = Quiet(0.0)
    pauses = []
    for disturbed in (True, True, False, False, False, *[True] * 20):
        quiet.prepared(disturbed)
        pauses.append(quiet.left(0.0, 0.0) / LEAST_S)
    assert pauses[:5] == [2, 4, 2, 1, 1]
    assert pauses[-1] * LEAST_S == MOST_S


def test_a_load_of_single_requests_meets_few_preparations() -> None:
    """24 a second, each worked on for 10 ms; what is prepared takes 100 ms and is not left before."""
    draw = random.Random(0)
    quiet, now, delayed, done = Quiet(0.0), 0.0, 0, 0
    quiet.worked(0.0)
    come = now
    for _ in range(24 * 60):
        come = max(come, now) + draw.expovariate(24)
        while (begin := now + quiet.left(now, 0.0)) < come:
            now = begin + 0.1
            quiet.prepared(now > come)
            done += 1
            delayed += now > come
        now = max(now, come) + 0.01
        quiet.worked(now)
    assert delayed < 30, "of 1440"
    assert done < 60
