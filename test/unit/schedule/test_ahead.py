"""A sequence that is told ahead how it goes on when its generation ends: no turn of the loop is lost between two."""

import random

import pytest
from fake_engine import VOCAB
from test_schedule import EOS, Run, expected, submit

from sglang.base.messages import AT_END, Abort, Extend
from sglang.base.sampling import SamplingParams
from sglang.schedule.state import Status


def then(id: int, of: int, tokens: list[int], n: int = 5, keep: int = AT_END, **more: object) -> Extend:
    stop = bool(more.pop("stop", False))
    return Extend(id, of, keep, tokens, SamplingParams(max_new_tokens=n, temperature=0, ignore_eos=not stop), **more)  # type: ignore[arg-type]


def until_eos(start: int = 0) -> tuple[list[int], list[int]]:
    """A prompt after which the end comes soon, and what is said until then."""
    for seed in range(start, start + 500):
        prompt = [seed % VOCAB, seed // VOCAB, 7]
        said = expected(prompt, 12, (EOS,))
        if said[-1] == EOS and len(said) > 2:
            return prompt, said
    raise AssertionError("no prompt ends")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("ends", ["length", "stop"])
def test_the_step_after_the_last_token_computes_what_follows(depth: int, ends: str) -> None:
    run = Run(depth)
    prompt, said = until_eos() if ends == "stop" else ([1, 2, 4], expected([1, 2, 4], 6))
    run.send(submit(1, prompt, 12 if ends == "stop" else 6, hold=True, ignore_eos=ends == "length"))
    run.send(then(2, 1, [8, 9], 4))
    run.drain()
    text = said[:-1] if ends == "stop" else said
    assert run.got[1] == said and run.finish[1].type == ends
    assert run.got[2] == expected([*prompt, *text, 8, 9], 4)
    # Nothing lies between: as many steps as tokens, but for what was drawn before the stop token was seen.
    assert len(run.plans) == len(said) + 4 + (depth if ends == "stop" else 0)
    assert not run.state.seqs


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("turns", range(12))
def test_another_continuation_takes_the_place_of_one_sent_ahead_done_or_not(depth: int, turns: int) -> None:
    run = Run(depth)
    run.send(submit(1, [1, 2, 4], 4, hold=True))
    run.send(then(2, 1, [8, 9], 5, hold=True))
    for _ in range(turns):
        run.step()
    said = expected([1, 2, 4], 4)
    seen = min(len(run.got[1]), 2)
    run.send(then(3, 1, [5, 6], 3, keep=3 + seen, ahead=2))
    run.drain()
    assert run.got[3] == expected([1, 2, 4, *said[:seen], 5, 6], 3)
    assert not run.state.seqs


def test_one_that_comes_after_the_end_is_done_at_once() -> None:
    run = Run()
    prompt, said = until_eos()
    run.send(submit(1, prompt, 12, hold=True, ignore_eos=False))
    run.drain()
    run.send(then(2, 1, [8], 3))
    run.drain()
    assert run.got[2] == expected([*prompt, *said[:-1], 8], 3)


@pytest.mark.parametrize("turns", range(8))
def test_who_leaves_ends_it_by_whichever_name_it_has(turns: int) -> None:
    run = Run(1)
    run.send(submit(1, [1, 2, 4], 4, hold=True))
    run.send(then(2, 1, [8, 9], 5, hold=True))
    for _ in range(turns):
        run.step()
    run.send(Abort(1))
    run.send(Abort(2))
    run.drain()
    assert not run.state.seqs and len(run.state.slots) == run.budget.slots


def test_what_does_not_fit_is_refused_and_another_may_still_follow() -> None:
    run = Run(context_length=12)
    run.send(submit(1, [1, 2, 4], 4, hold=True))
    run.send(then(2, 1, [8] * 9, 5))
    run.drain()
    assert run.finish[2].status == 400
    assert run.state.seqs[2].status is Status.HELD
    run.send(then(3, 1, [5], 2, keep=6, ahead=2))
    run.drain()
    assert run.got[3] == expected([1, 2, 4, *expected([1, 2, 4], 3), 5], 2)
    run.send(submit(4, [1, 2], 2, hold=True))
    run.send(then(5, 4, [8] * 9, 5))
    run.drain()
    run.send(Abort(4))
    run.send(Abort(5))
    assert not run.state.seqs


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("page_size", [1, 4])
def test_a_crowd_of_chains_in_a_small_pool_says_what_each_says_alone(depth: int, page_size: int) -> None:
    run = Run(depth, pages=80 // page_size, page_size=page_size, slots=3)
    draw = random.Random(depth)
    want: dict[int, list[int]] = {}
    text = {chain: [draw.randrange(VOCAB) for _ in range(draw.randrange(1, 9))] for chain in range(0, 120, 10)}
    sent = dict.fromkeys(text, 0)
    while any(count < 5 for count in sent.values()):
        chain = draw.choice(list(text))
        link, tokens, n = sent[chain], text[chain], draw.randrange(6)
        if link < 5 and (link < 2 or chain + link - 1 in run.finish):  # at most one is sent ahead
            more = [draw.randrange(VOCAB) for _ in range(draw.randrange(3))]
            id = chain + link + 1
            if link:
                run.send(then(id, id - 1, more, n, hold=link < 4, stop=True))
                tokens += more
            else:
                run.send(submit(id, tokens, n, hold=True, ignore_eos=False))
            want[id] = expected(tokens, n, (EOS,))
            tokens += want[id][:-1] if want[id] and want[id][-1] == EOS else want[id]
            sent[chain] += 1
        run.step()
    run.drain()
    assert {id: run.got[id] for id in want} == want
    assert not run.state.seqs
