"""A vocabulary as columns of bytes, and the walk of an automaton through them that makes a mask.

Most tokens of a state that allows many are plain text inside a run ("any characters but quotes", "up to 16 letters"):
they are told by the set of their characters and their length, all at once. Only the others are walked byte by byte.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.grammar.rules import Words
from sglang.grammar.utf8 import Table

Ints = NDArray[np.int32]
Allowed = NDArray[np.bool_]  # [size]

MANY = 2048  # with fewer candidates walking them is cheaper than looking for a run
RUN_STEPS = 40  # characters looked ahead; few tokens are longer
NEVER = np.int16(2**15 - 1)


class Run(NamedTuple):
    """From a state on, whichever of these characters come, up to `length` of them lead through the same states."""

    low: np.uint64  # bits of the ASCII characters 0-63
    high: np.uint64  # 64-127
    wide: bool  # all other characters too
    length: int
    ends: bool  # none of these characters goes on after `length`


class Vocabulary:
    """The tokens of a model. Immutable; shared by all that is compiled for it.

    token_bytes: what each id stands for; nothing for special tokens and for ids without a token. size: the number of
    logits, where that is more.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        eos_ids: Sequence[int] = (),
        special_ids: Sequence[int] | frozenset[int] = (),
        size: int | None = None,
    ):
        self.size = max(size or 0, len(token_bytes))
        self.words = -(-self.size // 32)
        self.eos_ids = tuple(i for i in eos_ids if i < self.size)
        self.special = frozenset(special_ids) | frozenset(eos_ids)
        self.bytes = [b"" if i in self.special else token for i, token in enumerate(token_bytes)]
        self.eos_words = np.zeros(self.words, np.uint32)
        for i in self.eos_ids:
            self.eos_words[i // 32] |= np.uint32(1 << i % 32)
        self.eos_words.flags.writeable = False
        # Sorted by their bytes: tokens with the same beginning stand together.
        order = sorted((i for i, token in enumerate(self.bytes) if token), key=self.bytes.__getitem__)
        self._sorted = [self.bytes[i] for i in order]
        self._ids = np.array(order, np.int32)
        self._lengths = np.array([len(t) for t in self._sorted], np.int16)
        self._data = _columns(self._sorted)
        self._bounds = np.searchsorted(self._data[0], np.arange(257)) if order else np.zeros(257, np.int64)
        self.single = np.zeros(256, bool)  # bytes that are tokens by themselves
        self.single[[t[0] for t in self._sorted if len(t) == 1]] = True

    def starting_with(self, prefix: bytes) -> Sequence[bytes]:
        """The tokens that begin with `prefix`, in order; `prefix` itself first, where it is one."""
        start = bisect_left(self._sorted, prefix)
        after = _after(prefix)
        return self._sorted[start : bisect_left(self._sorted, after, start) if after else None]

    def rehearse(self) -> None:
        """Make now what the first masks would have to wait for."""
        _ = self._texts

    @property
    def longest(self) -> int:
        return len(self._data)

    def pack(self, allowed: Allowed) -> Words:
        """bool [size] -> mask."""
        padded = np.zeros(self.words * 32, bool)
        padded[: self.size] = allowed
        return np.packbits(padded, bitorder="little").view("<u4")

    def unpack(self, mask: Words) -> Allowed:
        """mask -> bool [size]."""
        return np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.size].view(bool)

    def allowed(self, table: Table, state: int) -> Allowed:
        """The tokens whose bytes `table` reads from `state` on."""
        found = np.zeros(self.size, bool)
        rows = self._candidates(table[state])
        if len(rows) > MANY:
            run = _run(table, state)
            if run.length:
                lows, highs, narrow, wide = self._texts
                strange = (lows[rows] & ~run.low) | (highs[rows] & ~run.high)
                lengths = (wide if run.wide else narrow)[rows]
                known = (strange == 0) & (lengths < NEVER if run.ends else lengths <= run.length)
                found[self._ids[rows[known & (lengths <= run.length)]]] = True
                rows = rows[~known]
        for ended, _ in self._walk(table, state, rows):
            found[self._ids[ended]] = True
        return found

    def reached(self, table: Table, state: int) -> tuple[Ints, NDArray[np.int64]]:
        """The same tokens, and the state that each leads to."""
        steps = self._walk(table, state, self._candidates(table[state]))
        if not steps:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        ended, states = (np.concatenate(parts) for parts in zip(*steps, strict=True))
        return self._ids[ended], states

    def _candidates(self, row: Table) -> NDArray[np.int64]:
        """Rows of tokens whose first byte goes on."""
        lives = np.append((row >= 0) & (np.diff(self._bounds) > 0), False).view(np.int8)
        edges = np.flatnonzero(np.diff(lives, prepend=0))
        spans = [np.arange(self._bounds[a], self._bounds[b]) for a, b in edges.reshape(-1, 2).tolist()]
        return np.concatenate(spans) if spans else np.zeros(0, np.int64)

    def _walk(
        self, table: Table, state: int, rows: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Out of `rows`, those that can be read, in groups of one length, with the states they lead to."""
        flat = table.reshape(-1)
        found = []
        base = np.full(1, state << 8, np.int64)
        for depth in range(self.longest):
            after = flat.take(base + self._data[depth].take(rows))
            lives = np.flatnonzero(after >= 0)
            if not len(lives):
                break
            rows, after = rows.take(lives), after.take(lives).astype(np.int64)
            ends = self._lengths.take(rows) == depth + 1
            if ends.any():
                found.append((rows[ends], after[ends]))
                rows, after = rows[~ends], after[~ends]
            base = after << 8
        return found

    @cached_property
    def _texts(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int16], NDArray[np.int16]]:
        """Of each token: which ASCII characters it has (two words), its length where it is ASCII, where it is UTF-8."""
        n = len(self._sorted)
        words = np.zeros((2, n), np.uint64)
        wide_bytes = np.zeros(n, bool)
        continuations = np.zeros(n, np.int16)
        for depth, column in enumerate(self._data):
            rows = np.flatnonzero(self._lengths > depth)
            bytes = column[rows]
            for half in range(2):
                mine = bytes >> 6 == half
                words[half, rows[mine]] |= np.uint64(1) << (bytes[mine] & 63).astype(np.uint64)
            wide_bytes[rows[bytes > 127]] = True
            continuations[rows] += bytes >> 6 == 2
        narrow = np.where(wide_bytes, NEVER, self._lengths)
        wide = self._lengths - continuations
        for row in np.flatnonzero(wide_bytes).tolist():
            try:
                self._sorted[row].decode()
            except UnicodeDecodeError:
                wide[row] = NEVER
        return words[0], words[1], narrow, wide


def _after(prefix: bytes) -> bytes:
    """The first byte string that sorts behind all that begin with `prefix`; empty where there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""


def _columns(tokens: Sequence[bytes]) -> NDArray[np.uint8]:
    """uint8 [longest, n]."""
    longest = max(map(len, tokens), default=0)
    joined = np.frombuffer(b"".join(t.ljust(longest, b"\0") for t in tokens), np.uint8)
    return np.ascontiguousarray(joined.reshape(len(tokens), longest).T)


def _run(table: Table, state: int) -> Run:
    """The longest run from `state` on whose characters stay most of those it begins with."""
    inside = np.ones(128, bool)
    first = 0
    wide = False
    length = 0
    while length < RUN_STEPS:
        row = table[state, :128]
        live = row[row >= 0]
        if not len(live):
            break
        target = int(np.bincount(live).argmax())
        narrower = inside & (row == target)
        count = int(narrower.sum())
        everything = _reads_any(table, state, target)
        if length == 0:
            first, wide = count, everything
        elif count * 2 < first or (wide and not everything):
            break
        inside = narrower
        length += 1
        if target == state:
            length = int(NEVER) - 1
            break
        state = target
    low, high = np.packbits(inside, bitorder="little").view("<u8")
    ends = not (table[state, :128][inside] >= 0).any() and not (wide and (table[state, 128:] >= 0).any())
    return Run(low, high, wide, length, ends)


# Lead bytes of UTF-8 and the continuation bytes that may follow them, by the number that follow after that.
_LEADS = ((0, 0xC2, 0xDF, 0x80, 0xBF), (1, 0xE0, 0xE0, 0xA0, 0xBF), (1, 0xE1, 0xEC, 0x80, 0xBF),
          (1, 0xED, 0xED, 0x80, 0x9F), (1, 0xEE, 0xEF, 0x80, 0xBF), (2, 0xF0, 0xF0, 0x90, 0xBF),
          (2, 0xF1, 0xF3, 0x80, 0xBF), (2, 0xF4, 0xF4, 0x80, 0x8F))  # fmt: skip


def _reads_any(table: Table, state: int, target: int) -> bool:
    """Whether every character beyond ASCII leads from `state` to `target`."""
    for more, lead, last_lead, low, high in _LEADS:
        inner = int(table[state, lead])
        if inner < 0 or (table[state, lead : last_lead + 1] != inner).any():
            return False
        for _ in range(more):
            following = int(table[inner, low])
            if following < 0 or (table[inner, low : high + 1] != following).any():
                return False
            inner, low, high = following, 0x80, 0xBF
        if (table[inner, low : high + 1] != target).any():
            return False
    return True
