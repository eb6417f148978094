from collections.abc import Iterator

import pytest
from wire_model import Scripted
from wire_server import WireServer, wire_server

ANSWERS = {
    "capital of the United States": "Washington, D.C.",
    "capital of France is": " Paris.\nIt is old.",
    "two local attractions": "1. The White House\n2. The Lincoln Memorial",
    "hours in a day is ": "24 of them",
    "My name is": ' "Ada Lovelace" they say',
    "Write JSON": '{"name": "Ada"}',
}


@pytest.fixture(scope="session")
def _wire() -> Iterator[WireServer]:
    with wire_server(Scripted()) as server:
        yield server


@pytest.fixture
def wire(_wire: WireServer) -> WireServer:
    """A server of every vendor, as new, with a model that knows ANSWERS."""
    _wire.reset(Scripted(dict(ANSWERS)))
    return _wire
