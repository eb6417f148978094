"""Plan -> the tensors of a step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import Rows
from sglang.base.plan import DRAWN, Plan


@dataclass
class Batch:
    """A step on the device. sampled: places (among the T tokens) whose logits are drawn from; rows: theirs."""

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    rows: Rows
    offsets: np.ndarray  # [R + 1] where each row's tokens begin
    sampled_rows: np.ndarray  # [S]
    sampled: Tensor  # [S] int64


class Tables:
    """Per-slot state of the engine: page tables on the host, last drawn tokens on the device."""

    def __init__(self, slots: int, pages_per_seq: int, page_size: int, device: torch.device):
        self.pages = np.zeros((slots, pages_per_seq), np.int32)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)
        self.page_size = page_size
        self._device = device

    def batch(self, plan: Plan) -> Batch:
        """Apply the plan's new table entries and lay out its tokens."""
        self.pages[plan.table_slots, plan.table_index] = plan.table_pages
        offsets = np.concatenate(([0], np.cumsum(plan.counts)))
        positions = np.arange(offsets[-1]) + np.repeat(plan.starts - offsets[:-1], plan.counts)
        tokens = self._to_device(plan.tokens.astype(np.int64))
        drawn = np.flatnonzero(plan.tokens == DRAWN)
        if len(drawn):
            slots = np.repeat(plan.slots, plan.counts)[drawn]
            tokens[self._to_device(drawn)] = self.last[self._to_device(slots.astype(np.int64))]
        rows = Rows(plan.starts, plan.counts, [self.pages[slot] for slot in plan.slots], self.page_size)
        sampled_rows = np.flatnonzero(plan.samples)
        sampled = self._to_device(offsets[1:][sampled_rows] - 1)
        return Batch(tokens, self._to_device(positions), rows, offsets, sampled_rows, sampled)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self._device, non_blocking=True)
