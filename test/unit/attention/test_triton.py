"""The Triton backend against the torch one in float64: in Triton's interpreter where there is no CUDA device."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sglang.attention.base import Look, Rows, Shape
from sglang.attention.torch_native import TorchAttention
from sglang.layers.rope import Rope, rotate, tables

pytest.importorskip("triton")
from sglang.attention.triton import TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CELLS = 512
LAYERS = 2


@dataclass
class Pair:
    """A pool, and the same in float64 behind the torch backend."""

    shape: Shape
    page_size: int = 1
    dtype: torch.dtype = torch.float32
    cells: torch.dtype | None = None  # of the pools, where another; they are kept with the scales below
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(3))

    def __post_init__(self) -> None:
        s = self.shape
        wide = [self.some(CELLS, s.kv_heads, s.head_dim) for _ in range(2 * LAYERS)]
        own = [t.to(DEVICE, self.cells or self.dtype) for t in wide]
        wide = [t.cpu().clone() if self.cells else t.cpu().double() for t in own]
        scales = [(0.5, 0.25)] * LAYERS if self.cells else None
        pages = np.random.default_rng(0).permutation(CELLS // self.page_size)
        width = 320 // self.page_size
        self.table = np.resize(pages, (9, width)).astype(np.int32)
        for slot in range(9):
            self.table[slot] = np.resize(np.roll(pages, 37 * slot // self.page_size), width)
        self.keys, self.values = own[:LAYERS], own[LAYERS:]
        self.wide = TorchAttention(s, wide[:LAYERS], wide[LAYERS:], scales)
        table = torch.from_numpy(self.table).to(DEVICE)
        self.own = TritonAttention(s, self.keys, self.values, table, self.page_size, 32, self.dtype, scales)

    def some(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.random)

    def rows(self, spans: list[tuple[int, int]]) -> Rows:
        starts, counts = np.array(spans, np.int32).T
        return Rows(np.arange(len(spans), dtype=np.int32)[::-1].copy(), starts, counts, self.table, self.page_size)

    def check(self, spans: list[tuple[int, int]], look: Look, bound: float, padding: int = 0) -> None:
        """spans: (start, count) of each row."""
        s, rows = self.shape, self.rows(spans)
        n = int(rows.counts.sum())
        packed = self.some(n + padding, s.heads + 2 * s.kv_heads, s.head_dim).to(self.dtype)
        q, k, v = packed.split([s.heads, s.kv_heads, s.kv_heads], 1)
        if self.cells and DEVICE.type == "cpu":  # Triton's interpreter rounds 1.95 to 1.0 instead of 2.0
            k[:], v[:] = k.to(self.cells).to(self.dtype), v.to(self.cells).to(self.dtype)
        self.wide.plan(rows)
        wanted = self.wide.attend(q[:n].double(), k[:n].double(), v[:n].double(), 1, _on(look, "cpu"))
        self.own.plan(rows)
        q, k, v = packed.to(DEVICE).split([s.heads, s.kv_heads, s.kv_heads], 1)
        got = self.own.attend(q, k, v, 1, _on(look, DEVICE)).cpu().double()
        assert (got[n:] == 0).all()
        assert torch.linalg.norm(got[:n] - wanted) < bound * torch.linalg.norm(wanted)
        assert (got[:n] - wanted).abs().max() < 10 * bound
        assert torch.equal(self.keys[1].cpu().double(), self.wide._keys[1].double()), "filed keys"
        assert torch.equal(self.values[1].cpu().double(), self.wide._values[1].double()), "filed values"


def _on(look: Look, device: torch.device | str) -> Look:
    return Look(look.window, look.chunk, look.softcap, None if look.sinks is None else look.sinks.to(device))


MIXED = [(0, 5), (12, 1), (3, 40), (0, 1), (150, 1)]
LOOKS = {
    "plain": Look(),
    "window": Look(window=6),
    "wide_window": Look(window=70),
    "chunk": Look(chunk=16),
    "softcap": Look(softcap=1.5),
    "sinks": Look(sinks=torch.linspace(-1, 2, 8)),
    "all": Look(window=9, softcap=2.0, sinks=torch.linspace(-1, 2, 8)),
}


@pytest.mark.parametrize(("look", "page_size"), [*((look, 1) for look in LOOKS), ("plain", 4), ("all", 4)])
def test_mixed_rows_equal_the_reference(look: str, page_size: int) -> None:
    Pair(Shape(8, 2, 64, 0.125), page_size).check(MIXED, LOOKS[look], 2e-6)


@pytest.mark.parametrize(
    "shape",
    [Shape(3, 3, 80, 80**-0.5), Shape(8, 1, 128, 0.1), Shape(4, 2, 256, 1 / 16), Shape(2, 1, 96, 0.1)],
    ids=lambda s: f"{s.heads}/{s.kv_heads}x{s.head_dim}",
)
def test_head_sizes_and_groups(shape: Shape) -> None:
    Pair(shape, 2).check([(0, 5), (50, 1), (33, 4), (64, 1)], Look(), 2e-6, padding=2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_16_bit_types_differ_by_rounding(dtype: torch.dtype, bound: float) -> None:
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("the interpreter has no bfloat16 products")
    Pair(Shape(4, 2, 64, 0.125), 1, dtype).check([(0, 40), (90, 1), (17, 6), (5, 1)], Look(), bound)


@pytest.mark.parametrize("cells", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("look", ["plain", "all"])
def test_keys_and_values_of_8_bits_are_those_that_the_reference_keeps(cells: torch.dtype, look: str) -> None:
    Pair(Shape(8, 2, 64, 0.125), 4, cells=cells).check(MIXED, LOOKS[look], 2e-6, padding=2)


def test_keys_of_8_bits_meet_queries_of_bfloat16_as_float16() -> None:
    Pair(Shape(4, 2, 64, 0.125), 1, torch.bfloat16, torch.float8_e4m3fn).check(MIXED, Look(), 0.005)


@pytest.mark.parametrize("rotary", [64, 24])
def test_what_is_too_large_for_8_bits_is_filed_as_the_largest(rotary: int) -> None:
    pair = Pair(Shape(4, 2, 64, 0.125), cells=torch.float8_e4m3fn)
    rows = pair.rows([(3, 1)])
    q, k, v = (torch.full((1, n, 64), 1e5, device=DEVICE) for n in (4, 2, 2))
    turn = tuple(torch.ones(1, 1, rotary, device=DEVICE) * sign for sign in (1, 0))
    pair.own.plan(rows)
    got = pair.own.turn_and_attend(q, k, -v, turn, 0, Look(window=1))  # type: ignore[arg-type]
    cell = int(pair.table[rows.slots[0], 3])
    assert (pair.keys[0][cell].float() == 448).all()
    assert (got == -448 * 0.25).all()


@pytest.mark.parametrize("rotary", [64, 24])
def test_keys_are_rotated_on_their_way_to_the_pool(rotary: int) -> None:
    pair = Pair(Shape(4, 2, 64, 0.125))
    s, rows = pair.shape, pair.rows([(3, 4), (60, 1)])
    packed = pair.some(5, 8, 64)
    at = torch.tensor([3, 4, 5, 6, 60])
    cos, sin = (t[at][:, None] for t in tables(Rope(rotary), 64, torch.device("cpu"), torch.float32))
    turned = rotate(packed[:, :6].double(), cos.double(), sin.double())
    pair.wide.plan(rows)
    wanted = pair.wide.attend(turned[:, :4], turned[:, 4:], packed[:, 6:].double(), 0, Look())
    pair.own.plan(rows)
    q, k, v = packed.to(DEVICE).split([s.heads, s.kv_heads, s.kv_heads], 1)
    got = pair.own.turn_and_attend(q, k, v, (cos.to(DEVICE), sin.to(DEVICE)), 0, Look())
    assert (got.cpu().double() - wanted).abs().max() < 2e-5
    assert (pair.keys[0].cpu().double() - pair.wide._keys[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("look", "rotary", "cells", "parts"),
    [*((look, 64, None, 1) for look in LOOKS), ("plain", 24, None, 32), ("all", 0, None, 1), ("all", 64, "e4m3", 32)],
)
def test_fixed_rows_file_their_own_keys_and_equal_planned_ones(
    look: str, rotary: int, cells: str | None, parts: int
) -> None:
    kind = torch.float8_e4m3fn if cells else None
    pair = Pair(Shape(8, 2, 64, 0.125), 2, cells=kind)
    pair.table[:5, :51] = np.random.default_rng(1).permutation(CELLS // 2)[:255].reshape(5, 51)  # nothing in common
    pair.own._pools[0].table.copy_(torch.from_numpy(pair.table))
    rows = pair.rows([(9, 1), (70, 1), (100, 1), (0, 1), (64, 1)])
    n = len(rows.slots)
    packed = pair.some(n + 1, 12, 64).to(DEVICE)
    at = torch.tensor([*rows.starts.tolist(), 0])
    turn = None
    if rotary:
        cos, sin = (t[at][:, None].to(DEVICE) for t in tables(Rope(rotary), 256, torch.device("cpu"), torch.float32))
        turn = cos, sin

    def attend(tokens: int) -> torch.Tensor:
        q, k, v = packed[:tokens].clone().split([8, 2, 2], 1)
        seen = _on(LOOKS[look], DEVICE)
        if turn is None:
            return pair.own.attend(q, k, v, 0, seen)
        return pair.own.turn_and_attend(q, k, v, (turn[0][:tokens], turn[1][:tokens]), 0, seen)

    fresh = [t.clone() for t in (pair.keys[0], pair.values[0])]
    pair.own._programs = 10 * parts
    pair.own.plan(rows)
    wanted = attend(n)
    filed = [t.float() for t in (pair.keys[0], pair.values[0])]
    pair.keys[0].copy_(fresh[0])
    pair.values[0].copy_(fresh[1])
    slots = torch.tensor([*rows.slots.tolist(), -1], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([*rows.starts.tolist(), 0], dtype=torch.int32, device=DEVICE)
    pair.own.fix(slots, positions, torch.arange(n + 1, dtype=torch.int32, device=DEVICE))
    got = attend(n + 1)
    assert torch.allclose(got[:n], wanted, atol=2e-6 if cells is None else 2e-3)
    assert (got[n] == 0).all()
    for own, other in zip((pair.keys[0], pair.values[0]), filed, strict=True):
        assert torch.allclose(own.float(), other, atol=1e-6 if cells is None else 0.13)
        assert (own.float() != other).float().mean() < 1e-3, "padding is filed nowhere"


def test_a_row_may_read_cells_that_another_row_of_the_step_writes() -> None:
    pair = Pair(Shape(2, 1, 64, 0.125))
    pair.table[1, :4] = pair.table[0, :4]
    pair.own = TritonAttention(pair.shape, pair.keys, pair.values, torch.from_numpy(pair.table).to(DEVICE), 1)
    rows = Rows(np.array([0, 1]), np.array([0, 4]), np.array([4, 1]), pair.table, 1)
    q, k, v = pair.some(5, 2, 64), pair.some(5, 1, 64), pair.some(5, 1, 64)
    pair.wide.plan(rows)
    wanted = pair.wide.attend(q.double(), k.double(), v.double(), 0, Look())
    pair.own.plan(rows)
    got = pair.own.attend(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), 0, Look()).cpu().double()
    assert (got - wanted).abs().max() < 2e-6
