"""What FlashInfer is told, in terms of a double that does what its documentation says: by definition, on the CPU."""

import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang.attention.base import Look, Rows, Shape
from sglang.attention.torch_native import TorchAttention
from sglang.base.errors import ConfigError

pytest.importorskip("triton")
from sglang.attention import flashinfer
from sglang.attention.triton import TritonAttention

CELLS = 512
SHAPE = Shape(4, 2, 64, 0.125)
LOOKS = {"plain": Look(), "window, cap": Look(window=9, softcap=2.0)}


class Wrapper:
    """Plans hold arrays on the host; fixed ones are read from their buffers when it runs. `calls` counts runs."""

    calls: ClassVar[list[str]] = []
    fails = False

    def __init__(
        self,
        workspace: Tensor,
        layout: str,
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ):
        assert layout == "NHD" and backend == "fa2"
        self.fixed = paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer
        self.graph = use_cuda_graph

    def reset_workspace_buffer(self, workspace: Tensor, plans: Tensor) -> None:
        assert workspace.dtype == plans.dtype == torch.uint8

    def _hold(self, ends: Tensor, pages: Tensor, last: Tensor, size: int, more: dict[str, Any]) -> None:
        for array in (ends, last):
            assert array.dtype == torch.int32 and array.device.type == "cpu"
        if self.graph:
            for buffer, array in zip(self.fixed, (ends, pages, last), strict=True):
                assert buffer is not None
                buffer[: len(array)].copy_(array)
            ends, pages, last = self.fixed  # type: ignore[assignment]
        self.ends, self.pages, self.last, self.size, self.more = ends, pages, last, size, more

    def _run(self, q: Tensor, cells: tuple[Tensor, Tensor], begins: list[int], causal: bool, out: Tensor) -> None:
        for row, (begin, end) in enumerate(itertools.pairwise(begins)):
            pages = self.pages[self.ends[row] : self.ends[row + 1]].long()
            length = (len(pages) - 1) * self.size + int(self.last[row])
            k, v = (t[pages].flatten(0, 1)[:length].repeat_interleave(2, 1).double() for t in cells)
            scores = torch.einsum("nhd,mhd->hnm", q[begin:end].double(), k) * self.more["sm_scale"]
            if cap := self.more["logits_soft_cap"]:
                scores = cap * torch.tanh(scores / cap)
            query = torch.arange(length - (end - begin), length)[:, None]
            key, left = torch.arange(length)[None], self.more["window_left"]
            hidden = (key > query) & causal | (left >= 0) & (key < query - left)
            out[begin:end] = torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


