# pyright: reportCallIssue=false, reportIndexIssue=false
# Launch options are beyond the types of Triton's decorators.
"""Attention over the paged pool: decodes by parts of a sequence (split KV), longer rows by tiles of queries."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from sglang.kernels.attention_kernels import decode_part, extend_tile, merge_parts, shared_tile

MOST_SPLITS = 64
LATE_SPLITS = 8  # where their number is known only when the kernels run: with those of shared keys a merge of 16
MERGES = (4, 16, 64, 128)  # parts that a merge has room for: few, because each is a kernel to compile


@dataclass(frozen=True)
class Tuning:
    """Block sizes of one kernel. queries: rows of a tile (`extend`); keys: cells a step of its loop reads; registers:
    of a thread, at most: with 128 two tiles of 8 warps are on a multiprocessor, and one multiplies while the other
    takes exponents. That is 1.4 to 1.75 times as fast on an H200 as one tile with all it asks for."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


@dataclass(frozen=True)
class Pool:
    """A layer's cells and the way to them. keys, values: [cells, kv_heads, dim]; table: [slots, pages].

    k_scale, v_scale: what a key or value in 8 bits is to be multiplied by.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    page_size: int
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def most(self) -> float:
        """The largest value of 8 bits; 0: it is kept in more."""
        return torch.finfo(self.keys.dtype).max if self.keys.itemsize == 1 else 0


@dataclass(frozen=True)
class Fresh:
    """A step's own keys and values, not filed yet: [T, kv_heads, dim]. turn: cos and signed sin of the tokens, each
    [T, 1, rotary dim], which q and keys are to be rotated by; None: they are."""

    keys: Tensor
    values: Tensor
    turn: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Score:
    """scale of q k; 0 is no window, no chunk, no cap; sinks: [heads]."""

    scale: float
    window: int = 0
    chunk: int = 0
    cap: float = 0.0
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Shared:
    """Keys that decodes have in common (`attention.cascade`). own, used: [R]; members: [M]; tiles: [n, 6], a slot of
    -1 is no tile; entries: partial results that a row can have from them."""

    own: Tensor
    used: Tensor
    members: Tensor
    tiles: Tensor
    entries: int


def decode_tuning(dim: int, dtype: torch.dtype) -> Tuning:
    wide = triton.next_power_of_2(dim) * dtype.itemsize  # bytes of a key
    return Tuning(1, 64 if wide <= 256 else 32, 4, 3 if wide <= 512 else 2)


def extend_tuning(dim: int, dtype: torch.dtype, queries: int) -> Tuning:
    """queries: most of a row, all tokens of all heads that share a tile."""
    wide = triton.next_power_of_2(dim) * dtype.itemsize
    if dtype == torch.float32:
        return Tuning(32 if wide <= 512 else 16, 32, 4, 1)
    if queries <= 64:
        return Tuning(64, 64 if wide <= 256 else 32, 4, 2)
    return Tuning(128, 64, 8, 3, 128) if wide <= 256 else Tuning(64, 32, 4, 2)


def shared_tuning(dim: int, dtype: torch.dtype) -> Tuning:
    wide = triton.next_power_of_2(dim) * dtype.itemsize
    if dtype == torch.float32:
        return Tuning(32, 32, 4, 1)
    return Tuning(128, 64, 8, 3, 128) if wide <= 256 else Tuning(64, 32, 4, 2)


MOST_PACKED = 16


def packed(heads: int, kv_heads: int) -> int:
    """Heads of a KV head that share a tile of `extend`: its keys are read once for all of them."""
    group = heads // kv_heads
    return next(n for n in range(min(group, MOST_PACKED), 0, -1) if group % n == 0)


def extend_tokens(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, longest: int) -> int:
    """Tokens of a tile. longest: most of a row."""
    pack = packed(heads, kv_heads)
    return extend_tuning(dim, dtype, longest * pack).queries // pack


def shared_rows(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> int:
    """Rows of a tile; 0: a KV head has more heads than a tile has queries."""
    return shared_tuning(dim, dtype).queries // (heads // kv_heads)


PROGRAMS = 1024  # about eight for each of an H200's 132 multiprocessors


def splits_for(rows: int, kv_heads: int, programs: int = PROGRAMS) -> int:
    """Parts a decode row is cut into so that every multiprocessor has several programs; a power of two."""
    return min(MOST_SPLITS, triton.next_power_of_2(triton.cdiv(programs, rows * kv_heads)))


def late_splits(rows: int, most: int) -> int:
    """The same where there are programs for `most` parts of rows, whatever their number is."""
    return min(LATE_SPLITS, 1 << (max(1, most // max(rows, 1)).bit_length() - 1))


def merge_room(width: int) -> int:
    """Parts that the merge of as many has room for; 0: one part is the whole, and nothing is merged."""
    return next(size for size in MERGES if size >= width) if width > 1 else 0


def decode(
    q: Tensor,
    pool: Pool,
    score: Score,
    slots: Tensor,
    positions: Tensor,
    places: Tensor,
    out: Tensor,
    splits: int | Tensor,
    tuning: Tuning | None = None,
    shared: Shared | None = None,
    fresh: Fresh | None = None,
    early: bool = False,
) -> None:
    """Rows of one token. q: [T, heads, dim]; slots (-1: padding, which yields zeros), positions, places (in q and out,
    [T, heads, dim], of each row's token; -1 with a tensor of splits: none): [R]. shared: without window or chunk.
    fresh: not with shared; early: see `matvec`.

    splits: parts of a row, a power of two; or a tensor that says so when the kernels run, at most LATE_SPLITS and such
    that there are no more parts than R.
    """
    heads, dim = q.shape[1:]
    kv = pool.keys.shape[1]
    t = tuning or decode_tuning(dim, q.dtype)
    rows = len(slots)
    parts = norms = out
    late = isinstance(splits, Tensor)
    entries = shared.entries if shared else 0
    most = LATE_SPLITS + entries if isinstance(splits, Tensor) else splits + entries
    width = entries if late else most
    parted = most > 1
    if parted:
        lines = rows * (1 + entries) if late else rows * width
        parts = torch.empty(lines, heads, dim, dtype=torch.float32, device=q.device)
        norms = torch.empty(lines, heads, dtype=torch.float32, device=q.device)
    sinks = out if score.sinks is None else score.sinks
    block_d = triton.next_power_of_2(dim)
    k, v, turn = (q, q, None) if fresh is None else (fresh.keys, fresh.values, fresh.turn)
    cos, sin = turn or (q, q)
    decode_part[(rows, kv, 1 if late else splits)](
        q, k, v, cos, sin, pool.keys, pool.values, out, parts, norms, sinks, slots, positions, places,
        shared.own if shared else slots, pool.table,
        q.stride(0), k.stride(0), v.stride(0), pool.table.stride(0),
        score.scale * pool.k_scale, pool.v_scale, score.cap, 1 / pool.k_scale, 1 / pool.v_scale, splits, width,
        FILES=fresh is not None, TURN=0 if turn is None else turn[0].shape[-1], MOST=pool.most,
        GROUP=heads // kv, KV=kv, DIM=dim, PAGE=pool.page_size, WINDOW=score.window, CHUNK=score.chunk,
        CAPPED=score.cap != 0, SINKS=score.sinks is not None, PARTED=parted, LATE=late, SHARED=shared is not None,
        PRECISION=_precision(q),
        BLOCK_G=max(16, triton.next_power_of_2(heads // kv)), BLOCK_D=block_d, BLOCK_N=t.keys,
        EARLY=early, num_warps=t.warps, num_stages=t.stages, launch_pdl=early,
    )  # fmt: skip
    if shared:
        s = shared_tuning(dim, q.dtype)
        shared_tile[(len(shared.tiles), kv)](
            q, pool.keys, pool.values, parts, norms, shared.tiles, shared.members, places, pool.table,
            q.stride(0), pool.table.stride(0), score.scale * pool.k_scale, score.cap, splits, width,
            GROUP=heads // kv, KV=kv, DIM=dim, PAGE=pool.page_size, CAPPED=score.cap != 0, LATE=late,
            PRECISION=_precision(q),
            BLOCK_M=s.queries, BLOCK_D=block_d, BLOCK_N=s.keys, num_warps=s.warps, num_stages=s.stages,
            maxnreg=s.registers,
        )  # fmt: skip
    if parted:
        block_s = merge_room(most)
        merge_parts[(rows, heads)](
            parts, norms, out, sinks, places, shared.used if shared else slots, pool.v_scale, splits, width,
            HEADS=heads, DIM=dim, SINKS=score.sinks is not None, LATE=late, SHARED=shared is not None,
            BLOCK_S=block_s, BLOCK_D=block_d, EARLY=early, num_warps=1 if block_s * block_d <= 2048 else 4,
            launch_pdl=early,
        )  # fmt: skip


def extend(
    q: Tensor, pool: Pool, score: Score, tiles: Tensor, out: Tensor, longest: int, tuning: Tuning | None = None
) -> None:
    """Rows of several tokens, after their keys were filed. q: [T, heads, dim].

    tiles: [n, 5]: slot, first position, tokens and first place in q of the row, and the tile's first token in the row;
    as many tokens a tile as `extend_tokens` says. tuning: queries // `packed` tokens.
    """
    heads, dim = q.shape[1:]
    kv = pool.keys.shape[1]
    pack = packed(heads, kv)
    t = tuning or extend_tuning(dim, q.dtype, longest * pack)
    extend_tile[(heads // pack, len(tiles))](
        q, pool.keys, pool.values, out, out if score.sinks is None else score.sinks, tiles, pool.table,
        q.stride(0), pool.table.stride(0), score.scale * pool.k_scale, pool.v_scale, score.cap,
        HEADS=heads, KV=kv, DIM=dim, PAGE=pool.page_size, WINDOW=score.window, CHUNK=score.chunk, CAPPED=score.cap != 0,
        SINKS=score.sinks is not None, PRECISION=_precision(q),
        PACK=pack, BLOCK_M=t.queries, BLOCK_D=triton.next_power_of_2(dim), BLOCK_N=t.keys,
        num_warps=t.warps, num_stages=t.stages, maxnreg=t.registers,
    )  # fmt: skip


def _precision(q: Tensor) -> str:
    """float32 products stay float32: tf32 keeps 10 bits."""
    return "ieee" if q.dtype == torch.float32 else "tf32"
