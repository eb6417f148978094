"""Launches of one layer, again for the next: all that differs is where its tensors lie.

Triton looks at every argument of every launch, to know which of its compiled kernels is meant: some 20 us of the CPU,
and a step with prompts launches four kernels in each of its layers. What was launched for the first layer is kept, and
for the others only pointers are exchanged, which takes a third of that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # bytes: kernels are compiled apart for pointers that these divide
_noting: list["Again"] = []  # the one that launches are noted in


class Again:
    """The launches of a layer. changing: the tensors that each layer has its own of, always in this order."""

    def __init__(self, changing: Sequence[Tensor]):
        self._first = [t.data_ptr() for t in changing]
        self._launches: list[tuple[Any, list[Any], list[tuple[int, int]]]] = []  # runner, arguments, (place, which)
        self._kept: list[Tensor] = []  # what launches read and write besides
        self._possible = True

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What is launched inside is noted."""
        _noting.append(self)
        try:
            yield
        finally:
            _noting.pop()

    def note(
        self, kernel: Any, compiled: Any, grid: tuple[int, ...], args: Sequence[Any], named: dict[str, Any]
    ) -> None:
        if type(compiled).__name__ != "CompiledKernel":  # Triton's interpreter, which compiles nothing
            self._possible = False
            return
        values = [*args, *(named[name] for name in kernel.arg_names[len(args) :])]
        places = []
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                values[place] = pointer = value.data_ptr()
                if pointer in self._first:
                    places.append((place, self._first.index(pointer)))
                else:
                    self._kept.append(value)
        self._launches.append((compiled[(*grid, 1, 1)[:3]], values, places))

    def repeat(self, changing: Sequence[Tensor]) -> bool:
        """Launch all that again, on these. False: it cannot be, and nothing was launched."""
        pointers = [t.data_ptr() for t in changing]
        if not self._possible or any(
            (a % ALIGNED == 0) != (b % ALIGNED == 0) for a, b in zip(pointers, self._first, strict=True)
        ):
            return False
        stream = torch.cuda.current_stream().cuda_stream
        for runner, values, places in self._launches:
            for place, which in places:
                values[place] = pointers[which]
            runner(*values, stream=stream)
        return True


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
    """kernel[grid](*args, **named), noted where somebody notes. named: constants, in whatever order, and options."""
    compiled = kernel[grid](*args, **named)
    if _noting:
        _noting[-1].note(kernel, compiled, grid, args, named)
