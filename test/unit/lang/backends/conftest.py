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


@pytest.fixture
def wire() -> Iterator[WireServer]:
    """A server of every vendor, of this test only, with a model that knows ANSWERS."""
    with wire_server(Scripted(dict(ANSWERS))) as server:
        yield server
