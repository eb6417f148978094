# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Others: pairs are sorted by expert, and a program multiplies a block of them; then a token's experts are summed."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.experts_stack import Gate, Stack, Tail, opened
from sglang.kernels.experts_tiles import Tile
from sglang.kernels.matvec import early
from sglang.kernels.routing import Sorted


@triton.jit
def ended(
    acc,
    ups,
    bias,
    weights,
    out,
    e,
    n,
    place,
    pair,
    there,
    limit,
    N: tl.constexpr,
    OPENS: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGH: tl.constexpr,
    ACT: tl.constexpr,
):
    """What follows a product, and the store: of gate and up (OPENS) at `place`, of down at `pair`."""
    here = n < N
    ROWS: tl.constexpr = 2 * N if OPENS else N
    if OPENS:
        if WEIGH:
            share = tl.load(weights + pair, mask=there, other=0.0)
            acc *= share[None, :]
            ups *= share[None, :]
        if BIAS:
            acc += tl.load(bias + e * ROWS + n, mask=here, other=0.0).to(tl.float32)[:, None]
            ups += tl.load(bias + e * ROWS + N + n, mask=here, other=0.0).to(tl.float32)[:, None]
        acc = opened(acc, ups, limit, ACT)
        target = place
    else:
        if BIAS:
            acc += tl.load(bias + e * ROWS + n, mask=here, other=0.0).to(tl.float32)[:, None]
        target = pair
    tl.store(
        out + target[None, :].to(tl.int64) * N + n[:, None],
        acc.to(out.dtype.element_ty),
        mask=there[None, :] & here[:, None],
    )


