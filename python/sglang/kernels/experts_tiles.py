"""How large a piece a program takes of the product of a block of pairs, by how many an expert has."""

from typing import NamedTuple

import torch
import triton

from sglang.kernels import fp8
from sglang.kernels.experts_stack import Stack
from sglang.kernels.packed import Packed


class Tile(NamedTuple):
    """block_m: pairs, block_n: rows of a weight (twice as many where gate and up are), block_k: columns of a step.

    together: blocks that go through all rows side by side.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    together: int = 8


# By pairs of an expert on average: tiles of gate and up, and of down, of 16-bit types; measured on an H200, where
# scripts/gpu_moe.py times others beside them.
TILES: dict[float, tuple[Tile, Tile]] = {
    10: (Tile(16, 64, 128, 4, 3), Tile(16, 64, 128, 4, 4)),
    24: (Tile(32, 64, 64, 4, 4), Tile(32, 64, 128, 4, 3)),
    66: (Tile(64, 64, 128, 4, 3), Tile(64, 64, 128, 4, 3)),
    128: (Tile(128, 64, 64, 4, 3), Tile(128, 128, 64, 4, 3)),
    float("inf"): (Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3)),
}
DEEP = 4096  # inputs of down from which so wide a tile is faster for many pairs
DEEP_TILE = Tile(128, 256, 64, 8, 3)


# The same of 4 bits, whose steps are 128 columns. Not measured yet: scripts/gpu_moe.py times others beside them.
PACKED: dict[float, tuple[Tile, Tile]] = {
    10: (Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 5)),
    24: (Tile(32, 64, 128, 4, 4), Tile(32, 64, 128, 4, 4)),
    66: (Tile(64, 64, 128, 4, 3), Tile(64, 64, 128, 4, 3)),
    float("inf"): (Tile(128, 128, 128, 8, 3), Tile(128, 128, 128, 8, 3)),
}


def tiles_of(ids: int, experts: int, stacks: tuple[Stack, Stack]) -> tuple[Tile, Tile]:
    """ids, experts: how many there are. stacks: gate and up, down."""
    each = ids / experts
    most = next(most for most in TILES if each <= most)
    opens, closes = TILES[most]
    if most > 128 and stacks[1].weight.shape[2] >= DEEP:
        closes = DEEP_TILE
    few = next(tiles for most, tiles in PACKED.items() if each <= most)
    return fitted(opens, stacks[0], few[0]), fitted(closes, stacks[1], few[1])


def fitted(tile: Tile, stack: Stack, packed: Tile) -> Tile:
    """The tile for the weight's type: as many bytes of columns, and what scales need; `packed` for 4 bits."""
    if isinstance(stack.weight, Packed):
        return packed
    if stack.groups > 1:  # what a step adds is scaled by itself: there must be registers for it
        return tile._replace(block_k=fp8.COLUMNS, block_n=64, warps=8 if tile.block_m == 128 else tile.warps, stages=3)
    if stack.weight.dtype == torch.float32:
        return tile._replace(block_m=min(tile.block_m, 32), block_n=min(tile.block_n, 64), block_k=32, stages=2)
    inputs = stack.weight.shape[2]
    wide = tile.block_k * (2 if stack.weight.itemsize == 1 else 1)
    while wide > 32 and inputs % wide:
        wide //= 2  # a tail would be masked, in every step
    return tile._replace(block_k=min(wide, max(16, triton.next_power_of_2(inputs))))
