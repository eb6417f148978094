"""Checkpoints that were cut for a number of ranks before they were saved: a file for each, the same names in all.

So Grok-1 was passed around (`*-000.bin` to `*-007.bin`; later `*-TP-000.safetensors` with `*-TP-common.safetensors`).
Which tensors were cut, and along which dimension, follows from the shapes that the config asks for.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.models.layout import Cut
from sglang.models.spec import Decoder
from sglang.quant.base import Mxfp4

RANK = re.compile(r"-(?:TP-)?(\d{3})\.(?:bin|safetensors)$")


def rank_of(file: Path) -> int | None:
    found = RANK.search(file.name)
    return None if found is None else int(found[1])


def check_ranks(files: Sequence[Path], folder: Path) -> None:
    """Raise ConfigError where the file of a rank is not there."""
    ranks = {rank for file in files if (rank := rank_of(file)) is not None}
    if lacking := set(range(max(ranks, default=-1) + 1)) - ranks:
        raise ConfigError(
            f"{folder}: the weights are cut for {max(ranks) + 1} ranks, but rank {min(lacking)} is missing"
        )


def joined(cut: Cut) -> Cut:
    """The same for the pieces of a tensor: whole in every file, or to be put together along one dimension."""

    def put_together(found: Sequence[Tensor], shapes: Sequence[torch.Size], spec: Decoder) -> Sequence[Tensor | Mxfp4]:
        first = found[0]
        for dim in (None, *range(first.dim())):
            try:
                parts = cut([first if dim is None else torch.cat(list(found), dim)], shapes, spec)
            except (RuntimeError, IndexError, ValueError):
                continue
            if [part.shape for part in parts] == list(shapes):
                return parts
        return cut([first], shapes, spec)

    return put_together