class Prefill(Wrapper):
    def plan(
        self, token_ends: Tensor, ends: Tensor, pages: Tensor, last: Tensor, heads: int, kv_heads: int, dim: int,
        size: int, causal: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        self._hold(ends, pages, last, size, more)
        self.token_ends, self.causal = token_ends.tolist(), causal

    def run(self, q: Tensor, cells: tuple[Tensor, Tensor], out: Tensor, k_scale: float, v_scale: float) -> None:
        self.calls.append("rows")
        if Wrapper.fails:
            raise RuntimeError("a launch failed")
        assert len(q) == self.token_ends[-1]
        self._run(q, cells, self.token_ends, self.causal, out)


class Decode(Wrapper):
    def plan(
        self, ends: Tensor, pages: Tensor, last: Tensor, heads: int, kv_heads: int, dim: int, size: int, **more: Any
    ) -> None:
        self._hold(ends, pages, last, size, more)

    def run(self, q: Tensor, cells: tuple[Tensor, Tensor], out: Tensor, k_scale: float, v_scale: float) -> None:
        self.calls.append("decodes")
        assert len(q) == len(self.last)
        self._run(q, cells, list(range(len(q) + 1)), False, out)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module: Any = types.ModuleType("flashinfer")
    module.BatchPrefillWithPagedKVCacheWrapper, module.BatchDecodeWithPagedKVCacheWrapper = Prefill, Decode
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(flashinfer, "LEAST_PAIRS", 40)
    Wrapper.calls.clear()
    Wrapper.fails = False
    yield


class Pair:
    """The same pool behind the backend with FlashInfer and, in float64, behind torch's."""

    def __init__(self, looks: list[Look], page_size: int, decodes: bool = True):
        random = torch.Generator().manual_seed(0)
        keys, values = (torch.randn(CELLS, 2, 64, generator=random) for _ in range(2))
        pages = np.random.default_rng(1).permutation(CELLS // page_size)
        self.table = np.stack([np.roll(pages, 31 * slot)[: 256 // page_size] for slot in range(6)]).astype(np.int32)
        self.page_size, self.random = page_size, random
        self.own = TritonAttention(SHAPE, [keys], [values], torch.from_numpy(self.table), page_size, 8)
        self.own.use_flashinfer(looks, decodes)
        flash = self.own.flash
        assert flash is not None
        self.flash = flash
        flash._loaded.set()
        self.wide = TorchAttention(SHAPE, [keys.double()], [values.double()])

    def rows(self, spans: list[tuple[int, int]]) -> Rows:
        starts, counts = np.array(spans).T
        return Rows(np.arange(len(spans))[::-1].copy(), starts, counts, self.table, self.page_size)

    def some(self, tokens: int) -> list[Tensor]:
        return [torch.randn(tokens, n, 64, generator=self.random) for n in (4, 2, 2)]

    def check(self, spans: list[tuple[int, int]], look: Look) -> None:
        rows = self.rows(spans)
        q, k, v = self.some(int(rows.counts.sum()))
        self.own.plan(rows)
        self.wide.plan(rows)
        wanted = self.wide.attend(q.double(), k.double(), v.double(), 0, look)
        assert (self.own.attend(q, k, v, 0, look) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("look", LOOKS)
def test_rows_of_all_kinds_equal_the_reference(look: str, page_size: int) -> None:
    pair = Pair([LOOKS[look]], page_size)
    for spans in ([(3, 1), (100, 1), (20, 30), (0, 12)], [(15, 1), (16, 1)], [(0, 40)], [(7, 9), (31, 1), (5, 20)]):
        Wrapper.calls.clear()
        pair.check(spans, LOOKS[look])
        assert Wrapper.calls


def test_both_ways_of_looking_are_planned_in_one_step() -> None:
    pair = Pair(list(LOOKS.values()), 4)
    assert pair.flash.can("rows")
    Wrapper.calls.clear()
    rows = pair.rows([(9, 1), (20, 30)])
    pair.own.plan(rows)
    pair.wide.plan(rows)
    for look in (*LOOKS.values(), *LOOKS.values()):
        q, k, v = pair.some(31)
        wanted = pair.wide.attend(q.double(), k.double(), v.double(), 0, look)
        assert (pair.own.attend(q, k, v, 0, look) - wanted).abs().max() < 1e-5
    assert Wrapper.calls == ["decodes", "rows"] * 4


def test_decodes_of_a_graph_are_read_when_it_runs() -> None:
    """Padding sees one cell; the page table may change after the plan."""
    pair = Pair([LOOKS["plain"]], 16)
    assert pair.own.foresees
    for starts in ([9, 70, 33], [1, 200, 34]):
        n = len(starts)
        assert pair.own.foresee(np.arange(n), np.array(starts), 4)
        pair.table[1, :3] = pair.table[1, 2::-1].copy()
        pair.own._pools[0].table.copy_(torch.from_numpy(pair.table))
        q, k, v = pair.some(4)
        pair.own.fix(torch.tensor([0, 1, 2, -1]), torch.tensor([*starts, 0]), torch.arange(4), None, True)
        got = pair.own.attend(q, k, v, 0, LOOKS["plain"])
        pair.wide.plan(Rows(np.arange(n), np.array(starts), np.ones(n, int), pair.table, 16))
        wanted = pair.wide.attend(*(t[:n].double() for t in (q, k, v)), 0, LOOKS["plain"])
        assert (got[:n] - wanted).abs().max() < 1e-5 and got.isfinite().all()
        assert Wrapper.calls[-1] == "decodes"


def test_it_is_not_used_before_it_is_there_nor_for_little() -> None:
    pair = Pair([Look()], 1)
    pair.flash._loaded.clear()
    pair.check([(3, 1), (20, 30)], Look())
    assert not Wrapper.calls and not pair.own.foresees
    pair.flash._loaded.set()
    pair.check([(0, 3), (0, 4)], Look())
    assert not Wrapper.calls


def test_looks_that_it_cannot_do_are_ours() -> None:
    pair = Pair([Look(), Look(chunk=8)], 1)
    pair.check([(3, 1), (20, 30)], Look(chunk=8))
    pair.check([(3, 1), (20, 30)], Look(sinks=torch.ones(4)))


def test_wrong_results_are_found_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prefill, "run", lambda self, q, cells, out, **more: out.zero_())
    pair = Pair([Look()], 1)
    pair.check([(3, 1), (20, 30)], Look())
    assert not pair.flash.can("rows") and pair.flash.can("decodes")


def test_a_launch_that_fails_is_the_last_one() -> None:
    pair = Pair([Look()], 1)
    pair.check([(20, 30)], Look())
    Wrapper.fails = True
    pair.check([(20, 30)], Look())
    assert not pair.flash.can("rows")
    Wrapper.calls.clear()
    pair.check([(20, 30)], Look())
    assert "rows" not in Wrapper.calls


@pytest.mark.parametrize(
    ("shape", "look", "dtype", "words"),
    [
        (Shape(4, 2, 80, 0.1), Look(), torch.bfloat16, "heads of 80 are not among 64, 128, 256"),
        (SHAPE, Look(sinks=torch.ones(4)), torch.bfloat16, "cannot do what this model needs: sinks"),
        (SHAPE, Look(chunk=8), torch.bfloat16, "chunk"),
        (SHAPE, Look(), torch.float32, "does not compute in float32; --attention-backend triton can"),
    ],
    ids=["heads", "sinks", "chunk", "type"],
)
def test_what_it_cannot_do_is_refused(shape: Shape, look: Look, dtype: torch.dtype, words: str) -> None:
    flashinfer.check(SHAPE, LOOKS.values(), torch.float16)
    with pytest.raises(ConfigError, match=words):
        flashinfer.check(shape, [look], dtype)
