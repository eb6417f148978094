"""Tests run side by side, a process per core: torch takes one thread in each, or they wait for each other's threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
