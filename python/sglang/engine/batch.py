"""Plan -> the tensors of a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import Rows
from sglang.base.plan import DRAWN, Plan


@dataclass
class Batch:
    """A step on the device: T tokens in the plan's order, then padding up to a number of rows that is cheap."""

    tokens: Tensor  # [T + padding] int64
    positions: Tensor  # [T + padding] int64
    rows: Rows
    offsets: np.ndarray  # [R + 1] where each row's tokens begin
    sampled_rows: np.ndarray  # [S] rows that draw
    sampled: Tensor | None  # [S + padding] int64, their last tokens' places; None: all T tokens draw, in order
    sampled_slots: Tensor  # [S] int64


class Tables:
    """Per-slot state of the engine: page tables on the host, last drawn tokens on the device."""

    def __init__(self, slots: int, pages_per_seq: int, page_size: int, device: torch.device, cheapest: Sequence[int]):
        """cheapest[n]: rows to compute where n are asked for; counts beyond the list stand for themselves."""
        self.pages = np.zeros((slots, pages_per_seq), np.int32)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)
        self.page_size = page_size
        self._device = device
        self._cheapest = cheapest

    def batch(self, plan: Plan) -> Batch:
        """Apply the plan's new table entries and lay out its tokens."""
        self.pages[plan.table_slots, plan.table_index] = plan.table_pages
        offsets = np.concatenate(([0], np.cumsum(plan.counts)))
        total = int(offsets[-1])
        padding = self._padded(total) - total
        positions = np.arange(total) + np.repeat(plan.starts - offsets[:-1], plan.counts)
        tokens = self._to_device(np.pad(plan.tokens, (0, padding)))
        drawn = np.flatnonzero(plan.tokens == DRAWN)
        if len(drawn):
            slots = np.repeat(plan.slots, plan.counts)[drawn]
            tokens[self._to_device(drawn)] = self.last[self._to_device(slots)]
        rows = Rows(plan.slots, plan.starts, plan.counts, self.pages, self.page_size)
        sampled_rows = np.flatnonzero(plan.samples)
        sampled = None
        if len(sampled_rows) < total:
            last = offsets[1:][sampled_rows] - 1
            sampled = self._to_device(np.pad(last, (0, self._padded(len(last)) - len(last))))
        return Batch(
            tokens,
            self._to_device(np.pad(positions, (0, padding))),
            rows,
            offsets,
            sampled_rows,
            sampled,
            self._to_device(plan.slots[sampled_rows]),
        )

    def _padded(self, n: int) -> int:
        return self._cheapest[n] if n < len(self._cheapest) else n

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device, non_blocking=True)
