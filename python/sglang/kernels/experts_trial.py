"""Whether the kernels of experts compute what they should on the device that is here."""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from sglang.kernels import fp8, int4
from sglang.kernels.compiling import compile_ahead, trial
from sglang.kernels.experts import forward
from sglang.kernels.experts_stack import Gate, Stack
from sglang.kernels.packed import BLOCK, COLUMNS, FP4, Kind, Packed

log = logging.getLogger("sglang.kernels")
Made = tuple[Stack, Tensor]  # a weight [experts, rows, inputs] in few bits, and what that stands for, float64


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether all of it agrees with float64 on this device, for weights of the type; tried once."""
    if not torch.cuda.is_available():
        return False
    if dtype != fp8.FP8:
        return _tried(str(dtype).removeprefix("torch."), dtype, [plain], 0.01)
    if torch.cuda.get_device_capability() < (8, 9):
        return False
    makes = [functools.partial(narrowed, groups=groups) for groups in (1, 2)]
    return _tried("float8", torch.bfloat16, makes, 0.1)  # inputs are rounded too: twice


@functools.cache
def packed_works(dtype: torch.dtype, kind: Kind, each: int) -> bool:
    """The same for weights in 4 bits (see `packed`) and inputs of the type."""
    if not torch.cuda.is_available() or dtype not in int4.TYPES:
        return False
    return _tried(kind, dtype, [functools.partial(squeezed, kind=kind, each=each)], 0.01)


def _tried(name: str, dtype: torch.dtype, makes: list[Callable[[Tensor], Made]], bound: float) -> bool:
    try:
        compile_ahead(lambda: [_differs(dtype, make) for make in makes])
        if all(_agrees(dtype, make, bound) for make in makes):
            return True
        reason = "results differ from float64"
    except Exception as error:  # a compiler's or a driver's: whatever it is, there are torch's products
        reason = str(error).splitlines()[0]
    log.warning("Experts of %s are not multiplied as such: %s", name, reason)
    return False


def plain(weight: Tensor) -> Made:
    return Stack(weight), weight.double()


def narrowed(weight: Tensor, groups: int) -> Made:
    """As float8, with so many scales a row."""
    parts = weight.float().unflatten(2, (groups, -1))
    scales = parts.abs().amax(3).clamp_min(1e-12) / 448  # 448: largest value of e4m3
    codes = (parts / scales[..., None]).to(fp8.FP8)
    wide = (codes.double() * scales[..., None].double()).flatten(2)
    return Stack(codes.flatten(2), None, scales.transpose(1, 2).contiguous()), wide


def squeezed(weight: Tensor, kind: Kind, each: int = 1) -> Made:
    """In 4 bits, by no careful method. each: groups of a piece."""
    count, rows, inputs = weight.shape
    packed = Packed.empty(count, rows, inputs, kind, each, weight.device)
    size, values = (BLOCK if kind == "mxfp4" else COLUMNS // each), torch.tensor(FP4, device=weight.device)
    wide = []
    for e, one in enumerate(weight.float()):
        groups = one.unflatten(1, (-1, size))
        most = groups.abs().amax(2, keepdim=True).clamp_min(1e-12)
        if kind == "mxfp4":
            exponents = (most / 6).log2().ceil()
            nearest = (groups[..., None].abs() / exponents.exp2()[..., None] - values[:8]).abs().argmin(-1)
            codes = nearest + 8 * (groups < 0)
            wide.append((values[codes].double() * exponents.double().exp2()).flatten(1))
            codes = codes.to(torch.uint8)
            packed.put_blocks(
                e, slice(0, rows), codes[..., ::2] | codes[..., 1::2] << 4, (exponents[..., 0] + 127).byte()
            )
        else:
            scales = (most[..., 0] / 7.0).half().float()
            zeros = 5.0 + torch.arange(groups.shape[1], device=weight.device) % 5
            codes = (groups / scales[..., None] + zeros[:, None]).round().clamp(0, 15)
            wide.append(((codes - zeros[:, None]).double() * scales[..., None].double()).flatten(1))
            packed.put_codes(e, slice(0, rows), codes.byte().flatten(1), scales, zeros.expand_as(scales), size)
    return Stack(packed), torch.stack(wide)


@trial
def _agrees(dtype: torch.dtype, make: Callable[[Tensor], Made], bound: float) -> bool:
    return _differs(dtype, make) < bound


def _differs(dtype: torch.dtype, make: Callable[[Tensor], Made]) -> float:
    """The largest relative error among a few numbers of tokens, of that type."""
    random = torch.Generator("cuda").manual_seed(0)

    def some(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device="cuda") * size[-1] ** -0.5

    count, hidden, inter, top_k = 6, 256, 256, 2
    opens, closes = make(some(count, 2 * inter, hidden).to(dtype)), make(some(count, hidden, inter).to(dtype))
    worst = 0.0
    for tokens in (1, 5, 700):
        x = (some(tokens, hidden) * hidden**0.5).to(dtype)
        weights, ids = some(tokens, count).softmax(-1).topk(top_k)
        got = forward(x, weights, ids.int(), opens[0], closes[0], Gate("silu"))
        both = torch.einsum("th,erh->ter", x.double(), opens[1])
        inner = torch.nn.functional.silu(both[..., :inter]) * both[..., inter:]
        given = torch.einsum("tei,ehi->teh", inner, closes[1])
        share = torch.zeros(tokens, count, device="cuda", dtype=torch.float64).scatter_(1, ids, weights.double())
        wanted = torch.einsum("teh,te->th", given, share)
        error = float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))
        worst = error if not error < worst else worst  # also where it is no number
    return worst
