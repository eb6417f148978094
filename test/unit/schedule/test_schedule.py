"""The whole scheduler against a device that knows every cell: random workloads, tiny pools, both depths."""

from collections import deque
from typing import Any

import hypothesis.strategies as st
import pytest
from fake_engine import VOCAB, FakeEngine, Landed, next_token, score
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang import schedule
from sglang.base.messages import Abort, Extend, Finish, Logprobs, Piece, Resume, Submit, pack
from sglang.base.plan import Plan
from sglang.base.sampling import SamplingParams

EOS = 3


def budget(**changes: Any) -> schedule.Budget:
    values: dict[str, Any] = {
        "pages": 64, "page_size": 1, "slots": 4, "context_length": 60, "chunk_tokens": 8, "max_prefill_tokens": 32,
        "policy": "lpm", "conservativeness": 1.0, "radix": True, "max_queued": 100, "eos_ids": (EOS,), "seed": 0,
    }  # fmt: skip
    return schedule.Budget(**{**values, **changes})


class Run:
    """A scheduler, a fake engine, and everything each sequence was told."""

    def __init__(self, depth: int = 0, **changes: Any):
        self.budget = budget(**changes)
        self.state = schedule.State(self.budget)
        self.engine = FakeEngine(self.budget.pages, self.budget.page_size, self.budget.slots)
        self.depth = depth
        self.flying: deque[tuple[Plan, Landed]] = deque()
        self.now = 0.0
        self.got: dict[int, list[int]] = {}
        self.finish: dict[int, Finish] = {}
        self.pieces: dict[int, list[Piece]] = {}
        self.plans: list[Plan] = []

    def send(self, message: Submit | Extend | Resume | Abort) -> None:
        if not isinstance(message, Resume | Abort):
            self.got[message.id] = []
            self.finish.pop(message.id, None)
        self._take(schedule.apply(self.state, message, self.now))

    def step(self) -> bool:
        """One turn of the worker's loop; False where nothing could be done."""
        self.now += 0.01
        plan = schedule.plan(self.state, self.now)
        if plan is not None:
            self.plans.append(plan)
            self.flying.append((plan, self.engine.launch(plan)))
        moved = False
        while self.flying and (plan is None or len(self.flying) > self.depth):
            moved = True
            done, flight = self.flying.popleft()
            self._take(schedule.commit(self.state, done, flight.wait(), self.now))
        self.state.check()
        return moved or plan is not None

    def drain(self, limit: int = 20000) -> None:
        for _ in range(limit):
            if not self.step():
                assert self.state.idle, "something waits and nothing can be planned"
                return
        raise AssertionError("this does not end")

    def ends(self) -> list[int]:
        """Runs all; the ids in the order in which they end."""
        ends: list[int] = []
        while self.step():
            ends += [id for id in self.finish if id not in ends]
        return ends

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            assert piece.id not in self.finish, "a piece after the end"
            self.got[piece.id] += piece.tokens
            self.pieces.setdefault(piece.id, []).append(piece)
            if piece.finish is not None:
                self.finish[piece.id] = piece.finish


def submit(id: int, tokens: list[int], n: int = 5, **more: Any) -> Submit:
    ignore = more.pop("ignore_eos", True)
    return Submit(id, pack(tokens), SamplingParams(max_new_tokens=n, temperature=0, ignore_eos=ignore), **more)


def expected(tokens: list[int], n: int, stops: tuple[int, ...] = ()) -> list[int]:
    tokens, out = list(tokens), []
    while len(out) < n:
        out.append(next_token(tokens))
        tokens.append(out[-1])
        if out[-1] in stops:
            break
    return out


@pytest.mark.parametrize("depth", [0, 1])
def test_a_request_gets_its_tokens_and_leaves_nothing_behind(depth: int) -> None:
    run = Run(depth)
    run.send(submit(1, [1, 2, 4], 6))
    run.drain()
    assert run.got[1] == expected([1, 2, 4], 6)
    assert run.finish[1] == Finish("length")
    assert run.state.stats().used_tokens == 0
    assert not run.state.seqs


