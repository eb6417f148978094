# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Few tokens: a program owns a few outputs of a pair, and walks along the weights of its expert.

The last pass sums a token's experts as it goes.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels import fp8
from sglang.kernels.experts_stack import Gate, Stack, Tail, opened, rounded
from sglang.kernels.experts_tiles import DEEP
from sglang.kernels.matvec import early

UNROLLED = 4  # steps along a row, whose loads are all on their way at once


@triton.jit
def _open_one(
    x,
    x_scales,
    weight,
    scales,
    bias,
    ids,
    weights,
    out,
    x_row,
    first,
    count,
    limit,
    HALF: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGH: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out: [pairs, HALF]. A program computes BLOCK_N of a pair's."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    pair = tl.program_id(1)
    token = pair // TOP_K
    e = tl.load(ids + pair) - first
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    mine = n < tl.where((e >= 0) & (e < count), HALF, 0)  # of an expert that is elsewhere: zeros
    own = weight + e.to(tl.int64) * (2 * HALF * K) + n[:, None] * K
    gates = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for at in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
        i = at + k
        there = mine[:, None] & (i < K)[None, :]
        w = tl.load(own + i[None, :], mask=there, other=0.0)
        u = tl.load(own + HALF * K + i[None, :], mask=there, other=0.0)
        v = tl.load(x + token.to(tl.int64) * x_row + i, mask=i < K, other=0.0).to(tl.float32)
        gates += w.to(tl.float32) * v[None, :]
        ups += u.to(tl.float32) * v[None, :]
    gate = tl.sum(gates, 1)
    up = tl.sum(ups, 1)
    if SCALED:
        x_scale = tl.load(x_scales + token)
        gate *= x_scale * tl.load(scales + e * 2 * HALF + n, mask=mine, other=0.0)
        up *= x_scale * tl.load(scales + e * 2 * HALF + HALF + n, mask=mine, other=0.0)
    if WEIGH:
        share = tl.load(weights + pair)
        gate *= share
        up *= share
    if BIAS:
        gate += tl.load(bias + e * 2 * HALF + n, mask=mine, other=0.0).to(tl.float32)
        up += tl.load(bias + e * 2 * HALF + HALF + n, mask=mine, other=0.0).to(tl.float32)
    tl.store(out + pair * HALF + n, opened(gate, up, limit, ACT).to(out.dtype.element_ty), mask=n < HALF)


@triton.jit
def _close_one(
    inner,
    inner_scales,
    weight,
    scales,
    bias,
    ids,
    weights,
    shared,
    gates,
    other,
    out,
    first,
    count,
    N,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGH: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out: [tokens, N]. A program computes BLOCK_N of a token's, of all its experts."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    here = n < N
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    y = tl.zeros((BLOCK_N,), tl.float32)
    for j in tl.static_range(TOP_K):
        pair = token * TOP_K + j
        e = tl.load(ids + pair) - first
        mine = n < tl.where((e >= 0) & (e < count), N, 0)
        share = tl.load(weights + pair) if WEIGH else 1.0
        own = weight + e.to(tl.int64) * N * K + n[:, None] * K
        if SCALED:
            factor = tl.load(scales + e * N + n, mask=mine, other=0.0)
            share *= tl.load(inner_scales + pair)
        for at in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
            i = at + k
            w = tl.load(own + i[None, :], mask=mine[:, None] & (i < K)[None, :], other=0.0).to(tl.float32)
            v = tl.load(inner + pair * K + i, mask=i < K, other=0.0).to(tl.float32) * share
            if SCALED:
                w *= factor[:, None]
            acc += w * v[None, :]
        if BIAS:
            part = tl.load(bias + e * N + n, mask=mine, other=0.0).to(tl.float32)
            y += part * tl.load(weights + pair) if WEIGH else part
    y += tl.sum(acc, 1)
    place = token * N + n
    if SHARED:
        more = tl.load(shared + place, mask=here, other=0.0).to(tl.float32)
        y += more * tl.load(gates + token) if GATED else more
    if ADD:
        y += tl.load(other + place, mask=here, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=here)


def pair_by_pair(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    opens: Stack,
    closes: Stack,
    gate: Gate,
    weigh_inputs: bool,
    first: int,
    tail: Tail,
) -> Tensor:
    """As `experts.forward`, of weights with a scale a row at most."""
    assert isinstance(opens.weight, Tensor) and isinstance(closes.weight, Tensor)
    tokens, top_k = ids.shape
    count, (hidden, inter) = opens.weight.shape[0], closes.weight.shape[1:]
    chained = early(tokens)
    codes, x_scales = rounded(x, opens)
    inner = x.new_empty(ids.numel(), inter)
    block_n, block_k, warps = tuning(hidden)
    _open_one[(triton.cdiv(inter, block_n), ids.numel())](
        codes, x_scales, opens.weight, weights if opens.scales is None else opens.scales,
        weights if opens.bias is None else opens.bias, ids, weights, inner, codes.stride(0), first, count,
        gate.limit or 0.0, HALF=inter, K=hidden, TOP_K=top_k, SCALED=opens.scales is not None,
        BIAS=opens.bias is not None, WEIGH=weigh_inputs, ACT=gate.number, BLOCK_N=block_n, BLOCK_K=block_k,
        UNROLL=min(UNROLLED, triton.cdiv(hidden, block_k)), EARLY=chained, num_warps=warps, launch_pdl=chained,
    )  # fmt: skip
    # One token's pairs are few rows, whatever their number: what rounds them may start early as well.
    codes, inner_scales = (inner, inner) if closes.scales is None else fp8.rounded(inner, None)
    out = x.new_empty(tokens, hidden) if tail.other is None else tail.other
    block_n, block_k, warps = tuning(inter, False)
    _close_one[(triton.cdiv(hidden, block_n), tokens)](
        codes, inner_scales, closes.weight, weights if closes.scales is None else closes.scales,
        weights if closes.bias is None else closes.bias, ids, weights, *tail.given(inner, weights, out), out, first,
        count, hidden, K=inter, TOP_K=top_k, SCALED=closes.scales is not None, BIAS=closes.bias is not None,
        WEIGH=not weigh_inputs, SHARED=tail.shared is not None, GATED=tail.gates is not None,
        ADD=tail.other is not None, BLOCK_N=block_n, BLOCK_K=block_k,
        UNROLL=min(UNROLLED, triton.cdiv(inter, block_k)), EARLY=chained, num_warps=warps,
        launch_pdl=chained,
    )  # fmt: skip
    return out


def tuning(inputs: int, opens: bool = True) -> tuple[int, int, int]:
    """Rows of a program of few tokens, columns of a step, warps. Measured on an H200 by `scripts/gpu_check.py moe`."""
    wide = 2048 if opens else 1024 if inputs >= DEEP else 512
    return (1 if opens else 2), min(wide, triton.next_power_of_2(inputs)), 4
