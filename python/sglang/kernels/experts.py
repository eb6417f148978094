# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""What experts do with their tokens: gate and up with what stands between them and down, and the sum of a token's.

Two ways. Few tokens: a program owns a few outputs of a pair, and walks along the weights of its expert; the last pass
sums a token's experts as it goes. Others: pairs are sorted by expert, and a program multiplies a block of them. Either
way a pair's numbers depend on no other pair, and are added in the order of the token's choice: no atomics.
"""

import functools
import logging
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels import fp8, routing
from sglang.kernels.compiling import compile_ahead, trial
from sglang.kernels.matvec import early
from sglang.kernels.pointwise import ACTS, act_of
from sglang.kernels.routing import Sorted

log = logging.getLogger("sglang.kernels")
LIMITED = 3  # beside ACTS: GPT-OSS's gate
UNROLLED = 4  # steps along a row of few tokens, whose loads are all on their way at once
FEW = 1  # tokens whose experts are read pair by pair; several may have one in common


class Stack(NamedTuple):
    """Weights of all experts. weight: [experts, rows, inputs]; bias: [experts, rows].

    scales: of float8 weights, float32 [experts, groups, rows], a group being all columns or 128.
    """

    weight: Tensor
    bias: Tensor | None = None
    scales: Tensor | None = None

    @property
    def groups(self) -> int:
        """Scales of a row; 0: none."""
        return 0 if self.scales is None else self.scales.shape[1]


class Gate(NamedTuple):
    """What stands between gate and up: act(gate) * up, or with a limit, GPT-OSS's."""

    act: str
    limit: float | None = None

    @property
    def number(self) -> int:
        return ACTS[self.act] if self.limit is None else LIMITED


class Tail(NamedTuple):
    """What else is added to the sum: shared, times a gate a token, and other, which is overwritten and returned."""

    shared: Tensor | None = None  # [tokens, hidden]
    gates: Tensor | None = None  # float32 [tokens]
    other: Tensor | None = None  # [tokens, hidden]


@triton.jit
def _opened(gate, up, limit, ACT: tl.constexpr):
    if ACT == 3:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        return gate * tl.sigmoid(1.702 * gate) * (up + 1)
    else:
        return act_of(gate, ACT) * up


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
    tl.store(out + pair * HALF + n, _opened(gate, up, limit, ACT).to(out.dtype.element_ty), mask=n < HALF)


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
    n = rest // TOGETHER * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    ROWS: tl.constexpr = 2 * N if OPENS else N
    here = n < N
    own = weight + e.to(tl.int64) * (ROWS * K) + n[:, None] * K + k[None, :]
    read = x + row[None, :].to(tl.int64) * x_row + k[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
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
        if OPENS:
            if K % BLOCK_K == 0 and N % BLOCK_N == 0:
                u = tl.load(own + N * K + at)
            else:
                u = tl.load(own + N * K + at, mask=here[:, None] & (at + k < K)[None, :], other=0.0)
        if GROUPS > 1:
            v_scale = tl.load(x_scales + row * GROUPS + step, mask=there, other=0.0)
            w_scale = tl.load(scales + (e * GROUPS + step) * ROWS + n, mask=here, other=0.0)
            acc += tl.dot(w, v) * w_scale[:, None] * v_scale[None, :]
            if OPENS:
                u_scale = tl.load(scales + (e * GROUPS + step) * ROWS + N + n, mask=here, other=0.0)
                ups += tl.dot(u, v) * u_scale[:, None] * v_scale[None, :]
        else:
            acc = tl.dot(w, v, acc, input_precision="ieee")
            if OPENS:
                ups = tl.dot(u, v, ups, input_precision="ieee")
    if GROUPS == 1:
        v_scale = tl.load(x_scales + row, mask=there, other=0.0)
        acc *= tl.load(scales + e * ROWS + n, mask=here, other=0.0)[:, None] * v_scale[None, :]
        if OPENS:
            ups *= tl.load(scales + e * ROWS + N + n, mask=here, other=0.0)[:, None] * v_scale[None, :]
    if OPENS:
        if WEIGH:
            share = tl.load(weights + pair, mask=there, other=0.0)
            acc *= share[None, :]
            ups *= share[None, :]
        if BIAS:
            acc += tl.load(bias + e * ROWS + n, mask=here, other=0.0).to(tl.float32)[:, None]
            ups += tl.load(bias + e * ROWS + N + n, mask=here, other=0.0).to(tl.float32)[:, None]
        acc = _opened(acc, ups, limit, ACT)
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
):
    """out: [tokens, N], of parts [tokens, TOP_K, N]."""
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


