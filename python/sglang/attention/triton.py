"""Attention by our own Triton kernels, on CUDA devices.

A step's rows of one token go to a kernel that cuts each sequence into parts, longer rows to one that works on tiles of
queries, or to cuDNN where they are very long (`attention.long`). All read keys and values from the pool, where the
step's own were filed first. `fix` makes the backend read decodes from tensors that never move, so that a captured graph
finds each step's rows in them.
"""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sglang.attention import cascade
from sglang.attention.base import Feature, Ints, Look, Rows, Scales, Shape
from sglang.attention.flashinfer import FlashInfer, Job, able, kernel
from sglang.attention.long import LongRows, Row
from sglang.kernels import attention as kernels
from sglang.kernels.cells import file_cells
from sglang.kernels.matvec import FEW, early
from sglang.kernels.staging import Stager

log = logging.getLogger("sglang.attention")
# Decodes that each file their own key, which saves a kernel. Beyond it costs more: each part of a sequence rotates its
# query, and 32 rows of 2048 keys take 4 % longer a layer (`gpu_check.py few` on an H200).
OWN = 8


@dataclass
class _Step:
    """What the layers of a step read. Decodes: slots, positions and places of the rows of one token, each [R]."""

    slots: Tensor  # [T], of tokens; -1: padding
    positions: Tensor  # [T]
    decodes: tuple[Tensor, Tensor, Tensor] | None
    splits: int | Tensor
    tiles: Tensor | None  # [n, 5], see kernels.attention.extend
    longest: int  # tokens of a row
    tokens: int
    shared: kernels.Shared | None = None
    long: list[Row] = field(default_factory=list)
    short: int = 0  # tiles of rows that are not long: the first
    flash: Job | None = None  # rows that FlashInfer computes
    flash_decodes: Job | int | None = None  # the same of decodes; of a graph: how many
    files: bool = True  # keys and values before any is read; else each decode its own

    @property
    def mixed(self) -> bool:
        """Of `fix_mixed`: some tokens may be padding."""
        return isinstance(self.splits, Tensor)


