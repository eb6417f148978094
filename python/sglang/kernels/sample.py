# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Logits -> tokens without sorting a vocabulary, in two kernels.

The first reads each logit once and keeps, for every block of tokens, its maximum and its sum of exponentials. The
second takes a row's largest logit, or draws: a uniform number picks a block by the sums, then a token inside it. Where
top-k or top-p limit a row, the least logit that stays is found by quartering all values of their type, which order like
their bits: 8 looks at a row of 16 bits. Tokens of equal logits stay or go together.

A few rows leave most of a device idle, so a row's blocks are shared among several programs then, which meet after each
look. They wait for each other, so the launch is cooperative: all of them run at once, or none does.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang.kernels.automata import KEEP, Held

BLOCK = 4096
_KEEP = tl.constexpr(KEEP)
# Of the bits of a float32 that an input type leaves zero, and how often as many values as it has can be quartered.
ZEROS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
LOOKS = {torch.bfloat16: 8, torch.float16: 10, torch.float32: 16}
_BITS = tl.constexpr(0x7FFFFFFF)  # of a float32, but for the sign
_INF = tl.constexpr(0x7F800000)
_MINUS_INF = tl.constexpr(-0x7F800001)  # its place among the floats


@triton.jit
def _read(logits, token, vocab, words, masked, MASKED: tl.constexpr):
    """float32; -inf for what may not be drawn, a NaN, or beyond the vocabulary."""
    x = tl.load(logits + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    if MASKED:
        word = tl.load(words + token // 32, mask=token < tl.where(masked, vocab, 0), other=-1)
        x = tl.where(((word >> (token % 32)) & 1) != 0, x, float("-inf"))
    return tl.minimum(tl.where(x == x, x, float("-inf")), 3.0e38)


@triton.jit
def _value(place, ZEROS: tl.constexpr):
    """The float at a place: integers that order like floats, of which the last ZEROS bits are left out."""
    place = tl.minimum(tl.maximum(place, _MINUS_INF >> ZEROS), _INF >> ZEROS)  # beyond, there are NaNs
    whole = place << ZEROS
    return tl.where(place < 0, (whole | ((1 << ZEROS) - 1)) ^ _BITS, whole).to(tl.float32, bitcast=True)


@triton.jit
def _mask_of(places, states, slots, row):
    """The mask that a row draws under; -1: none."""
    place = tl.load(places + row)
    slot = tl.load(slots + row)
    keeps = (place == _KEEP) & (slot >= 0)
    return tl.where(keeps, tl.load(states + slot, mask=keeps, other=-1), place)


@triton.jit
def _summarise(
    logits,
    logits_row,
    temperatures,
    masks,
    masks_row,
    places,
    states,
    slots,
    tops,
    sums,
    bests,
    arrived,
    vocab,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    here = row * tl.num_programs(1) + block
    if block == 0:
        tl.store(arrived + row, 0)
    which = _mask_of(places, states, slots, row) if MASKED else 0
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = _read(logits + row * logits_row, token, vocab, masks + which * masks_row, which >= 0, MASKED)
    top, place = tl.max(x, 0, return_indices=True)
    tl.store(tops + here, top)
    tl.store(bests + here, block * BLOCK + place)
    temperature = tl.load(temperatures + row).to(tl.float32)
    if temperature > 0.0:
        safe = tl.where(top == float("-inf"), 0.0, top)
        tl.store(sums + here, tl.sum(tl.exp((x - safe) / temperature), 0))


@triton.jit
def _meet(arrived, row, wanted):
    """Wait until `wanted` programs have come here for this row; what they have stored is there then."""
    tl.debug_barrier()
    tl.atomic_add(arrived + row, 1, sem="release")
    while tl.atomic_add(arrived + row, 0, sem="acquire") < wanted:
        pass
    tl.debug_barrier()


@triton.jit
def _together(board, parts, BLOCKS: tl.constexpr):
    """The sum of what the parts of a row have put on its board, in the same order for all of them: they must agree."""
    b = tl.arange(0, BLOCKS)
    return tl.sum(tl.load(board + b, mask=b < parts, other=0.0, cache_modifier=".cg"), 0)


@triton.jit
def _enough(mass, count, wanted, top_k, top_p):
    """Whether these tokens are as many as must stay."""
    return (((top_p < 1.0) & (mass >= wanted)) | ((top_k > 0) & (count >= top_k))).to(tl.int32)


@triton.jit
def _pick(
    logits,
    logits_row,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    uniforms,
    masks,
    masks_row,
    places,
    states,
    slots,
    tops,
    sums,
    bests,
    arrived,
    boards,
    seats,
    last,
    out,
    vocab,
    blocks,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    ZEROS: tl.constexpr,
    LOOKS: tl.constexpr,
    SHARED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    b = tl.arange(0, BLOCKS)
    top = tl.load(tops + row * blocks + b, mask=b < blocks, other=float("-inf"))
    most, best = tl.max(top, 0, return_indices=True)
    token = tl.load(bests + row * blocks + best).to(tl.int64)
    temperature = tl.load(temperatures + row).to(tl.float32)
    if (temperature > 0.0) & (most == float("-inf")):
        token = token * 0
    if (temperature > 0.0) & (most > float("-inf")):
        which = _mask_of(places, states, slots, row) if MASKED else 0
        own = logits + row * logits_row
        words = masks + which * masks_row
        i = tl.arange(0, BLOCK)
        sum_ = tl.load(sums + row * blocks + b, mask=b < blocks, other=0.0)
        weight = (sum_ * tl.exp((top - most) / temperature)).to(tl.float64)
        top_k = tl.load(top_ks + row)
        top_p = tl.load(top_ps + row).to(tl.float32)
        floor = tl.load(min_ps + row).to(tl.float32)  # of a token's weight; the likeliest weighs 1
        least = float("-inf")  # logit that stays
        if (top_k > 0) | (top_p < 1.0):
            wanted = tl.maximum(top_p * tl.sum(weight, 0).to(tl.float32), 1e-30)  # not 0, which nothing at all has
            place = -(1 << (31 - ZEROS))
            for look in range(LOOKS):
                step = 1 << (2 * (LOOKS - 1 - look))
                one = _value(place + step, ZEROS)
                two = _value(place + 2 * step, ZEROS)
                three = _value(place + 3 * step, ZEROS)
                # Of each lane, added up at the end: one block need not wait for the sums of another.
                mass1, count1 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
                mass2, count2 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
                mass3, count3 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
                for block in range(part, blocks, parts):
                    if tl.load(tops + row * blocks + block) >= one:
                        x = _read(own, block * BLOCK + i, vocab, words, which >= 0, MASKED)
                        e = tl.exp((x - most) / temperature)
                        mass1 += tl.where(x >= one, e, 0.0)
                        mass2 += tl.where(x >= two, e, 0.0)
                        mass3 += tl.where(x >= three, e, 0.0)
                        count1 += tl.where(x >= one, 1.0, 0.0)
                        count2 += tl.where(x >= two, 1.0, 0.0)
                        count3 += tl.where(x >= three, 1.0, 0.0)
                m1, m2, m3 = tl.sum(mass1, 0), tl.sum(mass2, 0), tl.sum(mass3, 0)
                c1, c2, c3 = tl.sum(count1, 0), tl.sum(count2, 0), tl.sum(count3, 0)
                if SHARED:
                    board = boards + (row * LOOKS + look) * 6 * parts
                    tl.store(board + part, m1)
                    tl.store(board + parts + part, m2)
                    tl.store(board + 2 * parts + part, m3)
                    tl.store(board + 3 * parts + part, c1)
                    tl.store(board + 4 * parts + part, c2)
                    tl.store(board + 5 * parts + part, c3)
                    _meet(arrived, row, (look + 1) * parts)
                    m1, c1 = _together(board, parts, BLOCKS), _together(board + 3 * parts, parts, BLOCKS)
                    m2, c2 = _together(board + parts, parts, BLOCKS), _together(board + 4 * parts, parts, BLOCKS)
                    m3, c3 = _together(board + 2 * parts, parts, BLOCKS), _together(board + 5 * parts, parts, BLOCKS)
                quarters = _enough(m1, c1, wanted, top_k, top_p) + _enough(m2, c2, wanted, top_k, top_p)
                place += (quarters + _enough(m3, c3, wanted, top_k, top_p)) * step
            least = _value(place, ZEROS)
        if (floor > 0.0) | (least > float("-inf")):
            for block in range(part, blocks, parts):
                stays = 0.0
                if tl.load(tops + row * blocks + block) >= least:
                    x = _read(own, block * BLOCK + i, vocab, words, which >= 0, MASKED)
                    e = tl.exp((x - most) / temperature)
                    stays = tl.sum(tl.where((e >= floor) & (x >= least), e, 0.0), 0)
                tl.store(sums + row * blocks + block, stays)
            if SHARED:
                limited = (top_k > 0) | (top_p < 1.0)
                _meet(arrived, row, tl.where(limited, LOOKS + 1, 1) * parts)
            else:
                tl.debug_barrier()
            weight = tl.load(sums + row * blocks + b, mask=b < blocks, other=0.0, cache_modifier=".cg").to(tl.float64)
        if part == 0:
            target = tl.load(uniforms + row) * tl.sum(weight, 0)
            beyond = (tl.cumsum(weight, 0) > target) & (weight > 0.0)
            chosen = tl.min(tl.where(beyond, b, BLOCKS), 0)
            chosen = tl.where(chosen == BLOCKS, best, chosen)
            rest = target - tl.sum(tl.where(b < chosen, weight, 0.0), 0)
            x = _read(own, chosen * BLOCK + i, vocab, words, which >= 0, MASKED)
            e = tl.exp((x - most) / temperature)
            e = tl.where((e >= floor) & (x >= least), e, 0.0).to(tl.float64)
            inside = tl.min(tl.where((tl.cumsum(e, 0) > rest) & (e > 0.0), i, BLOCK), 0)
            # Rounding may leave the last step short of the target: then the last token that has weight.
            inside = tl.where(inside == BLOCK, tl.max(tl.where(e > 0.0, i, 0), 0), inside)
            token = (chosen * BLOCK + inside).to(tl.int64)
    if part == 0:
        tl.store(out + row, token)
        seat = tl.load(seats + row)
        if seat >= 0:
            tl.store(last + seat, token)


@dataclass(frozen=True)
class Draws:
    """What each row wants, on the device, [n] each. temperatures: 0 is greedy; top_ks: 0 or less is no limit.

    temperatures, top_ps, min_ps, uniforms (in [0, 1)): float64; top_ks, slots (-1: padding): int64.
    """

    slots: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    uniforms: Tensor

    @staticmethod
    def of(slots: Tensor, wishes: Sequence[Tensor]) -> "Draws":
        """wishes: temperature, top_k, top_p, min_p, uniform; int64, floats as their float64 bits."""
        temperatures, top_ks, top_ps, min_ps, uniforms = wishes
        floats = [t.view(torch.float64) for t in (temperatures, top_ps, min_ps, uniforms)]
        return Draws(slots, floats[0], top_ks, *floats[1:])


def draw(
    logits: Tensor, draws: Draws, last: Tensor, out: Tensor, held: Held | None = None, several: bool = True
) -> None:
    """A token per row, into out: int64 [n], and into last[slot].

    logits: [n, vocab]. several: programs for a row, where rows are few. A row without a finite logit draws token 0; a
    NaN is never drawn while there is another.
    """
    n, vocab = logits.shape
    blocks, looks = triton.cdiv(vocab, BLOCK), LOOKS[logits.dtype]
    parts = _parts(n, blocks, logits.device) if several else 1
    tops = torch.empty(n, blocks, dtype=torch.float32, device=logits.device)
    sums, boards = torch.empty_like(tops), tops.new_empty(n, looks, 6, parts)
    arrived = torch.empty(n, dtype=torch.int32, device=logits.device)
    bests = torch.empty(n, blocks, dtype=torch.int32, device=logits.device)
    under = (out, 0, out, out, out)
    if held is not None:
        under = held.masks, held.masks.stride(0), held.places, held.states, held.slots
    _summarise[(n, blocks)](
        logits, logits.stride(0), draws.temperatures, *under, tops, sums, bests, arrived, vocab,
        MASKED=held is not None, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    _pick[(n, parts)](
        logits, logits.stride(0), draws.temperatures, draws.top_ks, draws.top_ps, draws.min_ps, draws.uniforms,
        *under, tops, sums, bests, arrived, boards, draws.slots, last, out, vocab, blocks,
        MASKED=held is not None, BLOCK=BLOCK, BLOCKS=triton.next_power_of_2(blocks),
        ZEROS=ZEROS[logits.dtype], LOOKS=looks, SHARED=parts > 1, num_warps=16, launch_cooperative_grid=parts > 1,
    )  # fmt: skip


def _parts(n: int, blocks: int, device: torch.device) -> int:
    """Programs for each of n rows: a power of two, and no more in all than there are multiprocessors."""
    return min(triton.next_power_of_2(blocks), 1 << max(1, _processors(device) // n).bit_length() - 1)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
