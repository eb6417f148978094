"""Which servers the loop of the language has connections to."""

import gc
import time
from collections.abc import Callable
from typing import Any

from sglang.lang import loop


def open_to(url: str) -> int:
    """Connections of the loop to this server."""
    port = int(url.rpartition(":")[2])
    transports: dict[int, Any] = loop.get()._transports  # type: ignore[attr-defined]
    alive = [t for t in transports.values() if not t.is_closing()]
    return sum(t.get_extra_info("peername")[1] == port for t in alive if t.get_extra_info("peername"))


def closed(url: str) -> bool:
    """Whether there are none before long."""
    deadline = time.monotonic() + 30
    while open_to(url) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not open_to(url)


def check_it_closes_its_connections(url: str, make: Callable[[], Any], ask: Callable[[Any], object]) -> None:
    """A backend: when it is shut down, and when it is dropped."""
    for dropped in (False, True):
        backend = make()
        ask(backend)
        assert open_to(url)
        if dropped:
            del backend
            gc.collect()
        else:
            backend.shutdown()
        assert closed(url)
