# pyright: reportCallIssue=false, reportIndexIssue=false, reportAssignmentType=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""What stands around attention computed on contiguous tensors: a row's cells side by side, and two parts as one."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang.kernels.attention import Pool

LOG2E = tl.constexpr(1.4426950408889634)
CELLS = 16  # that a program copies
TOKENS = 32  # that a program merges
LIST_PARTS = 4  # programs that list a row's pages


@triton.jit(do_not_specialize=["slot", "count"])
def _gather(
    keys,
    values,
    table,
    to,
    slot,
    count,
    table_row,
    half,
    k_scale,
    v_scale,
    PAGE: tl.constexpr,
    WIDE: tl.constexpr,  # KV * DIM
    WIDENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    there = position < count
    page = tl.load(table + slot.to(tl.int64) * table_row + position // PAGE, mask=there, other=0).to(tl.int64)
    cell = (page * PAGE + position % PAGE) * WIDE
    read = there[:, None] & (w < WIDE)[None, :]
    here = position.to(tl.int64)[:, None] * WIDE + w[None, :]
    inside = (here < half) & (w < WIDE)[None, :]
    k = tl.load(keys + cell[:, None] + w[None, :], mask=read, other=0.0)
    v = tl.load(values + cell[:, None] + w[None, :], mask=read, other=0.0)
    if WIDENS:
        k, v = k.to(tl.float32) * k_scale, v.to(tl.float32) * v_scale
    tl.store(to + here, k.to(to.dtype.element_ty), mask=inside)
    tl.store(to + half + here, v.to(to.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["a_row", "b_row", "count"])
def _unite(
    a,
    b,
    a_norms,
    b_norms,
    out,
    a_row,  # from a head's norms to the next one's
    b_row,
    count,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    there = m < count
    x = tl.load(a_norms + head.to(tl.int64) * a_row + m, mask=there, other=0.0)
    y = tl.load(b_norms + head.to(tl.int64) * b_row + m, mask=there, other=0.0)
    share = 1.0 / (1.0 + tl.exp2(tl.minimum((y - x) * LOG2E, 126.0)))  # of a: e^x / (e^x + e^y)
    mine = there[:, None] & (d < DIM)[None, :]
    here = (m.to(tl.int64)[:, None] * HEADS + head) * DIM + d[None, :]
    one = tl.load(a + here, mask=mine, other=0.0).to(tl.float32)
    two = tl.load(b + here, mask=mine, other=0.0).to(tl.float32)
    whole = two + (one - two) * share[:, None]
    tl.store(out + here, whole.to(out.dtype.element_ty), mask=mine)


@triton.jit
def _list_pages(table, slots, ends, out, table_row, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    slot = tl.maximum(tl.load(slots + row).to(tl.int64), 0)
    begin = tl.load(ends + row).to(tl.int64)
    count = (tl.load(ends + row + 1) - begin).to(tl.int32)
    for at in range(tl.program_id(1) * BLOCK, count, PARTS * BLOCK):
        i = at + tl.arange(0, BLOCK)
        page = tl.load(table + slot * table_row + i, mask=i < count, other=0)
        tl.store(out + begin + i, page, mask=i < count)


def list_pages(table: Tensor, slots: Tensor, ends: Tensor, out: Tensor) -> None:
    """The first pages of rows side by side. table: int32 [slots, pages]; slots: [R], -1 is as 0; ends: [R + 1], where
    each row's end in `out`, int32, a zero before them."""
    _list_pages[(len(slots), LIST_PARTS)](
        table, slots, ends, out, table.stride(0), PARTS=LIST_PARTS, BLOCK=1024, num_warps=4
    )


def gather(pool: Pool, slot: int, count: int, room: int, dtype: torch.dtype) -> Tensor:
    """A sequence's first `count` keys and values side by side, then zeros: [2, room, kv_heads, dim] of `dtype`."""
    kv, dim = pool.keys.shape[1:]
    wide = kv * dim
    to = torch.empty(2, room, kv, dim, dtype=dtype, device=pool.keys.device)
    block = min(1024, triton.next_power_of_2(wide))
    _gather[(triton.cdiv(room, CELLS), triton.cdiv(wide, block))](
        pool.keys, pool.values, pool.table, to, slot, count, pool.table.stride(0), room * wide,
        pool.k_scale, pool.v_scale,
        PAGE=pool.page_size, WIDE=wide, WIDENS=dtype != pool.keys.dtype, BLOCK_N=CELLS, BLOCK_W=block, num_warps=8,
    )  # fmt: skip
    return to


def unite(a: Tensor, b: Tensor, a_norms: Tensor, b_norms: Tensor, out: Tensor) -> None:
    """Attention to two sets of keys as attention to both.

    a, b, out: [count, heads, dim], contiguous; norms: float32 [heads, count], the log of the sum of exp(score), a
    head's side by side.
    """
    count, heads, dim = a.shape
    _unite[(triton.cdiv(count, TOKENS), heads)](
        a, b, a_norms, b_norms, out, a_norms.stride(0), b_norms.stride(0), count,
        HEADS=heads, DIM=dim, BLOCK_M=TOKENS, BLOCK_D=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip
