# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Automata over bytes on the device: the masks of all their states, and the step that a drawn token takes.

States are rows of one table that all automata share. An entry is the *distance* to the row of the next state, so an
automaton may lie anywhere and its entries fit 16 bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

NONE = -32768  # no way on: distances are between states of one automaton, which has fewer than 32768
ENDS, LIVES = 1, 2  # flags of a state: the text may end here; some text that the vocabulary can spell leads to an end
KEEP, FREE = -2, -1  # places of rows: where the slot's automaton is; under no constraint
END = -2  # rank of an end-of-sequence token
BLOCK = 1024  # tokens walked at a time
SCRATCH = 32 << 20  # bytes between the two kernels that make masks

_NONE, _KEEP, _END = tl.constexpr(NONE), tl.constexpr(KEEP), tl.constexpr(END)
_ENDS, _LIVES = tl.constexpr(ENDS), tl.constexpr(LIVES)


@dataclass(frozen=True)
class Spelling:
    """What each token says, twice: by token, and by rank, which is its place when tokens are sorted by length.

    Sorted, tokens of a block are about as long, so that few wait for the longest; and all tokens that have a byte at
    some depth stand together, so that such a column needs no padding.
    """

    starts: Tensor  # int32 [vocab + 1], where each token's bytes begin in `data`
    data: Tensor  # uint8
    ranks: Tensor  # int32 [vocab]; END: ends a text; -1: another token without bytes
    lengths: Tensor  # int32 [n], by rank
    columns: Tensor  # uint8, column after column
    bases: Tensor  # int32 [longest + 1], the byte at depth d of rank r is columns[bases[d] + r]


@dataclass(frozen=True)
class Arena:
    """Rows of states. masks: bit t % 32 of word t // 32 says whether token t may come next."""

    table: Tensor  # int16 [rows, 256], distances
    flags: Tensor  # uint8 [rows]
    masks: Tensor  # int32 [rows, words]


@dataclass(frozen=True)
class Held:
    """What the rows of a draw are held to. slots: int64 [n], -1: padding; places: int64 [n], a row of the arena, FREE,
    or KEEP for `states[slot]`; states: int64 [slots].
    """

    masks: Tensor
    slots: Tensor
    places: Tensor
    states: Tensor


@triton.jit(do_not_specialize=["first", "n"])
def _walk(table, flags, columns, bases, lengths, found, first, n, BLOCK: tl.constexpr):
    rank = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rank < n
    length = tl.load(lengths + rank, mask=there, other=0)
    at = first + tl.program_id(1).to(tl.int64) + tl.zeros([BLOCK], tl.int64)
    for depth in range(0, tl.max(length, 0)):  # noqa: PIE808 - Triton wants both
        goes = (depth < length) & (at >= 0)
        byte = tl.load(columns + tl.load(bases + depth) + rank, mask=goes, other=0).to(tl.int64)
        distance = tl.load(table + at * 256 + byte, mask=goes, other=0).to(tl.int64)
        at = tl.where(distance == _NONE, -1, at + distance)
    flag = tl.load(flags + at, mask=there & (at >= 0), other=0)
    tl.store(found + tl.program_id(1).to(tl.int64) * n + rank, flag & _LIVES, mask=there)


@triton.jit(do_not_specialize=["first", "n", "vocab"])
def _pack(found, flags, ranks, masks, words, first, n, vocab, WORDS: tl.constexpr):
    state = tl.program_id(1).to(tl.int64)
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    token = word[:, None] * 32 + bit[None, :]
    rank = tl.load(ranks + token, mask=token < vocab, other=-1)
    allowed = tl.load(found + state * n + rank, mask=rank >= 0, other=0) != 0
    ends = (tl.load(flags + first + state) & _ENDS) != 0
    allowed = allowed | ((rank == _END) & ends)
    packed = tl.sum(allowed.to(tl.uint32) << bit[None, :].to(tl.uint32), 1).to(tl.uint32)
    tl.store(masks + (first + state) * words + word, packed.to(tl.int32, bitcast=True), mask=word < words)


@triton.jit(do_not_specialize=["n"])
def _advance(slots, places, tokens, states, starts, data, table, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + i, mask=i < n, other=-1)
    place = tl.load(places + i, mask=i < n, other=-1)
    kept = (slot >= 0) & (place == _KEEP)
    at = tl.where(kept, tl.load(states + slot, mask=kept, other=-1), place)
    held = (slot >= 0) & (at >= 0)
    token = tl.load(tokens + i, mask=held, other=0)
    start = tl.load(starts + token, mask=held, other=0)
    length = tl.load(starts + token + 1, mask=held, other=0) - start
    now = at
    for depth in range(0, tl.max(length, 0)):  # noqa: PIE808 - Triton wants both
        goes = (depth < length) & (now >= 0)
        byte = tl.load(data + start + depth, mask=goes, other=0).to(tl.int64)
        distance = tl.load(table + now * 256 + byte, mask=goes, other=0).to(tl.int64)
        now = tl.where(distance == _NONE, -1, now + distance)
    tl.store(states + slot, tl.where(now >= 0, now, at), mask=held)


def make_masks(arena: Arena, spelling: Spelling, first: int, count: int) -> None:
    """The masks of `count` states from row `first` on; their table and flags are there."""
    n, vocab, words = len(spelling.lengths), len(spelling.ranks), arena.masks.shape[1]
    most = max(1, SCRATCH // max(n, 1))
    found = torch.empty(min(most, count) * n, dtype=torch.uint8, device=arena.masks.device)
    for begin in range(first, first + count, most):
        states = min(most, first + count - begin)
        _walk[(triton.cdiv(n, BLOCK), states)](
            arena.table, arena.flags, spelling.columns, spelling.bases, spelling.lengths, found, begin, n,
            BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
        _pack[(triton.cdiv(words, 32), states)](
            found, arena.flags, spelling.ranks, arena.masks, words, begin, n, vocab, WORDS=32, num_warps=4
        )


def advance(arena: Arena, spelling: Spelling, held: Held, tokens: Tensor) -> None:
    """states[slot] follows the row's token: int64 [n]. A token that leads nowhere, or has no bytes, leaves it."""
    n, block = len(held.slots), 32
    _advance[(triton.cdiv(n, block),)](
        held.slots, held.places, tokens, held.states, spelling.starts, spelling.data, arena.table, n,
        BLOCK=block, num_warps=1,
    )  # fmt: skip
