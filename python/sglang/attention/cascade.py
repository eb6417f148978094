"""Which decodes of a step begin with the same pages, and the tiles of work that reading those once makes.

The scheduler's prefix tree shows in the page tables: rows that share a node hold its pages. Groups are found there, the
longest common beginning first, then groups within a group from there on. Their keys are read once for all rows of a
group; what a row then reads by itself begins behind them. Partial results meet by their norms, as those of a row that
is cut into parts do (`kernels.attention`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sglang.attention.base import Ints

ENTRIES = 8  # partial results of a row that come from shared keys
LEVELS = 3  # groups within groups
KEYS = 64  # shared stretches begin and end at multiples of as many keys: no block of them needs a mask
LEAST_KEYS = 128  # a shorter stretch is not worth a tile
LEAST_SAVED = 2048  # keys times rows that a group does not read again
WORTH = 1 << 14  # the same for a step: 15 us a layer of an 8B model, what the further kernels cost
PROGRAMS = 264  # two for each of an H200's multiprocessors
COLUMNS = 6


@dataclass(frozen=True)
class Sharing:
    """own: [R] the first key a row reads by itself; used: [R] its partial results from shared keys; members: [M] rows,
    group after group; tiles: [n, 6] slot whose pages are read, first key, end, partial result (0 ..), first place in
    members, rows."""

    own: Ints
    used: Ints
    members: Ints
    tiles: Ints


@dataclass(frozen=True)
class _Stretch:
    rows: Ints
    begin: int
    end: int
    level: int


def most_tiles(rows: int) -> int:
    """What a captured step of as many rows has room for."""
    return 32 + rows // 8


def find(slots: Ints, starts: Ints, table: Ints, page_size: int, kv_heads: int, height: int) -> Sharing | None:
    """None where nothing worth it is shared.

    slots, starts (positions of the tokens to compute): [R]; table: [slots, pages]; height: rows of a tile.
    """
    stretches: list[_Stretch] = []
    for least_rows in (2, 8):
        stretches = list(_stretches(slots, starts, table, page_size, least_rows))
        if sum((len(s.rows) - 1) * (s.end - s.begin) for s in stretches) < WORTH:
            return None
        if sum(-(-len(s.rows) // height) for s in stretches) <= most_tiles(len(slots)):
            break
    else:
        return None
    tiles = sum(-(-len(s.rows) // height) for s in stretches)
    levels = 1 + max(s.level for s in stretches)
    pieces = max(1, min(PROGRAMS // (tiles * kv_heads), ENTRIES // levels, most_tiles(len(slots)) // tiles))
    own, used = np.zeros(len(slots), np.int64), np.zeros(len(slots), np.int64)
    lines = []
    at = 0
    for s in stretches:
        own[s.rows] = s.end
        used[s.rows] = (s.level + 1) * pieces
        share = -(-(s.end - s.begin) // (pieces * KEYS)) * KEYS
        for first in range(0, len(s.rows), height):
            for piece in range(pieces):
                begin = min(s.end, s.begin + piece * share)
                end = min(s.end, begin + share)
                rows = min(height, len(s.rows) - first)
                lines.append((int(slots[s.rows[0]]), begin, end, s.level * pieces + piece, at + first, rows))
        at += len(s.rows)
    return Sharing(own, used, np.concatenate([s.rows for s in stretches]), np.array(lines, np.int64))


def _stretches(slots: Ints, starts: Ints, table: Ints, page_size: int, least_rows: int) -> Iterator[_Stretch]:
    groups = [(np.arange(len(slots)), 0, 0)]
    while groups:
        rows, begin, level = groups.pop()
        rows = rows[starts[rows] >= begin + LEAST_KEYS]
        if len(rows) < least_rows:
            continue
        probe = table[slots[rows], (begin + LEAST_KEYS - 1) // page_size]
        order = np.argsort(probe, kind="stable")
        rows, probe = rows[order], probe[order]
        cuts = np.concatenate(([0], np.flatnonzero(np.diff(probe)) + 1, [len(rows)]))
        for group in np.flatnonzero(np.diff(cuts) >= least_rows).tolist():  # few, where most rows are alone
            some = rows[cuts[group] : cuts[group + 1]]
            # Who holds a page of the tree holds all before it: the last one of each possible end tells.
            ends = np.arange(begin + KEYS, int(starts[some].min()) // page_size * page_size + 1, KEYS)
            pages = table[slots[some, None], (ends - 1) // page_size]
            same = (pages == pages[0]).all(0)
            common = len(same) if same.all() else int(same.argmin())
            end = begin + common * KEYS
            if end - begin < LEAST_KEYS or (len(some) - 1) * (end - begin) < LEAST_SAVED:
                continue
            yield _Stretch(some, begin, end, level)
            if level + 1 < LEVELS:
                groups.append((some, end, level + 1))
