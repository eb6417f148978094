# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Products of 8-bit floating point: inputs rounded with a scale a row in one pass, and scales applied to the sums.

torch's own product with a scale a row takes up to twice the time of this one for few rows; it is left the many. Weights
with a scale a block of 128 columns have none there and are multiplied here, whatever the rows.
"""

import functools
import logging

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.compiling import trial
from sglang.kernels.matvec import early
from sglang.kernels.parts import PROGRAMS, ended

log = logging.getLogger("sglang.kernels")
FP8 = torch.float8_e4m3fn
COLUMNS = 128  # that have a scale of their own, where not all of a row have one
FEW = 128  # rows; torch is faster for more
AHEAD = 4  # lines of a weight's row that a product fetches before what it multiplies is there; measured
FETCH = tl.constexpr("prefetch.global.L2 [$1]; mov.u32 $0, 0;")


@triton.jit
def _round(
    x,
    codes,
    scales,
    x_row,
    columns,
    groups,
    fixed,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
    FIXED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A program rounds one row, or EACH groups of columns of it."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * EACH + tl.arange(0, EACH)
    i = tl.arange(0, BLOCK)
    place = group[:, None] * columns + i[None, :]
    there = (group < groups)[:, None] & (i < columns)[None, :]
    v = tl.load(x + row * x_row + place, mask=there, other=0.0).to(tl.float32)
    if FIXED:
        scale = tl.zeros((EACH,), tl.float32) + fixed
    else:
        scale = tl.maximum(tl.max(tl.abs(v), 1) / 448.0, 1e-12)  # 448: largest value of e4m3
    v = tl.minimum(tl.maximum(v / scale[:, None], -448.0), 448.0)
    tl.store(codes + row * groups * columns + place, v.to(codes.dtype.element_ty), mask=there)
    tl.store(scales + row * groups + group, scale, mask=group < groups)


def rounded(x: Tensor, scale: float | None = None, groups: int = 1) -> tuple[Tensor, Tensor]:
    """x: [n, inputs], a row side by side -> float8 of the same shape, float32 scales [n, groups].

    scale: one for all, where a file says.
    """
    n, inputs = x.shape
    codes = torch.empty(n, inputs, dtype=FP8, device=x.device)
    scales = torch.empty(n, groups, dtype=torch.float32, device=x.device)
    columns = inputs // groups
    block = triton.next_power_of_2(columns)
    chained = early(n)
    # Of many rows, programs of one group each are more than the device can begin: 917,504 of 4096 of Mixtral's tokens.
    each = 1 if chained else min(triton.next_power_of_2(groups), 16)
    _round[(n, triton.cdiv(groups, each))](
        x, codes, scales, x.stride(0), columns, groups, 1.0 if scale is None else scale,
        BLOCK=block, EACH=each, FIXED=scale is not None, EARLY=chained,
        num_warps=min(max(block * each // 512, 1), 16), launch_pdl=chained,
    )  # fmt: skip
    return codes, scales


@triton.jit(do_not_specialize=["M"])
def _multiply(
    x,
    x_scales,
    weight,
    scales,
    out,
    M,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPED: tl.constexpr,
    AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[split]: [M, N], of the columns of a split. GROUPED: BLOCK_K columns have scales of their own.

    AHEAD: lines of 128 bytes of each row of the weight that are fetched while the kernel before this one computes.
    """
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    steps = K // BLOCK_K
    each = tl.cdiv(steps, tl.num_programs(1))
    if EARLY:
        gdc_launch_dependents()
        if AHEAD > 0:
            line = tl.minimum(split * each * BLOCK_K + tl.arange(0, AHEAD) * 128, K - 1)
            place = weight + tl.minimum(n, N - 1)[:, None].to(tl.int64) * K + line[None, :]
            tl.inline_asm_elementwise(FETCH, "=r,l", [place.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)
        gdc_wait()
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.range(split * each, tl.minimum(steps, split * each + each), num_stages=STAGES):
        at = step * BLOCK_K + k
        w = tl.load(weight + n[:, None].to(tl.int64) * K + at[None, :], mask=(n < N)[:, None], other=0.0)
        v = tl.load(x + m[None, :].to(tl.int64) * K + at[:, None], mask=(m < M)[None, :], other=0.0)
        if GROUPED:
            w_scale = tl.load(scales + step * N + n, mask=n < N, other=0.0)
            v_scale = tl.load(x_scales + m * steps + step, mask=m < M, other=0.0)
            acc += tl.dot(w, v) * w_scale[:, None] * v_scale[None, :]
        else:
            acc = tl.dot(w, v, acc)
    if not GROUPED:
        w_scale = tl.load(scales + n, mask=n < N, other=0.0)
        v_scale = tl.load(x_scales + m, mask=m < M, other=0.0)
        acc = acc * w_scale[:, None] * v_scale[None, :]
    place = out + (split * M + m)[None, :].to(tl.int64) * N + n[:, None]
    tl.store(place, acc.to(out.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def partial(
    codes: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, dtype: torch.dtype, ahead: int = AHEAD
) -> Tensor:
    """x W^T in parts [splits, n, rows] that remain to be added: float32, or a single one of `dtype`.

    codes, x_scales: of `rounded`. weight: float8 [rows, inputs]; scales: float32 [groups, rows]. inputs: a multiple of
    128. ahead: see `_multiply`.
    """
    m, inputs = codes.shape
    rows, groups = weight.shape[0], scales.shape[0]
    wide = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 64 else 128
    tall, warps = (64, 4) if wide <= 64 else (128, 8)
    deep = COLUMNS if groups > 1 or inputs % 256 or wide > 64 else 256
    tiles = triton.cdiv(rows, tall) * triton.cdiv(m, wide)
    split = 1
    while split < 8 and tiles * split * 2 <= PROGRAMS // 2 and inputs // deep // (split * 2) >= 8:
        split *= 2
    parts = torch.empty(split, m, rows, dtype=dtype if split == 1 else torch.float32, device=codes.device)
    chained = early(m)
    _multiply[(triton.cdiv(rows, tall), split, triton.cdiv(m, wide))](
        codes, x_scales, weight, scales, parts, m, rows, inputs,
        BLOCK_N=tall, BLOCK_M=wide, BLOCK_K=deep, GROUPED=groups > 1, AHEAD=ahead if chained else 0, EARLY=chained,
        STAGES=4, num_warps=warps, launch_pdl=chained,
    )  # fmt: skip
    return parts


def multiply(
    codes: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    act: str | None = None,
) -> Tensor:
    """x W^T + bias, then + other, or act(first half) * second half; dtype: of the result. The rest: see `partial`.

    other: [n, rows], added in place and returned.
    """
    return ended(partial(codes, x_scales, weight, scales, dtype), bias, other, act, dtype)


@functools.cache
def works(grouped: bool) -> bool:
    """Whether the product agrees with float64 on this device; tried once."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        return False
    try:
        if _agrees(grouped):
            return True
        reason = "results differ from float64"
    except Exception as error:  # a compiler's or a driver's: whatever it is, there is torch's product
        reason = str(error).splitlines()[0]
    log.warning("Our product of 8-bit floating point is not used: %s", reason)
    return False


@trial
def _agrees(grouped: bool) -> bool:
    random = torch.Generator("cuda").manual_seed(0)
    rows, inputs = 192, 512
    groups = inputs // COLUMNS if grouped else 1
    weight = torch.randn(rows, inputs, generator=random, device="cuda").to(FP8)
    scales = torch.rand(groups, rows, generator=random, device="cuda") + 0.5
    wide = weight.double() * scales.double().t().repeat_interleave(inputs // groups, 1)
    for m in (1, 24, 48, 130):
        x = torch.randn(m, inputs, generator=random, device="cuda")
        codes, x_scales = rounded(x, None, groups)
        wanted = (codes.double() * x_scales.double().repeat_interleave(inputs // groups, 1)) @ wide.t()
        got = multiply(codes, x_scales, weight, scales, torch.bfloat16)
        if not torch.linalg.norm(got.double() - wanted) < 0.01 * torch.linalg.norm(wanted):
            return False
    return True
