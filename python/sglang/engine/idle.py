"""Work for later steps, done while there is no step, and left the moment somebody comes."""

import logging
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sglang.attention.base import Feature, Look, Rows, TurningBackend

log = logging.getLogger("sglang.engine")
SPARE_BYTES, SPARE_SHARE = 2 << 30, 1 / 20  # that what is prepared leaves for steps: the smaller of both
Wanted = Callable[[], bool]  # whether somebody has come


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


def never() -> bool:
    return False


def roomy(device: torch.device, more: int = 0) -> bool:
    """Whether memory is left for steps, besides `more` bytes."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return free >= min(SPARE_BYTES, SPARE_SHARE * total) + more
