# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Products with weights of experts in 4 bits (`packed`): of blocks of an expert's pairs, or of pairs by themselves.

The matrix units take more than plain arithmetic does even for one row, since a weight then costs little more than to be
taken apart: so there is one kernel, whose tile for few rows is filled up with zeros.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels import int4
from sglang.kernels.experts_blocks import ended
from sglang.kernels.experts_stack import Gate, Stack
from sglang.kernels.experts_tiles import Tile
from sglang.kernels.int4 import BF16_APART, BF16_TYPES, EIGHT, FP16_APART, FP16_TYPES, _scales, _zeros
from sglang.kernels.matvec import early
from sglang.kernels.packed import Packed
from sglang.kernels.routing import Sorted

LATE = 32  # pairs of a block up to which sums are scaled rather than weights: exact, and cheap for few

# The four codes of half a word, of two words side by side: see `packed`.
_FOUR = """
and.b32 $0, H, 0x81c081c0;
shl.b32 t, H, 3;
and.b32 $1, t, 0x81c081c0;
shl.b32 t, H, 6;
and.b32 $2, t, 0x81c081c0;
shl.b32 t, H, 1;
and.b32 t, t, 0x80008000;
shr.u32 u, H, 5;
lop3.b32 t, u, 0x01000100, t, 0xea;
shr.u32 u, H, 4;
lop3.b32 $3, u, 0x00c000c0, t, 0xea;
"""  # 0xea: (a & b) | c
_UPPER = _FOUR.replace("H", "b").replace("$3", "$7").replace("$2", "$6").replace("$1", "$5").replace("$0", "$4")
FP4_APART = tl.constexpr(
    "{\n.reg .b32 a, b, t, u;\nprmt.b32 a, $8, $9, 0x5410;\nprmt.b32 b, $8, $9, 0x7632;"
    + _FOUR.replace("H", "a")
    + _UPPER
    + "}"
)
# Two numbers at once. A product is a sum with -0, a difference one of a product with -1: all that sm_80 has.
BF16_TIMES = tl.constexpr("{.reg .b32 n; mov.b32 n, 0x80008000; fma.rn.bf16x2 $0, $1, $2, n;}")
BF16_LESS = tl.constexpr("{.reg .b32 m; mov.b32 m, 0xbf80bf80; fma.rn.bf16x2 $0, $2, m, $1;}")
FP16_TIMES = tl.constexpr("mul.rn.f16x2 $0, $1, $2;")
FP16_LESS = tl.constexpr("sub.rn.f16x2 $0, $1, $2;")


