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
