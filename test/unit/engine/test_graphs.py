"""The CUDA road of an engine, step by step beside the plain one: captured on a GPU, interpreted without one."""

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_driver import DRAWN, TINY, Ask, Driver, Row, load, on_device

from sglang.base.plan import Plan
from sglang.base.sampling import SamplingParams

pytest.importorskip("triton")
from sglang.attention.triton import TritonAttention
from sglang.engine.engine import SOON_S
from sglang.engine.graphs import SHARING, VAIN, _Captured, _Kind, sizes, worthwhile
from sglang.engine.seen import Seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs")
    (path / "config.json").write_text(json.dumps(TINY))
    return path


@pytest.mark.parametrize("page_size", [1, 4])
def test_generated_tokens_are_those_of_the_plain_engine(folder: Path, page_size: int) -> None:
    plain = Driver(load(folder, load_format="dummy", max_total_tokens=256, page_size=page_size))
    own = Driver(on_device(folder, page_size=page_size))
    prompts = {0: [5, 6, 7], 3: [11, 12, 13, 14, 15, 16, 17], 5: [250]}
    drawn = []
    for driver in (plain, own):
        seats = [driver.seat(slot, len(prompt)) for slot, prompt in prompts.items()]
        rows = [Row(slot, 0, prompt) for slot, prompt in prompts.items()]
        found = [driver.step(rows, seats).tokens.tolist()]
        lengths = {slot: len(prompt) for slot, prompt in prompts.items()}
        for slots in ([0, 3, 5], [5, 0], [0, 3, 5], [3]):  # sizes with and without padding
            found.append(driver.step([Row(s, lengths[s], [DRAWN]) for s in slots]).tokens.tolist())
            for s in slots:
                lengths[s] += 1
        # A row of several tokens beside decodes, then a known token in a decode.
        found.append(driver.step([Row(0, lengths[0], [DRAWN]), Row(3, lengths[3], [9, 8, 7])]).tokens.tolist())
        found.append(driver.step([Row(0, lengths[0] + 1, [42]), Row(3, lengths[3] + 3, [DRAWN])]).tokens.tolist())
        drawn.append(found)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
def test_keys_of_8_bits_give_the_same_tokens_in_graphs_in_chunks_and_from_the_cache(folder: Path, kind: str) -> None:
    prompt, found = list(range(20, 41)), []
    for graphs, chunk in ((True, 21), (False, 21), (True, 6)):
        own = Driver(on_device(folder, kv_cache_dtype=kind))
        assert isinstance(own.engine._attention, TritonAttention)
        assert own.engine._attention._pools[0].keys.itemsize == 1
        if not graphs:
            own.engine._graphs = None
        for at in range(0, 21, chunk):
            some = prompt[at : at + chunk]
            last = own.step([Row(1, at, some, at + chunk >= 21)], [own.seat(1, 21)] if at == 0 else [])
        tokens = [int(last.tokens[0])]
        entries = own.share(2, 1, 15)
        tokens.append(int(own.step([Row(2, 15, prompt[15:])], [own.seat(2, 21)], entries).tokens[0]))
        for i in range(3):
            tokens += own.step([Row(1, 21 + i, [DRAWN]), Row(2, 21 + i, [DRAWN])]).tokens.tolist()
        found.append(tokens)
    assert found[0] == found[1] == found[2]
    assert found[0][0::2] == found[0][1::2], "what is in the cache is what was computed"


