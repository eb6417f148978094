"""Decode steps as CUDA graphs: forward pass and sampling, captured once for each batch size that is seen.

A captured graph reads and writes tensors that never move. A step's host data (slots, positions, known tokens, what each
row wants of the sampler, new page-table entries) goes to one of them in one copy; the graph does the rest, down to the
drawn tokens. Sizes are rounded up to a few; what is left of a size is padding: rows of slot -1, filed nowhere.

What most steps need is captured at the start (`start`), the rest while nobody waits (`prepare`), what was met before
the others, as long as memory is left for their logits. Meanwhile a larger size serves: to run one for the first time,
kernel by kernel, and to capture it takes as long as a dozen steps. Where a larger one has served that much in vain, or
there is none, the step's own size is captured while the device is busy with it.

Where rows share leading pages (`attention.cascade`) a size has a second graph, which reads those once. What is shared
changes rarely from one step to the next: it is found, and sent, when it does. Where rows are held to constraints a size
has graphs that draw under masks and follow automata.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sglang.attention import cascade
from sglang.attention.triton import TritonAttention
from sglang.base.plan import FREE, Plan
from sglang.engine.automata import Automata
from sglang.engine.batch import LATER, Tables
from sglang.engine.capture import Graph
from sglang.engine.idle import Interrupted, Wanted, Yielding, alone, never, roomy
from sglang.engine.sampler import Sampler, next_positions
from sglang.engine.seen import Met, Seen
from sglang.kernels import attention as kernels
from sglang.kernels import sample
from sglang.kernels.enter import enter
from sglang.kernels.staging import Stager
from sglang.models.decoder import Model

log = logging.getLogger("sglang.engine")
# Columns: slot, position, known token, five of Sampler.wishes, place in the arena of automata, and slot, index and page
# of a new table entry.
PLACE, ENTRY, COLUMNS = 8, 9, 12
CHEAP = 8  # rows; padding up to so many takes no longer than reading the weights
SHARING = 16  # rows; fewer seldom share enough to be worth it
TIMED = 2
CLEARLY = 0.98  # beyond the noise of so few
VAIN = 12.0  # steps' worth of padding that a size of its own would have saved


def sizes(most: int) -> list[int]:
    """Batch sizes worth a graph of their own, 1 .. most: at most a quarter of a batch beyond 8 is padding."""
    found, n, step = [1, 2, 4], 8, 8
    while n < most:
        found.append(n)
        n += step
        if n == 8 * step:
            step *= 2
    return [n for n in found if n < most] + [most]


def worthwhile(took: dict[int, float]) -> list[int]:
    """Sizes but those that take clearly longer than a larger one, ascending. took: seconds of each."""
    found: list[int] = []
    for size in sorted(took, reverse=True):
        if not found or CLEARLY * took[size] < min(took[larger] for larger in found):
            found.append(size)
    return found[::-1]


class _Kind(NamedTuple):
    """Graphs of one size."""

    size: int
    draws: bool  # tokens too
    held: bool  # under masks
    shares: bool  # keys of leading pages are read once
    foreseen: bool = False  # attention has planned its rows on the host


def _kind(met: Met, foreseen: bool) -> _Kind | None:
    """Of a note; None where it is no such thing."""
    if len(met) != 4:
        return None
    size, draws, held, shares = met
    return _Kind(size, bool(draws), bool(held and draws), bool(shares), foreseen and not shares)


@dataclass
class _Captured:
    graph: Graph
    logits: Tensor  # [size, vocab], in the graph's own memory


class _Common:
    """What the rows of decode steps share: remembered from step to step, and where a graph reads it."""

    def __init__(self, attention: TritonAttention, tables: Tables, most: int, device: torch.device, stager: Stager):
        self._attention, self._tables, self._stager = attention, tables, stager
        self._slots = np.empty(0, np.int32)
        self._found: cascade.Sharing | None = None
        self._known = 0  # keys that a change of a page table would matter for
        self._sent = False
        tiles = cascade.most_tiles(most)
        sizes = [most, most, cascade.LEVELS * most, tiles * cascade.COLUMNS]
        self._ends = np.cumsum([n + n % 2 for n in sizes])
        self._buffer = torch.zeros(int(self._ends[-1]), dtype=torch.int64, device=device)

    def look(self, plan: Plan) -> bool:
        """Whether the plan's rows share keys; the page tables are filed."""
        size, touched = self._tables.page_size, self._tables.touched
        self._tables.touched = LATER
        # Steps between may have given a slot to another sequence: its entries begin at 0.
        if not np.array_equal(plan.slots, self._slots) or touched * size < self._known:
            self._slots = plan.slots.copy()
            self._found = self._attention.sharing(plan.slots, plan.starts, self._tables.pages, size)
            self._known = int(plan.starts.min()) if self._found is None else int(self._found.own.max())
            self._sent = False
        return self._found is not None and self._attention.shares

    def send(self) -> None:
        found = self._found
        if found is None or self._sent:
            return
        host = np.zeros(len(self._buffer), np.int64)
        begins = (0, *self._ends[:-1].tolist())
        host[begins[3] :] = -1
        for begin, array in zip(begins, (found.own, found.used, found.members, found.tiles), strict=True):
            host[begin : begin + array.size] = array.reshape(-1)
        self._stager.put_into(self._buffer, host)
        self._sent = True

    def clear(self) -> None:
        """For a step of nobody: no tiles."""
        self._buffer.zero_()
        self._buffer[int(self._ends[2]) :] = -1
        self._sent = False

    def of(self, size: int) -> kernels.Shared:
        """For a graph of `size` rows."""
        own, used, members, _ = (int(end) for end in self._ends)
        tiles = cascade.most_tiles(size) * cascade.COLUMNS
        return kernels.Shared(
            self._buffer[:size],
            self._buffer[own : own + size],
            self._buffer[used:members],
            self._buffer[members : members + tiles].view(-1, cascade.COLUMNS),
            cascade.ENTRIES,
        )


