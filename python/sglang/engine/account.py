"""Where memory goes: what a start says of it, and what it says where there is not enough."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sglang.base.errors import NoRoom
from sglang.layers.memory import free_bytes

GIB = 2**30


@dataclass(frozen=True)
class Account:
    """Bytes. The words are those of `sglang plan`. total: of the device, None on a CPU; free: what nobody holds, or
    torch holds for nobody; step: of the largest, measured, 0 where it was not."""

    weights: float
    cells: float
    tokens: int
    constraints: float
    step: float
    free: float
    total: float | None = None

    def __str__(self) -> str:
        parts = [f"weights {_gib(self.weights)}"]
        if self.total is None:
            parts.append(f"keys and values at most {_gib(self.cells)} ({self.tokens} tokens)")
            return f"{', '.join(parts)}; of RAM {_gib(self.free)} are free (GiB)"
        known = self.weights + self.cells + self.constraints
        parts.append(f"keys and values {_gib(self.cells)} ({self.tokens} tokens)")
        parts.append(f"constraints {_gib(self.constraints)}")
        parts += [f"a step at most {_gib(self.step)}"] if self.step else []
        parts.append(f"graphs so far, kernels, workspaces and others {_gib(self.total - known - self.free)}")
        parts.append(f"left free {_gib(self.free - self.step)}")
        return f"{', '.join(parts)}; in all {_gib(self.total)} (GiB)"


def unheld(device: torch.device) -> tuple[float, float | None]:
    """Bytes that steps and graphs can have, and all of the device."""
    if device.type != "cuda":
        return free_bytes(device), None
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


@contextlib.contextmanager
def room_for(what: str, device: torch.device) -> Iterator[None]:
    """Whatever finds no memory inside ends as NoRoom, which says how much there was."""
    free = free_bytes(device)
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own are RuntimeErrors
        if not short(error):
            raise
        raise NoRoom(f"{_gib(free)} GiB of memory are too little for {what}", free) from None


def check_room(need: float, what: str, device: torch.device) -> None:
    """Where the system would end the process instead of saying that there is too little. Raises NoRoom."""
    free = free_bytes(device)
    if device.type == "cpu" and need > free:
        raise NoRoom(f"{_gib(free)} GiB of memory are too little for {what}, which take {_gib(need)}", free)


def short(error: BaseException) -> bool:
    """Whether it says that there is no memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def less(fraction: float, total: float) -> float:
    """A --mem-fraction-static that leaves so much more that it is worth a try: 2 GiB, within 3 and 10 percent."""
    return max(0.01, int(100 * (fraction - min(max(2 * GIB / total, 0.03), 0.1))) / 100)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
