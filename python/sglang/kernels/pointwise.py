# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""What stands between the products of a layer, each in one pass: RMSNorm, and act(gate) * up."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ACTS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


@triton.jit
def _rms(x, weight, out, x_row, x_head, hidden, eps, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    x += tl.program_id(0).to(tl.int64) * x_row + tl.program_id(1) * x_head
    i = tl.arange(0, BLOCK)
    there = i < hidden
    w = tl.load(weight + i, mask=there, other=0.0).to(tl.float32)
    v = tl.load(x + i, mask=there, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(v * v, 0) / hidden + eps)
    tl.store(out + row * hidden + i, (v * scale * w).to(out.dtype.element_ty), mask=there)


def rms_norm(x: Tensor, weight: Tensor, eps: float, early: bool = False, warps: int | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32.

    x: [rows, hidden] or [rows, heads, hidden], its last dimension side by side; weight: [hidden]. early: see `matvec`.
    """
    rows, hidden = x.shape[0], x.shape[-1]
    heads, x_head = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    out = x.new_empty(x.shape)
    block = triton.next_power_of_2(hidden)
    warps = warps or min(max(block // 512, 1), 16)
    _rms[(rows, heads)](
        x, weight, out, x.stride(0), x_head, hidden, eps, BLOCK=block, EARLY=early, num_warps=warps, launch_pdl=early
    )
    return out


@triton.jit
def act_of(x, ACT: tl.constexpr):
    """x: float32."""
    if ACT == 0:
        return x * tl.sigmoid(x)
    elif ACT == 1:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # 0.5 x (1 + tanh(z)) = x sigmoid(2 z)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def _gate(both, out, half, ACT: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < half
    gate = tl.load(both + row * 2 * half + i, mask=there, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * half + half + i, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * half + i, (act_of(gate, ACT) * up).to(out.dtype.element_ty), mask=there)


def gate(both: Tensor, act: str, early: bool = False) -> Tensor:
    """act(first half) * second half: [rows, n]. both: [rows, 2 n], its rows side by side. early: see `matvec`."""
    rows, half = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, half)
    block = 1024 if rows < 64 else 2048
    _gate[(rows, triton.cdiv(half, block))](
        both, out, half, ACT=ACTS[act], BLOCK=block, EARLY=early, num_warps=4, launch_pdl=early
    )
    return out
