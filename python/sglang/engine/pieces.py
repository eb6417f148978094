"""Steps with prompts as CUDA graphs: what lies between two attentions, captured once for each number of tokens.

Kernel by kernel, a step of a few hundred tokens takes the CPU longer than the device. Its attention depends on rows,
and is launched for those of the step; all the rest depends on the number of tokens alone. So the forward pass is cut
where the model attends: each piece is a graph, which reads what attention left in a buffer that never moves.

Numbers are rounded up to a few; what is left is padding, computed with the others, filed nowhere. To capture one takes
about as long as a stream may pause, so it is done at the start (`warmup.fills`), and of small numbers while nobody
waits (`prepare`), first of those that were met; until then the next larger one serves, unless it is twice the number.
"""

import functools
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sglang.attention.base import Feature, Look, Rows
from sglang.attention.triton import TritonAttention
from sglang.engine.idle import Interrupted, Wanted, Yielding, alone, never, roomy
from sglang.engine.seen import Seen
from sglang.models.decoder import Model

log = logging.getLogger("sglang.engine")
# Beyond 2048 tokens the device takes longer than the CPU for all but the smallest models.
SIZES = (
    16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048,
)  # fmt: skip

CHEAP = 64  # reading the weights takes longer than multiplying so many tokens by them


class Graph(Protocol):
    """What is done between `begin` and `end` is remembered, and done by `replay`."""

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """Not torch.cuda.graph: that waits for the device and empties caches, in the middle of serving."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any):
        """pool: torch.cuda.graph_pool_handle()."""
        self._stream, self._pool = stream, pool
        self._graph = torch.cuda.CUDAGraph()
        self._on = torch.cuda.stream(stream)

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        self._on.__enter__()
        try:
            self._graph.capture_begin(self._pool, capture_error_mode="thread_local")
        except BaseException:
            self._on.__exit__(None, None, None)
            raise

    def end(self) -> None:
        try:
            self._graph.capture_end()
        finally:
            self._on.__exit__(None, None, None)

    def replay(self) -> None:
        self._graph.replay()


def cuda_graphs(device: torch.device) -> Callable[[], CudaGraph]:
    """Makes graphs that share memory, since they are replayed one after another; it is not that of decodes, whose
    graphs outlive a capture that fails here."""
    return functools.partial(CudaGraph, torch.cuda.Stream(device), torch.cuda.graph_pool_handle())


class _Unowned:
    def __init__(self, t: Tensor):
        self.__cuda_array_interface__ = {
            "shape": tuple(t.shape),
            "strides": tuple(n * t.itemsize for n in t.stride()),
            "typestr": {1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}[t.itemsize],  # it has no word for bfloat16
            "data": (t.data_ptr(), False),
            "version": 2,
        }


def unowned(t: Tensor) -> Tensor:
    """The same memory, which may be used for something else once `t` is gone: then later pieces work in it.

    A piece's inputs to attention are read before later pieces run, so nothing is lost by that.
    """
    if not t.is_cuda:
        return t
    found = torch.as_tensor(_Unowned(t), device=t.device).view(t.dtype)
    if found.data_ptr() != t.data_ptr() or found.stride() != t.stride():
        raise RuntimeError("torch copies what it should point to")
    return found


@dataclass
class _Piece:
    graph: Graph
    # What follows it: q, k, v, turn, layer, look
    attention: tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None, int, Look] | None = None


class _Cutter:
    """Stands in for attention while a forward pass is captured: ends a piece and begins the next."""

    features: ClassVar[frozenset[Feature]] = TritonAttention.features

    def __init__(self, graph: Callable[[], Graph], out: Tensor):
        self._graph, self._out = graph, out
        self._under_way: Graph | None = None
        self.pieces: list[_Piece] = []

    def begin(self) -> None:
        graph = self._graph()
        graph.begin()
        self._under_way = graph

    def end(self) -> None:
        graph, self._under_way = self._under_way, None
        if graph is not None:
            graph.end()
            self.pieces.append(_Piece(graph))

    def plan(self, rows: Rows) -> None: ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        return self._cut(q, k, v, None, layer, look)

    def turn_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], layer: int, look: Look
    ) -> Tensor:
        return self._cut(q, k, v, turn, layer, look)

    def _cut(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor] | None, layer: int, look: Look
    ) -> Tensor:
        if q.dtype != self._out.dtype or q.shape[1] * q.shape[2] != self._out.shape[1]:
            raise RuntimeError(f"attention of {q.dtype} {tuple(q.shape)} is not the model's")
        self.end()
        if turn is not None:
            turn = unowned(turn[0]), unowned(turn[1])
        self.pieces[-1].attention = unowned(q), unowned(k), unowned(v), turn, layer, look
        self.begin()
        return self._out[: len(q)]


class _Blind:
    """Stands in for attention where nobody wants a result, and nothing may be filed."""

    features: ClassVar[frozenset[Feature]] = TritonAttention.features

    def __init__(self, out: Tensor):
        self._out = out

    def plan(self, rows: Rows) -> None: ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        return self._out[: len(q)]

    def turn_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], layer: int, look: Look
    ) -> Tensor:
        return self._out[: len(q)]


class Pieces:
    """Forward passes of at most SIZES[-1] tokens, whatever their rows are. One after another, in one stream."""

    def __init__(self, model: Model, attention: TritonAttention, graph: Callable[[], Graph], seen: Seen | None = None):
        """graph: makes one to be captured."""
        self._model, self._attention, self._graph = model, attention, graph
        self._seen = seen or Seen()
        self._ran: set[int] = set()  # to be captured next
        spec, most = model.spec, SIZES[-1]
        self._tokens = torch.zeros(most, dtype=torch.int64, device=model.device)
        self._positions = torch.zeros(most, dtype=torch.int64, device=model.device)
        # Zeros: what nobody has written must not be a NaN. All layers and sizes use it, each before the next.
        self._out = torch.zeros(most, spec.heads * spec.head_dim, dtype=model.dtype, device=model.device)
        self._captured: dict[int, tuple[list[_Piece], Tensor]] = {}
        self.captures = True
        self.exact = False  # no larger number serves: every one that runs is captured

    def fits(self, tokens: int) -> bool:
        return (self.captures or self._serving(tokens) is not None) and tokens <= SIZES[-1]

    def _serving(self, tokens: int) -> int | None:
        """The number that a step of `tokens` is computed as by graphs that there are."""
        larger = (s for s in SIZES if s >= tokens)
        if self.exact:
            larger = itertools.islice(larger, 1)
        return next((s for s in larger if s in self._captured and (s < 2 * tokens or s <= CHEAP)), None)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """`Model.forward` of the step that attention has planned. Its result is overwritten by the next call."""
        n = len(tokens)
        least = next(s for s in SIZES if s >= n)
        self._seen.note("pieces", (least,))
        size = self._serving(n) or least
        for fixed, given in ((self._tokens, tokens), (self._positions, positions)):
            fixed[:n].copy_(given)
            if n < size:
                fixed[n:size].zero_()
        found = self._captured.get(size)
        if found is not None:
            return self._replay(*found)[:n]
        hidden = self._model.forward(self._tokens[:size], self._positions[:size], self._attention)
        self._capture(size)
        return hidden[:n]

    def prepare(self, wanted: Wanted = never, met: bool = False) -> bool:
        """Half of capturing one more number, between two steps; whether there is more. met: of those that were."""
        worth = [one[0] for one in self._seen.first("pieces") if len(one) == 1 and one[0] in SIZES] if met else SIZES
        size = next((s for s in worth if s not in self._captured), None)
        if size is None or not self.captures or not roomy(self._tokens.device):
            return False
        try:
            if size in self._ran:
                self._capture(size, wanted)
            else:  # once without a graph: what compiles or is loaded at its first use must not be met by a capture
                blind = Yielding(_Blind(self._out), wanted)
                self._model.forward(self._tokens[:size], self._positions[:size], blind)
                self._ran.add(size)
        except Interrupted:
            pass
        return self.captures

    def drop(self) -> int:
        """Give back the memory of all graphs, for good; how many numbers had theirs. The device must be done."""
        self.captures, dropped = False, len(self._captured)
        self._captured.clear()
        return dropped

    def _replay(self, pieces: list[_Piece], hidden: Tensor) -> Tensor:
        out = self._out[: len(hidden)]
        for piece in pieces:
            piece.graph.replay()
            if piece.attention is not None:
                self._attention.attend_into(out, *piece.attention)
        return hidden

    def _capture(self, size: int, wanted: Wanted = never) -> None:
        with alone() as can:
            if can:
                self._capture_alone(size, wanted)

    def _capture_alone(self, size: int, wanted: Wanted) -> None:
        cutter = _Cutter(self._graph, self._out)
        try:
            cutter.begin()
            try:
                backend = Yielding(cutter, wanted)
                hidden = self._model.forward(self._tokens[:size], self._positions[:size], backend)
            finally:
                cutter.end()
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
            log.warning("Steps with prompts run kernel by kernel, this model's cannot be captured: %s", error)
            self.captures = False
            return
        self._captured[size] = cutter.pieces, unowned(hidden)