def test_a_row_with_many_new_pages_brings_its_whole_table(folder: Path) -> None:
    plain = Driver(load(folder, load_format="dummy", max_total_tokens=256))
    own = Driver(on_device(folder))
    found = []
    for driver in (plain, own):
        prompt = list(range(20, 40))
        driver.step([Row(1, 0, prompt)], [driver.seat(1, 20)])
        entries = driver.share(2, 1, 20)
        found.append(driver.step([Row(2, 20, [77])], [driver.seat(2, 21)], entries).tokens.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("new", [True, False])
def test_a_row_may_read_what_another_one_files_in_the_same_step(folder: Path, new: bool) -> None:
    found = []
    for driver in (Driver(load(folder, load_format="dummy", max_total_tokens=256)), Driver(on_device(folder))):
        driver.step([Row(1, 0, list(range(20, 40)))], [driver.seat(1, 20)])
        seats = [driver.seat(2, 22)]
        if not new:  # it has computed a part of its prompt, and then finds more of it in the prefix cache
            driver.step([Row(2, 0, [20, 21], False)], seats)
        rows = [Row(2, 21, [78]), Row(1, 20, [77])]
        driver.table[1].append(driver.free.pop())  # of position 20, which the first row attends to as well
        entries = [(1, 20, driver.table[1][20]), *driver.share(2, 1, 21)]
        found.append(driver.step(rows, seats if new else [], entries).tokens.tolist())
        found[-1] += driver.step([Row(1, 21, [DRAWN]), Row(2, 22, [79])]).tokens.tolist()
    assert found[0] == found[1]


def test_shared_keys_are_read_once_for_the_same_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.attention import cascade

    monkeypatch.setattr(cascade, "WORTH", 1)
    monkeypatch.setattr(cascade, "LEAST_SAVED", 1)
    monkeypatch.setattr(cascade, "KEYS", 32)
    monkeypatch.setattr(cascade, "LEAST_KEYS", 32)
    own = Driver(on_device(folder))
    graphs = own.engine._graphs
    assert graphs is not None
    assert isinstance(own.engine._attention, TritonAttention)
    drawn = []
    for shares in (False, True):
        own.engine._attention.shares = shares
        graphs._common._slots = np.empty(0, np.int32)
        own.step([Row(1, 0, list(range(20, 60)))], [own.seat(1, 40)])
        for slot in (2, 3):
            entries = own.share(slot, 1, 40)
            own.step([Row(slot, 40, [70 + slot])], [own.seat(slot, 41)], entries)
        found = []
        for i in range(5):  # one leaves, and comes back to where it was
            rows = [Row(1, 40 + i, [DRAWN]), *(Row(s, 41 + i, [DRAWN]) for s in ((2, 3) if i < 3 else (2,)))]
            found.append(own.step(rows).tokens.tolist())
            assert (graphs._common._found is not None) is shares
        drawn.append(found)
    assert drawn[0] == drawn[1]
    assert own.engine._attention.shares, "the kernels for shared keys failed and were left"


def test_a_slot_that_another_sequence_took_between_decodes_shares_what_that_one_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.attention import cascade

    for name, value in (("WORTH", 1), ("LEAST_SAVED", 1), ("KEYS", 32), ("LEAST_KEYS", 32)):
        monkeypatch.setattr(cascade, name, value)
    found = []
    for driver in (Driver(load(folder, load_format="dummy", max_total_tokens=256)), Driver(on_device(folder))):
        driver.step([Row(1, 0, list(range(20, 60)))], [driver.seat(1, 40)])
        driver.step([Row(2, 40, [72])], [driver.seat(2, 41)], driver.share(2, 1, 40))
        driver.step([Row(1, 40, [DRAWN]), Row(2, 41, [DRAWN])])
        del driver.table[2]  # it ends, and while the other goes on its slot is taken
        prompt = list(range(110, 150))
        first = driver.step([Row(1, 41, [DRAWN]), Row(2, 0, prompt)], [driver.seat(2, 40)])
        last = driver.step([Row(1, 42, [DRAWN]), Row(2, 40, [DRAWN])])
        found.append([first.tokens.tolist(), last.tokens.tolist()])
    assert found[0] == found[1]


def test_rows_that_the_graph_cannot_draw_are_drawn_after_it(folder: Path) -> None:
    """Penalties, a mask, scores; greedy rows beside random ones."""
    kinds = [
        SamplingParams(temperature=0, repetition_penalty=1.8),
        SamplingParams(temperature=0, logit_bias={17: 100.0}),
        SamplingParams(temperature=0),
        SamplingParams(seed=4, top_k=1),
    ]
    plain = Driver(load(folder, load_format="dummy", max_total_tokens=256))
    own = Driver(on_device(folder))
    found = []
    for driver in (plain, own):
        seats = [driver.seat(slot, 3, kind, prompt=[5, 6, 7]) for slot, kind in enumerate(kinds)]
        steps = [driver.step([Row(slot, 0, [5, 6, 7]) for slot in range(4)], seats)]
        for i in range(3):
            rows = [Row(slot, 3 + i, [DRAWN], ask=Ask(0, 2, ()) if slot == 2 else None) for slot in range(4)]
            steps.append(driver.step(rows))
        found.append(steps)
    for a, b in zip(*found, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        for row, score in a.scores.items():
            assert score.logprob == pytest.approx(b.scores[row].logprob, abs=1e-4)
    assert found[1][1].tokens[1] == 17


def test_random_rows_depend_on_seed_and_number_alone(folder: Path) -> None:
    own = Driver(on_device(folder))
    sampling = SamplingParams(seed=9, temperature=0.9, top_p=0.95)
    alone = own.generate(0, [5, 6, 7], 6, sampling)
    own.step([Row(1, 0, [5, 6, 7]), Row(2, 0, [9])], [own.seat(1, 3, sampling), own.seat(2, 1, SamplingParams(seed=1))])
    beside = []
    for i in range(5):
        beside.append(int(own.step([Row(2, 1 + i, [DRAWN]), Row(1, 3 + i, [DRAWN])]).tokens[1]))
    assert beside == alone[1:]


def test_masks_hold_in_a_decode(folder: Path) -> None:
    own = Driver(on_device(folder))
    own.step([Row(0, 0, [5, 6]), Row(1, 0, [5, 6])], [own.seat(0, 2), own.seat(1, 2)])
    masks = np.zeros((1, 10), np.uint32)
    masks[0, 3] = 1 << 4
    one = np.zeros(1, np.int32)
    plan = Plan(
        step=0, slots=np.arange(2, dtype=np.int32), starts=np.full(2, 2, np.int32), counts=np.ones(2, np.int32),
        samples=np.ones(2, np.bool_), tokens=np.full(2, DRAWN, np.int32), table_slots=np.arange(2, dtype=np.int32),
        table_index=np.full(2, 2, np.int32), table_pages=np.array([60, 61], np.int32), masks=masks,
        masked=one + 1, mask_of=one,
    )  # fmt: skip
    assert own.engine.launch(plan).wait().tokens[1] == 100


def test_sizes_grow_with_little_padding() -> None:
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 4, 6]
    for most in (100, 512, 1000):
        found = sizes(most)
        assert found[-1] == most
        assert len(found) < 30
        for below, size in itertools.pairwise(found):
            assert size - (below + 1) <= max(7, size // 4)


def test_sizes_that_take_longer_than_a_larger_one_are_not_worth_it() -> None:
    assert worthwhile({1: 4.0, 2: 4.6, 4: 4.5, 384: 8.0, 448: 12.9, 512: 10.2}) == [1, 4, 384, 512]
    assert worthwhile({1: 5.0, 2: 5.0}) == [1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what would be captured is noted instead")
def test_the_start_captures_all_sizes_and_keeps_those_that_are_worth_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graphs = on_device(folder, max_running_requests=20)._graphs
    assert graphs is not None
    graphs.captures, graphs._seen = True, Seen({"model": "a"}, tmp_path)
    graphs._attention.shares = True
    monkeypatch.setattr(graphs, "_step", lambda kind, wanted=None: None)
    now = [0.0]  # of a clock of our own: on a busy machine a short sleep takes as long as a longer one
    monkeypatch.setattr(
        "sglang.engine.graphs.time", SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic)
    )

    def replay(kind: _Kind) -> None:
        now[0] += 0.02 if kind.size == 4 else 0.001 * kind.size

    def capture(kind: _Kind, wanted: object = None) -> None:
        graph = SimpleNamespace(replay=lambda: replay(kind))
        graphs._captured[kind] = _Captured(graph, torch.zeros(0))  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_capture", capture)
    graphs.start()
    assert graphs._sizes == [1, 2, 8, 16, 20], "4 takes as long as 20"
    plain = [_Kind(n, True, False, False) for n in (20, 1, 2, 8, 16)]
    assert list(graphs._captured) == [*plain, *(_Kind(n, True, False, True) for n in (16, 20) if n >= SHARING)]
    assert graphs._serving(3, True, False, False).size == 8  # which is noted
    graphs._seen.save()
    graphs._captured.clear()
    for known, wanted in (((1, 2, 16), sizes(20)), ((1, 2, 8, 16, 20), [1, 2, 8, 16, 20])):  # of others; of this one
        graphs._sizes, graphs._seen = sizes(20), Seen({"model": "a"}, tmp_path)
        assert graphs._known_sizes() == [1, 2, 8, 16, 20]
        graphs._seen.know("sizes", known)
        assert (graphs._known_sizes() or graphs._sizes) == wanted
    now[0] = 0.0
    graphs.start()
    assert graphs._sizes == [1, 2, 8, 16, 20] and set(graphs._captured) >= set(plain)
    assert now[0] == 0.0, "they were timed again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what would be captured is noted instead")
def test_kinds_that_were_met_are_captured_first_and_larger_ones_serve_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = Driver(on_device(folder))
    graphs = own.engine._graphs
    assert graphs is not None
    graphs.captures = True
    graphs._seen = own.engine._seen = Seen({"model": "a"}, tmp_path)
    run: list[_Kind] = []
    step = graphs._step
    monkeypatch.setattr(graphs, "_step", lambda kind, wanted=None: run.append(kind) or step(kind, wanted))

    def capture(kind: _Kind, wanted: object = None) -> None:
        logits = torch.zeros(kind.size, 300)
        graph = SimpleNamespace(replay=lambda: (run.append(kind), logits.copy_(step(kind))))
        graphs._captured[kind] = _Captured(graph, logits)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_capture", capture)
    for met in (
        (4, True, False, True),
        (2, False, False, False),
        (9, True, False, False),
        (2,),
        (4, True, True, False),
    ):
        graphs._seen.note("decodes", met)
    for _ in range(12):
        assert own.engine.prepare() == SOON_S
        assert Seen({"model": "a"}, tmp_path).first("decodes") == graphs._seen.first("decodes"), "not kept at once"
    # No state follows tokens yet, so nothing is held.
    assert list(graphs._captured) == run == [
        _Kind(4, True, False, True), _Kind(2, False, False, False),
        *(_Kind(n, True, False, False) for n in (1, 2, 4, 8)),
    ]  # fmt: skip
    assert own.engine.prepare() is None
    run.clear()
    del graphs._captured[_Kind(4, True, False, False)]
    plain = Driver(load(folder, load_format="dummy", max_total_tokens=256))
    drawn = []
    for driver in (own, plain):
        driver.step([Row(s, 0, [5, 6, 7 + s]) for s in range(3)], [driver.seat(s, 3) for s in range(3)])
        drawn.append(driver.step([Row(s, 3, [DRAWN]) for s in range(3)]).tokens.tolist())
    assert drawn[0] == drawn[1]
    assert run[-1].size == 8
    assert graphs._worth(True)[0] == _Kind(4, True, False, True), "notes keep their order"
    assert (4, True, False, False) in graphs._seen.first("decodes")


def test_larger_graphs_serve_until_they_have_done_so_in_vain(folder: Path) -> None:
    graphs = on_device(folder, max_running_requests=64)._graphs
    assert graphs is not None
    graphs.captures = True
    graphs._captured = dict.fromkeys([_Kind(n, True, False, False) for n in (8, 24, 64)])  # type: ignore[arg-type]

    def serving(n: int) -> int:
        return graphs._serving(n, True, False, False).size

    assert [serving(n) for n in (1, 9, 24, 25, 64)] == [8, 24, 24, 64, 64]
    assert graphs._serving(20, False, False, False).size == 24, "none is captured that draws nothing"
    graphs._padded.clear()
    times = next(i for i in range(1000) if serving(32) == 32)
    assert times == 2 * VAIN, "half of it is padding each time"
    assert all(serving(4) == 8 for _ in range(1000)), "reads the weights as long"
    graphs.captures = False
    assert serving(32) == 64