@pytest.mark.parametrize("depth", [0, 1])
def test_end_of_sequence_ends_it_even_while_the_next_step_flies(depth: int) -> None:
    prompt = next(p for i in range(9999) if EOS in expected(p := [i % VOCAB, i // VOCAB], 10))
    run = Run(depth)
    run.send(submit(1, prompt, 20, ignore_eos=False))
    run.drain()
    assert run.got[1] == expected(prompt, 20, (EOS,))
    assert run.finish[1] == Finish("stop", EOS)


def test_a_second_request_computes_only_what_the_first_did_not() -> None:
    run = Run()
    run.send(submit(1, list(range(20)), 1))
    run.drain()
    before = run.engine.computed
    run.send(submit(2, [*range(20), 7, 7], 1))
    run.drain()
    assert run.engine.computed - before == 2
    assert run.pieces[2][0].cached_tokens == 20


def test_the_last_token_of_a_fully_cached_prompt_is_computed_again() -> None:
    run = Run()
    for id in (1, 2):
        run.send(submit(id, list(range(10)), 1))
        run.drain()
    assert run.pieces[2][0].cached_tokens == 9
    assert run.got[1] == run.got[2]


def test_requests_of_one_step_share_their_prefix_at_once() -> None:
    run = Run(chunk_tokens=-1)
    for id in range(4):
        run.send(submit(id, [*range(30), 40 + id], 2))
    run.drain()
    assert run.engine.computed == 30 + 4 + 4  # the prefix once, each own token, one decode each


def test_prompts_are_cut_into_chunks_that_ride_with_decodes() -> None:
    run = Run(chunk_tokens=8)
    run.send(submit(1, [1], 30))
    run.step()
    run.send(submit(2, list(range(40)), 1))
    run.step()
    assert sorted(run.plans[-1].counts) == [1, 8]
    run.drain()
    assert run.got[2] == expected(list(range(40)), 1)


def test_chunks_are_smaller_while_a_sequence_waits_for_its_next_token() -> None:
    run = Run(chunk_tokens=16, beside_tokens=5)
    run.send(submit(1, list(range(20)), 1))
    run.step()
    run.step()
    assert [plan.counts.tolist() for plan in run.plans] == [[16], [4]]  # alone, then what is left
    run.send(submit(2, [1], 3))
    run.step()
    run.send(submit(3, list(range(100, 140)), 1))
    run.drain()
    # The second decode is the last: what follows has the step to itself.
    assert [plan.counts.tolist() for plan in run.plans[2:]] == [[1], [1, 4], [1, 4], [16], [16]]
    assert run.got[3] == expected(list(range(100, 140)), 1)


def test_prompts_go_on_beside_any_number_of_decodes() -> None:
    run = Run(chunk_tokens=16, beside_tokens=3, pages=200)
    for id in range(3):
        run.send(submit(id, [id], 30))
    run.step()
    run.send(submit(3, list(range(100, 140)), 1))
    run.step()
    assert run.plans[-1].counts.tolist() == [1, 1, 1, 2]


def beside(streams: int, prompts: list[list[int]], **changes: Any) -> list[int]:
    """Tokens of the rows of a step that `prompts` wait for, beside as many streams."""
    run = Run(chunk_tokens=24, beside_tokens=12, slots=16, pages=400, **changes)
    for id in range(streams):
        run.send(submit(id, [id], 30))
    run.step()
    for id, prompt in enumerate(prompts, 100):
        run.send(submit(id, prompt))
    run.step()
    return [n for n in run.plans[-1].counts.tolist() if n > 1]


def prompts(n: int, length: int) -> list[list[int]]:
    return [[100 + i, *range(length - 1)] for i in range(n)]


def test_a_burst_is_computed_in_long_steps() -> None:
    assert beside(4, prompts(5, 4)) == [4, 4, 4, 4, 4]  # all of 24, the streams' own included
    assert beside(6, prompts(5, 4)) == [4, 2]  # more stream than wait
    assert beside(1, prompts(3, 6)) == [6, 5]  # a few are no burst


def test_long_prompts_are_no_burst() -> None:
    assert beside(1, prompts(5, 8)) == [8, 3]


@pytest.mark.parametrize("radix", [True, False])
def test_of_a_burst_counts_what_is_not_cached(radix: bool) -> None:
    run = Run(chunk_tokens=24, beside_tokens=12, slots=16, pages=400, radix=radix)
    run.send(submit(0, list(range(10)), 30))
    run.step()
    for id in range(1, 6):
        run.send(submit(id, [*range(10), 50 + id, 60 + id]))
    run.step()
    assert run.plans[-1].counts.tolist() == ([1, 2, 2, 2, 2, 2] if radix else [1, 11])


def test_a_prompt_among_many_streams_is_cut_shorter() -> None:
    assert beside(8, prompts(1, 20)) == [6]
    assert beside(9, prompts(1, 20)) == [5]  # three quarters of 12, and no less than half of that


def test_long_parts_of_prompts_end_at_multiples_of_a_grain() -> None:
    run = Run(chunk_tokens=60, beside_tokens=21, grain=4, pages=400, slots=8, context_length=300)
    for id in (1, 2, 3):
        run.send(submit(id, [id], 40))
    run.step()
    run.send(submit(4, list(range(100, 150)), 1))
    run.send(submit(5, list(range(200, 217)), 1))
    run.drain()
    parts = [(plan.starts[3:].tolist(), plan.counts[3:].tolist()) for plan in run.plans[1:6]]
    # 18 tokens of a step are for prompts. A part of 8 is too short to be changed, and 17 are a whole prompt.
    assert parts == [([0], [20]), ([20], [20]), ([40, 0], [10, 8]), ([8], [9]), ([], [])]
    assert run.got[4] == expected(list(range(100, 150)), 1)
    assert sorted(len(tokens) for tokens in run.got.values()) == [1, 1, 40, 40, 40]


@pytest.mark.parametrize("depth", [0, 1])
def test_a_last_token_in_flight_is_no_reason_for_small_chunks(depth: int) -> None:
    run = Run(depth, chunk_tokens=16, beside_tokens=4)
    for id in (1, 2, 3):
        run.send(submit(id, list(range(100 * id, 100 * id + 16)), 1))
    run.drain()
    assert [plan.counts.tolist() for plan in run.plans] == [[16]] * 3


@pytest.mark.parametrize("depth", [0, 1])
def test_retracted_sequences_go_on_with_the_same_tokens(depth: int) -> None:
    run = Run(depth, pages=40, conservativeness=0.01)
    for id in range(4):
        run.send(submit(id, [id, 1, 2], 30))
    run.drain()
    assert run.state.count.retractions > 0
    for id in range(4):
        assert run.got[id] == expected([id, 1, 2], 30)


def test_a_prompt_that_fills_the_context_is_refused_with_both_lengths() -> None:
    run = Run(context_length=10)
    run.send(submit(1, list(range(10))))
    assert run.finish[1] == Finish(
        "abort", message="The input (10 tokens) is longer than the model's context length (10 tokens).", status=400
    )


def test_generation_is_capped_by_context_and_pool() -> None:
    run = Run(context_length=12)
    run.send(submit(1, list(range(8)), 100))
    run.drain()
    assert len(run.got[1]) == 4
    run = Run(pages=10)
    run.send(submit(1, list(range(8)), 100))
    run.drain()
    assert len(run.got[1]) == 3  # the last one needs no page


def test_a_full_queue_answers_503() -> None:
    run = Run(max_queued=2)
    for id in range(3):
        run.send(submit(id, [id]))
    assert run.finish[2].status == 503
    run.drain()
    assert len(run.got[0]) == len(run.got[1]) == 5


def test_zero_new_tokens_scores_the_prompt_only() -> None:
    run = Run(chunk_tokens=4)
    prompt = list(range(11))
    run.send(submit(1, prompt, 0, logprobs=Logprobs(start=0)))
    run.drain()
    assert run.got[1] == [] and run.finish[1] == Finish("length")
    scores = run.pieces[1][0].prompt_scores
    assert [s.token for s in scores] == prompt
    assert [s.logprob for s in scores] == [None, *(score(prompt[:i], prompt[i]) for i in range(1, 11))]


@pytest.mark.parametrize("start", [0, 1, 5, 10, 11])
def test_prompt_scores_start_where_asked_whatever_is_cached(start: int) -> None:
    run = Run(chunk_tokens=3)
    prompt = list(range(11))
    run.send(submit(1, prompt, 2))
    run.drain()
    run.send(submit(2, prompt, 2, logprobs=Logprobs(start=start)))
    run.drain()
    scores = run.pieces[2][0].prompt_scores
    assert [s.token for s in scores] == prompt[start:]
    assert [s.logprob for s in scores if s.logprob is not None] == [
        score(prompt[:i], prompt[i]) for i in range(max(start, 1), 11)
    ]
    assert run.got[2] == expected(prompt, 2)
    assert sum(len(p.scores) for p in run.pieces[2]) == 2


@pytest.mark.parametrize("depth", [0, 1])
def test_a_held_sequence_goes_on_without_computing_its_past_again(depth: int) -> None:
    run = Run(depth)
    run.send(submit(1, [1, 2, 4], 5, hold=True))
    run.drain()
    first = run.got[1][:]
    text = [1, 2, 4, *first, 9, 9]
    before = run.engine.computed
    run.send(Extend(1, 1, 8, [9, 9], SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)))
    run.drain()
    assert run.got[1] == expected(text, 4)
    assert run.engine.computed - before <= 3 + 3  # last drawn token, two new ones, decodes
    assert not run.state.seqs


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("page_size", [1, 4])
def test_a_running_sequence_can_be_cut_back_and_extended(depth: int, page_size: int) -> None:
    run = Run(depth, page_size=page_size)
    run.send(submit(1, [1, 2, 4], 40))
    for _ in range(12):
        run.step()
    kept = [1, 2, 4, *run.got[1][:4]]
    run.send(Extend(1, 1, 7, [8, 8], SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)))
    run.drain()
    assert run.got[1] == expected([*kept, 8, 8], 6)


def test_held_sequences_make_room_for_others() -> None:
    run = Run(pages=24, slots=2)
    run.send(submit(1, list(range(10)), 2, hold=True))
    run.send(submit(2, list(range(20, 30)), 2, hold=True))
    run.drain()
    run.send(submit(3, list(range(30, 48)), 4))
    run.drain()
    assert len(run.got[3]) == 4
    known = [*range(10), *run.got[1]]
    run.send(Extend(1, 1, 12, [5], SamplingParams(max_new_tokens=2, temperature=0, ignore_eos=True)))
    run.drain()
    assert run.got[1] == expected([*known, 5], 2)


def test_namespaces_share_nothing() -> None:
    run = Run()
    run.send(submit(1, list(range(10)), 1, namespace="a"))
    run.drain()
    run.send(submit(2, list(range(10)), 1, namespace="b"))
    run.drain()
    assert run.pieces[2][0].cached_tokens == 0


def test_the_longest_cached_prefix_goes_first() -> None:
    run = Run(slots=1)
    run.send(submit(1, list(range(20)), 1))
    run.drain()
    run.send(submit(2, [30, 31], 1))
    run.send(submit(3, [*range(15), 40], 1))
    run.step()
    assert list(run.got) == [1, 2, 3] and run.got[3] and not run.got[2]


@pytest.mark.parametrize("radix", [False, True])
def test_the_longest_output_goes_first_where_told_so(radix: bool) -> None:
    run = Run(slots=1, policy="lof", radix=radix)
    run.send(submit(1, [1, 2, 3], 2))
    run.send(submit(2, [4, 5], 9))
    run.step()
    assert run.got[2] and not run.got[1]


def test_whoever_waited_long_is_overtaken_no_more() -> None:
    run = Run(slots=1)
    run.send(submit(1, list(range(20)), 1))
    run.drain()
    run.send(submit(2, [30, 31], 1))
    run.now += 11
    run.send(submit(3, [*range(15), 40], 1))
    run.step()
    assert run.got[2] and not run.got[3]


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "dfs-weight"])
def test_what_continues_an_older_one_goes_before_what_came_meanwhile(policy: str) -> None:
    run = Run(slots=1, policy=policy)
    run.send(submit(1, [1, 2], 1))
    run.drain()
    run.send(submit(2, [30, 31], 1))
    run.send(submit(3, [33, 34], 1, place=(1,)))
    run.send(submit(4, [36, 37], 1, place=(1, 3)))
    run.send(submit(5, [38, 39], 1, place=(1,)))
    assert run.ends() == [1, 3, 4, 5, 2]


