"""How large a piece a program takes of the product of a block of pairs, by how many an expert has."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sglang.kernels.experts_stack import Stack
from sglang.kernels.packed import Packed


class Tile(NamedTuple):
    """block_m: pairs, block_n: rows of a weight (twice as many where gate and up are), block_k: columns of a step.

    together: blocks that go through all rows side by side. split: parts of the columns that a program goes through side
    by side, where pairs are by themselves and weights of 4 bits.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    together: int = 8
    split: int = 1


class Both(NamedTuple):
    """Tiles of gate and up, and of down; and each where it has DEEP inputs or more, if that differs."""

    opens: Tile
    closes: Tile
    opens_deep: Tile | None = None
    closes_deep: Tile | None = None

    def of(self, closes: bool, inputs: int) -> Tile:
        deep = self[2 + closes] if inputs >= DEEP else None
        return deep or (self.closes if closes else self.opens)


DEEP = 4096
# By pairs of an expert on average; measured on an H200 by `scripts/gpu_check.py moe`, unless it says otherwise.
Table = dict[float, Both]
TILES: Table = {  # of 16-bit types
    10: Both(Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
    24: Both(Tile(32, 64, 64, 4, 4), Tile(32, 64, 128, 4, 3)),
    44: Both(Tile(64, 64, 64, 4, 4), Tile(64, 64, 64, 4, 4)),
    66: Both(Tile(128, 64, 64, 4, 3), Tile(64, 64, 64, 4, 4)),
    128: Both(Tile(128, 64, 64, 4, 3), Tile(128, 128, 64, 4, 3)),
    512: Both(Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3)),
    float("inf"): Both(Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3), None, Tile(128, 256, 64, 8, 3)),
}
# Of 4 bits, whose steps are 128 columns.
PACKED: Table = {
    10: Both(Tile(16, 64, 128, 4, 3), Tile(16, 128, 128, 4, 4), Tile(16, 128, 128, 4, 4), Tile(16, 64, 128, 4, 6)),
    24: Both(Tile(32, 64, 128, 4, 4), Tile(32, 64, 128, 4, 4)),
    66: Both(Tile(64, 64, 128, 4, 3), Tile(64, 64, 128, 4, 3)),
    # Gate and up by a tile of 128, 64 rows and 4 warps took 2 to 4% less here, but its registers spill.
    300: Both(Tile(128, 128, 128, 8, 3), Tile(64, 128, 128, 4, 3)),
    600: Both(Tile(128, 128, 128, 8, 3), Tile(128, 64, 128, 4, 3)),
    float("inf"): Both(Tile(128, 128, 128, 8, 3), Tile(128, 128, 128, 8, 3, 16)),
}
# Of 8 bits with a scale a block of 128 columns: a step's sums and those before it must both fit into registers. Four
# warps are 2 to 2.5 times as fast as eight with twice the rows.
SCALED: Table = {
    10: Both(Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
    66: Both(Tile(32, 64, 128, 4, 3), Tile(32, 64, 128, 4, 3)),
    float("inf"): Both(Tile(128, 32, 128, 4, 3), Tile(128, 64, 128, 4, 3)),
}
PROGRAMS = 512  # of four warps, that occupy an H200: four of each multiprocessor's


def tiles_of(ids: int, experts: int, stacks: tuple[Stack, Stack]) -> tuple[Tile, Tile]:
    """ids, experts: how many there are. stacks: gate and up, down."""
    opens, closes = (_tile(ids / experts, stack, closes) for stack, closes in zip(stacks, (False, True), strict=True))
    return opens, closes


def _tile(each: float, stack: Stack, closes: bool) -> Tile:
    weight = stack.weight
    table = PACKED if isinstance(weight, Packed) else SCALED if stack.groups > 1 else TILES
    tile = next(both for most, both in table.items() if each <= most).of(closes, weight.shape[2])
    return tile if isinstance(weight, Packed) or stack.groups > 1 else fitted(tile, weight)


def fitted(tile: Tile, weight: Tensor) -> Tile:
    """The tile for the weight's type: as many bytes of columns."""
    if weight.dtype == torch.float32:
        return tile._replace(block_m=min(tile.block_m, 32), block_n=min(tile.block_n, 64), block_k=32, stages=2)
    inputs = weight.shape[2]
    wide = tile.block_k * (2 if weight.itemsize == 1 else 1)
    while wide > 32 and inputs % wide:
        wide //= 2  # a tail would be masked, in every step
    return tile._replace(block_k=min(wide, max(16, triton.next_power_of_2(inputs))))


def alone(pairs: int, stack: Stack, closes: bool) -> Tile:
    """For pairs by themselves, whose weights have 4 bits: more parts of the columns where rows are few programs.

    Without parts, a token of Qwen1.5-MoE's was 88 programs of 16 steps: 12 us where what it reads takes 3. With them a
    layer of it takes 17 us instead of 20, of GPT-OSS 20B 35 instead of 60, of Mixtral 79 instead of 104.
    """
    packed = stack.weight
    assert isinstance(packed, Packed)
    rows = packed.shape[1] if closes else packed.shape[1] // 2
    split = 1
    while split < 8 and pairs * triton.cdiv(rows, 64) * split < PROGRAMS:
        split *= 2
    return Tile(16, 64 // split, 128, 4, 4, split=split)
