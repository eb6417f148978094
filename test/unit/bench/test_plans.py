"""The plans of a static batch: every token once, no step longer than the engine's, no page of two sequences."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang.base.plan import DRAWN
from sglang.bench_latency import DRAWN as DRAWN_HERE
from sglang.bench_latency import Row, prefill_plans, step


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize(("chunk", "steps"), [(1000, 1), (30, 1), (8, 4), (7, 5), (1, 30)])
def test_prompts_are_computed_whole_in_steps_that_fit(chunk: int, steps: int, page_size: int):
    engine: Any = SimpleNamespace(chunk_tokens=chunk, page_size=page_size)
    prompts = [[100 * s + i for i in range(10)] for s in range(3)]
    plans = prefill_plans(engine, prompts, output_len=6)
    assert len(plans) == steps
    computed: dict[int, list[int]] = {0: [], 1: [], 2: []}
    pages: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for plan in plans:
        assert plan.counts.sum() == len(plan.tokens) <= chunk
        assert [seat.slot for seat in plan.seats] == plan.slots[plan.starts == 0].tolist()
        assert all(seat.first == 10 for seat in plan.seats)
        for slot, page in zip(plan.table_slots.tolist(), plan.table_pages.tolist(), strict=True):
            pages[slot].append(page)
        offsets = np.cumsum([0, *plan.counts]).tolist()
        for row, (slot, start) in enumerate(zip(plan.slots.tolist(), plan.starts.tolist(), strict=True)):
            assert start == len(computed[slot])
            computed[slot] += plan.tokens[offsets[row] : offsets[row + 1]].tolist()
            assert plan.samples[row] == (len(computed[slot]) == 10)
    assert list(computed.values()) == prompts
    assert {len(own) for own in pages.values()} == {-(-16 // page_size)}
    assert len({page for own in pages.values() for page in own}) == sum(map(len, pages.values()))


def test_a_decode_row_takes_the_slots_last_token():
    assert DRAWN_HERE == DRAWN
    plan = step([Row(4, 7, [DRAWN], True)])
    assert (plan.slots.tolist(), plan.starts.tolist(), plan.tokens.tolist()) == ([4], [7], [DRAWN])
    assert plan.tokens.dtype == plan.table_pages.dtype == np.int32
