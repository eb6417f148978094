"""Weights as they are: floating point, one value after another, or in oneDNN's blocked layout on CPUs.

The blocked layout reads memory at nearly its full rate where `F.linear` reaches half, in bfloat16 and in float32, for
few rows and for hundreds, and takes activation, product and residual along. The operators are torch's private ones, so
they are tried once and left alone where they are missing or differ. For a single row torch has a kernel of its own that
can be faster still and reads the plain layout: where that is so, and memory allows, both layouts are kept.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.kernels.staging import triton_works
from sglang.quant.base import Act, Form, Inputs, Parts

ACTS: dict[Act, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}
# Our words -> the name and further arguments of oneDNN's epilogue.
EPILOGUES: dict[Act, tuple[str, str]] = {"silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def after(y: Tensor, bias: Tensor | None, other: Tensor | None, act: Act | None) -> Tensor:
    """What follows a product, step by step: see `base.Product`. y and other are overwritten."""
    if bias is not None:
        y = y.add_(bias)
    if act is not None:
        half = y.shape[1] // 2
        y = ACTS[act](y[:, :half]).mul_(y[:, half:])
    return y if other is None else other.add_(y)


PACK_HINT = 4  # rows to optimise the layout for; oneDNN picks the same one for 1 to 16


class Dense:
    """parts: name -> rows, in order, fused into one weight [sum of rows, inputs]."""

    def __init__(self, inputs: int, parts: dict[str, int], bias: bool, device: torch.device, dtype: torch.dtype):
        rows = sum(parts.values())
        self.inputs = inputs
        self.dtype = dtype
        self.device = device
        self.bias = torch.empty(rows, device=device, dtype=dtype) if bias else None
        self.parts = parts
        self._rows = rows
        self._single = False  # one row goes to the plain weight
        self._packed: Tensor | None = None
        self._halves: tuple[Tensor, Tensor] | None = None  # packed apart: a gated product runs one into the other

    @cached_property
    def weight(self) -> Tensor:
        """[rows, inputs]; memory is taken when it is first asked for, which another store in its place never does."""
        return torch.empty(self._rows, self.inputs, device=self.device, dtype=self.dtype)

    def places(self, prefix: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        at = 0
        for name, rows in self.parts.items():
            found[f"{prefix}.{name}.weight"] = self.weight[at : at + rows]
            if self.bias is not None:
                found[f"{prefix}.{name}.bias"] = self.bias[at : at + rows]
            at += rows
        return found

    def finish(self, gated: bool, keep: bool) -> None:
        if self.weight.device.type != "cpu" or not packing_works(self.weight.dtype):
            return
        if gated:
            half = self._rows // 2
            self._halves = (_pack(self.weight[:half]), _pack(self.weight[half:]))
        else:
            self._packed = _pack(self.weight)
        self._single = keep
        if not keep:
            self.forget()

    @property
    def packed(self) -> bool:
        return self._packed is not None or self._halves is not None

    @property
    def bytes(self) -> int:
        return self._rows * self.inputs * self.dtype.itemsize

    def forget(self) -> None:
        """Drop the plain layout where the packed one stands for it."""
        if self.packed:
            self._single = False
            self.weight = torch.empty(0)  # not a slice: that would keep the memory

    takes = None

    def unfinished(self, x: Inputs) -> Parts | None:
        if not isinstance(x, Tensor) or not x.is_cuda or not triton_works():
            return None
        from sglang.kernels import skinny

        return Parts(skinny.split(x, self.weight), self.bias) if skinny.wanted(x, self.weight) else None

    def multiply(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        if self._packed is not None and not (self._single and x.shape[0] == 1):
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return self._plain(x)

    def multiply_add(self, x: Inputs, other: Tensor) -> Tensor:
        assert isinstance(x, Tensor)
        if self._packed is not None and not (self._single and x.shape[0] == 1):
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "add")
        if self._alone(x) and other.is_contiguous():
            from sglang.kernels.matvec import matvec

            return matvec(x, self.weight, self.bias, other)
        if self.bias is None and x.is_cuda:
            return other.addmm_(x, self.weight.t())  # the product's own kernel adds
        return self._plain(x).add_(other)

    def multiply_gated(self, x: Inputs, act: Act, form: Form | None = None) -> Tensor:
        assert isinstance(x, Tensor)
        half = self._rows // 2
        if self._halves is not None and not (self._single and x.shape[0] == 1):
            gate, up = self._halves
            b, c = (None, None) if self.bias is None else (self.bias[:half], self.bias[half:])
            name, kind = EPILOGUES[act]
            opened = torch.ops.mkldnn._linear_pointwise(x, gate, b, name, [], kind)
            return torch.ops.mkldnn._linear_pointwise.binary(x, opened, up, c, "mul")
        if self._alone(x):
            from sglang.kernels.matvec import matvec_gated

            return matvec_gated(x, self.weight, self.bias, act)
        if not x.is_cuda or not triton_works():
            both = self._plain(x)
            return ACTS[act](both[:, :half]).mul_(both[:, half:])
        from sglang.kernels import matvec, skinny
        from sglang.kernels.pointwise import gate

        if self.bias is None and skinny.gates(x, self.weight):
            return skinny.gated(x, self.weight, act)
        return gate(self._plain(x), act, matvec.early(len(x), matvec.FEW))

    def _alone(self, x: Tensor) -> bool:
        """Whether this is one row on a device where our own kernels multiply it."""
        if x.shape[0] != 1 or not x.is_cuda or not triton_works():
            return False
        from sglang.kernels.matvec import wanted

        return wanted(x, self.weight)

    def _plain(self, x: Tensor) -> Tensor:
        if self._alone(x):
            from sglang.kernels.matvec import matvec

            return matvec(x, self.weight, self.bias)
        if not self._single:
            return F.linear(x, self.weight, self.bias)
        # Left on, oneDNN would take the product and lay the weight out anew each time.
        torch._C._set_mkldnn_enabled(False)
        try:
            return F.linear(x, self.weight, self.bias)
        finally:
            torch._C._set_mkldnn_enabled(True)


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACK_HINT)


@functools.cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether the packed products exist here and agree with F.linear."""
    if dtype not in (torch.bfloat16, torch.float32):
        return False
    if dtype == torch.bfloat16 and not bfloat16_arithmetic():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, generator=generator).to(dtype)
    w = torch.randn(96, 64, generator=generator).to(dtype)
    b = torch.randn(96, generator=generator).to(dtype)
    plain = F.linear(x, w, b)
    try:
        packed = _pack(w)
        tried = [
            (torch.ops.mkldnn._linear_pointwise(x, packed, b, "none", [], ""), plain),
            (torch.ops.mkldnn._linear_pointwise.binary(x, plain, packed, b, "add"), plain + plain),
            (torch.ops.mkldnn._linear_pointwise.binary(x, plain, packed, b, "mul"), plain * plain),
        ]
        for act, (name, kind) in EPILOGUES.items():
            tried.append((torch.ops.mkldnn._linear_pointwise(x, packed, b, name, [], kind), ACTS[act](plain)))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    bound = 0.02 if dtype == torch.bfloat16 else 1e-4  # bfloat16 keeps 8 bits
    return all(torch.allclose(a.float(), p.float(), rtol=bound, atol=bound * 10) for a, p in tried)