class TritonAttention:
    """keys, values: [layers][cells, kv_heads, head_dim]; table: int32 [slots, pages], the engine's own, on the device.

    The engine keeps the table as it keeps its own on the host: entries of a step are in it before its first layer.
    """

    features: ClassVar[frozenset[Feature]] = frozenset({"window", "chunk", "softcap", "sinks", "turn"})

    def __init__(
        self,
        shape: Shape,
        keys: list[Tensor],
        values: list[Tensor],
        table: Tensor,
        page_size: int,
        programs: int = kernels.PROGRAMS,
        dtype: torch.dtype | None = None,
        scales: Scales | None = None,
    ):
        """programs: how many of a decode's there should be at least, to keep the device busy. dtype: of queries, if it
        is not that of the pool."""
        self._shape = shape
        self._pools = [
            kernels.Pool(k, v, table, page_size, *scale)
            for k, v, scale in zip(keys, values, scales or [(1.0, 1.0)] * len(keys), strict=True)
        ]
        self._programs = programs
        self._dtype = dtype or keys[0].dtype
        self._stager = Stager(table.device)
        self._step: _Step | None = None
        self._height = kernels.shared_rows(shape.heads, shape.kv_heads, shape.head_dim, self._dtype)
        self._long = LongRows(shape, self._dtype, table.device)
        self.flash: FlashInfer | None = None
        self.shares = self._height > 0  # whether keys that decodes have in common are read once

    def use_flashinfer(self, looks: list[Look], decodes: bool) -> None:
        """Once it is there: for decodes too, or else only for rows of several tokens, if it is faster than we are.
        looks: of the layers."""
        cells = self._pools[0].keys
        if not decodes and kernel(self._dtype, cells.dtype, cells.device) != "fa3":
            return
        self.flash = FlashInfer(self._shape, looks, self._dtype, self._pools, decodes)

    def sharing(self, slots: Ints, starts: Ints, table: Ints, page_size: int) -> cascade.Sharing | None:
        """What these decodes share, where reading it once is worth it. slots, starts: [R]; table: on the host."""
        if not self.shares:
            return None
        return cascade.find(slots, starts, table, page_size, self._shape.kv_heads, self._height)

    def plan(self, rows: Rows) -> None:
        begins = np.cumsum(rows.counts) - rows.counts
        tokens = int(rows.counts.sum())
        positions = np.arange(tokens) + np.repeat(rows.starts - begins, rows.counts)
        single = rows.counts == 1
        some = not single.all()
        long, short, flash = [], 0, None
        longest = int(rows.counts.max(initial=1))
        arrays = [np.repeat(rows.slots, rows.counts), positions]
        if single.any():
            arrays += [rows.slots[single], rows.starts[single], begins[single]]
        common = self.sharing(rows.slots[single], rows.starts[single], rows.table, rows.page_size)
        if common is not None:
            arrays += [common.own, common.used, common.members, common.tiles]
        if some:
            flash = self.flash.find(rows, begins) if self.flash is not None else None
            long = self._long.find(rows, begins) if flash is None else []
            tiles = tiles_of(rows, begins, self.height(longest))
            theirs = np.isin(tiles[:, 3], [row.place for row in long])
            short = int((~theirs).sum())
            arrays.append(np.concatenate((tiles[~theirs], tiles[theirs])))
        staged = self._stager.put(arrays)
        decodes = (staged[2], staged[3], staged[4]) if single.any() else None
        splits = kernels.splits_for(int(single.sum()), self._shape.kv_heads, self._programs) if decodes else 1
        shared = None if common is None else kernels.Shared(staged[5], staged[6], staged[7], staged[8], cascade.ENTRIES)
        tiles = staged[-1] if some else None
        of_decodes = None
        if self.flash is not None and decodes and shared is None and single[: int(single.sum())].all():
            of_decodes = self.flash.find_decodes(rows.slots[single], rows.starts[single])
        self._step = _Step(
            staged[0], staged[1], decodes, splits, tiles, longest, tokens, shared, long, short, flash, of_decodes
        )

    def prepare(self, chunk: int, most: int) -> None:
        """Before any step: what the first long rows would wait for. chunk: tokens of a step; most: of a sequence."""
        self._long.prepare(self._pools[0], chunk, most)
        if self.flash is not None:
            self.flash.prepare()

    @property
    def long_rows(self) -> LongRows:
        return self._long

    def plan_one(self) -> bool:
        """Between two steps, some 0.2 s of what a step with long rows should not wait for; whether there is more."""
        if self.flash is not None and self.flash.can("rows"):
            return False
        return self._long.prepare_one(self._pools[0])

    @property
    def foresees(self) -> bool:
        """Whether `foresee` may be so."""
        return self.flash is not None and self.flash.can("decodes")

    def foresee(self, slots: Ints, starts: Ints, size: int) -> bool:
        """Before a step whose rows `fix` gives: whether FlashInfer computes it, which plans on the host. size: rows
        with padding."""
        if self.flash is None:
            return False
        try:
            return self.flash.foresee(slots, starts, size)
        except Exception as error:  # its plans need memory, say
            self.flash.fail("decodes", error)
            return False

    def fix(
        self,
        slots: Tensor,
        positions: Tensor,
        places: Tensor,
        shared: kernels.Shared | None = None,
        foreseen: bool = False,
    ) -> None:
        """All rows are decodes, read from these tensors at the time the kernels run. Each [R]; slot -1: padding;
        places: 0 ... foreseen: what `foresee` said. No row reads what another one files."""
        n = len(slots)
        splits = kernels.splits_for(n, self._shape.kv_heads, self._programs)
        self._step = _Step(slots, positions, (slots, positions, places), splits, None, 1, n, shared)
        self._step.files = shared is not None or foreseen or n > OWN
        if foreseen and self.flash is not None:
            self.flash.list_fixed(slots)
            self._step.flash_decodes = n

    def fix_mixed(
        self,
        tokens: tuple[Tensor, Tensor],
        decodes: tuple[Tensor, Tensor, Tensor] | None,
        splits: Tensor,
        tiles: Tensor,
        shared: kernels.Shared | None = None,
    ) -> None:
        """Rows of one token and of several, read from these tensors at the time the kernels run.

        tokens: slots and positions of all, [T]; slot -1: padding. decodes: slots, positions and places of the rows of
        one token, [R]; -1 -1 -1: none. splits: see `kernels.attention.decode`. tiles: [n, 5], as `lay_out` makes them
        for T tokens; zeros behind a slot of -1: none.
        """
        n = len(tokens[0])
        self._step = _Step(*tokens, decodes, splits, tiles, n, n, shared)

    def lay_out(self, rows: Rows, begins: Ints, longest: int) -> Ints:
        """[n, 5]: the tiles of the rows of several tokens. begins: [R], the place of each row's first token; longest:
        tokens of a row, at most."""
        return tiles_of(rows, begins, self.height(longest))

    def height(self, longest: int) -> int:
        """Tokens of a tile."""
        s = self._shape
        return kernels.extend_tokens(s.heads, s.kv_heads, s.head_dim, self._dtype, longest)

    def leaves(self, rows: Rows) -> bool:
        """Whether some rows are better computed by others' kernels, which only `plan` knows of."""
        if self.flash is not None and (self.flash.wants(rows) or self.flash.can("decodes")):
            return True
        return bool(self._long.find(rows, np.cumsum(rows.counts) - rows.counts))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        return self._attend(q, k, v, None, layer, look)

    def turn_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], layer: int, look: Look
    ) -> Tensor:
        """`attend` for q and k that are not rotated yet; q is overwritten. turn: cos, signed sin, [tokens, 1, dim]."""
        return self._attend(q, k, v, turn, layer, look)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor] | None, layer: int, look: Look
    ) -> Tensor:
        step, pool = self._step, self._pools[layer]
        assert step is not None, "plan() first"
        n = step.tokens
        chained = early(n, FEW)
        # Zeros: what nobody writes must not be a NaN.
        out = q.new_empty(q.shape) if n == len(q) and not step.mixed else q.new_zeros(q.shape)
        fresh = None
        if step.files:
            file_cells(q[:n], k[:n], v[:n], turn, pool, step.slots, step.positions, chained)
        else:
            fresh = kernels.Fresh(k, v, turn)
        score = kernels.Score(self._shape.scale, look.window or 0, look.chunk or 0, look.softcap or 0.0, look.sinks)
        if step.decodes is not None and not self._decoded(q, pool, look, out):
            shared = None if look.window or look.chunk else step.shared
            try:
                kernels.decode(q, pool, score, *step.decodes, out, step.splits, None, shared, fresh, chained)
            except Exception as error:
                if shared is None:
                    raise
                log.warning("Shared prefixes are read row by row from now on: %s", error)
                self.shares, step.shared = False, None
                kernels.decode(q, pool, score, *step.decodes, out, step.splits)
        if step.tiles is not None:
            plain = not (look.window or look.chunk or look.softcap or look.sinks is not None)
            tiles = step.tiles
            if step.flash is not None and self._flashed(q, pool, look, out):
                return out.view(len(q), -1)
            if step.long and plain and (done := self._attend_long(q, pool, out)) is not None:
                tiles = tiles[: step.short]
                out = done
            if len(tiles):
                kernels.extend(q, pool, score, tiles, out, step.longest)
        return out.view(len(q), -1)

    def _decoded(self, q: Tensor, pool: kernels.Pool, look: Look, out: Tensor) -> bool:
        """Whether FlashInfer has computed the step's decodes."""
        assert self._step is not None
        job, flash = self._step.flash_decodes, self.flash
        if job is None or flash is None or not able(look):
            return False
        try:
            if isinstance(job, int):
                flash.decode_fixed(job, q, pool, look, out)
            else:
                flash.decode(job, q, pool, look, out)
            return True
        except Exception as error:
            flash.fail("decodes", error)
            self._step.flash_decodes = None
            return False

    def _flashed(self, q: Tensor, pool: kernels.Pool, look: Look, out: Tensor) -> bool:
        """Whether FlashInfer has computed the step's rows of several tokens."""
        assert self._step is not None and self._step.flash is not None and self.flash is not None
        if not able(look):
            return False
        try:
            self.flash.attend(self._step.flash, q, pool, look, out)
            return True
        except Exception as error:
            self.flash.fail("rows", error)
            self._step.flash = None
            return False

    def _attend_long(self, q: Tensor, pool: kernels.Pool, out: Tensor) -> Tensor | None:
        """`out`, or what is to take its place. None: it cannot be done, now and later; tiles can."""
        assert self._step is not None
        try:
            for row in self._step.long:
                out = self._long.attend(q, pool, row, out)
            return out
        except Exception as error:  # of a plan for a shape that was not tried, or memory
            log.warning("Long rows are computed by tiles from now on, not by cuDNN: %s", error)
            self._long.on = False
            self._step.long = []
            return None


def tiles_of(rows: Rows, begins: np.ndarray, height: int) -> np.ndarray:
    """[n, 5] (`kernels.attention.extend`) of the rows of several tokens, those that see most keys first.

    begins: [R], the place of each row's first token.
    """
    long = np.flatnonzero(rows.counts > 1)
    tiles = -(-rows.counts[long] // height)
    row = np.repeat(long, tiles)
    at = (np.arange(len(row)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * height
    table = np.stack((rows.slots[row], rows.starts[row], rows.counts[row], begins[row], at), 1)
    return table[np.argsort(-(rows.starts[row] + at), kind="stable")]
