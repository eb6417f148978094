"""Long rows, one by one, by cuDNN's attention through torch: on contiguous tensors it does twice what our tiles do.

It knows no pages, so a row's keys and values are gathered first; it plans for every shape it has not met, which takes
as long as several long rows, so a row is padded to one of few shapes, and tiles compute it until the device has had the
time for a plan (`prepare`); and its causal mask is for as many keys as
queries. A row whose sequence has `start` keys already is therefore several calls: all queries on the first `cached`
keys, a power of two of them at a time, and a causal square of what follows. Queries of no token stand before the row's
own in the square, from `cached` to `start`, and after them, up to its padded size; nobody reads what they yield, and no
real query sees the keys after its own.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import Ints, Rows, Shape
from sglang.kernels import attention as kernels
from sglang.kernels.compiling import trial
from sglang.kernels.long import gather, unite

log = logging.getLogger("sglang.attention")
LEAST = 1024  # tokens of a row: 8 tiles of queries for each head, enough to fill a device
LEAST_PAIRS = 2048 * 2048 // 2  # of a query and a key: below, a layer's row takes 0.1 ms and there is little to win
GRAINS = (2048, 1024, 512, 256)  # `cached` is a multiple of the first that wastes little
STEPS = (4, 8, 16)  # sizes from a power of two to the next; the first that wastes little
WASTE = 1.13  # pairs that are computed for one that is asked for, at most: the next size is 1/16 away, 1.0625 squared
MOST_BYTES = 512 << 20  # of keys and values side by side, queries, results: what an MLP takes for a step of 8192 tokens
# Start and tokens of rows to be ready for at the start, besides a step's chunk: beside others' decodes, and alone
USUAL = ((14336, 2048), (0, 4096), (0, 8192))
WARM_S = 1.0  # for plans at the start
AGAIN = 2  # times that a shape is met before it is worth a plan
MOST_MET = 64  # shapes that are remembered
Calls = tuple[int, int]  # queries and keys of a call; no keys: the causal one


@dataclass(frozen=True)
class Cut:
    """How a row is computed. square: queries and keys of the causal call; lead: of them before the row's own;
    cached: keys of the other calls; queries: theirs."""

    cached: int
    square: int
    lead: int
    queries: int

    @property
    def blocks(self) -> list[int]:
        """Keys of the other calls, the most first."""
        return [1 << bit for bit in reversed(range(self.cached.bit_length())) if self.cached >> bit & 1]

    @property
    def shapes(self) -> set[Calls]:
        return {(self.square, 0), *((self.queries, keys) for keys in self.blocks)}


def pairs(queries: int, cached: int) -> int:
    """Of a query and a key it sees."""
    return queries * cached + queries * (queries + 1) // 2


def padded(queries: int, steps: int) -> int:
    step = max(8, (1 << (queries - 1).bit_length()) // (2 * steps))
    return -(-queries // step) * step


def cut(start: int, count: int) -> Cut | None:
    """None: every way to do it wastes too much."""
    for grain in GRAINS:
        cached = start // grain * grain
        lead = start - cached
        for steps in STEPS:
            square, queries = padded(lead + count, steps), padded(count, steps)
            if pairs(square, 0) + queries * cached <= WASTE * pairs(count, start):
                return Cut(cached, square, lead, queries)
    return None


@dataclass(frozen=True)
class Row:
    """slot, start, count, place: as in `kernels.attention.extend`."""

    slot: int
    start: int
    count: int
    place: int
    cut: Cut


class LongRows:
    """Which rows are computed like this, and their computation."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device):
        self._shape = shape
        self._dtype = dtype
        self._planned: set[Calls] = set()
        self._met: dict[Calls, int] = {}  # how often
        self._expected: list[Calls] = []
        self.on = possible(shape, dtype, device)

    def find(self, rows: Rows, begins: Ints) -> list[Row]:
        """Those that are better computed like this. begins: [R], the place of each row's first token."""
        found = []
        for row in np.flatnonzero(rows.counts >= LEAST) if self.on else ():
            slot, start, count, place = (int(of[row]) for of in (rows.slots, rows.starts, rows.counts, begins))
            cut = self._cut(start, count)
            if cut is None or not works(self._shape, self._dtype):
                continue
            if cut.shapes <= self._planned:
                found.append(Row(slot, start, count, place, cut))
            for shape in cut.shapes:
                if shape in self._met or len(self._met) < MOST_MET:
                    self._met[shape] = self._met.get(shape, 0) + 1
        return found

    def expect(self, shapes: Iterable[Calls]) -> None:
        """Plan for them as well: they were met in an earlier run."""
        self._expected += [
            (queries, keys)
            for queries, keys in shapes
            if queries >= LEAST and keys >= 0 and self._bytes(queries, keys or queries) <= MOST_BYTES
        ][:MOST_MET]

    @property
    def met(self) -> list[Calls]:
        """What is worth a plan. Of random lengths most come once: those are left to tiles."""
        return [shape for shape, n in sorted(self._met.items(), key=lambda one: -one[1]) if n >= AGAIN]

    def _cut(self, start: int, count: int) -> Cut | None:
        if count < LEAST or pairs(count, start) < LEAST_PAIRS:
            return None
        found = cut(start, count)
        if found is None or self._bytes(found.square, found.cached + found.square) > MOST_BYTES:
            return None
        return found

    def _bytes(self, queries: int, keys: int) -> int:
        s = self._shape
        return (2 * s.kv_heads * keys + 5 * s.heads * queries) * s.head_dim * self._dtype.itemsize

    def attend(self, q: Tensor, pool: kernels.Pool, row: Row, out: Tensor) -> Tensor:
        """q, out: [tokens, heads, dim] of the step, out contiguous. The row's keys are in the pool.

        Returns out, or what is to take its place: where the row is all of the step, nothing is copied.
        """
        return attend(q, pool, self._shape.scale, row, out)

    def rehearse(self) -> None:
        """Launch what `works` does: its kernels may only be compiled meanwhile, and cuDNN's libraries are read."""
        with contextlib.suppress(Exception):  # `works` says what it is
            if self.on:
                disagreement(self._shape, self._dtype, torch.device("cuda"))

    def prepare(self, pool: kernels.Pool, chunk: int, most: int) -> None:
        """Plans for usual rows before anybody waits for them, as many as there is time for. chunk: tokens of a step;
        most: of a sequence."""
        began = time.monotonic()
        for start, count in dict.fromkeys(((0, chunk), (chunk, chunk), *USUAL)):
            cut = self._cut(start, count) if self.on and start + count <= most else None
            if cut is None or not works(self._shape, self._dtype):
                continue
            for shape in sorted(cut.shapes - self._planned):
                if self.on and time.monotonic() - began < WARM_S:
                    self._plan(pool, shape)
                else:
                    self._expected.append(shape)

    def prepare_one(self, pool: kernels.Pool) -> bool:
        """A plan that is missing, between two steps; whether another is."""
        if not self.missing or not works(self._shape, self._dtype):
            return False
        self._plan(pool, self.missing[0])
        return len(self.missing) > 0

    @property
    def missing(self) -> list[Calls]:
        """Shapes that are worth a plan and have none."""
        return [shape for shape in (*self.met, *self._expected) if shape not in self._planned] if self.on else []

    def _plan(self, pool: kernels.Pool, shape: Calls) -> None:
        (queries, keys), s = shape, self._shape
        own = pool.keys.new_zeros(queries, s.heads + 2 * s.kv_heads, s.head_dim, dtype=self._dtype)[:, : s.heads]
        both = own.new_zeros(2, keys or queries, s.kv_heads, s.head_dim)
        try:
            fused(own, both[0], both[1], keys == 0, s.scale)
        except Exception as error:
            log.warning("Long rows are computed by tiles, not by cuDNN: %s", error)
            self.on = False
        self._planned.add(shape)


