# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""Products with weights of 4 bits in groups of columns, for 1 to a few hundred rows: one kernel, tiles by rows.

`Words` lays a weight out once so that the kernel has little to do per weight. 64 rows by 128 columns are one piece of
4 KiB; nibble j of word i of a row is column 16 j + i, so that a word's column is where the matrix units want it and
all 8 nibbles of a thread's words stay in its registers. Two words are taken apart together: a nibble under the bits of
128.0 (bfloat16) or 1024.0 (float16) is that number plus the code, exactly, and less 128 + zero it is the weight's step.
"""

import functools
import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang.kernels.compiling import trial
from sglang.kernels.matvec import early
from sglang.kernels.parts import PROGRAMS, ended

log = logging.getLogger("sglang.kernels")
TYPES = (torch.bfloat16, torch.float16)
ROWS, COLUMNS = 64, 128  # of a piece
MOST = 256  # rows of inputs; for more, the weight is written out and torch multiplies


_APART = """
{
.reg .b32 a, b, t;
prmt.b32 a, $8, $9, 0x5410;
prmt.b32 b, $8, $9, 0x7632;
lop3.b32 $0, a, 0x000f000f, MAGIC, 0xea;
shr.u32 t, a, 4;
lop3.b32 $1, t, 0x000f000f, MAGIC, 0xea;
shr.u32 t, a, 8;
lop3.b32 $2, t, 0x000f000f, MAGIC, 0xea;
shr.u32 t, a, 12;
lop3.b32 $3, t, 0x000f000f, MAGIC, 0xea;
lop3.b32 $4, b, 0x000f000f, MAGIC, 0xea;
shr.u32 t, b, 4;
lop3.b32 $5, t, 0x000f000f, MAGIC, 0xea;
shr.u32 t, b, 8;
lop3.b32 $6, t, 0x000f000f, MAGIC, 0xea;
shr.u32 t, b, 12;
lop3.b32 $7, t, 0x000f000f, MAGIC, 0xea;
}
"""  # 0xea: (a & b) | c
BF16_APART = tl.constexpr(_APART.replace("MAGIC", "0x43004300"))
FP16_APART = tl.constexpr(_APART.replace("MAGIC", "0x64006400"))
BF16_TYPES, FP16_TYPES = tl.constexpr((tl.bfloat16,) * 8), tl.constexpr((tl.float16,) * 8)
EIGHT = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r")  # results of one asm block, and its two words


@triton.jit
def _codes(words, BLOCK_N: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """int32 [BLOCK_N, 16] -> [BLOCK_N, 128] of DTYPE, above 128 or 1024 with ASM."""
    if ASM:
        if DTYPE.is_bf16():
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                BF16_APART, EIGHT, [words], dtype=BF16_TYPES, is_pure=True, pack=2
            )
        else:
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                FP16_APART, EIGHT, [words], dtype=FP16_TYPES, is_pure=True, pack=2
            )
        even = tl.join(tl.join(a, e), tl.join(c, g))
        odd = tl.join(tl.join(b, f), tl.join(d, h))
        whole = tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1))  # [BLOCK_N, 4, 2, 1 of nibble, 16]
        return tl.reshape(whole, (BLOCK_N, 128))
    else:
        shifts = 4 * tl.arange(0, 8)
        whole = (words[:, None, :] >> shifts[None, :, None]) & 15
        return tl.reshape(whole, (BLOCK_N, 128)).to(DTYPE)


@triton.jit
def _zeros(steps, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """What is taken from codes: the lowest byte of a step."""
    zeros = steps & 255
    if ASM:
        zeros |= 0x4300 if DTYPE.is_bf16() else 0x6400
        return zeros.to(tl.int16).to(DTYPE, bitcast=True)
    else:
        return zeros.to(DTYPE)


@triton.jit
def _scales(steps):
    """The rest of it, as float32."""
    return (steps & -256).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["M"])
def _multiply(
    x,
    words,
    steps,
    out,
    x_row,
    M,
    N,
    padded,
    pieces,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP: tl.constexpr,
    LATE: tl.constexpr,
    ASM: tl.constexpr,
    EARLY: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[split]: [M, N], of the columns of a split. GROUP: columns, at most 128: then pieces share a group.

    LATE: sums of a piece are scaled, rather than its weights: exact, and cheap for few rows.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    DTYPE: tl.constexpr = x.dtype.element_ty
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, 128)
    own = words + (n // 64).to(tl.int64)[:, None] * pieces * 1024 + (n % 64)[:, None] * 16 + tl.arange(0, 16)[None, :]
    each = tl.cdiv(pieces, tl.num_programs(1))
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for piece in tl.range(split * each, tl.minimum(pieces, split * each + each), num_stages=STAGES):
        w = tl.load(own + piece * 1024)
        v = tl.load(
            x + m[None, :].to(tl.int64) * x_row + piece * 128 + column[:, None], mask=(m < M)[None, :], other=0.0
        )
        codes = _codes(w, BLOCK_N, DTYPE, ASM)
        if GROUP == 128:
            step = tl.load(steps + piece * padded + n)
            weight = codes - _zeros(step, DTYPE, ASM)[:, None]
            scale = _scales(step)
            if LATE:
                acc += tl.dot(weight, v, input_precision="ieee") * scale[:, None]
            else:
                acc = tl.dot(weight * scale.to(DTYPE)[:, None], v, acc, input_precision="ieee")
        else:
            EACH: tl.constexpr = 128 // GROUP
            group = piece * EACH + tl.arange(0, EACH)
            step = tl.load(steps + group[None, :] * padded + n[:, None])
            step = tl.reshape(tl.broadcast_to(step[:, :, None], (BLOCK_N, EACH, GROUP)), (BLOCK_N, 128))
            weight = (codes - _zeros(step, DTYPE, ASM)) * _scales(step).to(DTYPE)
            acc = tl.dot(weight, v, acc, input_precision="ieee")
    place = out + (split * M + m)[None, :].to(tl.int64) * N + n[:, None]
    tl.store(place, acc.to(out.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


@triton.jit
def _write(words, steps, out, N, padded, pieces, GROUP: tl.constexpr):
    """The weight as it is: out [N, inputs]. A program writes a piece."""
    n = tl.program_id(0) * 64 + tl.arange(0, 64)
    piece = tl.program_id(1)
    column = piece * 128 + tl.arange(0, 128)
    own = words + (tl.program_id(0).to(tl.int64) * pieces + piece) * 1024
    w = tl.load(own + tl.arange(0, 64)[:, None] * 16 + tl.arange(0, 16)[None, :])
    codes = _codes(w, 64, tl.float32, False)
    step = tl.load(steps + (column // GROUP)[None, :] * padded + n[:, None])
    weight = (codes - _zeros(step, tl.float32, False)) * _scales(step)
    place = out + n[:, None].to(tl.int64) * (pieces * 128) + column[None, :]
    tl.store(place, weight.to(out.dtype.element_ty), mask=(n < N)[:, None])


@dataclass(frozen=True)
class Words:
    """A weight of 4 bits, [rows, inputs], laid out for `multiply`.

    words: int32 [row pieces, column pieces, 64, 16]. steps: int32 [groups, padded rows]: a scale in float32 whose
    lowest byte is the zero instead. group: columns, at most 128; larger ones are repeated.
    """

    words: Tensor
    steps: Tensor
    rows: int
    inputs: int
    group: int

    @property
    def bytes(self) -> int:
        return 4 * (self.words.numel() + self.steps.numel())


def fits(rows: int, inputs: int, size: int, groups: int) -> bool:
    """Whether a weight with groups of `size` columns can be laid out."""
    return inputs % COLUMNS == 0 and (groups == 1 or size in (32, 64) or size % COLUMNS == 0)


def laid_out(codes: Tensor, scales: Tensor, zeros: Tensor, size: int) -> Words:
    """codes: uint8 below 16, [rows, inputs]; scales and zeros (whole numbers below 256): [rows, groups]."""
    rows, inputs = codes.shape
    groups = scales.shape[1]
    group = COLUMNS if groups == 1 else min(size, COLUMNS)
    more = -rows % (2 * ROWS)  # a program may take two pieces
    codes, scales, zeros = (F.pad(t, (0, 0, 0, more)) for t in (codes, scales.float(), zeros.float()))
    # [row pieces, column pieces, 64, nibble, word]
    tiles = codes.view(-1, ROWS, inputs // COLUMNS, 8, 16).transpose(1, 2)
    words = torch.zeros((*tiles.shape[:3], 16), dtype=torch.int32, device=codes.device)
    for j in range(8):
        words |= tiles[..., j, :].int() << (4 * j)
    steps = (scales.contiguous().view(torch.int32) & -256) | zeros.int()
    steps = steps.repeat_interleave(inputs // group // groups, 1) if groups * group < inputs else steps
    return Words(words.contiguous(), steps.t().contiguous(), rows, inputs, group)


class _Switch:
    asm = True  # codes are taken apart by the device's own instructions


switch = _Switch()


def _asm() -> bool:
    return switch.asm and torch.cuda.is_available() and torch.version.hip is None


class Tile(NamedTuple):
    """block_n: rows of the weight; block_m: of the inputs, that a program multiplies. late: see `_multiply`."""

    block_n: int
    block_m: int
    warps: int
    stages: int
    late: bool


# By rows of the inputs: the first is taken. scripts/gpu_quant.py times the others beside it.
TILES: dict[int, tuple[Tile, ...]] = {
    16: (Tile(128, 16, 4, 4, True), Tile(64, 16, 4, 5, True), Tile(128, 16, 8, 4, True)),
    32: (Tile(128, 32, 4, 4, True), Tile(64, 32, 4, 4, True)),
    64: (Tile(128, 64, 8, 4, False), Tile(128, 64, 4, 4, False), Tile(64, 64, 4, 4, False)),
    MOST: (Tile(128, 128, 8, 4, False), Tile(128, 256, 8, 3, False), Tile(64, 128, 4, 4, False)),
}


def tiles_of(m: int) -> tuple[Tile, ...]:
    return next(tiles for most, tiles in TILES.items() if m <= most)


def splits(tile: Tile, m: int, rows: int, pieces: int) -> int:
    """How many programs share the columns of a tile: a power of two that keeps the device busy."""
    tiles = triton.cdiv(rows, tile.block_n) * triton.cdiv(m, tile.block_m)
    split = 1
    while split < 16 and tiles * split * 2 <= PROGRAMS and pieces // (split * 2) >= 4:
        split *= 2
    return split


def multiply(
    x: Tensor,
    w: Words,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    act: str | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """x W^T + bias, then + other, or act(first half) * second half. x: [n, inputs], a row side by side.

    other: [n, rows], added in place and returned.
    """
    m = x.shape[0]
    if m > MOST and tile is None:
        return ended(F.linear(x, written_out(w, x.dtype))[None], bias, other, act, x.dtype)
    tile = tile or tiles_of(m)[0]
    pieces = w.inputs // COLUMNS
    split = splits(tile, m, w.rows, pieces)
    alone = split == 1
    parts = x.new_empty(split, m, w.rows, dtype=x.dtype if alone else torch.float32)
    chained = early(m)
    _multiply[(triton.cdiv(w.rows, tile.block_n), split, triton.cdiv(m, tile.block_m))](
        x, w.words, w.steps, parts, x.stride(0), m, w.rows, w.steps.shape[1], pieces,
        BLOCK_N=tile.block_n, BLOCK_M=tile.block_m, GROUP=w.group, LATE=tile.late, ASM=_asm(),
        EARLY=chained, STAGES=tile.stages, num_warps=tile.warps, launch_pdl=chained,
    )  # fmt: skip
    return ended(parts, bias, other, act, x.dtype)


def written_out(w: Words, dtype: torch.dtype) -> Tensor:
    """[rows, inputs]."""
    out = torch.empty(w.rows, w.inputs, dtype=dtype, device=w.words.device)
    pieces = w.inputs // COLUMNS
    _write[(triton.cdiv(w.rows, ROWS), pieces)](
        w.words, w.steps, out, w.rows, w.steps.shape[1], pieces, GROUP=w.group, num_warps=4
    )
    return out


@functools.cache
def works(dtype: torch.dtype, group: int) -> bool:
    """Whether the product agrees with float64 on this device; tried once, first with the device's instructions."""
    if dtype not in TYPES or not torch.cuda.is_available():
        return False
    while True:
        try:
            if _agrees(dtype, group):
                return True
            reason = "results differ from float64"
        except Exception as error:  # a compiler's or a driver's: whatever it is, weights can be written out
            reason = str(error).splitlines()[0]
        if not switch.asm:
            log.warning("Weights of 4 bits are multiplied as %s: %s", dtype, reason)
            return False
        log.warning("Codes of 4 bits are taken apart without the device's own instructions: %s", reason)
        switch.asm = False


@trial
def _agrees(dtype: torch.dtype, group: int) -> bool:
    random = torch.Generator("cuda").manual_seed(0)
    rows, inputs = 192, 512
    codes = torch.randint(0, 16, (rows, inputs), generator=random, device="cuda", dtype=torch.uint8)
    zeros = torch.randint(0, 16, (rows, inputs // group), generator=random, device="cuda").float()
    scales = torch.rand(rows, inputs // group, generator=random, device="cuda") * 0.01 + 0.01
    w = laid_out(codes, scales, zeros, group)
    spread = [t.double().repeat_interleave(group, 1) for t in (zeros, scales)]
    weight = (codes.double() - spread[0]) * spread[1]
    for m in (1, 24, 48, 130, MOST + 1):
        x = torch.randn(m, inputs, generator=random, device="cuda").to(dtype)
        wanted = x.double() @ weight.t()
        if not torch.linalg.norm(multiply(x, w).double() - wanted) < 0.01 * torch.linalg.norm(wanted):
            return False
    return True
