"""What tests of this folder share."""

from collections.abc import Iterator

import pytest

import sglang as sgl
from sglang.lang.run import ticker


@pytest.fixture
def patient() -> Iterator[None]:
    """Gens wait for company as long as it takes: on a busy machine a program may be idle for longer than a moment."""
    sgl.global_config.fusion_idle_s, usual = 60, sgl.global_config.fusion_idle_s
    yield
    sgl.global_config.fusion_idle_s = usual
    ticker._awake = False  # it sleeps for as long; who comes next is not to wait for that
