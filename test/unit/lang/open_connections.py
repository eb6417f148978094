"""Which connections the loop of the language has to a server, and whether they end."""

import gc
import time
from collections.abc import Callable
from typing import Any

from sglang.lang import loop


def open_to(url: str) -> set[Any]:
    """Transports to this server."""
    port = int(url.rpartition(":")[2])
    transports: dict[int, Any] = loop.get()._transports  # type: ignore[attr-defined]
    alive = [t for t in [*transports.values()] if not t.is_closing() and t.get_extra_info("peername")]
    return {t for t in alive if t.get_extra_info("peername")[1] == port}


def closed(transports: set[Any]) -> bool:
    """Whether all of them are before long."""
    deadline = time.monotonic() + 30
    while not all(t.is_closing() for t in transports) and time.monotonic() < deadline:
        time.sleep(0.01)
    return all(t.is_closing() for t in transports)


def check_it_closes_its_connections(url: str, make: Callable[[], Any], ask: Callable[[Any], object]) -> None:
    """A backend: when it is shut down, and when it is dropped. Others may have connections to the same server."""
    for dropped in (False, True):
        others, backend = open_to(url), make()
        ask(backend)
        own = open_to(url) - others
        assert own
        if dropped:
            del backend
            gc.collect()
        else:
            backend.shutdown()
        assert closed(own)
