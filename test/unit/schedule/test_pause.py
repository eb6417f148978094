"""A sequence that seems to have said a stop string waits for the front's word, and computes nothing meanwhile."""

import pytest
from fake_engine import VOCAB
from test_schedule import Run, expected, submit

from sglang.base.messages import AT_END, Abort, Extend, Resume, Submit, pack
from sglang.base.sampling import SamplingParams
from sglang.schedule.state import Status

PROMPT = [1, 2, 4]
SAID = expected(PROMPT, 12)
WORDS = [f"<{i}>".encode() for i in range(VOCAB)]


def run_until_paused(stop: str, depth: int = 0, **changes: object) -> Run:
    run = Run(depth, **changes)
    run.state.words = WORDS
    run.send(
        Submit(1, pack(PROMPT), SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True, stop=("never", stop)))
    )
    run.drain()
    return run


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("inside", [False, True], ids=["a token", "parts of two"])
def test_it_stops_where_the_stop_string_ends(depth: int, inside: bool) -> None:
    stop = f"{SAID[3]}>" if not inside else f"{SAID[2]}><{SAID[3]}"
    run = run_until_paused(stop, depth)
    assert run.got[1] == SAID[:4] and 1 not in run.finish
    assert [piece.paused for piece in run.pieces[1]] == [False, False, False, True]
    assert run.engine.computed <= len(PROMPT) + 3 + depth
    run.send(Abort(1))
    assert not run.state.seqs


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("parked", [False, True])
def test_it_goes_on_as_if_nothing_had_been_where_it_was_none(depth: int, parked: bool) -> None:
    run = run_until_paused(f"{SAID[3]}>", depth, slots=1)
    if parked:
        run.send(submit(2, [30, 31], 3))
        run.drain()
        assert run.got[2] == expected([30, 31], 3)
        assert run.state.seqs[1].status is Status.PARKED
    run.send(Resume(1))
    run.send(Resume(1))  # a second one means nothing
    run.drain()
    while 1 not in run.finish:  # what it says may say so again
        run.send(Resume(1))
        run.drain()
    assert run.got[1] == SAID and not run.state.seqs


@pytest.mark.parametrize("depth", [0, 1])
def test_what_is_told_ahead_waits_for_the_end(depth: int) -> None:
    run = Run(depth)
    run.state.words = WORDS
    sampling = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True, stop=(f"{SAID[1]}>",))
    then = SamplingParams(max_new_tokens=2, temperature=0, ignore_eos=True)
    run.send(Submit(1, pack(PROMPT), sampling, hold=True))
    run.drain()
    run.send(Extend(2, 1, AT_END, [8], then))
    run.drain()
    assert run.got[1] == SAID[:2] and not run.got[2]
    run.send(Resume(1))
    run.drain()
    assert run.got[1] == SAID[:4] and run.got[2] == expected([*PROMPT, *SAID[:4], 8], 2)
    run.send(Submit(3, pack(PROMPT), sampling, hold=True))
    run.drain()
    run.send(Extend(4, 3, 3 + 1, [9], then))  # it was one: the text before it is kept
    run.drain()
    assert run.got[4] == expected([*PROMPT, SAID[0], 9], 2)
    assert not run.state.seqs
