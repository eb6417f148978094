"""Attention with torch's own operators: runs anywhere, and is the readable reference for the other backends.

Rows of one token (decodes) attend together: their cells are gathered into one padded batch and the query heads that
share a KV head stand as query positions, so no key is repeated. Longer rows attend one by one. A row whose cells are
neighbours in memory is read in place.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.attention.base import Ints, Rows, Shape

Place = slice | Tensor  # of a row's cells in the pool


@dataclass
class _Decodes:
    """Rows of one token. index: their places among the step's tokens."""

    index: Tensor | None  # None: all tokens of the step, in order
    cells: Place
    mask: Tensor | None  # [B, 1, 1, longest], True where attended; None: all equally long
    batch: int
    longest: int


@dataclass
class _Chunk:
    """A row of several tokens. mask: [count, length], True where attended; None: causal from the start."""

    begin: int
    end: int
    cells: Place
    mask: Tensor | None


class TorchAttention:
    """keys, values: [layers][kv_heads, cells, head_dim]."""

    def __init__(self, shape: Shape, keys: list[Tensor], values: list[Tensor]):
        self._shape = shape
        self._keys = keys
        self._values = values
        self._device = keys[0].device
        self._rows: Rows | None = None
        self._new: Place = slice(0, 0)
        self._steps: dict[int | None, tuple[_Decodes | None, list[_Chunk]]] = {}

    def plan(self, rows: Rows) -> None:
        self._rows = rows
        self._steps.clear()
        cells = [
            _cells(table, start, start + count, rows.page_size)
            for table, start, count in zip(rows.tables, rows.starts.tolist(), rows.counts.tolist(), strict=True)
        ]
        self._new = self._place(np.concatenate(cells))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, window: int | None) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        keys[:, self._new] = k.transpose(0, 1)
        values[:, self._new] = v.transpose(0, 1)
        step = self._steps.get(window)
        if step is None:
            step = self._steps[window] = self._lay_out(window)
        decodes, chunks = step
        if decodes is not None and decodes.index is None:
            return self._decode(decodes, q, keys, values).reshape(q.shape[0], -1)
        out = torch.empty_like(q)
        if decodes is not None:
            assert decodes.index is not None
            out[decodes.index] = self._decode(decodes, q[decodes.index], keys, values)
        for chunk in chunks:
            out[chunk.begin : chunk.end] = self._fill(chunk, q[chunk.begin : chunk.end], keys, values)
        return out.reshape(q.shape[0], -1)

    def _decode(self, step: _Decodes, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q: [B, heads, head_dim] -> the same shape."""
        s = self._shape
        k = keys[:, step.cells].view(s.kv_heads, step.batch, step.longest, s.head_dim).transpose(0, 1)
        v = values[:, step.cells].view(s.kv_heads, step.batch, step.longest, s.head_dim).transpose(0, 1)
        grouped = q.reshape(step.batch, s.kv_heads, s.heads // s.kv_heads, s.head_dim)
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=step.mask, scale=s.scale)
        return out.reshape(step.batch, s.heads, s.head_dim)

    def _fill(self, chunk: _Chunk, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q: [count, heads, head_dim] -> the same shape."""
        s = self._shape
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[:, chunk.cells][None],
            values[:, chunk.cells][None],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=s.scale,
            enable_gqa=s.heads != s.kv_heads,
        )
        return out[0].transpose(0, 1)

    def _lay_out(self, window: int | None) -> tuple[_Decodes | None, list[_Chunk]]:
        """Which cells each row reads, for layers with this window."""
        rows = self._rows
        assert rows is not None, "plan() first"
        offsets = np.concatenate(([0], np.cumsum(rows.counts)))
        singles: list[int] = []
        chunks: list[_Chunk] = []
        for r, (start, count) in enumerate(zip(rows.starts.tolist(), rows.counts.tolist(), strict=True)):
            if count == 1:
                singles.append(r)
                continue
            first = 0 if window is None else max(0, start - window + 1)
            cells = _cells(rows.tables[r], first, start + count, rows.page_size)
            mask = None
            if start > 0 or (window is not None and window < count):
                query = torch.arange(start, start + count, device=self._device)[:, None]
                key = torch.arange(first, start + count, device=self._device)[None]
                mask = key <= query
                if window is not None:
                    mask &= key > query - window
            chunks.append(_Chunk(int(offsets[r]), int(offsets[r + 1]), self._place(cells), mask))
        if not singles:
            return None, chunks
        ends = rows.starts[singles] + 1
        firsts = np.zeros_like(ends) if window is None else np.maximum(0, ends - window)
        lengths = ends - firsts
        longest = int(lengths.max())
        gathered = np.zeros((len(singles), longest), np.int64)  # cell 0 pads: it is masked
        for i, r in enumerate(singles):
            gathered[i, : lengths[i]] = _cells(rows.tables[r], int(firsts[i]), int(ends[i]), rows.page_size)
        mask = None
        if int(lengths.min()) < longest:
            seen = np.arange(longest)[None] < lengths[:, None]
            mask = torch.from_numpy(seen)[:, None, None].to(self._device)
        index = None if not chunks else torch.from_numpy(offsets[singles]).to(self._device)
        return _Decodes(index, self._place(gathered.reshape(-1)), mask, len(singles), longest), chunks

    def _place(self, cells: np.ndarray) -> Place:
        n = len(cells)
        if n and int(cells[-1]) - int(cells[0]) == n - 1 and (n == 1 or bool((np.diff(cells) == 1).all())):
            return slice(int(cells[0]), int(cells[0]) + n)
        return torch.from_numpy(cells.astype(np.int64, copy=False)).to(self._device)


def _cells(table: Ints, first: int, end: int, page_size: int) -> Ints:
    """Pool cells of positions first .. end - 1."""
    if page_size == 1:
        return table[first:end]
    positions = np.arange(first, end)
    return table[positions // page_size] * page_size + positions % page_size
