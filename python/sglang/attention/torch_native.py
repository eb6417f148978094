"""Attention with torch's own operators: runs anywhere.

Rows of one token (decodes) attend together, in groups of similar length: their cells are gathered into one padded
batch, and the query heads that share a KV head stand as query positions, so that no key is repeated. So do rows of a
few tokens, which forced text makes. Longer rows attend one by one. A row whose cells are neighbours in memory is read
in place.

Rows of several tokens are padded to few lengths: for each that it meets, in queries and in keys, torch compiles kernels
for 16-bit numbers and keeps them, a tenth of a MiB a thread.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.attention.base import Feature, Ints, Look, Rows, Scales, Shape, cells_at

Place = slice | Tensor  # of cells in the pool, or of tokens in the step
FILL = 0.7  # a decode joins a group whose longest is at most 1 / FILL of it: the rest would be padding
SHORT = 128  # below this padding costs less than another group
FEW = 16  # tokens of a row that attends in a group
GRAIN = 32  # of queries and keys where several tokens of a row attend


@dataclass
class _Group:
    """Rows that attend at once: `batch` of them, padded to `count` tokens and `length` cells each.

    tokens: of all, padding included; or of a lone row without its padding.
    mask: [batch, 1, count, length], True where attended; None: everything (decodes) or causal (a whole prompt).
    """

    tokens: Place
    cells: Place
    mask: Tensor | None
    batch: int
    count: int
    length: int


class TorchAttention:
    """keys: [layers][cells, kv_heads, head_dim]; values: the same, or [..., value_dim] of the keys' own memory."""

    features: ClassVar[frozenset[Feature]] = frozenset(
        {"window", "chunk", "softcap", "sinks", "both ways", "narrow values"}
    )

    def __init__(self, shape: Shape, keys: list[Tensor], values: list[Tensor], scales: Scales | None = None):
        self._shape = shape
        self._scales = scales or [(1.0, 1.0)] * len(keys)
        self._keys = keys
        self._values = values
        self._device = keys[0].device
        self._rows: Rows | None = None
        self._tokens = 0
        self._new: Place = slice(0, 0)
        # By window, chunk and causality; made by the first layer that has them.
        self._groups: dict[tuple[int | None, int | None, bool], list[_Group]] = {}

    def plan(self, rows: Rows) -> None:
        self._rows = rows
        self._groups.clear()
        self._tokens = int(rows.counts.sum())
        slots, positions = rows.slots, rows.starts
        if self._tokens > len(slots):
            ends = np.cumsum(rows.counts)
            positions = np.arange(self._tokens) + np.repeat(rows.starts - (ends - rows.counts), rows.counts)
            slots = np.repeat(slots, rows.counts)
        self._new = self._place(cells_at(rows, slots, positions))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        keys, values, n = self._keys[layer], self._values[layer], self._tokens
        k_scale, v_scale = self._scales[layer]
        _put(keys, self._new, k[:n], k_scale)
        if self._shape.value_dim is None:
            _put(values, self._new, v[:n], v_scale)
        sight = look.window, look.chunk, look.causal
        groups = self._groups.get(sight)
        if groups is None:
            groups = self._groups[sight] = self._lay_out(*sight[:2]) if look.causal else self._lay_out_whole()
        if len(groups) == 1 and n == len(q) and isinstance(groups[0].tokens, slice):
            return self._attend(groups[0], q, keys, values, self._scales[layer], look).reshape(n, -1)
        make = torch.zeros if n < len(q) else torch.empty
        out = make(len(q), self._shape.heads, self._shape.values, dtype=q.dtype, device=q.device)
        for group in groups:
            out[group.tokens] = self._attend(group, q[group.tokens], keys, values, self._scales[layer], look)
        return out.view(len(q), -1)

    def _attend(
        self, group: _Group, q: Tensor, keys: Tensor, values: Tensor, scales: tuple[float, float], look: Look
    ) -> Tensor:
        """q: [batch * count, heads, head_dim], or what a lone row has of it. Returns [len(q), heads, value_dim]."""
        s = self._shape
        n = len(q)
        if n < group.batch * group.count:
            q = F.pad(q, (0, 0, 0, 0, 0, group.count - n))
        k = (
            _take(keys, group.cells, q.dtype, scales[0])
            .view(group.batch, group.length, s.kv_heads, s.head_dim)
            .transpose(1, 2)
        )
        v = (
            _take(values, group.cells, q.dtype, scales[1])
            .view(group.batch, group.length, s.kv_heads, s.values)
            .transpose(1, 2)
        )
        plain = look.softcap is None and look.sinks is None
        if group.count > 1 and group.mask is None and plain:
            heads = q.transpose(0, 1)[None]
            gqa = s.heads != s.kv_heads
            out = F.scaled_dot_product_attention(heads, k, v, is_causal=True, scale=s.scale, enable_gqa=gqa)
            return out[0].transpose(0, 1)[:n]
        # [batch, kv_heads, (heads / kv_heads) * count, head_dim]: a KV head's queries, head by head
        shared = s.heads // s.kv_heads
        mask = group.mask
        if group.count == 1:
            grouped = q.view(group.batch, s.kv_heads, shared, s.head_dim)
        else:
            grouped = q.view(group.batch, group.count, s.kv_heads, shared, s.head_dim).permute(0, 2, 3, 1, 4)
            grouped = grouped.reshape(group.batch, s.kv_heads, shared * group.count, s.head_dim)
            if mask is None:
                mask = torch.ones(group.count, group.length, dtype=torch.bool, device=q.device).tril()[None, None]
            mask = mask.repeat(1, 1, shared, 1)
        if plain:
            out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=s.scale)
        else:
            out = _explicit(grouped, k, v, mask, s.scale, look, group.count)
        if group.count == 1:
            return out.reshape(*q.shape[:2], s.values)
        out = out.view(group.batch, s.kv_heads, shared, group.count, s.values)
        return out.permute(0, 3, 1, 2, 4).reshape(*q.shape[:2], s.values)[:n]

    def _lay_out(self, window: int | None, chunk: int | None = None) -> list[_Group]:
        """Which cells each row reads, for layers with this window, or these chunks."""
        rows = self._rows
        assert rows is not None, "plan() first"
        begins = np.cumsum(rows.counts) - rows.counts
        few = (rows.counts > 1) & (rows.counts <= FEW)
        if few.sum() == 1:
            few[:] = False
        singles = self._grouped(np.flatnonzero(rows.counts == 1), window, chunk)
        shorts = self._grouped(np.flatnonzero(few), window, chunk)
        longs = np.flatnonzero((rows.counts > 1) & ~few).tolist()
        return [
            *(self._decodes(*group, begins) for group in singles),
            *(self._shorts(*group, begins, window, chunk) for group in shorts),
            *(self._chunk(r, int(begins[r]), window, chunk) for r in longs),
        ]

    def _lay_out_whole(self) -> list[_Group]:
        """Rows that are whole texts, of which every token sees every token."""
        rows = self._rows
        assert rows is not None and not rows.starts.any(), "texts that are seen both ways come in one piece"
        begins = np.cumsum(rows.counts) - rows.counts
        made = []
        for some, _, lengths in self._grouped(np.arange(len(rows.counts)), None, None):
            longest = _even(int(lengths.max()))
            steps = np.arange(longest)[None]
            place = np.minimum(steps, lengths[:, None] - 1)  # padding repeats the last token
            cells = cells_at(rows, rows.slots[some][:, None], place)
            tokens = self._place((begins[some][:, None] + place).reshape(-1))
            seen = torch.from_numpy(steps < lengths[:, None]).to(self._device)[:, None, None]
            mask = seen.expand(-1, -1, longest, -1)
            made.append(_Group(tokens, self._place(cells.reshape(-1)), mask, len(some), longest, longest))
        return made

    def _grouped(self, some: Ints, window: int | None, chunk: int | None) -> list[tuple[Ints, Ints, Ints]]:
        """(rows, the first position each sees, how many it sees) of `some`, in groups of similar length."""
        rows = self._rows
        assert rows is not None
        if not len(some):
            return []
        firsts = _firsts(rows.starts[some], window, chunk)
        lengths = rows.starts[some] + rows.counts[some] - firsts
        if lengths.min() >= FILL * lengths.max() or lengths.max() <= SHORT:
            return [(some, firsts, lengths)]
        order = np.argsort(-lengths, kind="stable")
        groups, at = [], 0
        while at < len(order):
            longest = lengths[order[at]]
            end = at + 1
            while end < len(order) and (lengths[order[end]] >= FILL * longest or longest <= SHORT):
                end += 1
            near = order[at:end]
            groups.append((some[near], firsts[near], lengths[near]))
            at = end
        return groups

    def _decodes(self, rows: Ints, firsts: Ints, lengths: Ints, begins: Ints) -> _Group:
        """The group of these rows of one token; firsts: the first position each sees."""
        assert self._rows is not None
        longest = int(lengths.max())
        steps = np.arange(longest)[None]
        seen = steps < lengths[:, None]
        # Padding reads position 0 of its own sequence: cells that are written, and finite.
        cells = cells_at(self._rows, self._rows.slots[rows][:, None], np.where(seen, firsts[:, None] + steps, 0))
        mask = None if lengths.min() == longest else torch.from_numpy(seen)[:, None, None].to(self._device)
        return _Group(self._place(begins[rows]), self._place(cells.reshape(-1)), mask, len(rows), 1, longest)

    def _shorts(
        self, rows: Ints, firsts: Ints, lengths: Ints, begins: Ints, window: int | None, chunk: int | None
    ) -> _Group:
        """The group of these rows of a few tokens each. A padding token repeats its row's last, and so does no harm."""
        assert self._rows is not None
        counts, starts = self._rows.counts[rows], self._rows.starts[rows]
        longest, most = _even(int(lengths.max())), 1 << (int(counts.max()) - 1).bit_length()
        steps = np.arange(longest)[None]
        positions = np.where(steps < lengths[:, None], firsts[:, None] + steps, 0)
        cells = cells_at(self._rows, self._rows.slots[rows][:, None], positions)
        place = np.minimum(np.arange(most)[None], counts[:, None] - 1)  # [batch, most]
        queries = (starts[:, None] + place)[:, :, None]
        keys = firsts[:, None, None] + steps[None]
        mask = keys <= queries
        if window is not None:
            mask &= keys > queries - window
        if chunk is not None:
            mask &= keys // chunk == queries // chunk
        tokens = self._place((begins[rows][:, None] + place).reshape(-1))
        device_mask = torch.from_numpy(mask)[:, None].to(self._device)
        return _Group(tokens, self._place(cells.reshape(-1)), device_mask, len(rows), most, longest)

    def _chunk(self, row: int, begin: int, window: int | None, chunk: int | None) -> _Group:
        rows = self._rows
        assert rows is not None
        start, count = int(rows.starts[row]), int(rows.counts[row])
        first = int(_firsts(np.array([start]), window, chunk)[0])
        most, length = _even(count), _even(start + count - first)
        positions = np.arange(first, first + length)
        # Padding reads a cell of its own sequence, as in `_decodes`; no token sees it, for it comes after all of them.
        cells = cells_at(rows, rows.slots[row], np.where(positions < start + count, positions, first))
        mask = None
        if start > 0 or min(window or count, chunk or count) < count:
            query = torch.arange(start, start + most, device=self._device)[:, None]
            key = torch.from_numpy(positions).to(self._device)[None]
            mask = key <= query
            if window is not None:
                mask &= key > query - window
            if chunk is not None:
                mask &= key // chunk == query // chunk
            mask = mask[None, None]
        return _Group(slice(begin, begin + count), self._place(cells), mask, 1, most, length)

    def _place(self, cells: Ints) -> Place:
        n = len(cells)
        if n == 1 or (int(cells[-1]) - int(cells[0]) == n - 1 and bool((np.diff(cells) == 1).all())):
            return slice(int(cells[0]), int(cells[0]) + n)
        return torch.from_numpy(cells.astype(np.int64, copy=False)).to(self._device)


