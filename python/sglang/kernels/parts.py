# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportGeneralTypeIssues=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""The end of a product whose inputs were split over programs: the parts' sum, and what follows, in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.matvec import early
from sglang.kernels.pointwise import ACTS, act_of

PROGRAMS = 4 * 132  # of a product: as many as run at once on an H200; fewer leave memory idle


@triton.jit(do_not_specialize=["M"])
def _end(
    parts,
    bias,
    other,
    out,
    M,
    N,
    width,
    SPLIT: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Sum the splits, and what follows a product. width: N, or half of it where ACT is not -1."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    m = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = n < width
    y = tl.zeros((BLOCK,), tl.float32)
    up = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT):
        row = parts + (split * M + m) * N + n
        y += tl.load(row, mask=there, other=0.0).to(tl.float32)
        if ACT != -1:
            up += tl.load(row + width, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)
        if ACT != -1:
            up += tl.load(bias + n + width, mask=there, other=0.0).to(tl.float32)
    if ACT != -1:
        y = act_of(y, ACT) * up
    if ADD:
        y += tl.load(other + m * width + n, mask=there, other=0.0).to(tl.float32)
    tl.store(out + m * width + n, y.to(out.dtype.element_ty), mask=there)


def ended(parts: Tensor, bias: Tensor | None, other: Tensor | None, act: str | None, dtype: torch.dtype) -> Tensor:
    """The sum of parts + bias, then + other, or act(first half) * second half.

    parts: [splits, n, rows]. other: [n, rows], added in place and returned.
    """
    split, m, rows = parts.shape
    if split == 1 and bias is None and other is None and act is None:
        return parts[0]
    width = rows if act is None else rows // 2
    out = parts.new_empty(m, width, dtype=dtype) if other is None else other
    block = min(1024, triton.next_power_of_2(width))
    chained = early(m)
    _end[(m, triton.cdiv(width, block))](
        parts, parts if bias is None else bias, out, out, m, rows, width,
        SPLIT=split, BIAS=bias is not None, ADD=other is not None, ACT=-1 if act is None else ACTS[act], BLOCK=block,
        EARLY=chained, num_warps=4, launch_pdl=chained,
    )  # fmt: skip
    return out