def test_whoever_waited_long_goes_behind_those_that_continue_older_ones() -> None:
    run = Run(slots=1)
    run.send(submit(1, list(range(20)), 1))
    run.drain()
    run.send(submit(2, [30, 31], 1))
    run.now += 11
    run.send(submit(3, [*range(15), 40], 1))
    run.send(submit(4, [33, 34], 1, place=(1,)))
    assert run.ends() == [1, 4, 2, 3]


def test_flush_empties_the_tree_when_nothing_is_open() -> None:
    run = Run()
    run.send(submit(1, list(range(10)), 1))
    assert not schedule.flush(run.state)
    run.drain()
    assert run.state.stats().cached_tokens > 0
    assert schedule.flush(run.state)
    assert run.state.stats().cached_tokens == 0


PROMPTS = st.one_of(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
    st.builds(lambda a, b: list(range(a)) + b, st.integers(1, 30), st.lists(st.integers(0, 3), max_size=6)),
)


class Workload(RuleBasedStateMachine):
    """Anything may arrive at any time; everything accepted ends, with the tokens it would get alone."""

    @initialize(
        depth=st.integers(0, 1), page_size=st.sampled_from([1, 4]), pages=st.sampled_from([40, 64, 200]),
        slots=st.integers(1, 4), chunk=st.sampled_from([-1, 1, 5, 16]), beside=st.sampled_from([None, 1, 4]),
        radix=st.booleans(), grain=st.sampled_from([1, 3]),
        policy=st.sampled_from(["lpm", "dfs-weight", "fcfs", "random", "lof"]),
        conservative=st.sampled_from([0.01, 1.0]),
    )  # fmt: skip
    def start(
        self, depth: int, page_size: int, pages: int, slots: int, chunk: int, beside: int | None,
        radix: bool, grain: int, policy: str, conservative: float,
    ) -> None:  # fmt: skip
        self.run = Run(
            depth, page_size=page_size, pages=pages // page_size, slots=slots, chunk_tokens=chunk, radix=radix,
            policy=policy, conservativeness=conservative, beside_tokens=beside, grain=grain,
        )  # fmt: skip
        self.want: dict[int, list[int]] = {}
        self.known: dict[int, list[int]] = {}
        self.next = 0

    @rule(tokens=PROMPTS, n=st.integers(0, 20), stop=st.booleans(), hold=st.booleans(), start=st.integers(-1, 9))
    def arrive(self, tokens: list[int], n: int, stop: bool, hold: bool, start: int) -> None:
        self.next += 1
        logprobs = Logprobs(start=min(start, len(tokens))) if start != 9 else None
        self.run.send(submit(self.next, tokens, n, ignore_eos=not stop, hold=hold, logprobs=logprobs))
        self._expect(self.next, tokens, n, stop)

    def _expect(self, id: int, tokens: list[int], n: int, stop: bool) -> None:
        b = self.run.budget
        self.known[id] = tokens
        if id not in self.run.finish:
            n = min(n, b.context_length - len(tokens), b.tokens - len(tokens) + 1)
            self.want[id] = expected(tokens, n, (EOS,) if stop else ())
        else:
            self.want.pop(id, None)

    @rule(turns=st.integers(1, 6))
    def step(self, turns: int) -> None:
        for _ in range(turns):
            self.run.step()

    @precondition(lambda self: self.want)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.want)))
        self.run.send(Abort(id))
        del self.want[id]

    @precondition(lambda self: self.run.state.seqs)
    @rule(data=st.data(), more=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), n=st.integers(1, 9))
    def extend(self, data: st.DataObject, more: list[int], n: int) -> None:
        of = data.draw(st.sampled_from(sorted(self.run.state.seqs)))
        whole = self.known[of] + self.run.got[of]
        keep = data.draw(st.integers(1, len(whole)))
        sampling = SamplingParams(max_new_tokens=n, temperature=0, ignore_eos=True)
        self.next += 1
        self.want.pop(of, None)  # its generation is cut short, or was over
        self.run.send(Extend(self.next, of, keep, more, sampling, hold=data.draw(st.booleans())))
        self._expect(self.next, whole[:keep] + more, n, False)

    @invariant()
    def nobody_gets_a_wrong_token(self) -> None:
        for id, want in getattr(self, "want", {}).items():
            assert self.run.got[id] == want[: len(self.run.got[id])]

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        self.run.drain()
        for id, want in self.want.items():
            assert self.run.got[id] == want, f"sequence {id}"
            assert self.run.finish[id].type in ("length", "stop")
        for id in list(self.run.state.seqs):
            self.run.send(Abort(id))
        self.run.drain()
        self.run.state.check()
        assert self.run.state.stats().used_tokens == 0
        assert schedule.flush(self.run.state)
        assert len(self.run.state.free) == self.run.budget.pages


TestWorkload = Workload.TestCase
TestWorkload.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_crowded_pool_reaches_every_corner(depth: int) -> None:
    """The property test above is only worth its corners: this run shows that they are visited."""
    import random

    rng = random.Random(1)
    run = Run(depth, pages=80, slots=6, conservativeness=0.01)
    want = {}
    for id in range(120):
        tokens = [*range(rng.randrange(1, 25)), *(rng.randrange(VOCAB) for _ in range(rng.randrange(6)))]
        n = rng.randrange(1, 25)
        run.send(submit(id, tokens, n))
        want[id] = expected(tokens, n)
        for _ in range(rng.randrange(4)):
            run.step()
    run.drain()
    assert run.got == want
    stats = run.state.stats()
    assert stats.retractions > 0 and stats.evicted_tokens > 0 and stats.prompt_cached_tokens > 0
    assert any(1 in p.counts and max(p.counts) > 1 for p in run.plans), "no mixed step"
