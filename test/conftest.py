"""What must be set before torch and Triton are imported."""

import glob
import os

import pytest

# Tests run side by side, a process per core: with more threads each they would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU, Triton's kernels run in its interpreter, on CPU tensors.
os.environ.setdefault("TRITON_INTERPRET", "0" if glob.glob("/dev/nvidia[0-9]*") else "1")


import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