def attend(q: Tensor, pool: kernels.Pool, scale: float, row: Row, out: Tensor) -> Tensor:
    cut, count = row.cut, row.count
    both = gather(pool, row.slot, row.start + count, cut.cached + cut.square, q.dtype)
    own = q[row.place : row.place + count]
    keys, values = both
    stride = (q.shape[1] + 2 * keys.shape[1]) * q.shape[2]  # a part of what is planned for: that of q in a step's qkv
    got, norms = fused(_among(own, cut.lead, cut.square, stride), keys[cut.cached :], values[cut.cached :], True, scale)
    got, norms = got[cut.lead : cut.lead + count], norms[:, cut.lead : cut.lead + count]
    if cut.cached:
        queries, at = _among(own, 0, cut.queries, stride), 0
        for n in cut.blocks:
            far, far_norms = fused(queries, keys[at : at + n], values[at : at + n], False, scale)
            at += n
            far, far_norms = far[:count], far_norms[:, :count]
            to = out[row.place : row.place + count] if at == cut.cached else torch.empty_like(far)
            unite(far, got, far_norms, norms, to)
            got, norms = to, torch.logaddexp(far_norms, norms) if at < cut.cached else norms
        return out
    if count == len(out):
        return got
    out[row.place : row.place + count] = got
    return out


