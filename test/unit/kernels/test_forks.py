"""Kernels are compiled for a device that is not there, in a program of its own: here they are interpreted."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")
Run = Callable[..., list[str]]

PROGRAM = """
import sys
import torch, triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from sglang.engine import early
from sglang.kernels import compiling, forks, pointwise

class Driver(forks.Driver):
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

def launch():
    both = torch.zeros(2, 8)
    pointwise.gate(both, "silu")
    pointwise.gate(both.to(torch.bfloat16), "silu")
    pointwise._gate[1,](both, both, 4, ACT=ACT, BLOCK=BLOCK, EARLY=False)

ACT, BLOCK = 0, 4
driver.set_active(Driver(GPUTarget("cuda", 90, 32)))
compiling._load = lambda kernel: None  # there is no device to load it
knobs.compilation.listener = lambda cache_hit, **_: sys.stdout.write("found\\n" if cache_hit else "compiled\\n")
early.glob.glob = lambda _: ["/dev/nvidia0"]
with early.compilers("auto"):
    BEFORE
    print(compiling.compile_ahead(launch))
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(before: str = "pass") -> list[str]:
        """The words it prints, and `alone` where it says that threads do it."""
        program = PROGRAM.replace("BEFORE", before)
        env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.split() + ["alone"] * ("threads do it" in done.stderr)

    return run


def test_what_a_process_compiled_is_found_on_disk(run: Run) -> None:
    assert run() == ["found", "found", "found", "3"]
    assert run("compiling.forks.close()") == ["found", "found", "found", "3"]  # nor is it asked for again


def test_without_the_process_kernels_are_compiled_all_the_same(run: Run) -> None:
    assert run("compiling.forks.close()") == ["compiled", "compiled", "compiled", "3"]


def test_what_cannot_be_compiled_holds_up_nothing(run: Run) -> None:
    assert run("BLOCK = 3") == ["found", "found", "3"]


def test_a_constant_that_is_no_plain_value_is_compiled_here(run: Run) -> None:
    assert sorted(run("ACT = triton.language.bfloat16")) == ["3", "compiled", "found", "found"]


def test_a_function_that_its_module_does_not_have_is_compiled_here(run: Run) -> None:
    assert run("pointwise._gate.__module__ = 'nowhere'") == ["compiled", "compiled", "compiled", "3"]


def test_a_process_that_dies_at_work_holds_up_nothing(run: Run) -> None:
    said = run("compiling.is_cached = lambda *_: compiling.forks._process.kill()")
    assert said == ["compiled", "compiled", "compiled", "3", "alone"]
