# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""What lies between two products, in one pass a row: the sum of a product's splits, residual, norms, gate, rounding.

Each result is rounded to the type of the stream where a kernel of its own would store it, so that both ways agree to
the last bit but for the order of sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.matvec import FEW as FEW_ROWS
from sglang.kernels.matvec import early
from sglang.kernels.pointwise import ACTS, act_of

FP8 = torch.float8_e4m3fn
FEW = 16  # rows: a row's gate is 14336 values long, and one program's work; for few, two kernels of many are faster
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _store_rounded(
    v, codes, scales, fixed, row, columns, GROUP: tl.constexpr, FIXED: tl.constexpr, BLOCK: tl.constexpr
):
    """v: float32 [BLOCK], 0 beyond `columns`. GROUP: columns with a scale of their own; BLOCK: all of the row."""
    i = tl.arange(0, BLOCK)
    if FIXED:
        tl.store(scales + row, fixed)
        v = v / fixed
    elif GROUP == BLOCK:
        scale = tl.maximum(tl.max(tl.abs(v), 0) / 448.0, 1e-12)  # 448: largest value of e4m3
        tl.store(scales + row, scale)
        v = v / scale
    else:
        groups = tl.reshape(v, (BLOCK // GROUP, GROUP))
        each = tl.maximum(tl.max(tl.abs(groups), 1) / 448.0, 1e-12)
        g = tl.arange(0, BLOCK // GROUP)
        tl.store(scales + row * (columns // GROUP) + g, each, mask=g < columns // GROUP)
        v = tl.reshape(groups / each[:, None], (BLOCK,))
    v = tl.minimum(tl.maximum(v, -448.0), 448.0)
    tl.store(codes + row * columns + i, v.to(codes.dtype.element_ty), mask=i < columns)


@triton.jit(do_not_specialize=["M"])
def _join(
    parts,
    bias,
    stream,
    post,
    weight,
    read,
    scales,
    fixed,
    M,
    hidden,
    factor,
    post_eps,
    eps,
    SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
    POST: tl.constexpr,
    SCALED: tl.constexpr,
    NORM: tl.constexpr,
    GROUP: tl.constexpr,
    FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A program has one row. GROUP: 0 where `read` gets the norm as it is."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    DTYPE: tl.constexpr = stream.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < hidden
    x = tl.load(stream + row * hidden + i, mask=there, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT):
        y += tl.load(parts + (split * M + row) * hidden + i, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + i, mask=there, other=0.0).to(tl.float32)
    if POST or SCALED:
        y = y.to(DTYPE).to(tl.float32)
    if POST:
        y = y * tl.rsqrt(tl.sum(y * y, 0) / hidden + post_eps)
        y = (y * tl.load(post + i, mask=there, other=0.0).to(tl.float32)).to(DTYPE).to(tl.float32)
    if SCALED:
        y = y * factor
    x = (x + y).to(DTYPE)
    tl.store(stream + row * hidden + i, x, mask=there)
    if NORM:
        v = x.to(tl.float32)
        v = v * tl.rsqrt(tl.sum(v * v, 0) / hidden + eps)
        v = (v * tl.load(weight + i, mask=there, other=0.0).to(tl.float32)).to(DTYPE)
        if GROUP == 0:
            tl.store(read + row * hidden + i, v, mask=there)
        else:
            _store_rounded(v.to(tl.float32), read, scales, fixed, row, hidden, GROUP, FIXED, BLOCK)


def join(
    parts: Tensor,
    bias: Tensor | None,
    stream: Tensor,
    post: tuple[Tensor, float] | None = None,
    factor: float = 1.0,
    norm: tuple[Tensor, float] | None = None,
    form: tuple[int, float | None] | None = None,
    warps: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """stream += factor * post(sum of parts + bias), in place; then norm(stream), rounded to 8 bits as `form` says.

    parts: [splits, n, hidden]; stream: [n, hidden]; post, norm: weight [hidden] and eps of an RMSNorm. form: groups of
    a row that have a scale each, and the file's scale for all, if there is one. Returns the norm, or codes and scales
    as `fp8.rounded` does; the stream itself where there is no norm.
    """
    splits, m, hidden = parts.shape
    block = triton.next_power_of_2(hidden)
    groups, fixed = (1, None) if form is None else form
    read = stream if norm is None else torch.empty_like(stream, dtype=stream.dtype if form is None else FP8)
    scales = None if form is None else torch.empty(m, groups, dtype=torch.float32, device=stream.device)
    chained = early(m, FEW_ROWS)
    _join[(m,)](
        parts, parts if bias is None else bias, stream, parts if post is None else post[0],
        parts if norm is None else norm[0], read, read if scales is None else scales, 1.0 if fixed is None else fixed,
        m, hidden, factor, 0.0 if post is None else post[1], 0.0 if norm is None else norm[1],
        SPLIT=splits, BIAS=bias is not None, POST=post is not None, SCALED=factor != 1, NORM=norm is not None,
        GROUP=0 if form is None else block if groups == 1 else hidden // groups, FIXED=fixed is not None, BLOCK=block,
        EARLY=chained, num_warps=warps or min(max(block // 256, 1), 16), launch_pdl=chained,
    )  # fmt: skip
    return read, scales


@triton.jit(do_not_specialize=["M"])
def _open(
    parts,
    bias,
    codes,
    scales,
    fixed,
    M,
    half,
    SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
    ACT: tl.constexpr,
    DTYPE: tl.constexpr,
    GROUP: tl.constexpr,
    FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < half
    gate = tl.zeros((BLOCK,), tl.float32)
    up = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT):
        own = parts + (split * M + row) * 2 * half + i
        gate += tl.load(own, mask=there, other=0.0).to(tl.float32)
        up += tl.load(own + half, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        gate += tl.load(bias + i, mask=there, other=0.0).to(tl.float32)
        up += tl.load(bias + half + i, mask=there, other=0.0).to(tl.float32)
    y = (act_of(gate, ACT) * up).to(DTYPE).to(tl.float32)
    _store_rounded(y, codes, scales, fixed, row, half, GROUP, FIXED, BLOCK)


def opened(
    parts: Tensor,
    bias: Tensor | None,
    act: str,
    dtype: torch.dtype,
    form: tuple[int, float | None],
    warps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """act(first half) * second half of the sum of parts + bias, as the stream's type has it, rounded to 8 bits.

    parts: [splits, n, 2 columns]. Returns codes and scales as `fp8.rounded` does.
    """
    splits, m, half = parts.shape[0], parts.shape[1], parts.shape[2] // 2
    groups, fixed = form
    block = triton.next_power_of_2(half)
    codes = torch.empty(m, half, dtype=FP8, device=parts.device)
    scales = torch.empty(m, groups, dtype=torch.float32, device=parts.device)
    chained = early(m)
    _open[(m,)](
        parts, parts if bias is None else bias, codes, scales, 1.0 if fixed is None else fixed, m, half,
        SPLIT=splits, BIAS=bias is not None, ACT=ACTS[act], DTYPE=TYPES[dtype],
        GROUP=block if groups == 1 else half // groups, FIXED=fixed is not None, BLOCK=block,
        EARLY=chained, num_warps=warps or min(max(block // 512, 1), 32), launch_pdl=chained,
    )  # fmt: skip
    return codes, scales
