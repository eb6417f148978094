"""What a worker begins before it imports torch."""

import contextlib
import glob
import importlib.util
from collections.abc import Iterator

from sglang.kernels import compiling
from sglang.kernels.forks import Forks


@contextlib.contextmanager
def compilers(device: str) -> Iterator[None]:
    """Processes for the kernels that are compiled meanwhile. They import torch and Triton too, so early is better.
    device: of --device; none are started for a CPU."""
    there = device != "cpu" and glob.glob("/dev/nvidia[0-9]*") and importlib.util.find_spec("triton")
    compiling.forks = Forks() if there else None
    try:
        yield
    finally:
        if compiling.forks is not None:
            compiling.forks.close()
        compiling.forks = None
