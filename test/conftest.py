"""What must be set before torch and Triton are imported."""

import glob
import os

# Tests run side by side, a process per core: with more threads each they would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU, Triton's kernels run in its interpreter, on CPU tensors.
os.environ.setdefault("TRITON_INTERPRET", "0" if glob.glob("/dev/nvidia[0-9]*") else "1")
