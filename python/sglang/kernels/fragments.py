"""Products with weights of 4 bits in groups of columns, for 1 to 1024 rows, on Hopper's matrix units (fragments.cu).

A weight is laid out once as the matrix units want it: a piece is 16 rows by 128 columns, 1024 bytes of codes and the
steps of its groups behind them, so that one copy brings all that a warp needs. `few` serves up to 8 rows: a block's
warps share the columns of 16 rows, and what follows a product is done where it ends. `many` serves up to 1024.
"""

import ctypes
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.kernels import cuda_code
from sglang.kernels.compiling import trial
from sglang.kernels.matvec import early
from sglang.kernels.parts import ended
from sglang.kernels.pointwise import ACTS

log = logging.getLogger("sglang.kernels")
TYPES = (torch.bfloat16, torch.float16)
ARCH = "sm_90a"
ROWS, COLUMNS = 16, 128  # of a piece
TILE = 128  # rows of the weight: pieces that lie together
MULTIPLE = 2  # of rows: they are written two at a time
FEWEST, MOST = 8, 1024  # rows of inputs: of `few`, and of `many`; for more, the weight is written out
NARROW = 256  # the same of `many` where a weight has less than ENOUGH tiles of rows, fewer than a Hopper's processors:
ENOUGH = 128  # then blocks share tiles, and to add up what others left takes the longer the larger a tile is
MEMORY = 227 * 1024  # of a block, at most


@dataclass(frozen=True)
class Fragments:
    """A weight of 4 bits, [rows, inputs], laid out for `multiply`.

    pieces: uint8 [row tiles, column pieces, 8, 1024 + 64 each]. each: groups in 128 columns; larger groups are
    repeated.
    """

    pieces: Tensor
    rows: int
    inputs: int
    each: int

    @property
    def bytes(self) -> int:
        return self.pieces.numel()

    @property
    def narrow(self) -> bool:
        return self.rows < ENOUGH * TILE


