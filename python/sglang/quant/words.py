"""Numbers of a few bits packed in 32-bit words, as GPTQ, AWQ, Marlin and compressed-tensors files hold them."""

import functools

import torch
from torch import Tensor

# AWQ's order: nibble i of a word holds column AWQ_ORDER[i] of its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 [n, words] -> uint8 [n, words * 32 / bits], lowest bits first. bits: 2, 3, 4, 8; 3 cross words' borders."""
    if bits == 3:
        stream = (words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
        stream = stream.flatten(-2)
        stream = stream[..., : stream.shape[-1] // 3 * 3].unflatten(-1, (-1, 3)).to(torch.uint8)
        return stream[..., 0] | stream[..., 1] << 1 | stream[..., 2] << 2
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2)


def awq_unpacked(words: Tensor) -> Tensor:
    """int32 [n, words] -> uint8 [n, words * 8] in the columns' own order."""
    nibbles = unpacked(words, 4).unflatten(-1, (-1, 8))
    return nibbles[..., torch.tensor(AWQ_ORDER).argsort()].flatten(-2)


@functools.cache
def _marlin_order() -> Tensor:
    """Where each value of a segment, 16 inputs by 64 rows, stands among its 1024: what a thread multiplies is together.

    A tile is 16 by 16; thread i of 32 holds column i / 4 of both its halves, four inputs of each; four tiles make a
    segment. AWQ's order of eight is on top of that.
    """
    order = []
    for thread in range(32):
        first = 2 * (thread % 4)
        inputs = (first, first + 1, first + 8, first + 9)
        one = [16 * k + thread // 4 + 8 * half for half in (0, 1) for k in inputs]
        order += [256 * tile + at for tile in range(4) for at in one]
    return torch.tensor(order).view(-1, 8)[:, torch.tensor(AWQ_ORDER)].flatten()


def marlin_unpacked(words: Tensor) -> Tensor:
    """B, int32 [inputs / 16, 2 rows] -> uint8 [rows, inputs]."""
    tiles, rows = words.shape[0], words.shape[1] // 2
    mixed = unpacked(words, 4).view(-1, 1024)
    values = torch.empty_like(mixed)
    values[:, _marlin_order()] = mixed
    # [tile of inputs, tile of rows, input, row]
    return values.view(tiles, rows // 16, 16, 16).permute(1, 3, 0, 2).reshape(rows, tiles * 16)


def marlin_scales(scales: Tensor) -> Tensor:
    """s, [groups, rows] as on disk -> [rows, groups]."""
    if scales.shape[0] > 1:
        order = torch.tensor([i + 8 * j for i in range(8) for j in range(8)])
    else:
        order = torch.tensor([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])
    mixed = scales.reshape(-1, len(order))
    values = torch.empty_like(mixed)
    values[:, order] = mixed
    return values.view(scales.shape).t()
