# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""One row times a weight, with what follows it in the same pass: bias, residual, act(gate) * up.

A program owns a few outputs and walks along their weights. Kernels of a step of one row are so short that the gaps
between them count: each lets the next one start early (programmatic dependent launch), which loads its first weights
before it waits for what it multiplies them with. `early` says whether a step does so; every kernel of it that reads or
writes what others do must then wait (`gdc_wait`), so that order passes on from each to the next.
"""

import functools
import logging

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.compiling import objection, trial
from sglang.kernels.pointwise import ACTS, act_of

log = logging.getLogger("sglang.kernels")
TYPES = (torch.bfloat16, torch.float16)
FEW = 32  # rows


@triton.jit
def _matvec(
    x,
    weight,
    bias,
    other,
    out,
    rows,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    own = weight + n[:, None].to(tl.int64) * K
    w = tl.load(own + k[None, :], mask=(n < rows)[:, None] & (k < K)[None, :], other=0.0)
    if EARLY:
        gdc_wait()
    v = tl.load(x + k, mask=k < K, other=0.0)
    acc = w.to(tl.float32) * v.to(tl.float32)[None, :]
    for at in range(BLOCK_K, K, BLOCK_K):
        i = at + k
        w = tl.load(own + i[None, :], mask=(n < rows)[:, None] & (i < K)[None, :], other=0.0)
        v = tl.load(x + i, mask=i < K, other=0.0)
        acc += w.to(tl.float32) * v.to(tl.float32)[None, :]
    y = tl.sum(acc, 1)
    if BIAS:
        y += tl.load(bias + n, mask=n < rows, other=0.0).to(tl.float32)
    if ADD:
        y += tl.load(other + n, mask=n < rows, other=0.0).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=n < rows)


@triton.jit
def _gated(
    x,
    weight,
    bias,
    out,
    half,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    w = tl.load(weight + n * K + k, mask=k < K, other=0.0)
    u = tl.load(weight + (n + half) * K + k, mask=k < K, other=0.0)
    if EARLY:
        gdc_wait()
    v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    a = w.to(tl.float32) * v
    b = u.to(tl.float32) * v
    for at in range(BLOCK_K, K, BLOCK_K):
        i = at + k
        w = tl.load(weight + n * K + i, mask=i < K, other=0.0)
        u = tl.load(weight + (n + half) * K + i, mask=i < K, other=0.0)
        v = tl.load(x + i, mask=i < K, other=0.0).to(tl.float32)
        a += w.to(tl.float32) * v
        b += u.to(tl.float32) * v
    gate = tl.sum(a, 0)
    up = tl.sum(b, 0)
    if BIAS:
        gate += tl.load(bias + n).to(tl.float32)
        up += tl.load(bias + n + half).to(tl.float32)
    tl.store(out + n, (act_of(gate, ACT) * up).to(out.dtype.element_ty))


def tuning(rows: int, inputs: int) -> tuple[int, int]:
    """Outputs of a program and inputs of a step; measured on an H200: 83 to 104 % of the rate of a long read."""
    outputs, step = (2, 2048) if inputs >= 8192 or rows <= 4096 else (4, 1024)
    return outputs, min(step, triton.next_power_of_2(inputs))


def matvec(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
    """x: [1, inputs]; weight: [rows, inputs]; bias: [rows]; other: [1, rows], overwritten by the sum and returned."""
    rows, inputs = weight.shape
    out = x.new_empty(1, rows) if other is None else other
    block_n, block_k = tuning(rows, inputs)
    chained = early(1)
    _matvec[(triton.cdiv(rows, block_n),)](
        x, weight, weight if bias is None else bias, out, out, rows,
        K=inputs, BIAS=bias is not None, ADD=other is not None, BLOCK_N=block_n, BLOCK_K=block_k, EARLY=chained,
        num_warps=4, launch_pdl=chained,
    )  # fmt: skip
    return out


def matvec_gated(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """act(first half of the rows) * second half. x: [1, inputs]; weight: [2 n, inputs]. Returns [1, n]."""
    half, inputs = weight.shape[0] // 2, weight.shape[1]
    out = x.new_empty(1, half)
    chained = early(1)
    _gated[(half,)](
        x, weight, weight if bias is None else bias, out, half,
        K=inputs, BIAS=bias is not None, ACT=ACTS[act], BLOCK_K=min(2048, triton.next_power_of_2(inputs)),
        EARLY=chained, num_warps=4, launch_pdl=chained,
    )  # fmt: skip
    return out


class _Switch:
    """chain: kernels of a step of one row start early; matvec: its products are ours. Both only where they work."""

    chain = True
    matvec = True


switch = _Switch()


def early(rows: int, most: int = 1) -> bool:
    """Whether kernels of a step of so many rows start before the one ahead of them has ended. most: rows with which
    those gain from it; FEW where one of them has weights to load meanwhile."""
    return rows <= most and switch.chain and _capable()


@functools.cache
def _capable() -> bool:
    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


def wanted(x: Tensor, weight: Tensor) -> bool:
    return x.shape[0] == 1 and switch.matvec and x.dtype in TYPES and x.is_contiguous() and works(weight.dtype)


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether the products agree with torch's on this device; tried once, first as a chain of early starts."""
    if dtype not in TYPES or not torch.cuda.is_available():
        return False
    while (reason := objection(lambda: _agrees(dtype))) is not None:
        if not switch.chain:
            log.warning("Products of one row are torch's: %s", reason)
            return False
        log.warning("Kernels of a step of few rows do not start early: %s", reason)
        switch.chain = False
    return True


@trial
def _agrees(dtype: torch.dtype) -> bool:
    return rehearse(dtype)


def rehearse(dtype: torch.dtype) -> bool:
    """Launches what `works` does. Whether the results agree."""
    random = torch.Generator("cuda").manual_seed(0)
    x, wide, narrow = (
        torch.randn(size, generator=random, device="cuda").to(dtype) * 0.05
        for size in ((1, 1536), (4096, 1536), (1536, 2048))
    )
    linear = torch.nn.functional.linear
    both = linear(x.float(), wide.float())
    inner = torch.nn.functional.silu(both[:, :2048]) * both[:, 2048:]
    expected = linear(inner, narrow.float()) + x.float()
    for _ in range(3):
        got = matvec(matvec_gated(x, wide, None, "silu"), narrow, None, x.clone()).float()
        if not torch.linalg.norm(got - expected) < 0.02 * torch.linalg.norm(expected):
            return False
    return True
