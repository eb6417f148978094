"""Host arrays -> device in one copy, through pinned memory that is not written again before it was read."""

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGN = 2  # int64s: kernels are compiled once for pointers that 16 divides, again for others
RING = 4  # buffers; a step is never more than two behind


@functools.cache
def triton_works() -> bool:
    """Whether Triton is installed: torch's wheels bring it along where there is CUDA, and not everywhere else."""
    return importlib.util.find_spec("triton") is not None


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device. From memory that is not pinned a copy waits for all the device has to do."""
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class Stager:
    """`put` copies integer arrays to the device and returns at once; on a CPU it only converts."""

    def __init__(self, device: torch.device):
        self._device = device
        self._ring: list[tuple[Tensor, torch.cuda.Event] | None] = [None] * RING
        self._at = 0

    def put(self, arrays: Sequence[NDArray[np.integer]]) -> list[Tensor]:
        """int64 tensors of the arrays' shapes, in one piece of device memory."""
        places, total = [], 0
        for array in arrays:
            places.append(total)
            total += -(-array.size // ALIGN) * ALIGN
        if self._device.type == "cpu":
            host = torch.empty(total, dtype=torch.int64)
            _fill(host, arrays, places)
            return _views(host, arrays, places)
        host, event = self._next(total)
        _fill(host, arrays, places)
        whole = host[:total].to(self._device, non_blocking=True)
        event.record()
        return _views(whole, arrays, places)

    def put_into(self, target: Tensor, array: NDArray[np.int64]) -> None:
        """target: int64, on the device, contiguous; array: as many values."""
        if self._device.type == "cpu":
            target.copy_(torch.from_numpy(array).view(target.shape))
            return
        host, event = self._next(array.size)
        _fill(host, [array], [0])
        target.copy_(host[: array.size].view(target.shape), non_blocking=True)
        event.record()

    def _next(self, size: int) -> tuple[Tensor, torch.cuda.Event]:
        """Pinned memory that nothing reads any more, and the event to record when it has been read again."""
        self._at = (self._at + 1) % RING
        kept = self._ring[self._at]
        if kept is not None:
            kept[1].synchronize()  # its copy was enqueued steps ago
        if kept is None or len(kept[0]) < size:
            kept = (
                torch.empty(max(4096, 1 << size.bit_length()), dtype=torch.int64, pin_memory=True),
                torch.cuda.Event(),
            )
            self._ring[self._at] = kept
        return kept


def _fill(host: Tensor, arrays: Sequence[NDArray[np.integer]], places: list[int]) -> None:
    whole = host.numpy()
    for array, at in zip(arrays, places, strict=True):
        whole[at : at + array.size] = array.reshape(-1)


def _views(whole: Tensor, arrays: Sequence[NDArray[np.integer]], places: list[int]) -> list[Tensor]:
    return [whole[at : at + a.size].view(a.shape) for a, at in zip(arrays, places, strict=True)]


class Landing:
    """Device -> host: where a step's tokens come down, and when. Buffers are used in turn; at most RING are awaited at
    once."""

    def __init__(self, most: int, device: torch.device):
        self._ring = [
            (torch.empty(most, dtype=torch.int64, pin_memory=True), _timed_event(), _timed_event()) for _ in range(RING)
        ]
        self._at = 0

    def begin(self) -> None:
        """Before a step is launched."""
        self._at = (self._at + 1) % RING
        self._ring[self._at][1].record()

    def bring(self, tensor: Tensor) -> tuple[Tensor, torch.cuda.Event, torch.cuda.Event]:
        """Start copying an int64 tensor [n], the last of a step: its values are in the first that is returned once the
        third has happened. The second: the step's begin on the device."""
        host, begun, ended = self._ring[self._at]
        part = host[: len(tensor)]
        part.copy_(tensor, non_blocking=True)
        ended.record()
        return part, begun, ended


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