def _among(own: Tensor, lead: int, size: int, stride: int) -> Tensor:
    """`size` queries, `stride` apart: zeros but for the own from `lead` on."""
    count, apart = len(own), (stride, own.shape[2], 1)
    if count == size and own.stride() == apart:
        return own
    queries = own.new_empty(size * stride).as_strided((size, *own.shape[1:]), apart)
    queries[:lead].zero_()
    queries[lead : lead + count] = own
    queries[lead + count :].zero_()
    return queries


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """q: [n, heads, dim]; k, v: [m, kv_heads, dim] -> [n, heads, dim], and [heads, n]: log of the sum of exp(score)."""
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    out, norms, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    heads, n = q.shape[1:3]
    return out[0].transpose(0, 1).contiguous(), norms.reshape(heads, n)


def possible(shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
    """On devices from Hopper on: on older ones cuDNN's kernels are no faster than tiles."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and shape.head_dim <= 128
        and shape.head_dim % 8 == 0
        and shape.value_dim in (None, shape.head_dim)
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


@functools.cache
def works(shape: Shape, dtype: torch.dtype) -> bool:
    """Whether it gives what a reference in float64 gives, with keys before the row and padding on both its sides."""
    try:
        error = trial(disagreement)(shape, dtype, torch.device("cuda"))
        if error < 0.02:
            return True
        reason = f"results differ by {error:.2g}"
    except Exception as error:  # torch's, cuDNN's or a compiler's: whatever it is, tiles are there
        reason = str(error)
    log.warning("Long rows are computed by tiles, not by cuDNN: %s", reason)
    return False


@torch.inference_mode()
def disagreement(shape: Shape, dtype: torch.dtype, device: torch.device) -> float:
    """Relative error of two rows of a step: one after 150 cached keys, one after none."""
    random = torch.Generator(device).manual_seed(0)
    heads, kv, dim = shape.heads, shape.kv_heads, shape.head_dim
    rows = [Row(1, 150, 300, 3, Cut(128, 384, 22, 320)), Row(0, 0, 256, 303, Cut(0, 256, 0, 256))]

    def some(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device=device).to(dtype)

    pool = kernels.Pool(some(1024, kv, dim), some(1024, kv, dim), torch.randperm(1024, device=device).view(2, 512), 1)
    q = some(560, heads + 2 * kv, dim)[:, :heads]  # a part of a product, as in a step
    out = torch.zeros(560, heads, dim, dtype=dtype, device=device)
    worst = 0.0
    for row in rows:
        out = attend(q, pool, shape.scale, row, out)
        wanted = reference(q, pool, shape.scale, row)
        got = out[row.place : row.place + row.count].double()
        error = (torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted)).item()
        worst = max(worst, error) if error == error else float("inf")  # NaN is no agreement
    return worst


def reference(q: Tensor, pool: kernels.Pool, scale: float, row: Row) -> Tensor:
    """The same by definition, in float64: [count, heads, dim]."""
    at = torch.arange(row.start + row.count, device=q.device)
    cells = pool.table[row.slot, at // pool.page_size] * pool.page_size + at % pool.page_size
    group = q.shape[1] // pool.keys.shape[1]
    k, v = (t[cells].double().repeat_interleave(group, 1) for t in (pool.keys, pool.values))
    scores = torch.einsum("nhd,mhd->hnm", q[row.place : row.place + row.count].double(), k) * scale
    hidden = at[None, :] > at[row.start :, None]
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)
