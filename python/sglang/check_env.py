"""python -m sglang.check_env: versions, devices, memory, what can be used and what is missing. For bug reports."""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

GIB = 2**30
TOOL_S = 10  # nvidia-smi takes seconds on a machine with many GPUs; longer means a broken driver
FEW_FILES = 4096  # a connection is a file: below this, a server's clients run into the limit
# Extra -> what it is for. `all`, `cuda` and `dev` only repeat others.
EXTRAS = {
    "fast": "faster HTTP",
    "flashinfer": "another attention on NVIDIA GPUs",
    "openai": "programs on OpenAI models, the OpenAI client",
    "anthropic": "programs on Anthropic models",
    "vertexai": "programs on Gemini models",
    "litellm": "programs on models of many providers",
    "plot": "diagrams of benchmarks",
}
Rows = Iterator[tuple[str, str]]


def main(argv: Sequence[str] | None = None, prog: str = "python -m sglang.check_env") -> int:
    """Returns 1 where a package that sglang cannot do without is missing or of an untested version."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Show versions, devices and memory, what can be used and what is missing."
    )
    parser.parse_args(argv)
    wrong = list(requirements(None))
    for title, rows in (("System", system()), ("Packages", packages()), ("Devices", devices())):
        show(title, rows)
    show("Missing", iter([*wrong, *extras()] or [("nothing", "")]))
    return 1 if wrong else 0


def show(title: str, rows: Rows) -> None:
    print(title)
    for name, value in rows:
        first, *more = value.splitlines() or [""]
        print(f"  {name:<26}{first}".rstrip(), *(" " * 28 + line for line in more), sep="\n")
    sys.stdout.flush()


def system() -> Rows:
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "platform", platform.platform()
    yield "CPU", f"{cpu_name()}, {usable_cores()} cores"
    yield "open files", open_files()
    shm = shutil.disk_usage("/dev/shm").free / GIB if os.path.isdir("/dev/shm") else 0
    if shm:
        yield "/dev/shm", f"{shm:.1f} GiB free"


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_files() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "no limit known"
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"; `ulimit -n {most}` allows more clients at a time" if limit < FEW_FILES < most else ""
    return f"{limit}{advice}"


def packages() -> Rows:
    yield "sglang", installed("sglang") or "not installed (a source tree)"
    for name in sorted({name for name, _, extra in declared() if extra is None}):
        yield name, installed(name) or "MISSING"
    for name in ("uvloop", "httptools", "openai", "flashinfer-python", "triton"):
        if version := installed(name):
            yield name, version


def devices() -> Rows:
    try:
        import torch

        from sglang.kernels.staging import triton_works
        from sglang.layers.linear import bfloat16_arithmetic
        from sglang.layers.memory import free_bytes
        from sglang.quant.dense import packing_works
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}"
        return
    cpu = torch.device("cpu")
    yield "free memory", f"{free_bytes(cpu) / GIB:.1f} GiB"
    yield "CPU vector units", torch.backends.cpu.get_cpu_capability()
    fast = bfloat16_arithmetic()
    yield "CPU bfloat16", "yes" if fast else "no arithmetic: bfloat16 models are computed in float32"
    packs = packing_works(torch.bfloat16 if fast else torch.float32)
    yield "CPU packed weights", "yes (oneDNN)" if packs else "no: torch's own matrix product is used"
    yield "CUDA build", torch.version.cuda or "no: this torch is for CPUs"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            major, minor = torch.cuda.get_device_capability(i)
            name = torch.cuda.get_device_name(i)
            yield f"GPU {i}", f"{name}, sm_{major}{minor}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    elif shutil.which("nvidia-smi") and not torch.version.cuda:
        yield "GPU", "there is one, but this torch cannot use it: pip install --force-reinstall torch"
    else:
        yield "GPU", "none that torch can use"
    for name, command in (
        ("driver", ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        ("topology", ["nvidia-smi", "topo", "-m"]),
    ):
        if text := output_of(command):
            yield name, text
    if not torch.cuda.is_available():
        kernels = "torch (triton needs a GPU that torch can use)"
    elif not triton_works():
        kernels = "torch; for triton: pip install triton"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        kernels = "torch; triton needs a C compiler: apt install gcc libc6-dev"
    else:
        kernels = "triton, torch"
    yield "kernels", kernels


def output_of(command: list[str]) -> str:
    """What it prints; "" where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def declared() -> list[tuple[str, str, str | None]]:
    """(name, version range, extra) of everything that sglang's metadata asks for on this platform."""
    from packaging.requirements import Requirement

    found: list[tuple[str, str, str | None]] = []
    try:
        lines = importlib.metadata.requires("sglang") or []
    except importlib.metadata.PackageNotFoundError:
        return found
    for line in lines:
        wanted = Requirement(line)
        extra = re.search(r"""extra == ["'](\w+)["']""", line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra[1] if extra else ""}):
            found.append((wanted.name, str(wanted.specifier), extra[1] if extra else None))
    return found


def requirements(extra: str | None) -> Rows:
    """What the base install, or an extra, asks for and does not find, with the command that brings it."""
    from packaging.specifiers import SpecifierSet

    for name, range, of in declared():
        if of != extra:
            continue
        version = installed(name)
        if version is None:
            yield name, f'pip install "{name}{range}"'
        elif not SpecifierSet(range).contains(version, prereleases=True):
            yield name, f'{version} is outside the tested range: pip install "{name}{range}"'


def extras() -> Rows:
    for extra, use in EXTRAS.items():
        names = [name for name, _ in requirements(extra)]
        if names:
            yield ", ".join(names), f'{use}: pip install "sglang[{extra}]"'


if __name__ == "__main__":
    sys.exit(main())
