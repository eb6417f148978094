"""Whether the kernels of experts compute what they should on the device that is here."""

import functools
import logging

import torch
from torch import Tensor

from sglang.kernels import fp8
from sglang.kernels.compiling import compile_ahead, trial
from sglang.kernels.experts import forward
from sglang.kernels.experts_stack import Gate, Stack

log = logging.getLogger("sglang.kernels")


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
        got = forward(x, weights, ids.int(), stacks[0], stacks[1], Gate("silu"))
        both = torch.einsum("th,erh->ter", x.double(), wide[0])
        inner = torch.nn.functional.silu(both[..., :inter]) * both[..., inter:]
        given = torch.einsum("tei,ehi->teh", inner, wide[1])
        share = torch.zeros(tokens, count, device="cuda", dtype=torch.float64).scatter_(1, ids, weights.double())
        wanted = torch.einsum("teh,te->th", given, share)
        error = float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))
        worst = error if not error < worst else worst  # also where it is no number
    return worst
