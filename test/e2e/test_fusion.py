"""Programs of many kinds say the same with chains and without, with the prefix cache and without; forks share a parent.

In float32, where rows of other batches round too little to turn a choice.
"""

from collections.abc import Iterator
from typing import Any

import language
import pytest

import sglang as sgl
from sglang.lang.backends.engine import EngineBackend
from sglang.launch import ThreadWorker

pytestmark = pytest.mark.e2e

FLAGS: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 8000, "cpu_threads": 1, "log_level": "error"}


@pytest.fixture(scope="module")
def cached() -> Iterator[EngineBackend]:
    with sgl.Engine(worker=ThreadWorker, chunked_prefill_size=100, **FLAGS) as engine:
        yield EngineBackend(engine)


@pytest.fixture(scope="module")
def uncached() -> Iterator[EngineBackend]:
    with sgl.Engine(worker=ThreadWorker, disable_radix_cache=True, **FLAGS) as engine:
        yield EngineBackend(engine)


@pytest.mark.parametrize("kind", language.KINDS)
def test_no_way_of_asking_changes_a_text(kind: str, cached: EngineBackend, uncached: EngineBackend) -> None:
    texts = []
    for backend, fusion in ((cached, True), (cached, False), (uncached, True), (uncached, False)):
        backend.fusion = fusion
        states = language.KINDS[kind](backend, 3, 1, True)
        assert [state.error() for state in states] == [None] * len(states)
        texts.append([state.text() for state in states])
    assert texts[1:] == texts[:1] * 3


@sgl.function
def forks(s: Any, size: int) -> None:
    s += "The sea is wide and blue, and rivers run into it. " * 20
    groups = [branch.fork(size) for branch in s.fork(size)]
    for i, group in enumerate(groups):
        group += lambda k, i=i: f"Branch {i}, twig {k}:" + sgl.gen("text", max_tokens=3)
    for group in groups:
        group.join()


@sgl.function
def crowded(s: Any, i: int) -> None:
    s += f"Program {i}. " + f"{i} and again. " * 40 + sgl.gen("points", max_tokens=2)
    s["points"]
    forks = s.fork(3)
    forks += lambda k: f"Point {k}:" + sgl.gen("text", max_tokens=2)
    forks.join()


def test_a_crowd_of_programs_computes_each_parent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds the parents of a few. A parent is named, so its forks come before other programs begin. (Where few
    wait and not for long, `lpm` would find the parents in the cache without.)"""

    def computed(backend: EngineBackend) -> int:
        engine = backend._engine
        engine.generate("x", {"max_new_tokens": 1})  # what the worker says of itself comes with an answer
        before = engine.get_server_info()["internal_states"][0]
        states = crowded.run_batch([(i,) for i in range(24)], backend=backend, temperature=0)
        assert [state.error() for state in states] == [None] * len(states)
        engine.generate("x", {"max_new_tokens": 1})
        after = engine.get_server_info()["internal_states"][0]
        return sum(
            sign * (state["prompt_tokens"] - state["prompt_cached_tokens"])
            for sign, state in ((1, after), (-1, before))
        )

    small = {**FLAGS, "max_total_tokens": 2000, "max_running_requests": 8, "schedule_policy": "fcfs"}
    with sgl.Engine(worker=ThreadWorker, **small) as engine:
        named = computed(EngineBackend(engine))
        tokenizer = engine.get_tokenizer()
        parents = sum(len(tokenizer.encode(f"Program {i}. " + f"{i} and again. " * 40)) for i in range(24))
        engine.flush_cache()
        monkeypatch.setattr(EngineBackend, "_kin", lambda self, s: {})
        unnamed = computed(EngineBackend(engine))
        assert unnamed > 1.8 * parents, "all begin, and nothing of that is left when they go on"
        assert named < 0.75 * unnamed, "1.2 times the parents where nothing is late"


def test_the_parent_of_forks_is_computed_once_though_none_waits_for_it(cached: EngineBackend) -> None:
    """The parent's text takes several steps; all children are there before the first of them."""

    def computed() -> int:
        state = cached.get_server_args()["internal_states"][0]
        return state["prompt_tokens"] - state["prompt_cached_tokens"]

    cached.fusion = True
    cached.flush_cache()
    before, size = computed(), 4
    state = forks.run(size, backend=cached, temperature=0)
    assert state.error() is None
    tokenizer = cached._engine.get_tokenizer()
    parent = "The sea is wide and blue, and rivers run into it. " * 20
    prompts = [tokenizer.encode(f"{parent}Branch {i}, twig {k}:") for i in range(size) for k in range(size)]
    nodes = {tuple(ids[: n + 1]) for ids in prompts for n in range(len(ids))}
    assert len(tokenizer.encode(parent)) > 200
    cached._engine.generate("x", {"max_new_tokens": 1})  # what the worker says of itself comes with an answer
    assert computed() - before <= len(nodes) + 1, "each distinct token once"
