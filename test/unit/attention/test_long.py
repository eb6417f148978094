"""Long rows in two calls of an attention that knows no pages: cut, padded and united, against the definition.

cuDNN's own is stood in for by torch in float64; on a CUDA device the real one is tried as well.
"""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglang.attention.base import Look, Rows, Shape
from sglang.attention.torch_native import TorchAttention

pytest.importorskip("triton")
from sglang.attention import long
from sglang.attention.long import Cut, LongRows, Row
from sglang.attention.triton import TritonAttention
from sglang.kernels.attention import Pool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = Shape(4, 2, 32, 0.2)


def by_torch(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """What `long.fused` promises. Keys that are hidden still meet their values, as they do on a device: 0 x NaN."""
    assert not causal or len(q) == len(k), "where the mask begins depends on who computes it"
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), wide_k) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(len(q), len(k), device=q.device).triu(1).bool(), float("-inf"))
    out = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), wide_v)
    return out.to(q.dtype).contiguous(), scores.logsumexp(-1).float().contiguous()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that an interpreter can compute, and every row that is long enough is taken."""
    for name, value in {"LEAST": 8, "LEAST_PAIRS": 1, "GRAINS": (32, 8), "WASTE": 9.0}.items():
        monkeypatch.setattr(long, name, value)
    monkeypatch.setattr(long, "fused", by_torch)
    monkeypatch.setattr(long, "works", lambda shape, dtype: True)


def some_pool(random: torch.Generator, page_size: int, pages: int = 800) -> Pool:
    """NaN in every cell whose page is not in the table."""
    table = torch.randperm(pages - 1, generator=random)[: pages // 2].view(2, -1).int() + 1
    keys, values = (torch.full((pages, page_size, 2, 32), float("nan")) for _ in range(2))
    for t in (keys, values):
        t[table.flatten().long()] = torch.randn(table.numel(), page_size, 2, 32, generator=random)
    flat = [t.view(-1, 2, 32).to(DEVICE) for t in (keys, values)]
    return Pool(flat[0], flat[1], table.to(DEVICE), page_size)


@given(start=st.integers(0, 150_000), count=st.integers(long.LEAST, 16384))
@settings(max_examples=300, deadline=None)
def test_a_cut_holds_the_row_and_wastes_little(start: int, count: int) -> None:
    found = long.cut(start, count)
    if found is None:
        assert start > 0, "a row without cached keys can always be padded"
        return
    assert found.cached + found.lead == start
    assert found.lead + count <= found.square
    assert found.cached % long.GRAINS[-1] == 0
    assert long.pairs(found.square, 0) + found.queries * found.cached <= long.WASTE * long.pairs(count, start)


def test_shapes_are_few() -> None:
    assert len({found.square for n in range(1024, 8193) if (found := long.cut(0, n))}) == 49
    # Chunks of 8192 tokens less some that go to decodes, each after one like it.
    after = {long.cut(8192 - n, 8192 - n) for n in range(65)}
    assert set().union(*(found.shapes for found in after if found)) == {
        (8192, 0), (10240, 0), (8192, 2048), (8192, 4096), (8192, 8192),
    }  # fmt: skip
    assert long.cut(0, 4096) == Cut(0, 4096, 0, 4096)
    assert long.cut(8192, 8192) == Cut(8192, 8192, 0, 8192)
    assert long.cut(14336, 2048) == Cut(14336, 2048, 0, 2048)


@pytest.mark.parametrize("page_size", [1, 4])
def test_any_row_equals_the_definition(page_size: int, small: None) -> None:
    random = np.random.default_rng(page_size)
    generator = torch.Generator().manual_seed(page_size)
    pool = some_pool(generator, page_size)
    cached = leads = 0
    for _ in range(12):
        start, count, place = int(random.integers(0, 90)), int(random.integers(1, 70)), int(random.integers(0, 5))
        found = long.cut(start, count)
        assert found is not None
        cached, leads = cached + (found.cached > 0), leads + (found.lead > 0)
        q = torch.randn(place + count + 2, 5, 32, generator=generator).to(DEVICE)[:, :4]
        out = torch.full((place + count + 2, 4, 32), 7.0, device=DEVICE)
        row = Row(int(random.integers(0, 2)), start, count, place, found)
        long.attend(q, pool, 0.2, row, out)
        wanted = long.reference(q, pool, 0.2, row)
        assert (out[place : place + count] - wanted).abs().max() < 1e-5, row
        assert (out[:place] == 7).all(), "rows before"
        assert (out[place + count :] == 7).all(), "rows after"
    assert cached > 3
    assert leads > 3


@pytest.mark.parametrize("loud", [slice(0, 32), slice(32, 48)], ids=["cached", "own"])
def test_scores_that_are_far_apart_are_united(loud: slice, small: None) -> None:
    """One part has all the weight: no overflow, no NaN."""
    pool = some_pool(torch.Generator().manual_seed(0), 1)
    pool.keys[pool.table[0, loud].long()] *= 300
    q = torch.randn(16, 4, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    out = torch.empty_like(q)
    row = Row(0, 32, 16, 0, Cut(32, 16, 0, 16))
    long.attend(q, pool, 0.2, row, out)
    assert (out - long.reference(q, pool, 0.2, row)).abs().max() < 1e-5


def test_the_reference_is_the_torch_backend() -> None:
    pool = some_pool(torch.Generator().manual_seed(2), 4)
    q, row = torch.randn(6, 4, 32).to(DEVICE), Row(1, 41, 6, 0, Cut(0, 0, 0, 0))
    backend = TorchAttention(SHAPE, [pool.keys.cpu().double()], [pool.values.cpu().double()])
    table = pool.table.cpu().numpy()
    at = np.arange(41, 47)
    cells = torch.from_numpy(table[1, at // 4] * 4 + at % 4).long()
    backend.plan(Rows(np.array([1]), np.array([41]), np.array([6]), table, 4))
    k, v = pool.keys.cpu()[cells].double(), pool.values.cpu()[cells].double()
    wanted = backend.attend(q.cpu().double(), k, v, 0, Look())
    assert (long.reference(q, pool, SHAPE.scale, row).cpu().reshape(6, -1) - wanted).abs().max() < 1e-12


SPANS = [(0, 5), (60, 1), (17, 24), (3, 2), (0, 33), (9, 1), (70, 8)]


def step(own: TritonAttention, wide: TorchAttention, table: np.ndarray, look: Look) -> float:
    """Largest error of a step of SPANS, two rows of padding after them."""
    starts, counts = np.array(SPANS).T
    rows = Rows(np.arange(len(SPANS)), starts, counts, table, 1)
    packed = torch.randn(int(counts.sum()) + 2, 8, 32, generator=torch.Generator().manual_seed(5))
    q, k, v = packed.split([4, 2, 2], 1)
    wide.plan(rows)
    wanted = wide.attend(q[:-2].double(), k[:-2].double(), v[:-2].double(), 0, look)
    own.plan(rows)
    got = own.attend(*packed.to(DEVICE).split([4, 2, 2], 1), 0, look).cpu()
    assert (got[-2:] == 0).all()
    return (got[:-2] - wanted).abs().max().item()


@pytest.fixture
def backends() -> tuple[TritonAttention, TorchAttention, np.ndarray]:
    random = torch.Generator().manual_seed(4)
    pool = [torch.randn(800, 2, 32, generator=random) for _ in range(2)]
    table = torch.randperm(800, generator=random).view(8, 100).int()
    own = TritonAttention(SHAPE, [pool[0].to(DEVICE)], [pool[1].to(DEVICE)], table.to(DEVICE), 1, 16)
    own._long.on = True
    return own, TorchAttention(SHAPE, [pool[0].double()], [pool[1].double()]), table.numpy()


Backends = tuple[TritonAttention, TorchAttention, np.ndarray]


def test_long_rows_of_a_step_leave_the_tiles_once_their_shapes_are_planned_for(
    backends: Backends, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, wide, table = backends
    calls = []
    monkeypatch.setattr(long, "fused", lambda *given: calls.append(given[3]) or by_torch(*given))
    assert step(own, wide, table, Look()) < 2e-6
    assert not own._long.prepare_one(own._pools[0]), "a shape that came once is not worth a plan"
    assert step(own, wide, table, Look()) < 2e-6
    assert not calls, "nobody waits for a plan"
    while own._long.prepare_one(own._pools[0]):
        assert own._long.missing
    assert not own._long.missing
    cuts = [long.cut(start, count) for start, count in ((17, 24), (0, 33), (70, 8))]
    assert own._long._planned == set(own._long.met) == set().union(*(found.shapes for found in cuts if found))
    calls.clear()
    assert step(own, wide, table, Look()) < 2e-6
    assert own._step is not None
    assert [(row.start, row.count) for row in own._step.long] == [(17, 24), (0, 33), (70, 8)]
    assert own._step.short == 2
    assert calls.count(False) == 1, "(70, 8) has keys that all its queries see"
    assert calls.count(True) == 3
    calls.clear()
    for look in (Look(window=7), Look(softcap=1.5), Look(chunk=16), Look(sinks=torch.ones(4, device=DEVICE))):
        on_cpu = Look(look.window, look.chunk, look.softcap, None if look.sinks is None else look.sinks.cpu())
        assert step(own, wide, table, look if look.sinks is None or DEVICE.type == "cpu" else on_cpu) < 2e-6
    assert not calls


def test_a_row_that_is_all_of_a_step_takes_the_place_of_the_result(backends: Backends, small: None) -> None:
    own, wide, table = backends
    rows = Rows(np.array([1]), np.array([0]), np.array([40]), table, 1)
    q, k, v = torch.randn(40, 8, 32, generator=torch.Generator().manual_seed(6)).split([4, 2, 2], 1)
    wide.plan(rows)
    wanted = wide.attend(q.double(), k.double(), v.double(), 0, Look())
    on_device = [t.to(DEVICE) for t in (q, k, v)]
    own.plan(rows)
    own._long.expect([(40, 0)])
    own._long.prepare_one(own._pools[0])
    for _ in range(2):
        own.plan(rows)
        assert (own.attend(*on_device, 0, Look()).cpu() - wanted).abs().max() < 2e-6
    assert own._step is not None
    assert own._step.long


@pytest.mark.parametrize("planned", [False, True])
def test_what_fails_is_done_by_tiles_from_then_on(
    backends: Backends, small: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, planned: bool
) -> None:
    own, wide, table = backends
    calls = []

    def fails(*given: object) -> None:
        calls.append(given)
        raise RuntimeError("no execution plan")

    monkeypatch.setattr(long, "fused", fails)
    with caplog.at_level(logging.WARNING):
        for turn in range(4):
            assert step(own, wide, table, Look()) < 2e-6
            if planned and not turn:
                own._long._planned |= set(own._long._met)
            elif turn:
                own._long.prepare_one(own._pools[0])
    assert len(calls) == 1
    assert [record.message for record in caplog.records] == [
        f"Long rows are computed by tiles{' from now on' if planned else ''}, not by cuDNN: no execution plan"
    ]


def test_plans_made_at_the_start_are_used_at_once(
    backends: Backends, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, wide, table = backends
    monkeypatch.setattr(long, "USUAL", ((0, 33), (0, 33), (0, 4), (0, 90)))
    own.prepare(12, 50)
    assert own._long._planned == {(16, 0), (24, 0), (40, 0)}, "neither short ones nor what does not fit"
    assert step(own, wide, table, Look()) < 2e-6
    assert own._step is not None
    assert [(row.start, row.count) for row in own._step.long] == [(0, 33)]


def test_the_trial_sees_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(wrong: object) -> float:
        monkeypatch.setattr(long, "fused", wrong)
        return long.disagreement(SHAPE, torch.float32, DEVICE)

    def base_two(*given: object) -> tuple[Tensor, Tensor]:
        out, norms = by_torch(*given)  # type: ignore[arg-type]
        return out, norms / np.log(2)

    assert error(by_torch) < 1e-5
    assert error(base_two) > 0.02, "logarithms to base two"
    assert error(lambda q, k, v, causal, scale: by_torch(q, k, v, False, scale)) > 0.02, "no mask"
    assert error(lambda q, k, v, causal, scale: by_torch(q, k.flip(1), v, causal, scale)) > 0.02, "another head's keys"
    assert error(lambda q, k, v, causal, scale: (q * torch.nan, by_torch(q, k, v, causal, scale)[1])) > 0.02


def test_what_it_is_not_for(small: None) -> None:
    assert not long.possible(SHAPE, torch.bfloat16, torch.device("cpu"))
    rows = LongRows(SHAPE, torch.bfloat16, DEVICE)
    rows.on = False
    begin = np.zeros(1, np.int64)
    given = Rows(np.array([0]), np.array([0]), np.array([64]), np.zeros((1, 1), np.int32), 1)
    assert not rows.find(given, begin)
    rows.on = True
    assert not rows.find(given, begin)
    rows._planned |= {(64, 0)}
    assert rows.find(given, begin)
    rows.expect([(1, 0), (64, -3), (1 << 40, 0), (64, 1 << 40)])
    assert not rows.missing


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [Shape(32, 8, 128, 128**-0.5), Shape(14, 2, 64, 0.125), Shape(8, 8, 80, 0.1)])
def test_cudnn_gives_what_the_reference_gives(shape: Shape) -> None:
    if not long.possible(shape, torch.bfloat16, DEVICE):
        pytest.skip("not for this device")
    assert long.disagreement(shape, torch.bfloat16, DEVICE) < 0.01
