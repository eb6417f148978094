"""Steps with prompts, cut where they attend: what is remembered of the pieces and done again is the whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import DRAWN, TINY, Driver, Row, load, on_device
from torch.utils._python_dispatch import TorchDispatchMode

from sglang.base.plan import PromptAsk

pytest.importorskip("triton")
import itertools

from triton.runtime.interpreter import GridExecutor

from sglang.attention.triton import TritonAttention
from sglang.engine import idle, warmup
from sglang.engine.engine import SOON_S
from sglang.engine.pieces import SIZES, Pieces
from sglang.engine.seen import Seen

SHAPES: list[dict[str, Any]] = [
    {"num_hidden_layers": 3},
    {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 2, "head_dim": 16,
        "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "sliding_window": 4, "hidden_activation": "gelu_pytorch_tanh",
    },
]  # fmt: skip


class Recording(TorchDispatchMode):
    """A graph without a device: operators and kernels, done again on the tensors they were done on."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[Callable[[], None]] = []
        self._launch = GridExecutor.__call__
        self._on = False

    def begin(self) -> None:
        launch, done = self._launch, self._done

        def remember(kernel: GridExecutor, *args: Any, **options: Any) -> Any:
            done.append(lambda: launch(kernel, *args, **options))
            self._on = False
            try:
                return launch(kernel, *args, **options)
            finally:
                self._on = True

        GridExecutor.__call__ = remember  # type: ignore[method-assign]
        self._on = True
        self.__enter__()

    def end(self) -> None:
        self.__exit__(None, None, None)
        GridExecutor.__call__ = self._launch  # type: ignore[method-assign]

    def replay(self) -> None:
        for one in self._done:
            one()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self._on:

            def again() -> None:
                got = func(*args, **(kwargs or {}))
                for old, new in zip(tensors(found), tensors(got), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

            self._done.append(again)
        return found


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for one in value for t in tensors(one)] if isinstance(value, tuple | list) else []


def write(folder: Path, shape: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps({**TINY, **shape}))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path, {})


def cut(folder: Path, graph: Callable[[], Any] = Recording) -> Driver:
    """On a GPU as the engine is, by its graphs."""
    engine = on_device(folder)
    assert isinstance(engine._attention, TritonAttention)
    if not torch.cuda.is_available() or graph is not Recording:
        engine._pieces = Pieces(engine._model, engine._attention, graph)
    return Driver(engine)