class Tile(NamedTuple):
    """block_m: pairs, block_n: rows of a weight (twice as many where gate and up are), block_k: columns of a step.

    together: blocks that go through all rows side by side.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    together: int = 8


# By pairs of an expert on average: tiles of gate and up, and of down, of 16-bit types; measured on an H200, where
# scripts/gpu_moe.py times others beside them.
TILES: dict[float, tuple[Tile, Tile]] = {
    10: (Tile(16, 64, 128, 4, 3), Tile(16, 64, 128, 4, 4)),
    24: (Tile(32, 64, 64, 4, 4), Tile(32, 64, 128, 4, 3)),
    66: (Tile(64, 64, 128, 4, 3), Tile(64, 64, 128, 4, 3)),
    128: (Tile(128, 64, 64, 4, 3), Tile(128, 128, 64, 4, 3)),
    float("inf"): (Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3)),
}
DEEP = 4096  # inputs of down from which so wide a tile is faster for many pairs
DEEP_TILE = Tile(128, 256, 64, 8, 3)


def tiles_of(ids: int, experts: int, stacks: tuple[Stack, Stack]) -> tuple[Tile, Tile]:
    """ids, experts: how many there are. stacks: gate and up, down."""
    most = next(most for most in TILES if ids / experts <= most)
    opens, closes = TILES[most]
    if most > 128 and stacks[1].weight.shape[2] >= DEEP:
        closes = DEEP_TILE
    return fitted(opens, stacks[0]), fitted(closes, stacks[1])


def fitted(tile: Tile, stack: Stack) -> Tile:
    """The tile for the weight's type: as many bytes of columns, and what scales need."""
    if stack.groups > 1:  # what a step adds is scaled by itself: there must be registers for it
        return tile._replace(block_k=fp8.COLUMNS, block_n=64, warps=8 if tile.block_m == 128 else tile.warps, stages=3)
    if stack.weight.dtype == torch.float32:
        return tile._replace(block_m=min(tile.block_m, 32), block_n=min(tile.block_n, 64), block_k=32, stages=2)
    inputs = stack.weight.shape[2]
    wide = tile.block_k * (2 if stack.weight.itemsize == 1 else 1)
    while wide > 32 and inputs % wide:
        wide //= 2  # a tail would be masked, in every step
    return tile._replace(block_k=min(wide, max(16, triton.next_power_of_2(inputs))))


