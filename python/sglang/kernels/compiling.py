"""Compile kernels side by side before they are needed: one after another, as they are first launched, takes seconds."""

import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from sglang.kernels.forks import Forks, is_cached

log = logging.getLogger("sglang.kernels")
MOST_THREADS = 16
_trials: list[str] = []  # under way
forks: Forks | None = None  # what `compile_ahead` has besides its threads
P = ParamSpec("P")
T = TypeVar("T")


def trial(check: Callable[P, T]) -> Callable[P, T]:
    """A function that looks at what its kernels compute: they run, also where others are only compiled."""

    @functools.wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        _trials.append(check.__name__)
        try:
            return check(*args, **kwargs)
        finally:
            _trials.pop()

    return checked


def objection(agrees: Callable[[], bool]) -> str | None:
    """Why kernels are not to be used that `agrees` compares with torch's; None: they may be."""
    try:
        return None if agrees() else "results differ from torch's"
    except Exception as error:  # a compiler's or a driver's: whatever it is, torch's products are there
        return str(error)


def compile_ahead(launch: Callable[[], object]) -> int:
    """Call `launch`; what it launches of Triton's kernels is compiled and not run: their outputs hold anything.

    Returns how many launches there were. Whatever goes wrong is logged and left to the first real launch.
    """
    found: list[Any] = []
    try:
        from triton.runtime._async_compile import AsyncCompileMode, FutureKernel
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        log.warning("Kernels are compiled one after another: %s", error)
        return 0
    run = JITFunction.run
    helped: dict[Any, Callable[..., Any]] = {}

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if forks is not None and kernel not in helped:
            helped[kernel] = _help(kernel, forks)
        if _trials:
            return run(kernel, *args, grid=grid, warmup=warmup, **options)
        found.append(run(kernel, *args, grid=grid, warmup=True, **options))
        return found[-1]

    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
            with AsyncCompileMode(threads, ignore_errors=True):
                launch()
            # A compiled kernel has a `kernel` too, its code; that of a promise is None where it failed.
            kernels = [one.kernel if isinstance(one, FutureKernel) else one for one in found]
            compiled = {id(kernel): kernel for kernel in kernels if kernel is not None}
            # Those with arguments of the same types share what launches them, which takes longer than the rest.
            first = {tuple(kernel.src.signature.values()): kernel for kernel in compiled.values()}
            list(threads.map(_load, first.values()))
            list(threads.map(_load, compiled.values()))
    except Exception as error:  # a first launch says it again, where it is dealt with
        log.warning("Kernels are compiled one after another: %s", error)
    finally:
        JITFunction.run = run
        for kernel, compile in helped.items():
            kernel.compile = compile
    return len(found)


def _help(kernel: Any, forks: Forks) -> Callable[..., Any]:
    """From now on it is compiled in a process, and what is found on disk then is taken. Returns what it did before."""
    from triton.runtime import driver

    active: Any = driver.active
    _ = kernel.device_caches[active.get_current_device()]  # sets `compile`
    alone = kernel.compile

    def compile(source: Any, target: Any, options: dict[str, Any], **more: Any) -> Any:
        try:
            if not is_cached(source, target, options):
                forks.compile(source, target, options)
        except Exception as error:
            log.debug("%s is compiled here: %s", source.name, error)
        return alone(source, target=target, options=options, **more)

    kernel.compile = compile
    return alone


def _load(kernel: Any) -> None:
    """What a first launch would do: a C compiler makes the function that launches, and the device takes the code."""
    try:
        kernel._init_handles()
    except Exception:
        kernel._run = None  # half of it is not enough: the first launch does it again, and says what is wrong