def walk(driver: Driver) -> list[Any]:
    """Steps of 16 and of 32 tokens with padding, each twice, then mixed ones of few tokens and of all 16."""
    found: list[Any] = []
    prompts = {0: [5, 6, 7], 3: list(range(11, 22)), 5: list(range(30, 57)), 1: list(range(60, 91)), 2: [9]}
    lengths = {slot: len(prompt) for slot, prompt in prompts.items()}
    for slot, prompt in prompts.items():
        scores = PromptAsk(0, 1, prompt[2:], 0, ()) if slot == 3 else None
        result = driver.step([Row(slot, 0, prompt, scores=scores)], [driver.seat(slot, len(prompt))])
        found.append(result.tokens.tolist())
        found.append([pytest.approx(s.logprob, abs=1e-4) for s in result.prompt_scores.get(0, ())])
    for more in ([101, 102, 103], list(range(200, 213)), [42, 43]):
        rows = [Row(slot, lengths[slot], [DRAWN]) for slot in (0, 5, 3)]
        rows.append(Row(1, lengths[1], more, samples=len(more) < 5))
        found.append(driver.step(rows).tokens.tolist())
        for row in rows:
            lengths[row.slot] += len(row.tokens)
    rows = [Row(slot, lengths[slot], [DRAWN]) for slot in (5, 0, 1)]
    found.append(driver.step(rows).tokens.tolist())  # by a decode's graph, were there any
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=["llama", "gemma2"])
def test_steps_of_pieces_are_those_of_the_plain_engine(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write(tmp_path, shape)
    plain = Driver(load(folder, load_format="dummy", max_total_tokens=256))
    own = cut(folder)
    assert walk(own) == walk(plain)
    pieces = own.engine._pieces
    assert pieces is not None and pieces.captures
    assert set(pieces._captured) >= {16, 32}
    assert {len(found) for found, _ in pieces._captured.values()} == {own.engine._model.spec.layers + 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in records what runs on a CPU")
def test_what_cannot_be_captured_runs_kernel_by_kernel(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Recording):
        def end(self) -> None:
            super().end()
            raise RuntimeError("operation not permitted when stream is capturing")

    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = cut(small, Refusing)
    assert walk(own) == walk(plain)
    assert own.engine._pieces is not None and not own.engine._pieces.captures
    assert len([r for r in caplog.records if "not permitted" in r.message]) == 1


def test_what_is_captured_ahead_computes_the_same(small: Path) -> None:
    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = cut(small)
    pieces = own.engine._pieces
    assert pieces is not None
    walk(own)  # cells are held, and must stay as they are
    held = own.engine._attention._pools[0].keys.clone()
    before = len(pieces._captured)
    for _ in range(4):  # each number is run, then captured
        assert own.engine.prepare() == SOON_S
    assert len(pieces._captured) == before + 2
    assert torch.equal(own.engine._attention._pools[0].keys, held)
    again = cut(small)
    for _ in range(4):
        assert again.engine.prepare() == SOON_S
    assert len(again.engine._pieces._captured) == 2  # type: ignore[union-attr]
    assert walk(again) == walk(plain)


def test_the_next_larger_number_serves_until_its_own_is_captured(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cut(small)
    monkeypatch.setattr("sglang.engine.pieces.SIZES", (16, 32, 48))
    pieces = own.engine._pieces
    assert pieces is not None
    while own.engine.prepare() is not None:
        pass
    assert set(pieces._captured) == {16, 32, 48}
    del pieces._captured[16]
    walk(own)
    assert 16 not in pieces._captured


def test_a_number_that_another_would_double_is_captured(small: Path) -> None:
    own = cut(small)
    pieces = own.engine._pieces
    assert pieces is not None
    for slot, n in ((0, 120), (1, 60), (2, 70)):
        own.step([Row(slot, 0, [5 + i % 40 for i in range(n)])], [own.seat(slot, n)])
    assert {64, 128} <= set(pieces._captured)
    assert 96 not in pieces._captured


def test_at_the_start_every_number_is_captured_though_a_larger_one_could_serve(small: Path) -> None:
    own = cut(small)
    pieces = own.engine._pieces
    assert pieces is not None
    pieces.exact = True
    fills = warmup.fills(own.engine.pages, own.engine.page_size, own.engine.context_length)
    wanted = [len(plan.tokens) for plan in fills]
    most = min(own.engine.pages, own.engine.context_length)
    assert wanted == [n for n in reversed(SIZES) if 64 <= n < most] and len(wanted) > 1
    for plan in fills:
        own.engine.launch(plan).wait()
    assert sorted(pieces._captured) == sorted(wanted)
    pieces.exact = False
    assert pieces._serving(70) == 96 and pieces._serving(50) == 64


def test_what_was_met_is_captured_before_what_was_not(small: Path, tmp_path: Path) -> None:
    own = cut(small)
    assert own.engine._pieces is not None and own.engine._attention is own.engine._pieces._attention
    seen = Seen({"model": "a"}, tmp_path)
    for met in (96, 5, 48):  # one of them by another version
        seen.note("pieces", (met,))
    seen.save()
    own.engine._pieces._seen = Seen({"model": "a"}, tmp_path)
    own.step([Row(0, 0, list(range(20)))], [own.seat(0, 20)])
    del own.engine._pieces._captured[32]
    for _ in range(8):
        own.engine.prepare()
    assert list(own.engine._pieces._captured) == [32, 96, 48, 16]


def test_a_capture_is_left_when_somebody_comes_and_begun_again(tmp_path: Path) -> None:
    own = cut(write(tmp_path, {"num_hidden_layers": 3}))
    plain = Driver(load(tmp_path, load_format="dummy", max_total_tokens=256))
    pieces = own.engine._pieces
    assert pieces is not None
    layers = iter([False, False, True, True])
    assert own.engine.prepare(0.0, lambda: next(layers)) == SOON_S
    assert len(list(layers)) == 1, "it was not left at the third layer"
    assert not pieces._ran
    own.engine.prepare()
    assert pieces._ran == {16}
    layers = iter([False, False, True])
    own.engine.prepare(0.0, lambda: next(layers))
    assert not pieces._captured and pieces.captures
    own.engine.prepare()
    assert set(pieces._captured) == {16}
    prompts = [driver.step([Row(0, 0, [5, 6, 7])], [driver.seat(0, 3)]).tokens.tolist() for driver in (own, plain)]
    assert prompts[0] == prompts[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in records what runs on a CPU")
def test_graphs_that_were_captured_serve_on_when_memory_is_out(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Recording):
        made = 0

        def begin(self) -> None:
            Full.made += 1
            if Full.made > 2:
                raise torch.OutOfMemoryError("tried to allocate 20 MiB")
            super().begin()

    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = cut(small, Full)
    assert walk(own) == walk(plain)
    pieces = own.engine._pieces
    assert pieces is not None and not pieces.captures
    assert set(pieces._captured) == {16}
    assert pieces.fits(16) and not pieces.fits(17)
    assert [r.message for r in caplog.records] == [
        "No memory is left for graphs of steps with prompts but 1; a lower --mem-fraction-static leaves some"
    ]


def test_a_step_that_finds_no_memory_takes_that_of_graphs(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = cut(small)
    pieces = own.engine._pieces
    assert pieces is not None
    own.step([Row(7, 0, [5, 6, 7])], [own.seat(7, 3)])
    forward, full = own.engine._model.forward, True

    def refuse(*given: Any) -> torch.Tensor:
        hidden = forward(*given)  # it has filed keys and values
        if full and pieces._captured:
            raise torch.OutOfMemoryError("tried to allocate 20 MiB")
        return hidden

    own.engine._model.forward = refuse  # type: ignore[method-assign]
    own.step([Row(6, 0, list(range(100)))], [own.seat(6, 100)])
    assert not pieces._captured and not pieces.captures
    assert "1 CUDA graphs are given up" in caplog.text
    own.engine._model.forward = forward  # type: ignore[method-assign]
    found = own.step([Row(6, 100, [DRAWN])])
    plain.step([Row(6, 0, list(range(100)))], [plain.seat(6, 100)])
    assert found.tokens.tolist() == plain.step([Row(6, 100, [DRAWN])]).tokens.tolist()


def test_nothing_is_captured_while_another_thread_waits_for_the_device(small: Path) -> None:
    own = cut(small)
    pieces = own.engine._pieces
    assert pieces is not None
    with idle.waits_for_device:
        own.step([Row(0, 0, [5, 6, 7])], [own.seat(0, 3)])
        assert own.engine.prepare() == own.engine.prepare() == SOON_S
    assert not pieces._captured and pieces.captures
    own.engine.prepare()
    assert set(pieces._captured) == {16}
    assert not idle.waits_for_device.locked()


def test_whoever_prepares_without_memory_leaves_it(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = cut(small)
    pieces = own.engine._pieces
    assert pieces is not None

    def refuse(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 20 MiB")

    forward, own.engine._model.forward = own.engine._model.forward, refuse  # type: ignore[method-assign]
    assert own.engine.prepare() is None
    assert own.engine.prepare() is None
    assert [r.message for r in caplog.records] == [
        "No memory is left for more graphs; a lower --mem-fraction-static leaves some"
    ]
    own.engine._model.forward = forward  # type: ignore[method-assign]
    assert own.step([Row(0, 0, [5, 6, 7])], [own.seat(0, 3)]).tokens[0] >= 0


def test_larger_steps_are_not_captured(small: Path) -> None:
    pieces = cut(small).engine._pieces
    assert pieces is not None
    assert pieces.fits(SIZES[-1]) and not pieces.fits(SIZES[-1] + 1)


def test_sizes_grow_with_little_padding() -> None:
    for below, size in itertools.pairwise(SIZES):
        assert size % 16 == 0, "kernels are compiled once for numbers that 16 divides"
        assert size - (below + 1) <= max(31, below // 4)
