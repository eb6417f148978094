"""Kernels in CUDA C++: what is kept on disk. How they run: test_fragments.py, scripts/gpu_check.py."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sglang.kernels import cuda_code


class Compiler:
    """Counts what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path):
        self.asked: list[str] = []
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        monkeypatch.setattr(cuda_code, "_compiler", lambda: self)
        monkeypatch.setattr(cuda_code, "compiled", self.compiled)

    def nvrtcVersion(self, major: object, minor: object) -> int:
        return 0

    def compiled(self, source: str, arch: str) -> bytes:
        self.asked.append(source)
        return f"{arch} {source}".encode() * 100


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    return Compiler(monkeypatch, tmp_path)


def test_a_kernel_is_compiled_once(compiler: Compiler) -> None:
    first = cuda_code.kept("a", "sm_90a")
    assert cuda_code.kept("a", "sm_90a") == first and compiler.asked == ["a"]
    assert cuda_code.kept("a", "sm_100a") != first and cuda_code.kept("b", "sm_90a") != first
    assert compiler.asked == ["a", "a", "b"]


def test_a_file_that_was_cut_short_is_made_anew(compiler: Compiler, tmp_path: Path) -> None:
    whole = cuda_code.kept("a", "sm_90a")
    [file] = tmp_path.rglob("*.cubin")
    file.write_bytes(file.read_bytes()[:-1])
    assert cuda_code.kept("a", "sm_90a") == whole and compiler.asked == ["a", "a"]
    assert cuda_code.kept("a", "sm_90a") == whole and compiler.asked == ["a", "a"]


def test_a_folder_that_cannot_be_written_is_done_without(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "sglang").write_text("a file where a folder should be")
    assert cuda_code.kept("a", "sm_90a").startswith(b"sm_90a a")


def test_launches_hand_structures_of_the_drivers_sizes_over() -> None:
    assert ctypes.sizeof(cuda_code._Attribute) == 72 and ctypes.sizeof(cuda_code._Launch) == 56
    assert cuda_code._Attribute.value.offset == 8 and cuda_code._Launch.stream.offset == 32
    assert cuda_code.Map().at % 64 == 0


@pytest.mark.gpu
def test_a_kernel_may_be_the_first_thing_that_a_process_does_with_the_device() -> None:
    code = "import torch; from sglang.kernels import fragments; print(fragments.works(torch.bfloat16, 128))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    hopper = torch.cuda.get_device_capability() == (9, 0)
    assert done.stdout.strip() == str(hopper), done.stderr
