# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false
# Launch options are beyond the types of Triton's decorators.
"""A few rows times a weight, by kernels that load their first weights before they wait for what they multiply them
with (`matvec.early`).

`split` is for few outputs: such a product reads its weight so quickly that filling and draining the device is a third
of it, in torch's kernel. Here inputs are split over programs, about as many as there are multiprocessors; what follows
sums the parts (`kernels.stream.join`). `gated` is for gate and up: torch's product is as fast, and alone.
"""

import functools
import logging
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.compiling import objection, trial
from sglang.kernels.matvec import FEW, TYPES, early, switch
from sglang.kernels.pointwise import ACTS, act_of

log = logging.getLogger("sglang.kernels")
OUTPUTS = 8192  # of a weight, at most: larger ones are read at the memory's rate as they are
PROGRAMS = 132  # multiprocessors of an H200


@dataclass(frozen=True)
class Tile:
    """outputs, inputs: of a step of a program; stages: steps on their way; splits: of the inputs."""

    outputs: int = 64
    inputs: int = 128
    stages: int = 4
    splits: int = 1


PAIR = Tile(64, 64, 3)
PAIRED = 8  # rows, from which a layer is faster by it; a lone one is slower, what lies between was not tried


@triton.jit(do_not_specialize=["M"])
def _split(
    x,
    weight,
    parts,
    M,
    x_row,
    N: tl.constexpr,
    K: tl.constexpr,
    STEPS: tl.constexpr,  # of BLOCK_K inputs, of a program
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    k = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    own = weight + n[:, None].to(tl.int64) * K
    w = tl.load(own + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
    if EARLY:
        gdc_wait()
    rows = x + m[:, None].to(tl.int64) * x_row
    a = tl.load(rows + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
    acc = tl.dot(w, tl.trans(a), input_precision=PRECISION)
    for step in range(1, STEPS):
        i = k + step * BLOCK_K
        w = tl.load(own + i[None, :], mask=(n < N)[:, None] & (i < K)[None, :], other=0.0)
        a = tl.load(rows + i[None, :], mask=(m < M)[:, None] & (i < K)[None, :], other=0.0)
        acc = tl.dot(w, tl.trans(a), acc, input_precision=PRECISION)
    to = parts + (split * M + m[None, :]).to(tl.int64) * N + n[:, None]
    tl.store(to, acc, mask=(n < N)[:, None] & (m < M)[None, :])


def split(x: Tensor, weight: Tensor, tile: Tile | None = None) -> Tensor:
    """x W^T in parts that are to be summed: float32 [splits, n, rows]. x: [n, inputs]; weight: [rows, inputs]."""
    m, (rows, inputs) = x.shape[0], weight.shape
    tile = tile or tile_of(m, rows, inputs)
    splits, steps = tile.splits, triton.cdiv(inputs, tile.inputs)
    parts = torch.empty(splits, m, rows, dtype=torch.float32, device=x.device)
    chained = early(m, FEW)
    _split[(triton.cdiv(rows, tile.outputs), splits)](
        x, weight, parts, m, x.stride(0), N=rows, K=inputs, STEPS=triton.cdiv(steps, splits),
        BLOCK_M=max(16, triton.next_power_of_2(m)), BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        EARLY=chained, num_warps=4, num_stages=tile.stages, launch_pdl=chained,
    )  # fmt: skip
    return parts


@triton.jit(do_not_specialize=["M"])
def _pair(
    x,
    weight,
    out,
    M,
    x_row,
    N: tl.constexpr,  # outputs of each half
    K: tl.constexpr,
    STEPS: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    first = weight + n[:, None].to(tl.int64) * K
    second = first + N * K
    there = (n < N)[:, None] & (k < K)[None, :]
    w = tl.load(first + k[None, :], mask=there, other=0.0)
    u = tl.load(second + k[None, :], mask=there, other=0.0)
    if EARLY:
        gdc_wait()
    rows = x + m[:, None].to(tl.int64) * x_row
    a = tl.trans(tl.load(rows + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0))
    gate = tl.dot(w, a, input_precision=PRECISION)
    up = tl.dot(u, a, input_precision=PRECISION)
    for step in range(1, STEPS):
        i = k + step * BLOCK_K
        there = (n < N)[:, None] & (i < K)[None, :]
        w = tl.load(first + i[None, :], mask=there, other=0.0)
        u = tl.load(second + i[None, :], mask=there, other=0.0)
        a = tl.trans(tl.load(rows + i[None, :], mask=(m < M)[:, None] & (i < K)[None, :], other=0.0))
        gate = tl.dot(w, a, gate, input_precision=PRECISION)
        up = tl.dot(u, a, up, input_precision=PRECISION)
    to = out + m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(to, act_of(gate, ACT) * up, mask=(n < N)[:, None] & (m < M)[None, :])


def gated(x: Tensor, weight: Tensor, act: str, tile: Tile = PAIR) -> Tensor:
    """act(first half of the rows) * second half. x: [n, inputs]; weight: [2 r, inputs]. Returns [n, r]."""
    m, half, inputs = x.shape[0], weight.shape[0] // 2, weight.shape[1]
    out = x.new_empty(m, half)
    chained = early(m, FEW)
    _pair[(triton.cdiv(half, tile.outputs),)](
        x, weight, out, m, x.stride(0), N=half, K=inputs, STEPS=triton.cdiv(inputs, tile.inputs), ACT=ACTS[act],
        BLOCK_M=max(16, triton.next_power_of_2(m)), BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        EARLY=chained, num_warps=4, num_stages=tile.stages, launch_pdl=chained,
    )  # fmt: skip
    return out


def tile_of(m: int, rows: int, inputs: int) -> Tile:
    """For m rows of x. Up to 16 of them leave room for two programs on a multiprocessor."""
    outputs, each, stages, programs = (64, 128, 3, 2 * PROGRAMS) if m <= 16 else (64, 128, 4, PROGRAMS)
    steps = triton.cdiv(inputs, each)
    wanted = max(1, round(programs / triton.cdiv(rows, outputs)))
    splits = triton.cdiv(steps, triton.cdiv(steps, wanted))  # none of them without inputs
    return Tile(outputs, each, stages, splits)


def wanted(x: Tensor, weight: Tensor) -> bool:
    return (
        2 <= x.shape[0] <= FEW  # torch's product is as fast for 64
        and weight.shape[0] <= OUTPUTS
        and switch.matvec
        and x.dtype in TYPES
        and x.stride(-1) == 1
        and works(x.dtype)
    )


def gates(x: Tensor, weight: Tensor) -> bool:
    """Whether `gated` is faster than a product and a gate of its own."""
    return (
        PAIRED <= x.shape[0] <= FEW
        and weight.shape[0] >= 2 * PAIR.outputs * PROGRAMS
        and switch.matvec
        and x.dtype in TYPES
        and x.stride(-1) == 1
        and works(x.dtype)
    )


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether the products agree with torch's on this device; tried once."""
    if not torch.cuda.is_available():
        return False
    if (reason := objection(lambda: _agrees(dtype))) is not None:
        log.warning("Products of a few rows are torch's: %s", reason)
    return reason is None


@trial
def _agrees(dtype: torch.dtype) -> bool:
    return rehearse(dtype)


def rehearse(dtype: torch.dtype) -> bool:
    """Launches what `works` does. Whether the results agree."""
    random = torch.Generator("cuda").manual_seed(0)
    x, first, second = (
        torch.randn(size, generator=random, device="cuda").to(dtype) * 0.05
        for size in ((20, 1536), (2048, 1536), (1536, 1024))
    )
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
    both = linear(x.float(), first.float())
    expected = linear(silu(both[:, :1024]) * both[:, 1024:], second.float())
    for _ in range(3):
        got = split(gated(x, first, "silu"), second).sum(0)
        if not torch.linalg.norm(got - expected) < 0.02 * torch.linalg.norm(expected):
            return False
    return True
