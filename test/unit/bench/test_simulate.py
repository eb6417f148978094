"""Loads on a virtual clock: everybody is answered, and the scheduler's rules show in what they are for."""

from typing import Any

import pytest
from simulate import Costs, budget, figures, run
from workloads import Node


def nodes(n: int, prompt: int, out: int) -> list[Node]:
    return [Node([i, *range(prompt - 1)], out) for i in range(n)]


def test_a_lone_request_takes_what_its_steps_cost() -> None:
    costs = Costs()
    [alone], plans = run(nodes(1, 400, 10), budget(), costs)
    assert len(alone.tokens) == len(plans) == 10
    first, *rest = (costs.step(plan) for plan in plans)
    assert first == pytest.approx(400 * costs.token + costs.mixed, rel=0.02)
    assert alone.tokens[-1] - alone.tokens[0] == pytest.approx(sum(rest))
    assert alone.tokens[0] - alone.sent == pytest.approx(first + costs.front + costs.host + costs.host_row)


def test_followers_come_when_their_request_has_ended() -> None:
    [one] = nodes(1, 50, 5)
    one.then = nodes(2, 60, 3)
    times, _ = run([one], budget(), Costs())
    assert sorted(len(t.tokens) for t in times) == [3, 3, 5]
    [ended] = [t.tokens[-1] for t in times if t.node is one]
    assert all(t.sent >= ended for t in times if t.node is not one)


def found(load: list[Node], **changes: Any) -> dict[str, float]:
    times, _ = run(load, budget(**changes), Costs())
    assert all(len(t.tokens) == t.node.out for t in times)
    return figures(times)


def test_a_burst_ends_sooner_in_long_steps() -> None:
    burst = nodes(120, 500, 40)
    assert found(burst)["wall_s"] < found(burst, chunk_tokens=2048)["wall_s"]


def test_streams_pause_less_for_few_prompts() -> None:
    load = nodes(150, 512, 100)
    for i, node in enumerate(load):
        node.at = i // 5 * 0.16
    assert found(load)["itl_p99"] < 0.9 * found(load, beside_tokens=None)["itl_p99"]