@triton.jit
def _times(a, b, ASM: tl.constexpr):
    """a * b; two at a time with ASM, where the compiler would multiply numbers of 16 bits one by one."""
    if ASM:
        if a.dtype.is_bf16():
            return tl.inline_asm_elementwise(BF16_TIMES, "=r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=2)
        else:
            return tl.inline_asm_elementwise(FP16_TIMES, "=r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=2)
    else:
        return a * b


@triton.jit
def _less(a, b, ASM: tl.constexpr):
    """a - b, likewise."""
    if ASM:
        if a.dtype.is_bf16():
            return tl.inline_asm_elementwise(BF16_LESS, "=r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=2)
        else:
            return tl.inline_asm_elementwise(FP16_LESS, "=r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=2)
    else:
        return a - b


@triton.jit
def _number(words, j: tl.constexpr):
    """Code j of FP4: int32 -> float32, times 2^-126."""
    half = words >> (16 * (j // 4))
    if j % 4 == 3:
        bits = ((half << 1) & 0x8000) | ((half >> 5) & 0x100) | ((half >> 4) & 0xC0)
    else:
        bits = (half << (3 * (j % 4))) & 0x81C0
    return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def _apart(words, FP4: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """The eight codes of words, int32 [BLOCK_N, 16], each of the same shape.

    Of int4 in DTYPE, above 128 or 1024 with ASM; of FP4 in float32, or in bfloat16 with ASM.
    """
    if ASM:
        if FP4:
            return tl.inline_asm_elementwise(FP4_APART, EIGHT, [words], dtype=BF16_TYPES, is_pure=True, pack=2)
        elif DTYPE.is_bf16():
            return tl.inline_asm_elementwise(BF16_APART, EIGHT, [words], dtype=BF16_TYPES, is_pure=True, pack=2)
        else:
            return tl.inline_asm_elementwise(FP16_APART, EIGHT, [words], dtype=FP16_TYPES, is_pure=True, pack=2)
    elif FP4:
        a, b, c, d = _number(words, 0), _number(words, 1), _number(words, 2), _number(words, 3)
        e, f, g, h = _number(words, 4), _number(words, 5), _number(words, 6), _number(words, 7)
        return a, b, c, d, e, f, g, h
    else:
        a, b, c, d = words & 15, (words >> 4) & 15, (words >> 8) & 15, (words >> 12) & 15
        e, f, g, h = (words >> 16) & 15, (words >> 20) & 15, (words >> 24) & 15, (words >> 28) & 15
        return a.to(DTYPE), b.to(DTYPE), c.to(DTYPE), d.to(DTYPE), e.to(DTYPE), f.to(DTYPE), g.to(DTYPE), h.to(DTYPE)


@triton.jit
def _stepped(codes, step, FP4: tl.constexpr, LATE: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Weights of some columns, [BLOCK_N, 16], by their rows' steps, [BLOCK_N]."""
    step = step[:, None]
    if FP4:
        if ASM:
            factor = ((step & 255) << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)
            return _times(codes, tl.broadcast_to(factor, codes.shape), ASM)
        else:
            return (codes * ((step & 255) << 23).to(tl.float32, bitcast=True)).to(DTYPE)
    else:
        weight = _less(codes, tl.broadcast_to(_zeros(step, DTYPE, ASM), codes.shape), ASM)
        if LATE:
            return weight
        else:
            return _times(weight, tl.broadcast_to(_scales(step).to(DTYPE), codes.shape), ASM)


@triton.jit
def _widened(
    words,
    s0,
    s1,
    s2,
    s3,
    BLOCK_N: tl.constexpr,
    FP4: tl.constexpr,
    LATE: tl.constexpr,
    DTYPE: tl.constexpr,
    ASM: tl.constexpr,
):
    """[BLOCK_N, 128] of DTYPE; with LATE, what is still to be scaled. s0 .. s3: steps of 32 columns each, [BLOCK_N]."""
    a, b, c, d, e, f, g, h = _apart(words, FP4, DTYPE, ASM)
    # Before they are put together, which keeps all of it in the layout that the matrix units take.
    a, b = _stepped(a, s0, FP4, LATE, DTYPE, ASM), _stepped(b, s0, FP4, LATE, DTYPE, ASM)
    c, d = _stepped(c, s1, FP4, LATE, DTYPE, ASM), _stepped(d, s1, FP4, LATE, DTYPE, ASM)
    e, f = _stepped(e, s2, FP4, LATE, DTYPE, ASM), _stepped(f, s2, FP4, LATE, DTYPE, ASM)
    g, h = _stepped(g, s3, FP4, LATE, DTYPE, ASM), _stepped(h, s3, FP4, LATE, DTYPE, ASM)
    even = tl.join(tl.join(a, e), tl.join(c, g))
    odd = tl.join(tl.join(b, f), tl.join(d, h))
    whole = tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1))  # [BLOCK_N, 4, 2, 1 of nibble, 16]
    return tl.reshape(whole, (BLOCK_N, 128))


@triton.jit
def _step(steps, here, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(steps)
    else:
        return tl.load(steps, mask=here, other=0)


@triton.jit
def _read(
    words,
    steps,
    here,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
    EACH: tl.constexpr,
    FP4: tl.constexpr,
):
    """A piece of some rows, of those `here` unless WHOLE, and its steps of 32 columns each."""
    if WHOLE:
        w = tl.load(words)
    else:
        w = tl.load(words, mask=here[:, None], other=0)
    s = _step(steps, here, WHOLE)
    if FP4:
        return w, s, s >> 8, s >> 16, s >> 24
    elif EACH == 4:
        b, c = _step(steps + ROWS, here, WHOLE), _step(steps + 2 * ROWS, here, WHOLE)
        return w, s, b, c, _step(steps + 3 * ROWS, here, WHOLE)
    elif EACH == 2:
        b = _step(steps + ROWS, here, WHOLE)
        return w, s, s, b, b
    else:
        return w, s, s, s, s


@triton.jit
def _united(sums, part, column, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_N, 1] of sums [SPLIT * BLOCK_N, ...], of each row those of its own part of the columns."""
    own = tl.sum(tl.where(part[:, None] == column[None, :], sums, 0.0), 1)
    return tl.sum(tl.reshape(own, (SPLIT, BLOCK_N)), 0)[:, None]


@triton.jit(do_not_specialize=["most"])
def _multiply_packed(
    x,
    words,
    steps,
    bias,
    weights,
    ids,
    order,
    blocks,
    out,
    x_row,
    most,
    first,
    count,
    limit,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    OPENS: tl.constexpr,
    FP4: tl.constexpr,
    EACH: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGH: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
    TOGETHER: tl.constexpr,
    SPLIT: tl.constexpr,
    LATE: tl.constexpr,
    ASM: tl.constexpr,
    ALONE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """As `experts_blocks._multiply`. EACH: steps of a piece of a row. LATE: sums are scaled, not weights.

    ALONE: a pair by itself, whose expert is in `ids`; pairs are neighbours then, since some may share an expert. It
    would leave most columns of a product idle, and most of the device: so SPLIT pieces of its row are columns, each
    multiplied by all the weights of a step, which are BLOCK_N rows of as many pieces; what belongs together is summed
    at the end.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    DTYPE: tl.constexpr = x.dtype.element_ty
    if ALONE:
        block = tl.program_id(0)
        tile = tl.program_id(1)
        e = tl.load(ids + block) - first
        none = (e < 0) | (e >= count)
    else:
        tiles = (N + BLOCK_N - 1) // BLOCK_N
        rest = tl.program_id(0) % (TOGETHER * tiles)
        block = tl.program_id(0) // (TOGETHER * tiles) * TOGETHER + rest % TOGETHER
        tile = rest // TOGETHER
        none = block >= tl.load(blocks + 3 * most)
    if none:
        return
    k = tl.arange(0, 128)
    column = tl.arange(0, BLOCK_M)
    i = tl.arange(0, SPLIT * BLOCK_N)
    part = i // BLOCK_N
    n = tile * BLOCK_N + i % BLOCK_N
    if ALONE:
        place = block + tl.zeros((1,), tl.int32)
        there = place == block
        pair = place
        ahead = column[None, :] * 128 + k[:, None]
        present = (column < SPLIT)[None, :]
    else:
        e = tl.load(blocks + block)
        place = tl.load(blocks + most + block) + column
        there = place < tl.load(blocks + 2 * most + block)
        pair = tl.load(order + place, mask=there, other=0)
        ahead = k[:, None]
        present = there[None, :]
    row = pair // TOP_K if OPENS else place
    ROWS: tl.constexpr = 2 * N if OPENS else N
    PIECES: tl.constexpr = (K + 127) // 128
    WHOLE: tl.constexpr = N % BLOCK_N == 0 and PIECES % SPLIT == 0
    here = n < N
    own = words + e.to(tl.int64) * (PIECES * ROWS * 16) + (part * ROWS + n)[:, None] * 16 + tl.arange(0, 16)[None, :]
    own_steps = steps + e.to(tl.int64) * (PIECES * ROWS * EACH) + part * (ROWS * EACH) + n
    read = x + row[None, :].to(tl.int64) * x_row + ahead
    acc = tl.zeros((SPLIT * BLOCK_N, BLOCK_M), tl.float32)
    ups = tl.zeros((SPLIT * BLOCK_N, BLOCK_M), tl.float32)
    for piece in tl.range(0, PIECES, SPLIT, num_stages=STAGES):
        if K % (128 * SPLIT) == 0:
            v = tl.load(read + piece * 128, mask=present, other=0.0)
        else:
            v = tl.load(read + piece * 128, mask=present & (piece * 128 + ahead < K), other=0.0)
        at = own + piece * (ROWS * 16)
        at_steps = own_steps + piece * (ROWS * EACH)
        if PIECES % SPLIT == 0:
            mine = here
        else:
            mine = here & (piece + part < PIECES)
        w, a, b, c, d = _read(at, at_steps, mine, ROWS, WHOLE, EACH, FP4)
        weight = _widened(w, a, b, c, d, SPLIT * BLOCK_N, FP4, LATE, DTYPE, ASM)
        if LATE:
            acc += tl.dot(weight, v, input_precision="ieee") * _scales(a)[:, None]
        else:
            acc = tl.dot(weight, v, acc, input_precision="ieee")
        if OPENS:
            w, a, b, c, d = _read(at + N * 16, at_steps + N, mine, ROWS, WHOLE, EACH, FP4)
            weight = _widened(w, a, b, c, d, SPLIT * BLOCK_N, FP4, LATE, DTYPE, ASM)
            if LATE:
                ups += tl.dot(weight, v, input_precision="ieee") * _scales(a)[:, None]
            else:
                ups = tl.dot(weight, v, ups, input_precision="ieee")
    if ALONE:
        acc, ups = _united(acc, part, column, SPLIT, BLOCK_N), _united(ups, part, column, SPLIT, BLOCK_N)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    ended(acc, ups, bias, weights, out, e, n, place, pair, there, limit, N, OPENS, BIAS, WEIGH, ACT)


def grouped_packed(
    x: Tensor,
    stack: Stack,
    given: Sorted | None,
    ids: Tensor,
    weights: Tensor,
    out: Tensor,
    gate: Gate,
    opens: bool,
    weigh: bool,
    first: int,
    tile: Tile,
) -> None:
    """As `experts_blocks.grouped`. given: None for pairs by themselves."""
    packed = stack.weight
    assert isinstance(packed, Packed)
    width, fp4 = out.shape[1], packed.kind == "mxfp4"
    late = not fp4 and packed.each == 1 and tile.block_m <= LATE
    across = triton.cdiv(width, tile.block_n)
    chained = given is None and early(len(ids))
    if given is None:
        grid, order, blocks, most = (ids.numel(), across), ids, ids, 0
    else:
        grid, (order, blocks, most, _) = (triton.cdiv(given.most, tile.together) * tile.together * across,), given
    _multiply_packed[grid](
        x, packed.words, packed.steps, weights if stack.bias is None else stack.bias, weights, ids, order, blocks, out,
        x.stride(0), most, first, packed.shape[0], gate.limit or 0.0, N=width, K=packed.inputs, TOP_K=ids.shape[1],
        OPENS=opens, FP4=fp4, EACH=packed.each, BIAS=stack.bias is not None, WEIGH=weigh, ACT=gate.number,
        BLOCK_N=tile.block_n, BLOCK_M=tile.block_m, STAGES=tile.stages, TOGETHER=tile.together, SPLIT=tile.split,
        LATE=late, ASM=int4._asm() and (x.dtype == torch.bfloat16 or not fp4), ALONE=given is None, EARLY=chained,
        num_warps=tile.warps, launch_pdl=chained,
    )  # fmt: skip
