"""Tiny random checkpoints written by transformers, the reference all families are compared with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import Make
from tiny_checkpoints import by_transformers


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing here is worth a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make("Llama", **config) -> (folder, transformers model in float32). The same arguments give the same folder."""
    made: dict[str, tuple[Path, Any]] = {}

    def build(family: str, **changes: Any) -> tuple[Path, Any]:
        key = f"{family} {sorted(changes.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp(family.lower())
            made[key] = (folder, by_transformers(folder, family, changes))
        return made[key]

    return build