@functools.cache
def bfloat16_arithmetic() -> bool:
    """Whether this CPU multiplies bfloat16 itself rather than through float32."""
    try:
        probe: Any = torch.ops.mkldnn._is_mkldnn_bf16_supported
        return bool(probe())
    except (AttributeError, RuntimeError):
        return False


PADDED_TO = 6  # rows; no kernel seen here gains from more
PROBE_BYTES = 64 * 2**20  # more than a last-level cache keeps


@dataclass(frozen=True)
class Routes:
    """What is fastest here. cheapest[n]: rows to compute where n are asked for. single: one row goes plain.

    grain: rows that take no longer than one. More than `cheapest` tells of are rounded up to few numbers; 0: are not.
    oneDNN prepares each map for each number of rows that it meets, and keeps that: half a MiB and more, which is some
    MiB for a model.
    """

    cheapest: tuple[int, ...] = tuple(range(PADDED_TO + 1))
    single: bool = False
    grain: int = 0

    def padded(self, n: int) -> int:
        """Rows to compute where n are asked for."""
        if n < len(self.cheapest):
            return self.cheapest[n]
        if not self.grain:
            return n
        # An eighth at most is padding; more where that costs products nothing, but not all, for norms and others pay.
        eighth, quarter = (1 << max(0, n.bit_length() - bits) for bits in (4, 2))
        grain = max(eighth, min(self.grain, quarter))
        return -(-n // grain) * grain


AMX_ROWS = 16  # of a tile: as many as there are take the time of one


def grain_of(dtype: torch.dtype) -> int:
    """Rows of a product that take no longer than one, beyond those that `measure` tries."""
    if dtype != torch.bfloat16:
        return 1
    try:
        probe: Any = torch.cpu._is_amx_tile_supported
        return AMX_ROWS if probe() else 1
    except (AttributeError, RuntimeError):
        return 1


@torch.inference_mode()
def measure(stores: list[Dense]) -> Routes:
    """Time the maps of a model, layer after layer; they keep both layouts where the plain one is worth trying.

    oneDNN's kernel for 5 or 6 rows hides latencies that the one for a single row waits out (Zen 4: 15 to 20 %), so
    rows that nobody needs can save time. Models that fit into a cache are not worth the question.
    """
    enough = next((n for n, size in enumerate(accumulate(s.bytes for s in stores), 1) if size >= PROBE_BYTES), None)
    if enough is None or not stores[0].packed:
        return Routes(grain=grain_of(stores[0].dtype) if stores and stores[0].packed else 0)
    stores = stores[:enough]
    plain = stores[0]._single
    rows = range(1, PADDED_TO + 1)
    inputs = {(n, k): torch.ones(n, k, dtype=stores[0].dtype) for n in rows for k in {s.inputs for s in stores}}
    cost = dict.fromkeys([0, *rows], float("inf"))  # 0: a single row by the plain layout
    for _ in range(6):
        for n in cost if plain else rows:
            for store in stores:
                store._single = n == 0
            began = time.perf_counter()
            for store in stores:
                x = inputs[n or 1, store.inputs]
                store.multiply_gated(x, "silu") if store._halves is not None else store.multiply(x)
            cost[n] = min(cost[n], time.perf_counter() - began)
    for store in stores:
        store._single = plain
    best = min(rows, key=cost.__getitem__)
    # A few percent are noise, and rows that are not there cost elsewhere too.
    cheapest = [0] + [best if n < best and cost[best] < 0.93 * cost[n] else n for n in rows]
    single = cost[0] < cost[cheapest[1]]
    if single:
        cheapest[1] = 1
    return Routes(tuple(cheapest), single, grain_of(stores[0].dtype))
