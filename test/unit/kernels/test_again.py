"""Launches that are repeated, on kernels that only write down what they are given."""

from typing import Any

import pytest
import torch

from sglang.kernels.again import Again, launch

Call = tuple[str, tuple[int, ...], tuple[Any, ...]]


class Kernel:
    """What Triton's are to `launch`."""

    arg_names = ("x", "y", "n", "WIDE", "DEEP")

    def __init__(self, name: str, calls: list[Call]):
        self.name, self.calls = name, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*args: Any, **named: Any) -> CompiledKernel:
            self.calls.append((self.name, grid, (*args, named["WIDE"], named["DEEP"])))
            return CompiledKernel(self)

        return run


class CompiledKernel:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*args: Any, stream: int) -> None:
            assert stream == 7
            self.kernel.calls.append((self.kernel.name, grid, args))

        return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("S", (), {"cuda_stream": 7}))
    return []


def test_a_layer_is_launched_with_the_pointers_of_another(calls: list[Call]) -> None:
    one, two = Kernel("one", calls), Kernel("two", calls)
    first, second = torch.zeros(2, 64), torch.ones(2, 64)
    common = torch.zeros(64)
    again = Again((first[0], first[1]))
    with again.noted():
        launch(one, (4, 2), first[0], common, 3, DEEP=5, WIDE=4, num_warps=8)
        launch(two, (9,), first[1], first[0], 1, WIDE=6, DEEP=7, launch_pdl=True)
    launch(one, (1,), first[0], common, 0, WIDE=0, DEEP=0)  # nobody notes it
    del calls[:]
    assert again.repeat((second[0], second[1]))
    a, b, c = second[0].data_ptr(), second[1].data_ptr(), common.data_ptr()
    assert calls == [("one", (4, 2, 1), (a, c, 3, 4, 5)), ("two", (9, 1, 1), (b, a, 1, 6, 7))]
    del calls[:]
    assert again.repeat((first[0], first[1]))
    assert [args[0] for _, _, args in calls] == [first[0].data_ptr(), first[1].data_ptr()]


def test_pointers_that_kernels_were_not_compiled_for_are_refused(calls: list[Call]) -> None:
    x = torch.zeros(64)
    again = Again((x,))
    with again.noted():
        launch(Kernel("one", calls), (1,), x, x, 1, WIDE=1, DEEP=1)
    del calls[:]
    assert not again.repeat((x[1:],))
    assert not calls
    assert again.repeat((x[4:],))


def test_what_an_interpreter_runs_is_not_repeated(calls: list[Call]) -> None:
    class Interpreted(Kernel):
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **named: None

    x = torch.zeros(64)
    again = Again((x,))
    with again.noted():
        launch(Interpreted("one", calls), (1,), x, x, 1, WIDE=1, DEEP=1)
    assert not again.repeat((x,))
