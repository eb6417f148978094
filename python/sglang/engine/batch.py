"""Plan -> the tensors of a step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import Rows
from sglang.base.plan import DRAWN, Plan
from sglang.kernels.staging import Stager

LATER = 1 << 31  # than any page of a table


@dataclass
class Batch:
    """A step on the device: T tokens in the plan's order, then padding up to a number of rows that is cheap."""

    tokens: Tensor  # [T + padding] int64
    positions: Tensor  # [T + padding] int64
    rows: Rows
    offsets: np.ndarray  # [R + 1] where each row's tokens begin
    sampled_rows: np.ndarray  # [S] rows that draw
    sampled: Tensor | None  # [S] int64, their last tokens' places; None: all of T draw, and there is no padding
    sampled_slots: Tensor  # [S] int64


class Tables:
    """Per-slot state of the engine: page tables on the host, last drawn tokens on the device.

    device_pages: the page tables again, on a CUDA device, where kernels walk them.
    touched: the least index of entries filed since it was last set to LATER, by whoever remembers something of the
    tables (`graphs._Common`).
    """

    def __init__(
        self, slots: int, pages_per_seq: int, page_size: int, device: torch.device, padded: Callable[[int], int]
    ):
        """padded: rows to compute where so many are asked for."""
        self.pages = np.zeros((slots, pages_per_seq), np.int32)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)
        self.page_size = page_size
        self.touched = LATER
        self._padded = padded
        self.device_pages: Tensor | None = None
        if device.type == "cpu":
            self._last = self.last.numpy()  # the same memory: torch takes ten times as long for a few numbers
        else:
            self.device_pages = torch.zeros(slots, pages_per_seq, dtype=torch.int32, device=device)
        self._stager = Stager(device)

    def file(self, plan: Plan) -> None:
        """Apply the plan's new table entries on the host."""
        self.pages[plan.table_slots, plan.table_index] = plan.table_pages
        if self.device_pages is not None and len(plan.table_index):
            self.touched = min(self.touched, int(plan.table_index.min()))

    def batch(self, plan: Plan) -> Batch:
        """Apply the plan's new table entries and lay out its tokens."""
        self.file(plan)
        if self.device_pages is not None:
            return self._staged(plan, self.device_pages)
        total = len(plan.tokens)
        if total == len(plan.slots):  # one token a row, as where all decode
            offsets, slots, positions = np.arange(total + 1), plan.slots, plan.starts
        else:
            offsets = np.concatenate(([0], np.cumsum(plan.counts)))
            slots = np.repeat(plan.slots, plan.counts)
            positions = np.arange(total) + np.repeat(plan.starts - offsets[:-1], plan.counts)
        both = np.zeros((2, self._padded(total)), np.int64)
        both[0, :total] = np.where(plan.tokens == DRAWN, self._last[slots], plan.tokens)
        both[1, :total] = positions
        tokens, places = torch.from_numpy(both[0]), torch.from_numpy(both[1])  # unpacking a tensor takes longer
        sampled_rows = np.flatnonzero(plan.samples)
        sampled = None
        if len(sampled_rows) < len(tokens):
            sampled = torch.from_numpy(offsets[1:][sampled_rows] - 1)
        rows = Rows(plan.slots, plan.starts, plan.counts, self.pages, self.page_size)
        sampled_slots = torch.from_numpy(plan.slots[sampled_rows].astype(np.int64))
        return Batch(tokens, places, rows, offsets, sampled_rows, sampled, sampled_slots)

    def keep(self, slots: Tensor, drawn: Tensor) -> None:
        """The tokens that these slots have drawn; both int64 [S], on the device."""
        if self.device_pages is None:
            self._last[slots.numpy()] = drawn.numpy()
        else:
            self.last[slots] = drawn

    def _staged(self, plan: Plan, table: Tensor) -> Batch:
        """`batch` in one copy that nobody waits for; no padding, which pays on CPUs alone."""
        offsets = np.concatenate(([0], np.cumsum(plan.counts)))
        total = int(offsets[-1])
        positions = np.arange(total) + np.repeat(plan.starts - offsets[:-1], plan.counts)
        drawn = np.flatnonzero(plan.tokens == DRAWN)
        slots = np.repeat(plan.slots, plan.counts)[drawn]
        sampled_rows = np.flatnonzero(plan.samples)
        last = offsets[1:][sampled_rows] - 1
        entries = plan.table_slots, plan.table_index, plan.table_pages
        staged = self._stager.put([plan.tokens, positions, drawn, slots, last, plan.slots[sampled_rows], *entries])
        tokens = staged[0]
        if len(drawn):
            tokens[staged[2]] = self.last[staged[3]]
        if len(plan.table_slots):
            table[staged[6], staged[7]] = staged[8].int()
        rows = Rows(plan.slots, plan.starts, plan.counts, self.pages, self.page_size)
        sampled = staged[4] if len(last) < total else None
        return Batch(tokens, staged[1], rows, offsets, sampled_rows, sampled, staged[5])
