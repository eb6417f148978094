"""Kernels written in CUDA C++: compiled by NVRTC, which comes with torch, kept on disk, launched through the driver."""

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("sglang.kernels")
SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PLAIN_SHARED = 48 * 1024  # more must be asked for
EARLY_ATTRIBUTE = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_lock = threading.Lock()


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Map(ctypes.Structure):
    """How the device reads boxes of a matrix (CUtensorMap); it must lie at a multiple of 64."""

    _fields_ = (("room", ctypes.c_char * 192),)

    @property
    def at(self) -> int:
        return -(-ctypes.addressof(self) // 64) * 64


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, what: str) -> None:
    if code:
        said = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(said))
        raise RuntimeError(f"{what}: {(said.value or b'unknown error').decode()} ({code})")


def _use_device() -> None:
    """Code is loaded into a context: that which torch makes for a thread when it first uses the device there."""
    current = ctypes.c_void_p()
    if _driver().cuCtxGetCurrent(ctypes.byref(current)) or not current.value:
        torch.zeros(1, device="cuda")


def _libraries() -> list[str]:
    """Where NVRTC may be: beside torch, in wheels of its own, or where the system's loader looks."""
    found: list[str] = []
    spec = importlib.util.find_spec("nvidia")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        found += map(str, sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True))
    return [*found, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]


@functools.cache
def _compiler() -> ctypes.CDLL:
    for name in _libraries():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError("NVRTC, the compiler of CUDA's kernels, is not installed")


def compiled(source: str, arch: str) -> bytes:
    """Machine code for a device such as sm_90a."""
    nvrtc = _compiler()
    program = ctypes.c_void_p()
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    if code:
        raise RuntimeError(f"NVRTC refuses a source ({code})")
    try:
        options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17"]
        code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        if code:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            said = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, said)
            raise RuntimeError(f"NVRTC ({code}): {said.value.decode(errors='replace').strip()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sglang", "kernels")


def kept(source: str, arch: str) -> bytes:
    """The same from disk, where it is. A file holds its own digest: one that was cut short is made anew."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _compiler().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = hashlib.sha256(f"{arch} {major.value}.{minor.value}\n{source}".encode()).hexdigest()[:32]
    file = _folder() / f"{key}.cubin"
    try:
        digest, cubin = file.read_bytes()[:32], file.read_bytes()[32:]
        if hashlib.sha256(cubin).digest() == digest:
            return cubin
    except OSError:
        pass
    cubin = compiled(source, arch)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
            new.write(hashlib.sha256(cubin).digest() + cubin)
        os.replace(new.name, file)
    except OSError as error:
        log.warning("Compiled kernels are not kept: %s", error)
    return cubin


class Kernel:
    """A function of a source, loaded where it is first launched. shared: bytes of a block's memory, at most."""

    def __init__(self, source: str, name: str, arch: str, shared: int):
        self._source, self._name, self._arch, self._shared = source, name, arch, shared
        self._cubin = b""
        self._function: ctypes.c_void_p | None = None

    def compile(self) -> None:
        self._cubin = self._cubin or kept(self._source, self._arch)

    def load(self) -> ctypes.c_void_p:
        with _lock:
            if self._function is not None:
                return self._function
            self.compile()
            _use_device()
            cubin, self._cubin = self._cubin, b""
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin), f"loading {self._name}")
            _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, self._name.encode()), self._name)
            if self._shared > PLAIN_SHARED:
                code = _driver().cuFuncSetAttribute(function, SHARED_ATTRIBUTE, self._shared)
                _check(code, f"{self._shared} bytes of shared memory for {self._name}")
            self._function = function
            return function

    def launch(
        self, grid: Sequence[int], threads: int, shared: int, stream: int, values: Sequence[Any], early: bool = False
    ) -> None:
        """values: ctypes' values or a Map, in the order of the parameters. early: see `matvec.early`."""
        function = self._function or self.load()
        sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(threads, 1, 1)
        config = _Launch(*sizes, shared, stream, ctypes.pointer(_Attribute(EARLY_ATTRIBUTE, 0, 1)), int(early))
        places = [value.at if isinstance(value, Map) else ctypes.addressof(value) for value in values]
        pointers = (ctypes.c_void_p * len(places))(*places)
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), function, pointers, None), self._name)


def compile_all(kernels: Sequence[Kernel]) -> None:
    """Side by side, and load them."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        list(threads.map(Kernel.compile, kernels))
    for kernel in kernels:
        kernel.load()


# of CUtensorMap
_TYPES: Mapping[str, int] = {"float16": 6, "bfloat16": 9}
_SWIZZLE_128, _PROMOTE_256 = 3, 3


def boxes(at: int, dtype: str, rows: int, columns: int, stride: int, box_rows: int, box_columns: int) -> Map:
    """Of a matrix at an address, with `stride` bytes from a row to the next: boxes of 128 bytes a row, exchanged so
    that the matrix units read them without conflicts. Rows that are not there are zeros."""
    made = Map()
    code = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(made.at), _TYPES[dtype], 2, ctypes.c_void_p(at), (ctypes.c_uint64 * 2)(columns, rows),
        (ctypes.c_uint64 * 1)(stride), (ctypes.c_uint32 * 2)(box_columns, box_rows), (ctypes.c_uint32 * 2)(1, 1),
        0, _SWIZZLE_128, _PROMOTE_256, 0,
    )  # fmt: skip
    _check(code, "a map of boxes")
    return made