def _even(n: int) -> int:
    return -(-n // GRAIN) * GRAIN


def _firsts(positions: Ints, window: int | None, chunk: int | None) -> Ints:
    """The first position that each position sees."""
    if window is not None:
        return np.maximum(0, positions + 1 - window)
    return np.zeros_like(positions) if chunk is None else positions // chunk * chunk


def _put(pool: Tensor, cells: Place, new: Tensor, scale: float) -> None:
    if pool.itemsize == 1:  # torch makes a NaN, or an infinity, of what is larger than the largest
        most = torch.finfo(pool.dtype).max
        new = (new.float() * (1 / scale)).clamp_(-most, most).to(pool.dtype).view(torch.uint8)
        pool = pool.view(torch.uint8)
    if isinstance(cells, slice):
        pool[cells] = new
    else:
        pool.index_copy_(0, cells, new)


def _take(pool: Tensor, cells: Place, dtype: torch.dtype, scale: float) -> Tensor:
    """index_select copies whole cells; indexing with [] is ten times slower on a CPU."""
    if pool.itemsize > 1:
        return pool[cells] if isinstance(cells, slice) else pool.index_select(0, cells)
    few = pool.view(torch.uint8)
    few = few[cells] if isinstance(cells, slice) else few.index_select(0, cells)
    wide = few.view(pool.dtype).to(dtype)
    return wide if scale == 1 else wide * scale


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, look: Look, count: int) -> Tensor:
    """What the fused operator cannot: soft caps and sinks. q: [batch, kv_heads, n * count, head_dim]."""
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)) * scale
    if look.softcap is not None:
        scores = (scores / look.softcap).tanh_() * look.softcap
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf)
    if look.sinks is None:
        return torch.matmul(scores.softmax(-1), v.float()).to(q.dtype)
    sinks = look.sinks.float().view(1, k.shape[1], -1, 1).repeat_interleave(count, 2).expand(len(q), -1, -1, 1)
    shares = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    return torch.matmul(shares, v.float()).to(q.dtype)
