"""Packed: the weights of all experts in 4 bits, laid out for one kernel (`experts_packed`).

128 columns of a row are a piece: 16 words, side by side, and rows follow each other. Nibble j of word i is column
16 j + i, as in `int4`. Rows are not padded; the last piece may be part of one, where inputs count as zeros.

int4: a nibble is a code, a step a scale in float32 whose lowest byte is the zero instead.
mxfp4: a code is a sign, two bits of an exponent and one of a mantissa. Under the bits of a bfloat16 it is its number
times 2^-126. So each half of a word keeps four codes where a shift by 0, 3 or 6 puts their bits where those belong;
what is left over has the fourth in pieces. A step has the factors of four blocks of 32, a byte each: the exponent of a
bfloat16, with the 126 that the codes lack.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["int4", "mxfp4"]
COLUMNS = 128  # of a piece
BLOCK = 32  # columns of an MXFP4 block
# Where a half word has mantissa, both bits of the exponent, and sign, of its four codes.
PLACES = ((6, 7, 8, 15), (3, 4, 5, 12), (0, 1, 2, 9), (10, 11, 13, 14))
LACKS = 126
MOST = 254 - LACKS  # exponent, with files' bias of 127, that such a byte can have
# What the 16 codes of FP4 stand for.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def fits(size: int, groups: int) -> bool:
    """Whether a weight with groups of `size` columns can be laid out."""
    return groups == 1 or size in (32, 64) or size % COLUMNS == 0


def packed_bytes(rows: int, inputs: int, each: int) -> int:
    """Of one expert's weight. each: steps of a piece, of `each_of`."""
    return 4 * -(-inputs // COLUMNS) * rows * (COLUMNS // 8 + each)


def each_of(kind: Kind, size: int, groups: int) -> int:
    return 1 if kind == "mxfp4" or groups == 1 else max(COLUMNS // size, 1)


@dataclass(frozen=True)
class Packed:
    """words: int32 [experts, pieces, rows, 16]; steps: int32 [experts, pieces, each, rows]."""

    words: Tensor
    steps: Tensor
    inputs: int
    kind: Kind

    @staticmethod
    def empty(count: int, rows: int, inputs: int, kind: Kind, each: int, device: torch.device) -> "Packed":
        """each: of `each_of`."""
        size = count, -(-inputs // COLUMNS), rows
        words = torch.empty(*size, COLUMNS // 8, dtype=torch.int32, device=device)
        return Packed(words, torch.empty(*size[:2], each, rows, dtype=torch.int32, device=device), inputs, kind)

    @property
    def shape(self) -> torch.Size:
        """Of what it stands for: experts, rows, inputs."""
        return torch.Size((self.words.shape[0], self.words.shape[2], self.inputs))

    @property
    def each(self) -> int:
        return self.steps.shape[2]

    @property
    def bytes(self) -> int:
        return 4 * (self.words.numel() + self.steps.numel())

    def put_codes(self, e: int, rows: slice, codes: Tensor, scales: Tensor, zeros: Tensor, size: int) -> None:
        """codes: uint8 below 16, [rows, inputs]; scales, zeros (whole numbers below 128): [rows, groups of `size`]."""
        words = torch.zeros_like(self.words[e, :, rows])
        for j, nibbles in enumerate(self._nibbles(codes)):
            words |= nibbles.int() << (4 * j)
        self.words[e, :, rows].copy_(words)
        pieces, groups = self.steps.shape[1], scales.shape[1]
        first = torch.arange(pieces * self.each, device=codes.device) * (COLUMNS // self.each)
        group_of = (first // (self.inputs if groups == 1 else size)).clamp_max_(groups - 1)
        steps = (scales.float().contiguous().view(torch.int32) + 128 & -256) | zeros.int()
        steps = steps[:, group_of].view(-1, pieces, self.each)
        self.steps[e, :, :, rows].copy_(steps.permute(1, 2, 0))

    def put_blocks(self, e: int, rows: slice, blocks: Tensor, exponents: Tensor) -> None:
        """blocks: uint8 [rows, inputs / 32, 16], the low half first; exponents: uint8 [rows, inputs / 32], <= MOST."""
        places = torch.zeros(4, 16, dtype=torch.int32)
        for c, bits in enumerate(PLACES):
            places[c] = sum((torch.arange(16) >> b & 1) << place for b, place in enumerate(bits))
        places = places.to(blocks.device)
        codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(1)
        words = torch.zeros_like(self.words[e, :, rows])
        for j, nibbles in enumerate(self._nibbles(codes)):
            words |= places[j % 4][nibbles.int()] << (j // 4 * 16)
        self.words[e, :, rows].copy_(words)
        pieces = self.steps.shape[1]
        factors = F.pad(exponents.int() + LACKS, (0, pieces * 4 - exponents.shape[1])).view(-1, pieces, 4)
        steps = factors[..., 0] | factors[..., 1] << 8 | factors[..., 2] << 16 | factors[..., 3] << 24
        self.steps[e, :, 0, rows].copy_(steps.t())

    def _nibbles(self, codes: Tensor) -> tuple[Tensor, ...]:
        """[rows, inputs] -> 8 times [pieces, rows, 16]."""
        pieces = self.words.shape[1]
        whole = F.pad(codes, (0, pieces * COLUMNS - self.inputs)).view(len(codes), pieces, 8, 16)
        return whole.transpose(0, 1).unbind(2)

    def dense(self, e: int) -> Tensor:
        """One expert's weight: float32 [rows, inputs]."""
        words, steps = self.words[e], self.steps[e].transpose(1, 2)  # [pieces, rows, 16], [pieces, rows, each]
        shifts = torch.arange(4, dtype=torch.int32, device=words.device)
        if self.kind == "int4":
            codes = (words[:, :, None] >> (4 * torch.arange(8, dtype=torch.int32, device=words.device))[:, None]) & 15
            values = codes.flatten(2).float().unflatten(2, (self.each, -1))
            values = (values - (steps & 255)[..., None]) * (steps & -256).view(torch.float32)[..., None]
        else:
            codes = torch.zeros(*words.shape[:2], 8, 16, dtype=torch.int32, device=words.device)
            for j in range(8):
                for b, place in enumerate(PLACES[j % 4]):
                    codes[:, :, j] |= (words >> (place + j // 4 * 16) & 1) << b
            numbers = torch.tensor(FP4, device=words.device)[codes]
            factors = torch.exp2(((steps >> (8 * shifts)) & 255).float() - LACKS - 127)
            values = numbers.flatten(2).unflatten(2, (4, -1)) * factors[..., None]
        return values.flatten(2).transpose(0, 1).flatten(1)[:, : self.inputs]