def laid_out(codes: Tensor, scales: Tensor, zeros: Tensor, size: int) -> Fragments:
    """codes: uint8 below 16, [rows, inputs]; scales and zeros (whole numbers up to 64): [rows, groups]."""
    rows, inputs = codes.shape
    pieces, groups = inputs // COLUMNS, scales.shape[1]
    each = max(COLUMNS // size, 1) if groups > 1 else 1
    codes, scales, zeros = (F.pad(t, (0, 0, 0, -rows % TILE)) for t in (codes, scales.float(), zeros.float()))
    # A lane (g, t) has rows g and g + 8 of a piece, and of each 16 columns 2 t, 2 t + 1 and those 8 further on:
    # [tile, piece of rows, eighth row, g, piece of columns, half, word, eighth column, t, odd]
    parts = codes.view(-1, 8, 2, 8, pieces, 2, 4, 2, 4, 2).permute(0, 4, 1, 5, 3, 8, 6, 9, 7, 2)
    words = torch.zeros(parts.shape[:-3], dtype=torch.int32, device=codes.device)
    for nibble in range(8):
        words |= parts[..., nibble >> 2, nibble >> 1 & 1, nibble & 1].int() << (4 * nibble)
    zeros = zeros.int()  # the lowest byte of a scale, which is rounded to be near with it
    steps = (scales.contiguous().view(torch.int32) - zeros + 128 & -256) | zeros
    steps = steps.repeat_interleave(pieces * each // groups, 1)
    steps = steps.view(-1, 8, 2, 8, pieces, each).permute(0, 4, 1, 5, 3, 2).contiguous()
    both = [t.view(-1, pieces, 8, *t.shape[3:]).flatten(3) for t in (words, steps)]
    return Fragments(torch.cat(both, 3).view(torch.uint8), rows, inputs, each)


def written_out(w: Fragments, dtype: torch.dtype) -> Tensor:
    """[rows, inputs]."""
    out = torch.empty(w.rows, w.inputs, dtype=dtype, device=w.pieces.device)
    tiles, pieces = w.pieces.shape[:2]
    values = _at(w.pieces), _at(out), *map(ctypes.c_int, (w.rows, pieces))
    write_kernel(w.each, dtype).launch((tiles, 1, pieces), 256, 8 * 16 * 272, _stream(), values)
    return out


class Few(NamedTuple):
    """warps share the columns; depth: pieces of each on their way; blocks: of a processor at once."""

    warps: int
    depth: int
    blocks: int

    def shared(self, m: int, w: Fragments) -> int:
        return self.warps * 1024 + w.inputs // COLUMNS * w.each * 32 + 2 * m * (w.inputs + 8)


class Many(NamedTuple):
    """rows: of inputs, that a block multiplies; stages: of 128 columns, on their way; blocks: of a processor."""

    rows: int
    stages: int
    blocks: int

    def shared(self, w: Fragments) -> int:
        return self.stages * (256 * self.rows + 8 * (1024 + 64 * w.each) + 16) + 1024


# By rows of the inputs: the first is taken. scripts/gpu_quant.py times the others beside it.
FEW: tuple[Few, ...] = (Few(16, 1, 2), Few(8, 1, 4), Few(16, 2, 1))
MANY: dict[int, tuple[Many, ...]] = {
    8: (Many(8, 8, 2),),
    16: (Many(16, 8, 2),),
    32: (Many(32, 6, 2),),
    64: (Many(64, 8, 1),),
    128: (Many(128, 5, 1),),
    MOST: (Many(256, 3, 1), Many(128, 5, 1)),  # the second for narrow weights
}


def tiles_of(m: int) -> tuple[Many, ...]:
    return next(tiles for most, tiles in MANY.items() if m <= most)


@functools.cache
def _text() -> str:
    return "".join(Path(__file__).with_name(name).read_text() for name in ("hopper.cu", "fragments.cu"))


def _source(**numbers: object) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in numbers.items()) + _text()


@functools.cache
def write_kernel(each: int, dtype: torch.dtype) -> cuda_code.Kernel:
    return cuda_code.Kernel(write_source(each, dtype), "spread", ARCH, MEMORY)


def write_source(each: int, dtype: torch.dtype) -> str:
    return _source(FP16=int(dtype == torch.float16), EACH=each, WRITE=1)


@functools.cache
def few_kernel(tile: Few, each: int, dtype: torch.dtype, act: str | None) -> cuda_code.Kernel:
    return cuda_code.Kernel(few_source(tile, each, dtype, act), "few", ARCH, MEMORY)


def few_source(tile: Few, each: int, dtype: torch.dtype, act: str | None) -> str:
    return _source(
        FP16=int(dtype == torch.float16), EACH=each, WARPS=tile.warps, DEPTH=tile.depth, RESIDENT=tile.blocks,
        SILU=ACTS["silu"], GELU=ACTS["gelu"], ACT=-1 if act is None else ACTS[act],
    )  # fmt: skip


@functools.cache
def many_kernel(tile: Many, each: int, dtype: torch.dtype) -> cuda_code.Kernel:
    return cuda_code.Kernel(many_source(tile, each, dtype), "many", ARCH, MEMORY)


def many_source(tile: Many, each: int, dtype: torch.dtype) -> str:
    sums = tile.rows // 2  # of a thread

    def places(first: int, count: int) -> str:
        return '"' + ", ".join(f"%{first + i}" for i in range(count)) + '"'

    return _source(
        FP16=int(dtype == torch.float16), EACH=each, ROWS=tile.rows, STAGES=tile.stages, RESIDENT=tile.blocks,
        WGMMA_N=f'"{tile.rows}"', WGMMA_PLACES=places(0, sums),
        WGMMA_A=places(sums, 4), WGMMA_B=places(sums + 4, 1), WGMMA_ADD=places(sums + 5, 1),
        WGMMA_D=", ".join(f'"+f"(d[{i // 4}][{i % 4}])' for i in range(sums)),
    )  # fmt: skip


def _at(t: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def multiply(
    x: Tensor,
    w: Fragments,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    act: str | None = None,
    tile: Few | Many | None = None,
) -> Tensor:
    """x W^T + bias, then + other, or act(first half) * second half. x: [n, inputs], a row side by side.

    other: [n, rows], added in place and returned.
    """
    m = x.shape[0]
    if tile is None and m > (NARROW if w.narrow else MOST):
        return ended(F.linear(x, written_out(w, x.dtype))[None], bias, other, act, x.dtype)
    tile = tile or chosen(m, w, act)
    if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    return _few(x, w, bias, other, act, tile) if isinstance(tile, Few) else _many(x, w, bias, other, act, tile)


def chosen(m: int, w: Fragments, act: str | None) -> Few | Many:
    few = FEW[0]
    pairs = act is None or w.rows % (2 * ROWS) == 0
    pairs &= w.bytes < 2**32
    if m <= FEWEST and pairs and few.shared(m, w) * 2 <= MEMORY:
        return few
    return tiles_of(m)[-1 if w.narrow else 0]


def _few(x: Tensor, w: Fragments, bias: Tensor | None, other: Tensor | None, act: str | None, tile: Few) -> Tensor:
    m = x.shape[0]
    width = w.rows if act is None else w.rows // 2
    items = -(-width // ROWS)
    out = x.new_empty(m, width) if other is None else other
    values = (
        _at(x), ctypes.c_longlong(x.stride(0)), _at(w.pieces), _at(bias), _at(other), _at(out),
        *map(ctypes.c_int, (m, w.rows, w.inputs // COLUMNS, items)),
    )  # fmt: skip
    blocks = min(items, _processors(x.device) * tile.blocks)
    kernel = few_kernel(tile, w.each, x.dtype, act)
    kernel.launch((blocks, 1, 1), 32 * tile.warps, tile.shared(m, w), _stream(), values, early(m))
    return out


def _many(x: Tensor, w: Fragments, bias: Tensor | None, other: Tensor | None, act: str | None, tile: Many) -> Tensor:
    m = x.shape[0]
    added = other if act is None else None
    out = x.new_empty(m, w.rows) if added is None else added
    boxes = cuda_code.boxes(x.data_ptr(), str(x.dtype)[6:], m, w.inputs, 2 * x.stride(0), tile.rows, 64)
    tiles, pieces = w.pieces.shape[:2]
    units = tiles * -(-m // tile.rows) * pieces
    blocks = min(_processors(x.device) * tile.blocks, units)
    values = (
        boxes, _at(w.pieces), _at(bias), _at(added), _at(out), *map(_at, _room(x.device)),
        *map(ctypes.c_int, (m, w.rows, pieces, tiles, units)),
    )  # fmt: skip
    kernel = many_kernel(tile, w.each, x.dtype)
    kernel.launch((blocks, 1, 1), 384 if tile.rows > 128 else 288, tile.shared(w), _stream(), values, early(m))
    return out if act is None else ended(out[None], None, other, act, x.dtype)


@functools.cache
def _room(device: torch.device) -> tuple[Tensor, Tensor]:
    """Sums that blocks leave for others, and flags that say so. Products run one after another, and so share it."""
    assert not torch.cuda.is_current_stream_capturing(), "flags must be zeros before a graph is replayed"
    sums = max(tile.rows * tile.blocks for tiles in MANY.values() for tile in tiles) * TILE * _processors(device)
    return torch.empty(sums, device=device), torch.zeros(8 * _processors(device), dtype=torch.int32, device=device)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


@functools.cache
def works(dtype: torch.dtype, group: int) -> bool:
    """Whether the products agree with float64 on this device; tried once. group: columns, at most 128."""
    if dtype not in TYPES or not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability() != (9, 0):
        return False
    try:
        if _agrees(dtype, group):
            return True
        reason = "results differ from float64"
    except Exception as error:  # a compiler's or a driver's: whatever it is, there is another kernel
        reason = str(error).splitlines()[0]
    log.warning("Weights of 4 bits are multiplied by Triton's kernel: %s", reason)
    return False


@trial
def _agrees(dtype: torch.dtype, group: int) -> bool:
    each = COLUMNS // group
    kernels = [few_kernel(FEW[0], each, dtype, act) for act in (None, "silu")]
    kernels += [many_kernel(tiles[0], each, dtype) for tiles in MANY.values()]
    cuda_code.compile_all([write_kernel(each, dtype), *kernels])
    random = torch.Generator("cuda").manual_seed(0)
    rows, inputs = 192, 1024
    codes = torch.randint(0, 16, (rows, inputs), generator=random, device="cuda", dtype=torch.uint8)
    zeros = torch.randint(0, 16, (rows, inputs // group), generator=random, device="cuda").float()
    scales = torch.rand(rows, inputs // group, generator=random, device="cuda") * 0.01 + 0.01
    w = laid_out(codes, scales, zeros, group)
    spread = [t.double().repeat_interleave(group, 1) for t in (zeros, scales)]
    weight = (codes.double() - spread[0]) * spread[1]
    for m in (1, 8, 9, 24, 48, 100, 130, MOST + 1):
        x = torch.randn(m, inputs, generator=random, device="cuda").to(dtype)
        wanted = x.double() @ weight.t()
        if not torch.linalg.norm(multiply(x, w).double() - wanted) < 0.01 * torch.linalg.norm(wanted):
            return False
    return True
