# pyright: reportCallIssue=false, reportIndexIssue=false
# Launch options are beyond the types of Triton's decorators.
"""The first kernel of a decode step: page-table entries that are new, and tokens that only the device knows."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["n"])
def _enter(slots, known, entry_slots, entry_index, entry_pages, last, table, table_row, tokens, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    slot = tl.load(slots + i, mask=there, other=-1)
    token = tl.load(known + i, mask=there, other=0)
    drawn = tl.load(last + slot, mask=there & (slot >= 0) & (token < 0), other=0)
    tl.store(tokens + i, tl.where(token < 0, drawn, token), mask=there)
    entry = tl.load(entry_slots + i, mask=there, other=-1)
    index = tl.load(entry_index + i, mask=there, other=0)
    page = tl.load(entry_pages + i, mask=there, other=0)
    tl.store(table + entry * table_row + index, page.to(tl.int32), mask=there & (entry >= 0))


def enter(
    slots: Tensor, known: Tensor, entries: tuple[Tensor, Tensor, Tensor], last: Tensor, table: Tensor, tokens: Tensor
) -> None:
    """tokens[i] = known[i], or last[slots[i]] where that is negative; table[slot, index] = page of each entry.

    slots, known: int64 [n], and the three of entries (-1 in the first: none); last: int64 [slots]; table: int32
    [slots, pages]; tokens: int64 [n], written.
    """
    n = len(tokens)
    block = 128
    _enter[(triton.cdiv(n, block),)](
        slots, known, *entries, last, table, table.stride(0), tokens, n, BLOCK=block, num_warps=4
    )