def forward(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    opens: Stack,
    closes: Stack,
    gate: Gate,
    *,
    weigh_inputs: bool = False,
    first: int = 0,
    tail: Tail = Tail(),
    tiles: tuple[Tile, Tile] | None = None,
    few: int = FEW,
) -> Tensor:
    """The sum of a token's experts, with `tail`. x: [tokens, hidden], a row side by side; weights, ids: of `choose`.

    opens: gate over up, closes: down, of experts `first` and on; others add nothing. weigh_inputs: the weight
    multiplies what an expert reads. tiles, few: as measured, unless given.
    """
    tokens = x.shape[0]
    if tokens <= few and max(opens.groups, closes.groups) <= 1:
        return _pair_by_pair(x, weights, ids, opens, closes, gate, weigh_inputs, first, tail)
    count, top_k = opens.weight.shape[0], ids.shape[1]
    hidden, inter = closes.weight.shape[1:]
    one, two = tiles or tiles_of(ids.numel(), count, (opens, closes))
    given = routing.sort(ids, count, one.block_m, first)
    codes, x_scales = _rounded(x, opens)
    inner = x.new_empty(ids.numel(), inter)
    _grouped(codes, x_scales, opens, given, weights, inner, gate, top_k, True, weigh_inputs, one)
    if two.block_m != one.block_m:
        given = routing.sort(ids, count, two.block_m, first)
    codes, x_scales = _rounded(inner, closes)
    parts = x.new_empty(ids.numel(), hidden)
    _grouped(codes, x_scales, closes, given, weights, parts, gate, top_k, False, False, two)
    out = x.new_empty(tokens, hidden) if tail.other is None else tail.other
    block = min(1024, triton.next_power_of_2(hidden))
    _sum[(tokens, triton.cdiv(hidden, block))](
        parts, ids, weights, *_tail(tail, parts, weights, out), out, first, count, hidden, TOP_K=top_k,
        WEIGH=not weigh_inputs, SHARED=tail.shared is not None, GATED=tail.gates is not None,
        ADD=tail.other is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _tail(tail: Tail, some: Tensor, numbers: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shared = some if tail.shared is None else tail.shared
    return shared, numbers if tail.gates is None else tail.gates, out


def _rounded(x: Tensor, stack: Stack) -> tuple[Tensor, Tensor]:
    """What multiplies the weight, and its scales; anything where there are none."""
    return (x, x) if stack.scales is None else fp8.rounded(x, None, stack.groups)


def _grouped(
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
    width, inputs = out.shape[1], stack.weight.shape[2]
    runs = triton.cdiv(given.most, tile.together)
    _multiply[(runs * tile.together * triton.cdiv(width, tile.block_n),)](
        x, x_scales, stack.weight, weights if stack.scales is None else stack.scales,
        weights if stack.bias is None else stack.bias, weights, given.order, given.blocks, out, x.stride(0), given.most,
        gate.limit or 0.0, N=width, K=inputs, TOP_K=top_k, OPENS=opens, GROUPS=stack.groups,
        BIAS=stack.bias is not None, WEIGH=weigh, ACT=gate.number, BLOCK_N=tile.block_n, BLOCK_M=tile.block_m,
        BLOCK_K=tile.block_k, STAGES=tile.stages, TOGETHER=tile.together, num_warps=tile.warps,
    )  # fmt: skip


def _pair_by_pair(
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
    tokens, top_k = ids.shape
    count, (hidden, inter) = opens.weight.shape[0], closes.weight.shape[1:]
    chained = early(tokens)
    codes, x_scales = _rounded(x, opens)
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
        weights if closes.bias is None else closes.bias, ids, weights, *_tail(tail, inner, weights, out), out, first,
        count, hidden, K=inter, TOP_K=top_k, SCALED=closes.scales is not None, BIAS=closes.bias is not None,
        WEIGH=not weigh_inputs, SHARED=tail.shared is not None, GATED=tail.gates is not None,
        ADD=tail.other is not None, BLOCK_N=block_n, BLOCK_K=block_k,
        UNROLL=min(UNROLLED, triton.cdiv(inter, block_k)), EARLY=chained, num_warps=warps,
        launch_pdl=chained,
    )  # fmt: skip
    return out


def tuning(inputs: int, opens: bool = True) -> tuple[int, int, int]:
    """Rows of a program of few tokens, columns of a step, warps."""
    return (1 if opens else 2), min(2048 if opens else 512, triton.next_power_of_2(inputs)), 4


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether all of it agrees with float64 on this device, for weights of the type; tried once."""
    if not torch.cuda.is_available():
        return False
    eight = dtype == fp8.FP8
    if eight and torch.cuda.get_device_capability() < (8, 9):
        return False
    cases = [(torch.bfloat16, 1), (torch.bfloat16, 2)] if eight else [(dtype, 0)]
    try:
        compile_ahead(lambda: [_differs(*case) for case in cases])
        if all(_agrees(*case) for case in cases):
            return True
        reason = "results differ from float64"
    except Exception as error:  # a compiler's or a driver's: whatever it is, there are torch's products
        reason = str(error).splitlines()[0]
    log.warning("Experts of %s are torch's: %s", str(dtype).removeprefix("torch."), reason)
    return False


def narrowed(weight: Tensor, groups: int) -> tuple[Stack, Tensor]:
    """A weight [experts, rows, inputs] as float8 with scales, and what that stands for; for trials."""
    parts = weight.float().unflatten(2, (groups, -1))
    scales = parts.abs().amax(3).clamp_min(1e-12) / 448  # 448: largest value of e4m3
    codes = (parts / scales[..., None]).to(fp8.FP8)
    wide = (codes.double() * scales[..., None].double()).flatten(2)
    return Stack(codes.flatten(2), None, scales.transpose(1, 2).contiguous()), wide


@trial
def _agrees(dtype: torch.dtype, groups: int) -> bool:
    # Of 8 bits, inputs are rounded too: twice.
    return _differs(dtype, groups) < (0.1 if groups else 0.01)


def _differs(dtype: torch.dtype, groups: int) -> float:
    """The largest relative error among a few numbers of tokens.

    groups: of scales of a row of 8 bits; 0: the weights are of `dtype`.
    """
    random = torch.Generator("cuda").manual_seed(0)

    def some(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device="cuda") * size[-1] ** -0.5

    count, hidden, inter, top_k = 6, 256, 256, 2
    stacks, wide = [], []
    for weight in (some(count, 2 * inter, hidden).to(dtype), some(count, hidden, inter).to(dtype)):
        stack, same = narrowed(weight, groups) if groups else (Stack(weight), weight.double())
        stacks.append(stack)
        wide.append(same)
    worst = 0.0
    for tokens in (1, 5, 700):
        x = (some(tokens, hidden) * hidden**0.5).to(dtype)
        weights, ids = some(tokens, count).softmax(-1).topk(top_k)
        got = forward(x, weights, ids.int(), *stacks, Gate("silu"))
        both = torch.einsum("th,erh->ter", x.double(), wide[0])
        inner = torch.nn.functional.silu(both[..., :inter]) * both[..., inter:]
        given = torch.einsum("tei,ehi->teh", inner, wide[1])
        share = torch.zeros(tokens, count, device="cuda", dtype=torch.float64).scatter_(1, ids, weights.double())
        wanted = torch.einsum("teh,te->th", given, share)
        error = float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))
        worst = error if not error < worst else worst  # also where it is no number
    return worst