@triton.jit(do_not_specialize=["most"])
def _multiply(
    x,
    x_scales,
    weight,
    scales,
    bias,
    weights,
    order,
    blocks,
    out,
    x_row,
    most,
    limit,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    OPENS: tl.constexpr,
    GROUPS: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGH: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """A block of pairs times BLOCK_N rows of their expert.

    OPENS: x are tokens, a row of `out` is at its pair's place in `order`, and there are 2 N rows: gate, then up. Else x
    is what that wrote, and a row of `out` is at its pair. GROUPS: scales of a row of the weight, 0: none.
    """
    # Where what a step adds is scaled by itself, a program waits for each product: one of gate and up together, then.
    JOINED: tl.constexpr = OPENS and GROUPS > 1
    TALL: tl.constexpr = 2 * BLOCK_N if JOINED else BLOCK_N
    # Neighbours share tokens and weights: a few blocks by all columns, then the next few.
    tiles = (N + BLOCK_N - 1) // BLOCK_N
    run = tl.program_id(0) // (TOGETHER * tiles)
    rest = tl.program_id(0) % (TOGETHER * tiles)
    block = run * TOGETHER + rest % TOGETHER
    if block >= tl.load(blocks + 3 * most):
        return
    e = tl.load(blocks + block)
    place = tl.load(blocks + most + block) + tl.arange(0, BLOCK_M)
    there = place < tl.load(blocks + 2 * most + block)
    pair = tl.load(order + place, mask=there, other=0)
    row = pair // TOP_K if OPENS else place
    begin = rest // TOGETHER * BLOCK_N
    n = begin + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    ROWS: tl.constexpr = 2 * N if OPENS else N
    here = n < N
    line = n
    if JOINED:  # eight of gate, then of up: the matrix units leave a thread the sums of both
        i = tl.arange(0, TALL)
        line = begin + i // 16 * 8 + i % 8
        here = line < N
        line += i // 8 % 2 * N
    own = weight + e.to(tl.int64) * (ROWS * K) + line[:, None] * K + k[None, :]
    read = x + row[None, :].to(tl.int64) * x_row + k[:, None]
    acc = tl.zeros((TALL, BLOCK_M), tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K, num_stages=STAGES):
        at = step * BLOCK_K
        if K % BLOCK_K == 0 and N % BLOCK_N == 0:
            w = tl.load(own + at)
        else:
            w = tl.load(own + at, mask=here[:, None] & (at + k < K)[None, :], other=0.0)
        if K % BLOCK_K == 0:
            v = tl.load(read + at, mask=there[None, :], other=0.0)
        else:
            v = tl.load(read + at, mask=there[None, :] & (at + k < K)[:, None], other=0.0)
        if OPENS and not JOINED:
            if K % BLOCK_K == 0 and N % BLOCK_N == 0:
                u = tl.load(own + N * K + at)
            else:
                u = tl.load(own + N * K + at, mask=here[:, None] & (at + k < K)[None, :], other=0.0)
        if GROUPS > 1:
            v_scale = tl.load(x_scales + row * GROUPS + step, mask=there, other=0.0)
            w_scale = tl.load(scales + (e * GROUPS + step) * ROWS + line, mask=here, other=0.0)
            acc += tl.dot(w, v) * w_scale[:, None] * v_scale[None, :]
        else:
            acc = tl.dot(w, v, acc, input_precision="ieee")
            if OPENS:
                ups = tl.dot(u, v, ups, input_precision="ieee")
    if GROUPS == 1:
        v_scale = tl.load(x_scales + row, mask=there, other=0.0)
        acc *= tl.load(scales + e * ROWS + n, mask=here, other=0.0)[:, None] * v_scale[None, :]
        if OPENS:
            ups *= tl.load(scales + e * ROWS + N + n, mask=here, other=0.0)[:, None] * v_scale[None, :]
    if JOINED:
        both = tl.permute(tl.reshape(acc, (BLOCK_N // 8, 2, 8, BLOCK_M)), (0, 2, 3, 1))
        gates, ups = tl.split(both)
        acc, ups = tl.reshape(gates, (BLOCK_N, BLOCK_M)), tl.reshape(ups, (BLOCK_N, BLOCK_M))
    ended(acc, ups, bias, weights, out, e, n, place, pair, there, limit, N, OPENS, BIAS, WEIGH, ACT)


@triton.jit
def _sum(
    parts,
    ids,
    weights,
    shared,
    gates,
    other,
    out,
    first,
    count,
    N,
    TOP_K: tl.constexpr,
    WEIGH: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out: [tokens, N], of parts [tokens, TOP_K, N]."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = n < N
    y = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOP_K):
        pair = token * TOP_K + j
        e = tl.load(ids + pair) - first
        mine = n < tl.where((e >= 0) & (e < count), N, 0)
        part = tl.load(parts + pair * N + n, mask=mine, other=0.0).to(tl.float32)
        y += part * tl.load(weights + pair) if WEIGH else part
    if SHARED:
        more = tl.load(shared + token * N + n, mask=here, other=0.0).to(tl.float32)
        y += more * tl.load(gates + token) if GATED else more
    if ADD:
        y += tl.load(other + token * N + n, mask=here, other=0.0).to(tl.float32)
    tl.store(out + token * N + n, y.to(out.dtype.element_ty), mask=here)


def grouped(
    x: Tensor,
    x_scales: Tensor,
    stack: Stack,
    given: Sorted,
    weights: Tensor,
    out: Tensor,
    gate: Gate,
    top_k: int,
    opens: bool,
    weigh: bool,
    tile: Tile,
) -> None:
    """out: [pairs, width], where gate and up are (opens) in the order of `given`. x, x_scales: of `rounded`."""
    assert isinstance(stack.weight, Tensor)
    width, inputs = out.shape[1], stack.weight.shape[2]
    runs = triton.cdiv(given.most, tile.together)
    _multiply[(runs * tile.together * triton.cdiv(width, tile.block_n),)](
        x, x_scales, stack.weight, weights if stack.scales is None else stack.scales,
        weights if stack.bias is None else stack.bias, weights, given.order, given.blocks, out, x.stride(0), given.most,
        gate.limit or 0.0, N=width, K=inputs, TOP_K=top_k, OPENS=opens, GROUPS=stack.groups,
        BIAS=stack.bias is not None, WEIGH=weigh, ACT=gate.number, BLOCK_N=tile.block_n, BLOCK_M=tile.block_m,
        BLOCK_K=tile.block_k, STAGES=tile.stages, TOGETHER=tile.together, num_warps=tile.warps,
    )  # fmt: skip


def summed(parts: Tensor, ids: Tensor, weights: Tensor, tail: Tail, first: int, count: int, weigh: bool) -> Tensor:
    """[tokens, hidden] of parts [pairs, hidden], those of experts that are elsewhere left out. weigh: by `weights`."""
    (tokens, top_k), hidden = ids.shape, parts.shape[1]
    out = parts.new_empty(tokens, hidden) if tail.other is None else tail.other
    block = min(1024, triton.next_power_of_2(hidden))
    chained = early(tokens)
    _sum[(tokens, triton.cdiv(hidden, block))](
        parts, ids, weights, *tail.given(parts, weights, out), out, first, count, hidden, TOP_K=top_k, WEIGH=weigh,
        SHARED=tail.shared is not None, GATED=tail.gates is not None, ADD=tail.other is not None, BLOCK=block,
        EARLY=chained, num_warps=4, launch_pdl=chained,
    )  # fmt: skip
    return out
