"""The torch backend against a float64 reference that knows sequences and nothing of pools."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.attention.base import Look, Rows, Shape, require
from sglang.attention.torch_native import TorchAttention
from sglang.base.errors import ConfigError

CELLS = 640


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def reference(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, shape: Shape, look: Look
) -> torch.Tensor:
    """One token, one head at a time, by definition. q: [heads, dim]; keys, values: [position + 1, kv_heads, dim]."""
    first = 0 if look.window is None else max(0, position - look.window + 1)
    if look.chunk is not None:
        first = position - position % look.chunk
    out = []
    for h in range(shape.heads):
        kv = h // (shape.heads // shape.kv_heads)
        scores = keys[first:, kv].double() @ q[h].double() * shape.scale
        if look.softcap is not None:
            scores = look.softcap * torch.tanh(scores / look.softcap)
        weights = scores.exp()
        total = weights.sum() + (look.sinks[h].cpu().double().exp() if look.sinks is not None else 0)
        out.append((weights / total) @ values[first:, kv].double())
    return torch.stack(out).flatten()


@dataclass
class World:
    """Sequences with all their keys and values, and a pool in which the earlier ones lie."""

    shape: Shape
    page_size: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    layers: int = 2

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(1)
        empty = [torch.full((CELLS, self.shape.kv_heads, self.shape.head_dim), 0.0) for _ in range(2 * self.layers)]
        empty = [t.to(self.device, self.dtype) for t in empty]
        self.backend = TorchAttention(self.shape, empty[: self.layers], empty[self.layers :])

    def some(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.random)

    def check(self, rows: list[tuple[int, int]], look: Look, padding: int = 0, bound: float = 2e-6) -> None:
        """rows: (start, count) of sequences of their own; positions before `start` come from an earlier step."""
        s, size = self.shape, self.page_size
        pages = 1 + np.random.default_rng(0).permutation(
            CELLS // size - 1
        )  # page 0, where tables are empty, is nobody's
        width = max((start + count + size - 1) // size for start, count in rows)
        table = np.zeros((len(rows) + 1, width), np.int32)
        at = 0
        for slot, (start, count) in enumerate(rows, 1):
            need = -(-(start + count) // size)
            table[slot, :need] = pages[at : at + need]
            at += need
        lengths = [start + count for start, count in rows]
        keys = [self.some(n, s.kv_heads, s.head_dim) for n in lengths]
        values = [self.some(n, s.kv_heads, s.head_dim) for n in lengths]
        queries = [self.some(n, s.heads, s.head_dim) for n in lengths]

        def step(spans: list[tuple[int, int, int]], padding: int = 0) -> torch.Tensor:
            """spans: (row, begin, end)."""
            columns = np.array(spans, np.int32).T
            self.backend.plan(Rows(columns[0] + 1, columns[1], columns[2] - columns[1], table, size))
            parts = [
                torch.cat([t[r][a:b] for r, a, b in spans] + [torch.full((padding, *t[0].shape[1:]), 9.0)])
                for t in (queries, keys, values)
            ]
            q, k, v = (p.to(self.device, self.dtype) for p in parts)
            return self.backend.attend(q, k, v, self.layers - 1, look).float().cpu()

        earlier = [(r, 0, start) for r, (start, _) in enumerate(rows) if start]
        if earlier:
            step(earlier)
        out = step([(r, start, start + count) for r, (start, count) in enumerate(rows)], padding)
        assert out.shape == (sum(c for _, c in rows) + padding, s.heads * s.head_dim)
        assert (out[len(out) - padding :] == 0).all()
        n = 0
        for r, (start, count) in enumerate(rows):
            for position in range(start, start + count):
                end = position + 1
                wanted = reference(queries[r][position], keys[r][:end], values[r][:end], position, s, look)
                assert (out[n] - wanted).abs().max() < bound, (r, position)
                n += 1


SHAPES = [Shape(4, 2, 64, 0.125), Shape(3, 3, 80, 80**-0.5), Shape(6, 1, 128, 0.1), Shape(2, 2, 256, 1 / 16)]
ROWS = [(0, 5), (12, 1), (3, 4), (30, 1), (200, 1), (0, 1), (7, 9), (180, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}/{s.kv_heads}x{s.head_dim}")
@pytest.mark.parametrize("page_size", [1, 8])
@pytest.mark.parametrize("look", ["plain", "window", "chunk", "softcap", "sinks", "all"])
def test_mixed_rows_equal_the_reference(look: str, page_size: int, shape: Shape, device: str) -> None:
    sinks = torch.linspace(-1, 2, shape.heads).to(device)
    kinds = {
        "plain": Look(),
        "window": Look(window=6),
        "chunk": Look(chunk=8),
        "softcap": Look(softcap=1.5),
        "sinks": Look(sinks=sinks),
        "all": Look(window=9, softcap=2.0, sinks=sinks),
    }
    World(shape, page_size, device).check(ROWS, kinds[look], padding=3)


@pytest.mark.parametrize("look", [Look(), Look(softcap=2.0)], ids=["plain", "softcap"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_16_bit_types_differ_by_rounding(dtype: torch.dtype, bound: float, look: Look, device: str) -> None:
    World(SHAPES[0], 1, device, dtype).check(ROWS, look, bound=bound)


@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 7])), min_size=1, max_size=8),
    window=st.sampled_from([None, 1, 5, 33]),
    page_size=st.sampled_from([1, 4]),
    padding=st.integers(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_any_mix_of_rows_equals_the_reference(
    rows: list[tuple[int, int]], window: int | None, page_size: int, padding: int
) -> None:
    World(Shape(4, 2, 64, 0.125), page_size).check(rows, Look(window=window), padding)


def test_rows_of_one_step_see_what_the_others_write_in_it() -> None:
    """Two sequences share their first pages, and both are computed in the same step."""
    shape = Shape(2, 1, 64, 0.125)
    world = World(shape, 1)
    keys, values, q = world.some(6, 1, 64), world.some(6, 1, 64), world.some(6, 2, 64)
    table = np.array([[9, 4, 7, 1, 0], [9, 4, 7, 1, 3]], np.int32)
    # Row 0 computes positions 0 .. 3; row 1 shares those cells and computes position 4.
    rows = Rows(np.array([0, 1]), np.array([0, 4]), np.array([4, 1]), table, 1)
    world.backend.plan(rows)
    out = world.backend.attend(q[:5], keys[:5], values[:5], 0, Look())
    wanted = reference(q[4], keys[:5], values[:5], 4, shape, Look())
    assert (out[4] - wanted).abs().max() < 2e-6


def test_decodes_of_different_lengths_are_not_padded_to_the_longest() -> None:
    world = World(Shape(4, 2, 64, 0.125), 1)
    lengths = np.array([500, 3, 480, 200, 190, 2, 400, 1])
    table = np.zeros((8, 500), np.int32)
    world.backend.plan(Rows(np.arange(8), lengths - 1, np.ones(8, np.int32), table, 1))
    groups = world.backend._lay_out(None)
    assert sum(g.batch for g in groups) == 8
    assert sum(g.batch * g.length for g in groups) < 1.2 * lengths.sum()


def test_cells_of_others_are_never_read() -> None:
    """NaN in every cell that no row owns reaches no row."""
    world = World(Shape(4, 2, 64, 0.125), 1)
    for layer in range(2):
        world.backend._keys[layer].fill_(math.nan)
        world.backend._values[layer].fill_(math.nan)
    world.check(ROWS, Look())


@pytest.mark.parametrize("look", [Look(), Look(window=5), Look(softcap=1.0)], ids=["plain", "window", "softcap"])
def test_values_may_be_the_first_dims_of_the_keys(look: Look) -> None:
    shape = Shape(4, 1, 24, 0.2, value_dim=16)
    keys = torch.randn(40, 1, 24, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(40, 4, 24, generator=torch.Generator().manual_seed(1))
    pool = torch.zeros(CELLS, 1, 24)
    backend = TorchAttention(shape, [pool], [pool[..., :16]])
    table = np.arange(40, dtype=np.int32)[None]
    for begin, end in ((0, 12), (12, 30), (30, 31), (31, 40)):
        backend.plan(Rows(np.array([0]), np.array([begin]), np.array([end - begin]), table, 1))
        out = backend.attend(queries[begin:end], keys[begin:end], keys[begin:end, :, :16], 0, look)
        assert out.shape == (end - begin, 64)
        for n, position in enumerate(range(begin, end)):
            seen = keys[: position + 1]
            wanted = reference(queries[position], seen, seen[..., :16], position, shape, look)
            assert (out[n] - wanted).abs().max() < 2e-6


def test_a_backend_that_lacks_what_a_model_needs_is_refused_by_name() -> None:
    shape = Shape(2, 1, 24, 0.2, value_dim=16)
    require("torch", TorchAttention.features, shape, [Look(window=3, chunk=4, softcap=1.0, sinks=torch.ones(2))])
    with pytest.raises(ConfigError, match=r"--attention-backend slow cannot do .*: narrow values, window;"):
        require("slow", frozenset({"softcap"}), shape, [Look(), Look(window=3), Look(softcap=2.0)])


@pytest.mark.parametrize("cells", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_a_pool_of_8_bits_is_a_pool_of_rounded_numbers(cells: torch.dtype, device: str) -> None:
    """Two steps: three prompts, then what follows them, decodes, a few tokens and many."""
    shape, random = Shape(4, 2, 32, 0.2), torch.Generator().manual_seed(5)
    scales, table = (0.5, 2.0), np.random.default_rng(1).permutation(CELLS).astype(np.int32)[:480].reshape(3, 160)
    few = TorchAttention(shape, *([torch.zeros(CELLS, 2, 32, device=device).to(cells)] for _ in range(2)), [scales])
    wide = TorchAttention(shape, *([torch.zeros(CELLS, 2, 32, dtype=torch.float64)] for _ in range(2)))
    for starts, counts in (([0, 0, 0], [100, 20, 3]), ([100, 20, 3], [1, 7, 40])):
        rows = Rows(np.arange(3), np.array(starts), np.array(counts), table, 1)
        q, k, v = (torch.randn(sum(counts), n, 32, generator=random) for n in (4, 2, 2))
        for look in (Look(), Look(window=9, softcap=3.0, sinks=torch.linspace(-1, 1, 4))):
            for backend in (few, wide):
                backend.plan(rows)
            k_, v_ = ((t / s).to(cells).double() * s for t, s in zip((k, v), scales, strict=True))
            wanted = wide.attend(q.double(), k_, v_, 0, look)
            sinks = None if look.sinks is None else look.sinks.to(device)
            here = Look(look.window, softcap=look.softcap, sinks=sinks)
            got = few.attend(q.to(device), k.to(device), v.to(device), 0, here)
            assert (got.cpu().double() - wanted).abs().max() < 5e-6


def test_what_is_too_large_for_8_bits_is_kept_as_the_largest() -> None:
    shape, cells = Shape(1, 1, 8, 1.0), torch.float8_e4m3fn
    backend = TorchAttention(shape, *([torch.zeros(4, 1, 8).to(cells)] for _ in range(2)), [(1.0, 0.5)])
    backend.plan(Rows(np.array([0]), np.array([0]), np.array([1]), np.array([[2]], np.int32), 1))
    one = torch.ones(1, 1, 8)
    assert (backend.attend(one, one * 1e30, one * -1e6, 0, Look()) == -224).all()
