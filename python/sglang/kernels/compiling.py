"""Compile kernels side by side before they are needed: one after another, as they are first launched, takes seconds."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger("sglang.kernels")
MOST_THREADS = 16


def compile_ahead(launch: Callable[[], object]) -> int:
    """Call `launch`; what it launches of Triton's kernels is compiled and not run: their outputs hold anything.

    Returns how many launches there were. Whatever goes wrong is logged and left to the first real launch.
    """
    count = 0
    try:
        from triton.runtime._async_compile import AsyncCompileMode
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        log.warning("Kernels are compiled one after another: %s", error)
        return count
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        nonlocal count
        count += 1
        return run(kernel, *args, grid=grid, warmup=True, **options)

    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
        with threads, AsyncCompileMode(threads, ignore_errors=True):
            launch()
    except Exception as error:  # a first launch says it again, where it is dealt with
        log.warning("Kernels are compiled one after another: %s", error)
    finally:
        JITFunction.run = run
    return count
