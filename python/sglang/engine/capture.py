"""A step's kernels, remembered and launched again at once: CUDA graphs as serving needs them."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """What is done between `begin` and `end` is remembered, and done by `replay`."""

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """Not torch.cuda.graph: that waits for the device and empties caches, in the middle of serving."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any):
        """pool: torch.cuda.graph_pool_handle()."""
        self._stream, self._pool = stream, pool
        self._graph = torch.cuda.CUDAGraph()
        self._on = torch.cuda.stream(stream)

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        self._on.__enter__()
        try:
            self._graph.capture_begin(self._pool, capture_error_mode="thread_local")
        except BaseException:
            self._on.__exit__(None, None, None)
            raise

    def end(self) -> None:
        try:
            self._graph.capture_end()
        finally:
            self._on.__exit__(None, None, None)
        torch.cuda.current_stream().wait_stream(self._stream)

    def replay(self) -> None:
        self._graph.replay()


def cuda_graphs(device: torch.device) -> Callable[[], CudaGraph] | None:
    """Makes graphs that share memory, since they are replayed one after another. None: the device has no graphs."""
    if device.type != "cuda":
        return None
    return functools.partial(CudaGraph, torch.cuda.Stream(device), torch.cuda.graph_pool_handle())
