# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportAssignmentType=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Rotary embedding and filing of keys and values in the pool, in one pass over a step's tokens."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.attention import Pool
from sglang.kernels.attention_kernels import narrowed

HEADS_A_PROGRAM = 8


@triton.jit
def _half(x, offsets, cos, sin, HALF: tl.constexpr, i, mask):
    """First and second half of the rotated part; cos, sin: of one token, already offset."""
    c = tl.load(cos + i, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    a = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + offsets + HALF, mask=mask, other=0.0).to(tl.float32)
    return a * c - b * s, b * c + a * s


@triton.jit
def _file(
    q,
    k,
    v,
    keys,
    values,
    cos,
    sin,
    slots,
    positions,
    table,
    q_row,
    k_row,
    v_row,
    table_row,
    k_down,
    v_down,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    ROTARY: tl.constexpr,  # rotated part of a head; 0: q and k come rotated
    PAGE: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,  # >= ROTARY / 2
    BLOCK_D: tl.constexpr,  # >= DIM
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    Q_PARTS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H if ROTARY > 0 else 0
    K_PARTS: tl.constexpr = (KV + BLOCK_H - 1) // BLOCK_H
    HALF: tl.constexpr = ROTARY // 2
    slot = tl.load(slots + token).to(tl.int64)
    i = tl.arange(0, BLOCK_I)
    d = tl.arange(0, BLOCK_D)
    if part < Q_PARTS:
        head = part * BLOCK_H + tl.arange(0, BLOCK_H)
        offsets = token * q_row + head[:, None] * DIM + i[None, :]
        mask = (head < HEADS)[:, None] & (i < HALF)[None, :]
        a, b = _half(q, offsets, cos + token * ROTARY, sin + token * ROTARY, HALF, i, mask)
        tl.store(q + offsets, a.to(q.dtype.element_ty), mask=mask)
        tl.store(q + offsets + HALF, b.to(q.dtype.element_ty), mask=mask)
    elif slot >= 0:
        position = tl.load(positions + token).to(tl.int64)
        page = tl.load(table + slot * table_row + position // PAGE).to(tl.int64)
        cell = page * PAGE + position % PAGE
        first = part - Q_PARTS
        if first < K_PARTS:
            head = first * BLOCK_H + tl.arange(0, BLOCK_H)
            here = head[:, None] * DIM
            to = keys + cell * (KV * DIM) + here
            if ROTARY > 0:
                turned = (head < KV)[:, None] & (i < HALF)[None, :]
                from_ = token * k_row + here + i[None, :]
                a, b = _half(k, from_, cos + token * ROTARY, sin + token * ROTARY, HALF, i, turned)
                tl.store(to + i[None, :], narrowed(a, k_down, keys, MOST), mask=turned)
                tl.store(to + HALF + i[None, :], narrowed(b, k_down, keys, MOST), mask=turned)
            if ROTARY < DIM:
                beyond = (head < KV)[:, None] & ((d >= ROTARY) & (d < DIM))[None, :]
                rest = tl.load(k + token * k_row + here + d[None, :], mask=beyond, other=0.0)
                tl.store(to + d[None, :], narrowed(rest, k_down, keys, MOST), mask=beyond)
        else:
            head = (first - K_PARTS) * BLOCK_H + tl.arange(0, BLOCK_H)
            wide = head[:, None] * DIM + d[None, :]
            all_ = (head < KV)[:, None] & (d < DIM)[None, :]
            new = tl.load(v + token * v_row + wide, mask=all_, other=0.0)
            tl.store(values + cell * (KV * DIM) + wide, narrowed(new, v_down, values, MOST), mask=all_)


def file_cells(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turn: tuple[Tensor, Tensor] | None,
    pool: Pool,
    slots: Tensor,
    positions: Tensor,
    early: bool = False,
) -> None:
    """Rotate q in place and k on its way, if `turn` says how; write k and v to their cells.

    q: [T, heads, dim]; k, v: [T, kv_heads, dim], heads side by side. turn: cos and signed sin of the tokens
    (`layers/rope.py`), each [T, 1, rotary dim]. slots: [T], -1 is filed nowhere; positions: [T]. early: see `matvec`.
    """
    tokens, heads, dim = q.shape
    kv = k.shape[1]
    rotary = 0 if turn is None else turn[0].shape[-1]
    cos, sin = turn or (q, q)
    block_h = min(HEADS_A_PROGRAM, triton.next_power_of_2(heads))
    parts = 2 * triton.cdiv(kv, block_h) + (triton.cdiv(heads, block_h) if rotary else 0)
    _file[(tokens, parts)](
        q, k, v, pool.keys, pool.values, cos, sin, slots, positions, pool.table,
        q.stride(0), k.stride(0), v.stride(0), pool.table.stride(0), 1 / pool.k_scale, 1 / pool.v_scale,
        HEADS=heads, KV=kv, DIM=dim, ROTARY=rotary, PAGE=pool.page_size,
        MOST=pool.most,
        BLOCK_H=block_h, BLOCK_I=triton.next_power_of_2(max(rotary // 2, 1)), BLOCK_D=triton.next_power_of_2(dim),
        EARLY=early, num_warps=4, launch_pdl=early,
    )  # fmt: skip