class DecodeGraphs:
    """Runs plans in which every row decodes."""

    def __init__(
        self,
        model: Model,
        attention: TritonAttention,
        tables: Tables,
        sampler: Sampler,
        automata: Automata,
        most: int,
        graph: Callable[[], Graph] | None = None,
        seen: Seen | None = None,
    ):
        """most: rows of the largest graph; larger plans do not fit. graph: makes one to be captured; None: every step
        runs kernel by kernel."""
        assert tables.device_pages is not None
        self._model, self._attention, self._tables, self._sampler = model, attention, tables, sampler
        self._automata = automata
        self._pages = tables.device_pages
        self._own = np.zeros(len(tables.pages), np.int32)  # of each slot, the page that it writes to
        self._sizes = sizes(most)
        self._most = most
        device = model.device
        self._stager = Stager(device)
        self._columns = torch.zeros(COLUMNS * (most + most % 2), dtype=torch.int64, device=device)
        self._tokens = torch.zeros(most, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(most, dtype=torch.int64, device=device)
        self._places = torch.arange(most, device=device)
        self._captured: dict[_Kind, _Captured] = {}
        self._ran: set[_Kind] = set()  # to be captured next
        self._padded: dict[_Kind, float] = {}  # for want of a graph: the share of steps that was padding, summed
        self._seen = seen or Seen()
        self._common = _Common(attention, tables, most, device, self._stager)
        self._graph = graph
        self.captures = graph is not None

    def fits(self, plan: Plan) -> bool:
        n = len(plan.slots)
        alike = len(plan.tokens) == n and bool(plan.samples.all()) and not plan.prompt_asks
        return n <= self._most and alike and not self._adopts(plan)

    def _adopts(self, plan: Plan) -> bool:
        """Whether a row found in the prefix cache what another one only now files: here each files while others read.

        All have one token.
        """
        own = plan.starts // self._tables.page_size
        self._own[plan.slots] = own
        found = plan.table_index < self._own[plan.table_slots]
        if not found.any():
            return False
        self._tables.file(plan)
        return bool(np.isin(plan.table_pages[found], self._tables.pages[plan.slots, own]).any())

    def launch(self, plan: Plan, places: np.ndarray | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns logits [n, vocab], the drawn tokens or None where more than the sampler's wishes and masks say what
        may be drawn, and the rows' slots. All are overwritten by the next launch.

        places: of the rows' masks, where some are not free.
        """
        n = len(plan.slots)
        draws = not self._sampler.touches(plan.slots)
        self._tables.file(plan)
        shares = self._common.look(plan)
        if shares:
            self._common.send()
        kind = self._serving(n, draws, draws and places is not None, shares)
        self._stage(plan, kind.size, draws, places)
        if kind.foreseen:
            kind = kind._replace(foreseen=self._attention.foresee(plan.slots, plan.starts, kind.size))
        logits = self._run(kind)
        return logits[:n], self._drawn[:n] if draws else None, self._columns[:n]

    def _serving(self, n: int, draws: bool, held: bool, shares: bool) -> _Kind:
        """Of the least size, or of a larger one whose graph is there."""
        foreseen = not shares and self._attention.foresees
        kinds = [_Kind(size, draws, held, shares, foreseen) for size in self._sizes if size >= n]
        least = kinds[0]
        self._seen.note("decodes", (least.size, draws, held, shares))
        found = next((kind for kind in kinds if kind in self._captured), least)
        if found != least and found.size > CHEAP:
            vain = self._padded[least] = self._padded.get(least, 0.0) + 1 - n / found.size
            return least if vain > VAIN and self.captures else found
        return found

    def start(self) -> None:
        """Graphs of all sizes, and of those that share keys. The largest first, the others use its memory; then the
        smallest, should memory end before they do.

        The first time each is timed, and sizes that take longer than a larger one are given up: what cuBLAS chooses for
        448 rows takes an 8B model 12 % longer than what it does for 512.
        """
        began = time.monotonic()
        took: dict[int, float] = {}
        known = self._known_sizes()
        self._sizes = known or self._sizes
        for size in (self._sizes[-1], *self._sizes[:-1]):
            kind = _Kind(size, True, False, False, self._attention.foresees)
            if self._capture_of_nobody(kind) and not known:
                took[size] = self._took(self._captured[kind].graph)
        if len(took) == len(self._sizes):
            self._sizes = worthwhile(took)
            self._seen.know("sizes", tuple(self._sizes))
            for kind in [kind for kind in self._captured if kind.size not in self._sizes]:
                del self._captured[kind]
        for size in self._sizes if self._attention.shares else ():
            if size >= SHARING:
                self._capture_of_nobody(_Kind(size, True, False, True))
        log.info("start: %d graphs of decode steps in %.1f s", len(self._captured), time.monotonic() - began)

    def _known_sizes(self) -> list[int]:
        """Those that an earlier start found worthwhile."""
        for met in self._seen.first("sizes"):
            if met and set(met) <= set(self._sizes) and met[-1] == self._sizes[-1]:
                return sorted(met)
        return []

    def _capture_of_nobody(self, kind: _Kind) -> bool:
        if not self.captures or not roomy(self._model.device, self._logits_bytes(kind.size)):
            return False
        self._stage_nobody(kind)
        with self._model.abridged():
            self._step(kind)  # what is loaded at its first use must not be met by a capture
        self._capture(kind)
        return kind in self._captured

    def _took(self, graph: Graph) -> float:
        """Seconds of a step, of those who are staged."""
        graph.replay()  # the first one brings it to the device
        self._synchronize()
        began = time.perf_counter()
        for _ in range(TIMED):
            graph.replay()
        self._synchronize()
        return (time.perf_counter() - began) / TIMED

    def _synchronize(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def _logits_bytes(self, size: int) -> int:
        return size * self._model.spec.vocab * self._model.dtype.itemsize

    def prepare(self, wanted: Wanted = never, met: bool = False) -> bool:
        """Half of capturing one more kind, between two steps; whether there is more to do. met: of those that were;
        else of all sizes, for rows that nothing holds or unites."""
        kind = next((kind for kind in self._worth(met) if kind not in self._captured), None)
        if kind is None or not self.captures:
            return False
        if not roomy(self._model.device, self._logits_bytes(kind.size)):
            return False
        self._stage_nobody(kind)
        try:
            if kind in self._ran:
                self._capture(kind, wanted)
            else:  # once without a graph: what is loaded at its first use must not be met by a capture
                self._step(kind, wanted)
                self._ran.add(kind)
        except Interrupted:
            pass
        return self.captures

    def _worth(self, met: bool) -> list[_Kind]:
        foreseen = self._attention.foresees
        if not met:
            return [_Kind(size, True, False, False, foreseen) for size in self._sizes]
        kinds = [_kind(one, foreseen) for one in self._seen.first("decodes")]
        return [
            kind
            for kind in kinds
            if kind is not None
            and kind.size in self._sizes
            and (self._automata.learned or not kind.held)
            and (self._attention.shares or not kind.shares)
        ]

    def drop(self) -> int:
        """Give back the memory of all graphs, for good; how many there were. The device must be done."""
        self.captures, dropped = False, len(self._captured)
        self._captured.clear()
        return dropped

    def _stage_nobody(self, kind: _Kind) -> None:
        nobody = np.zeros((COLUMNS, kind.size + kind.size % 2), np.int64)
        nobody[0] = nobody[ENTRY] = -1
        nobody[PLACE] = FREE
        self._stager.put_into(self._columns[: nobody.size], nobody)
        if kind.shares:
            self._common.clear()
        if kind.foreseen:
            self._attention.foresee(nobody[0, :0], nobody[0, :0], kind.size)

    def _stage(self, plan: Plan, size: int, draws: bool, places: np.ndarray | None) -> None:
        n, entries = len(plan.slots), (plan.table_slots, plan.table_index, plan.table_pages)
        columns = np.zeros((COLUMNS, size + size % 2), np.int64)
        columns[0, n:] = columns[ENTRY] = -1
        columns[0, :n], columns[1, :n], columns[2, :n] = plan.slots, plan.starts, plan.tokens
        if draws:
            columns[3:PLACE, :n] = self._sampler.wishes(plan.slots, next_positions(plan, np.arange(n)))
            columns[PLACE] = FREE
            if places is not None:
                columns[PLACE, :n] = places
        if len(plan.table_slots) <= size:
            columns[ENTRY:, : len(plan.table_slots)] = entries
        else:  # sequences that found all they had in the cache bring their whole tables
            slots, index, pages = self._stager.put(entries)
            self._pages[slots, index] = pages.int()
        self._stager.put_into(self._columns[: columns.size], columns)

    def _run(self, kind: _Kind) -> Tensor:
        captured = self._captured.get(kind)
        if captured is not None:
            captured.graph.replay()
            return captured.logits
        logits = self._step(kind)
        if self.captures and (self._automata.learned or not kind.held):
            self._capture(kind)
        return logits

    def _step(self, kind: _Kind, wanted: Wanted | None = None) -> Tensor:
        """What is captured. Reads `_columns`; writes `_drawn`, what slots remember, page tables and the pool.

        Raises Interrupted where somebody is `wanted` meanwhile.
        """
        size = kind.size
        columns = self._columns[: COLUMNS * (size + size % 2)].view(COLUMNS, -1)[:, :size]
        slots, positions, tokens = columns[0], columns[1], self._tokens[:size]
        entries = columns[ENTRY], columns[ENTRY + 1], columns[ENTRY + 2]
        enter(slots, columns[2], entries, self._tables.last, self._pages, tokens)
        shared = self._common.of(size) if kind.shares else None
        self._attention.fix(slots, positions, self._places[:size], shared, kind.foreseen)
        attention = self._attention if wanted is None else Yielding(self._attention, wanted)
        logits = self._model.logits(self._model.forward(tokens, positions, attention), widen=False)
        if kind.draws:
            wishes = sample.Draws.of(slots, columns[3:PLACE].unbind())
            held = self._automata.held(slots, columns[PLACE]) if kind.held else None
            sample.draw(logits, wishes, self._tables.last, self._drawn[:size], held)
            if held is not None:
                self._automata.advance(held, self._drawn[:size])
        return logits

    def _capture(self, kind: _Kind, wanted: Wanted | None = None) -> None:
        with alone() as can:
            if can:
                self._capture_alone(kind, wanted)

    def _capture_alone(self, kind: _Kind, wanted: Wanted | None) -> None:
        assert self._graph is not None
        graph = self._graph()
        try:
            graph.begin()
            try:
                logits = self._step(kind, wanted)
            finally:
                graph.end()
        except torch.OutOfMemoryError:
            log.warning(
                "No memory is left for graphs of decode steps but %d; a lower --mem-fraction-static leaves some",
                len(self._captured),
            )
            self.captures = False
            return
        except RuntimeError as error:
            if kind.shares:
                log.warning("Shared prefixes are read row by row, reading them once cannot be captured: %s", error)
                self._attention.shares = False
                return
            log.warning("CUDA graphs are off, this model's decode step cannot be captured: %s", error)
            self.captures = False
            return
        self._captured[kind] = _Captured(graph, logits)
