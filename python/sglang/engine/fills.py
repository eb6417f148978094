"""Steps with prompts as CUDA graphs: the whole forward pass, attention included, captured for numbers of tokens.

Kernel by kernel, a step of a few hundred tokens takes the CPU longer than the device. A graph does not know the rows of
the step it will run: it has room for some rows of one token, and for tiles of rows of several; what is left of it is
padding, which costs little more than its launch. Into how many parts decodes are cut is read when the graph runs.

Numbers of tokens are rounded up to a few, rows to fewer (`_Kind`). To capture one kind takes about as long as a stream
may pause, so those of most steps are made at the start (`start`), others while nobody waits (`prepare`), first those
that were met; until then a larger one serves, unless it is twice the number of tokens.

Steps with rows that others' kernels compute better (`TritonAttention.leaves`) are long enough for the CPU to keep up.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sglang.attention import cascade
from sglang.attention.base import Rows
from sglang.attention.triton import TritonAttention
from sglang.base.plan import Plan
from sglang.engine.batch import Batch, Tables
from sglang.engine.capture import Graph
from sglang.engine.idle import Interrupted, Wanted, Yielding, alone, never, roomy
from sglang.engine.seen import Seen
from sglang.kernels import attention as kernels
from sglang.kernels.enter import enter
from sglang.kernels.staging import Stager
from sglang.models.decoder import Model

log = logging.getLogger("sglang.engine")
# Beyond 2048 tokens the device takes longer than the CPU for all but the smallest models.
SIZES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, *range(512, 2049, 128))
CHEAP = 64  # reading the weights takes longer than multiplying so many tokens by them
ROWS = (0, 64, 256)  # of one token, that graphs have room for; the last is of all slots
FEW = 64  # rows of several tokens
TILE = 5  # numbers that say what a tile is


class _Kind(NamedTuple):
    """Graphs of one size."""

    tokens: int
    rows: int  # of one token, at most
    many: bool  # rows of several tokens: as many as there can be, or FEW
    shares: bool  # keys of leading pages are read once


@dataclass(frozen=True)
class _Layout:
    """Where a graph reads its step, in one piece of memory: what the host sends is one copy."""

    nobody: np.ndarray  # what the host sends for a step of nobody
    ends: np.ndarray  # where its parts end, each at an even place
    known: Tensor  # [T] tokens
    slots: Tensor  # [T]
    positions: Tensor  # [T]
    entries: tuple[Tensor, Tensor, Tensor]  # [T]
    decodes: tuple[Tensor, Tensor, Tensor]  # [R]
    splits: Tensor  # [1]
    tiles: Tensor  # [n, TILE]
    shared: kernels.Shared | None


class Fills:
    """Forward passes of at most SIZES[-1] tokens, some rows of which have several. One after another, in one stream."""

    def __init__(
        self,
        model: Model,
        attention: TritonAttention,
        tables: Tables,
        graph: Callable[[], Graph],
        seen: Seen | None = None,
    ):
        """graph: makes one to be captured."""
        assert tables.device_pages is not None
        self._model, self._attention, self._tables, self._graph = model, attention, tables, graph
        self._pages = tables.device_pages
        self._seen = seen or Seen()
        self._rooms = [n for n in ROWS if n < len(tables.pages)] + [even(len(tables.pages))]
        self._usual = self._rooms[min(2, len(self._rooms) - 1)]
        device, most = model.device, SIZES[-1]
        largest = self._parts(_Kind(most, self._rooms[-1], True, True))
        self._buffer = torch.zeros(sum(map(even, largest)), dtype=torch.int64, device=device)
        self._layouts: dict[_Kind, _Layout] = {}
        self._tokens = torch.zeros(most, dtype=torch.int64, device=device)
        self._hidden = torch.zeros(most, model.spec.hidden, dtype=model.dtype, device=device)
        self._stager = Stager(device)
        self._captured: dict[_Kind, Graph] = {}
        self._ran: set[_Kind] = set()  # to be captured next
        self.captures = True

    def launch(self, plan: Plan) -> tuple[Batch, Tensor] | None:
        """The step's layout, and [T, hidden], overwritten by the next call. None: it is none of those done here."""
        n = len(plan.tokens)
        if n > SIZES[-1]:
            return None
        self._tables.file(plan)
        rows = Rows(plan.slots, plan.starts, plan.counts, self._tables.pages, self._tables.page_size)
        if self._attention.leaves(rows):
            return None
        single = plan.counts == 1
        slots, starts = plan.slots[single], plan.starts[single]
        common = self._attention.sharing(slots, starts, rows.table, rows.page_size) if len(slots) else None
        kind = self._serving(n, len(slots), len(plan.slots) - len(slots), common is not None)
        if kind is None:
            return None
        begins = np.cumsum(plan.counts) - plan.counts
        sampled_rows = np.flatnonzero(plan.samples)
        last = (begins + plan.counts - 1)[sampled_rows]
        sampled, sampled_slots = self._stager.put([last, plan.slots[sampled_rows]])
        offsets = np.append(begins, n)
        self._stage(kind, plan, rows, begins, single, common)
        hidden = self._run(kind)[:n]
        batch = Batch(
            self._tokens[:n],
            self._layout(kind).positions[:n],
            rows,
            offsets,
            sampled_rows,
            sampled if len(last) < n else None,
            sampled_slots,
        )
        return batch, hidden

    def _serving(self, tokens: int, rows: int, several: int, shares: bool) -> _Kind | None:
        """The kind that the step is computed as: one whose graph is there, or else the least. None: neither."""
        least = _Kind(
            next(s for s in SIZES if s >= tokens), next(r for r in self._rooms if r >= rows), several > FEW, shares
        )
        self._seen.note("fills", tuple(map(int, least)))
        able = [
            kind
            for kind in self._captured
            if kind.tokens >= tokens
            and (kind.tokens < 2 * tokens or kind.tokens <= CHEAP)
            and kind.rows >= rows
            and (kind.many or not least.many)
            and kind.shares == shares
        ]
        return min(able, default=least if self.captures else None)

    # What is captured, and when

    def start(self, most: int) -> None:
        """Graphs of steps that most are, of as many tokens as a step may have: half a second in all, and whoever met
        one later would wait for it. The largest first, the others use its memory."""
        began = time.monotonic()
        for size in reversed(SIZES):
            if CHEAP <= size < most and self.captures:
                with self._model.abridged():
                    self._of_nobody(_Kind(size, self._usual, False, False))
                self._capture(_Kind(size, self._usual, False, False))
        log.info("start: %d graphs of steps with prompts in %.1f s", len(self._captured), time.monotonic() - began)

    def rehearse(self, experts: bool) -> None:
        """All kernels that steps have, once. experts: they have some for each number of tokens."""
        for size in SIZES if experts else (SIZES[0], SIZES[-1]):
            for shares in (False, True) if self._attention.shares else (False,):
                self._of_nobody(_Kind(size, self._rooms[-1], False, shares))

    def prepare(self, wanted: Wanted = never, met: bool = False) -> bool:
        """Half of capturing one more kind, between two steps; whether there is more. met: of those that were."""
        kind = next((kind for kind in self._worth(met) if kind not in self._captured), None)
        if kind is None or not self.captures or not roomy(self._model.device):
            return False
        try:
            if kind in self._ran:
                self._capture(kind, wanted)
            else:  # once without a graph: what compiles or is loaded at its first use must not be met by a capture
                self._of_nobody(kind, wanted)
                self._ran.add(kind)
        except Interrupted:
            pass
        return self.captures

    def _worth(self, met: bool) -> Iterator[_Kind]:
        if not met:
            yield from (_Kind(size, self._usual, False, False) for size in SIZES)
            return
        for one in self._seen.first("fills"):
            if len(one) == 4 and one[0] in SIZES and one[1] in self._rooms:
                kind = _Kind(one[0], one[1], bool(one[2]), bool(one[3]))
                if self._attention.shares or not kind.shares:
                    yield kind

    def drop(self) -> int:
        """Give back the memory of all graphs, for good; how many there were. The device must be done."""
        self.captures, dropped = False, len(self._captured)
        self._captured.clear()
        return dropped

    # A step

    def _parts(self, kind: _Kind) -> list[int]:
        """Lengths of the parts of the buffer."""
        tokens, rows = kind.tokens, kind.rows
        several = tokens // 2 if kind.many else min(FEW, tokens // 2)
        tiles = tokens // self._attention.height(tokens) + several
        shared = [rows, rows, cascade.LEVELS * rows, cascade.COLUMNS * cascade.most_tiles(rows)]
        return [tokens] * 6 + [rows] * 3 + [1, TILE * tiles] + shared * kind.shares

    def _layout(self, kind: _Kind) -> _Layout:
        if kind not in self._layouts:
            lengths = self._parts(kind)
            whole = [even(n) for n in lengths]
            nobody = np.zeros(sum(whole), np.int64)
            ends = np.cumsum(whole)
            host = np.split(nobody, ends[:-1])
            for part in (1, 3, 6, 7, 8):  # slots, entries and rows
                host[part][:] = -1
            host[9][0] = 1
            host[10][: lengths[10] : TILE] = -1
            shared = None
            parts = [part[:n] for part, n in zip(self._buffer[: ends[-1]].split(whole), lengths, strict=True)]
            if kind.shares:
                host[14][: lengths[14] : cascade.COLUMNS] = -1
                tiles = parts[14].view(-1, cascade.COLUMNS)
                shared = kernels.Shared(parts[11], parts[12], parts[13], tiles, cascade.ENTRIES)
            entries, decodes = (parts[3], parts[4], parts[5]), (parts[6], parts[7], parts[8])
            known, slots, positions = parts[:3]
            self._layouts[kind] = _Layout(
                nobody, ends, known, slots, positions, entries, decodes, parts[9], parts[10].view(-1, TILE), shared
            )
        return self._layouts[kind]

    def _stage(
        self,
        kind: _Kind,
        plan: Plan,
        rows: Rows,
        begins: np.ndarray,
        single: np.ndarray,
        common: cascade.Sharing | None,
    ) -> None:
        layout = self._layout(kind)
        whole = layout.nobody.copy()
        parts = np.split(whole, layout.ends[:-1])
        n, decodes = len(plan.tokens), int(single.sum())
        parts[0][:n] = plan.tokens
        parts[1][:n] = np.repeat(plan.slots, plan.counts)
        parts[2][:n] = np.arange(n) + np.repeat(plan.starts - begins, plan.counts)
        entries = plan.table_slots, plan.table_index, plan.table_pages
        if len(plan.table_slots) <= kind.tokens:
            for part, column in zip(parts[3:6], entries, strict=True):
                part[: len(column)] = column
        else:  # sequences that found all they had in the cache bring their whole tables
            slots, index, pages = self._stager.put(entries)
            self._pages[slots, index] = pages.int()
        for part, column in zip(parts[6:9], (plan.slots, plan.starts, begins), strict=True):
            part[:decodes] = column[single]
        parts[9][0] = kernels.late_splits(decodes, kind.rows)
        tiles = self._attention.lay_out(rows, begins, kind.tokens)
        parts[10][: tiles.size] = tiles.reshape(-1)
        if common is not None:
            for part, array in zip(parts[11:], (common.own, common.used, common.members, common.tiles), strict=True):
                part[: array.size] = array.reshape(-1)
        self._stager.put_into(self._buffer[: len(whole)], whole)

    def _run(self, kind: _Kind) -> Tensor:
        captured = self._captured.get(kind)
        if captured is not None:
            captured.replay()
            return self._hidden[: kind.tokens]
        hidden = self._step(kind)
        self._capture(kind)
        return hidden

    def _of_nobody(self, kind: _Kind, wanted: Wanted | None = None) -> None:
        nobody = self._layout(kind).nobody
        self._stager.put_into(self._buffer[: len(nobody)], nobody)
        self._step(kind, wanted)

    def _step(self, kind: _Kind, wanted: Wanted | None = None) -> Tensor:
        """What is captured. Reads `_buffer`; writes `_hidden`, page tables and the pool.

        Raises Interrupted where somebody is `wanted` meanwhile.
        """
        layout, tokens = self._layout(kind), self._tokens[: kind.tokens]
        enter(layout.slots, layout.known, layout.entries, self._tables.last, self._pages, tokens)
        decodes = layout.decodes if kind.rows else None
        self._attention.fix_mixed((layout.slots, layout.positions), decodes, layout.splits, layout.tiles, layout.shared)
        backend = self._attention if wanted is None else Yielding(self._attention, wanted)
        return self._hidden[: kind.tokens].copy_(self._model.forward(tokens, layout.positions, backend))

    def _capture(self, kind: _Kind, wanted: Wanted | None = None) -> None:
        with alone() as can:
            if can:
                self._capture_alone(kind, wanted)

    def _capture_alone(self, kind: _Kind, wanted: Wanted | None) -> None:
        graph = self._graph()
        try:
            graph.begin()
            try:
                self._step(kind, wanted)
            finally:
                graph.end()
        except Interrupted:
            raise
        except torch.OutOfMemoryError:
            log.warning(
                "No memory is left for graphs of steps with prompts but %d; a lower --mem-fraction-static leaves some",
                len(self._captured),
            )
            self.captures = False
            return
        except Exception as error:  # whatever stops it, kernel by kernel it works
            if kind.shares:
                log.warning("Shared prefixes are read row by row, reading them once cannot be captured: %s", error)
                self._attention.shares = False
                return
            log.warning("Steps with prompts run kernel by kernel, this model's cannot be captured: %s", error)
            self.captures = False
            return
        self._captured[kind] = graph


def even(n: int) -> int:
    return n + n % 2
