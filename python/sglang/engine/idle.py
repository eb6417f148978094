"""Work for later steps, done while there is no step, and left the moment somebody comes."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from sglang.attention.base import Feature, Look, Rows, TurningBackend

log = logging.getLogger("sglang.engine")
SPARE_BYTES, SPARE_SHARE = 2 << 30, 1 / 20  # that what is prepared leaves for steps: the smaller of both
Wanted = Callable[[], bool]  # whether somebody has come
ALONE_S = 0.005  # that a capture waits for other threads; then it is left to another time
# Held by whoever captures, and by other threads that wait for the device: it permits no two of these at a time.
waits_for_device = threading.Lock()


class Interrupted(Exception):
    """Somebody has come."""


class Yielding:
    """Another backend, as long as nobody has come: then it raises Interrupted where the next layer attends."""

    features: ClassVar[frozenset[Feature]] = frozenset({"window", "chunk", "softcap", "sinks", "turn"})

    def __init__(self, backend: TurningBackend, wanted: Wanted):
        self._backend, self._wanted = backend, wanted

    def plan(self, rows: Rows) -> None:
        self._backend.plan(rows)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        self._look_up()
        return self._backend.attend(q, k, v, layer, look)

    def turn_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], layer: int, look: Look
    ) -> Tensor:
        self._look_up()
        return self._backend.turn_and_attend(q, k, v, turn, layer, look)

    def _look_up(self) -> None:
        if self._wanted():
            raise Interrupted


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """For a capture: whether no other thread waits for the device, and none will meanwhile."""
    got = waits_for_device.acquire(timeout=ALONE_S)
    try:
        yield got
    finally:
        if got:
            waits_for_device.release()


def never() -> bool:
    return False


def roomy(device: torch.device, more: int = 0) -> bool:
    """Whether memory is left for steps, besides `more` bytes."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return free >= min(SPARE_BYTES, SPARE_SHARE * total) + more
