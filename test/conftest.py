"""Without a GPU, Triton kernels run in Triton's interpreter, on CPU tensors. Set before anything imports Triton."""

import glob
import os

os.environ.setdefault("TRITON_INTERPRET", "0" if glob.glob("/dev/nvidia[0-9]*") else "1")
