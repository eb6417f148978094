"""Steps with prompts: what is remembered of one, and done again for others, is what the plain engine computes."""

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

from sglang.attention import cascade
from sglang.attention.triton import TritonAttention
from sglang.engine import idle
from sglang.engine.engine import SOON_S
from sglang.engine.fills import SIZES, Fills, _Kind
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


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for room that nobody uses as for rows."""
    monkeypatch.setattr("sglang.engine.fills.FEW", 3)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path, {})


def captured(folder: Path, graph: Callable[[], Any] = Recording) -> Driver:
    """On a GPU as the engine is, by its graphs."""
    engine = on_device(folder)
    assert isinstance(engine._attention, TritonAttention)
    if not torch.cuda.is_available() or graph is not Recording:
        engine._fills = Fills(engine._model, engine._attention, engine._tables, graph)
    return Driver(engine)


def tokens_of(fills: Fills) -> set[int]:
    return {kind.tokens for kind in fills._captured}


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
def test_steps_of_fills_are_those_of_the_plain_engine(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write(tmp_path, shape)
    plain = Driver(load(folder, load_format="dummy", max_total_tokens=256))
    own = captured(folder)
    assert walk(own) == walk(plain)
    fills = own.engine._fills
    assert fills is not None and fills.captures
    assert tokens_of(fills) >= {16, 32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in records what runs on a CPU")
def test_what_cannot_be_captured_runs_kernel_by_kernel(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Recording):
        def end(self) -> None:
            super().end()
            raise RuntimeError("operation not permitted when stream is capturing")

    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = captured(small, Refusing)
    assert walk(own) == walk(plain)
    assert own.engine._fills is not None and not own.engine._fills.captures
    assert len([r for r in caplog.records if "not permitted" in r.message]) == 1


def test_what_is_captured_ahead_computes_the_same(small: Path) -> None:
    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = captured(small)
    fills = own.engine._fills
    assert fills is not None
    walk(own)  # cells are held, and must stay as they are
    held = own.engine._attention._pools[0].keys.clone()
    before = len(fills._captured)
    for _ in range(4):  # each number is run, then captured
        assert own.engine.prepare() == SOON_S
    assert len(fills._captured) == before + 2
    assert torch.equal(own.engine._attention._pools[0].keys, held)
    again = captured(small)
    for _ in range(4):
        assert again.engine.prepare() == SOON_S
    assert len(again.engine._fills._captured) == 2  # type: ignore[union-attr]
    assert walk(again) == walk(plain)


def test_the_next_larger_number_serves_until_its_own_is_captured(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = captured(small)
    monkeypatch.setattr("sglang.engine.fills.SIZES", (16, 32, 48))
    fills = own.engine._fills
    assert fills is not None
    while own.engine.prepare() is not None:
        pass
    assert set(fills._captured) == {_Kind(size, 8, False, False) for size in (16, 32, 48)}
    del fills._captured[_Kind(16, 8, False, False)]
    walk(own)
    assert set(fills._captured) == {_Kind(size, 8, False, False) for size in (32, 48)}


def test_a_number_that_another_would_double_is_captured(small: Path) -> None:
    own = captured(small)
    fills = own.engine._fills
    assert fills is not None
    for slot, n in ((0, 120), (1, 60), (2, 70)):
        own.step([Row(slot, 0, [5 + i % 40 for i in range(n)])], [own.seat(slot, n)])
    assert {64, 128} <= tokens_of(fills)
    assert 96 not in tokens_of(fills)


def test_at_the_start_every_number_is_captured_that_a_step_may_have(small: Path) -> None:
    own = captured(small)
    fills = own.engine._fills
    assert fills is not None
    fills.start(140)
    wanted = [n for n in reversed(SIZES) if 64 <= n < 140]
    assert list(fills._captured) == [_Kind(n, 8, False, False) for n in wanted]
    assert fills._serving(70, 3, 1, False) == _Kind(96, 8, False, False)
    assert fills._serving(50, 0, 1, False) == _Kind(64, 8, False, False)
    assert fills._serving(50, 0, 1, True) == _Kind(64, 0, False, True), "no graph reads what is shared: one is made"
    assert walk(own) == walk(Driver(load(small, load_format="dummy", max_total_tokens=256)))


def test_what_was_met_is_captured_before_what_was_not(small: Path, tmp_path: Path) -> None:
    own = captured(small)
    assert own.engine._fills is not None and own.engine._attention is own.engine._fills._attention
    seen = Seen({"model": "a"}, tmp_path)
    for met in ((96, 8, 0, 0), (5, 8, 0, 0), (48,), (48, 0, 0, 0)):  # some of them by another version
        seen.note("fills", met)
    seen.save()
    own.engine._fills._seen = Seen({"model": "a"}, tmp_path)
    own.step([Row(0, 0, list(range(20)))], [own.seat(0, 20)])
    del own.engine._fills._captured[_Kind(32, 0, False, False)]
    for _ in range(8):
        own.engine.prepare()
    assert [kind[:2] for kind in own.engine._fills._captured] == [(32, 0), (96, 8), (48, 0), (16, 8)]


def test_a_capture_is_left_when_somebody_comes_and_begun_again(tmp_path: Path) -> None:
    own = captured(write(tmp_path, {"num_hidden_layers": 3}))
    plain = Driver(load(tmp_path, load_format="dummy", max_total_tokens=256))
    fills = own.engine._fills
    assert fills is not None
    layers = iter([False, False, True, True])
    assert own.engine.prepare(0.0, lambda: next(layers)) == SOON_S
    assert len(list(layers)) == 1, "it was not left at the third layer"
    assert not fills._ran
    own.engine.prepare()
    assert fills._ran == {_Kind(16, 8, False, False)}
    layers = iter([False, False, True])
    own.engine.prepare(0.0, lambda: next(layers))
    assert not fills._captured and fills.captures
    own.engine.prepare()
    assert set(fills._captured) == {_Kind(16, 8, False, False)}
    prompts = [driver.step([Row(0, 0, [5, 6, 7])], [driver.seat(0, 3)]).tokens.tolist() for driver in (own, plain)]
    assert prompts[0] == prompts[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in records what runs on a CPU")
def test_graphs_that_were_captured_serve_on_when_memory_is_out(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Recording):
        made = 0

        def begin(self) -> None:
            Full.made += 1
            if Full.made > 1:
                raise torch.OutOfMemoryError("tried to allocate 20 MiB")
            super().begin()

    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = captured(small, Full)
    assert walk(own) == walk(plain)
    fills = own.engine._fills
    assert fills is not None and not fills.captures
    assert set(fills._captured) == {_Kind(16, 0, False, False)}
    assert fills._serving(16, 0, 1, False) is not None and fills._serving(17, 0, 1, False) is None
    assert [r.message for r in caplog.records] == [
        "No memory is left for graphs of steps with prompts but 1; a lower --mem-fraction-static leaves some"
    ]


def test_a_step_that_finds_no_memory_takes_that_of_graphs(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = Driver(load(small, load_format="dummy", max_total_tokens=256))
    own = captured(small)
    fills = own.engine._fills
    assert fills is not None
    own.step([Row(7, 0, [5, 6, 7])], [own.seat(7, 3)])
    forward, full = own.engine._model.forward, True

    def refuse(*given: Any) -> torch.Tensor:
        hidden = forward(*given)  # it has filed keys and values
        if full and fills._captured:
            raise torch.OutOfMemoryError("tried to allocate 20 MiB")
        return hidden

    own.engine._model.forward = refuse  # type: ignore[method-assign]
    own.step([Row(6, 0, list(range(100)))], [own.seat(6, 100)])
    assert not fills._captured and not fills.captures
    assert "1 CUDA graphs are given up" in caplog.text
    own.engine._model.forward = forward  # type: ignore[method-assign]
    found = own.step([Row(6, 100, [DRAWN])])
    plain.step([Row(6, 0, list(range(100)))], [plain.seat(6, 100)])
    assert found.tokens.tolist() == plain.step([Row(6, 100, [DRAWN])]).tokens.tolist()


def test_nothing_is_captured_while_another_thread_waits_for_the_device(small: Path) -> None:
    own = captured(small)
    fills = own.engine._fills
    assert fills is not None
    with idle.waits_for_device:
        own.step([Row(0, 0, [5, 6, 7])], [own.seat(0, 3)])
        assert own.engine.prepare() == own.engine.prepare() == SOON_S
    assert not fills._captured and fills.captures
    own.engine.prepare()
    assert set(fills._captured) == {_Kind(16, 0, False, False)}
    assert not idle.waits_for_device.locked()


def test_whoever_prepares_without_memory_leaves_it(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = captured(small)
    fills = own.engine._fills
    assert fills is not None

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


def test_larger_steps_are_not_captured(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.engine.fills.SIZES", (16,))
    own, plain = captured(small), Driver(load(small, load_format="dummy", max_total_tokens=256))
    found = [d.step([Row(0, 0, list(range(20)))], [d.seat(0, 20)]).tokens.tolist() for d in (own, plain)]
    assert found[0] == found[1]
    assert own.engine._fills is not None and not own.engine._fills._captured


def test_rows_that_others_compute_better_are_not_captured(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = captured(small)
    monkeypatch.setattr(TritonAttention, "leaves", lambda self, rows: int(rows.counts.max()) >= 20)
    own.step([Row(0, 0, list(range(20)))], [own.seat(0, 20)])
    own.step([Row(0, 20, list(range(19)))])
    assert own.engine._fills is not None and tokens_of(own.engine._fills) == {32}


def test_decodes_in_parts_many_rows_and_whole_tables(small: Path) -> None:
    """A lone decode is cut into as many parts as there is room for; of rows of several tokens there are many."""
    found = []
    for driver in (captured(small), Driver(load(small, load_format="dummy", max_total_tokens=256))):
        tokens: list[Any] = []
        driver.step([Row(0, 0, list(range(90)))], [driver.seat(0, 90)])
        entries = driver.share(1, 0, 60)
        for turn in range(2):  # captured, then replayed
            rows = [Row(0, 90 + turn, [DRAWN]), Row(1, 60 + 4 * turn, [7, 8, 9, turn])]
            seats = [driver.seat(1, 64)] if not turn else []
            tokens.append(driver.step(rows, seats, entries if not turn else ()).tokens.tolist())
        for turn in range(2):
            rows = [Row(0, 92 + turn, [DRAWN]), *(Row(slot, 3 * turn, [slot, 8, turn]) for slot in range(2, 7))]
            seats = [driver.seat(slot, 3) for slot in range(2, 7)] if not turn else []
            tokens.append(driver.step(rows, seats).tokens.tolist())
        found.append(tokens)
        if driver.engine._fills is not None:
            assert {kind.many for kind in driver.engine._fills._captured} == {True, False}
    assert found[0] == found[1]


def test_keys_that_decodes_share_are_read_once_beside_prompts(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORTH": 1, "LEAST_SAVED": 1, "KEYS": 32, "LEAST_KEYS": 32}.items():
        monkeypatch.setattr(cascade, name, value)
    found = []
    for shares in (True, False):
        driver = captured(small)
        assert isinstance(driver.engine._attention, TritonAttention) and driver.engine._fills is not None
        driver.engine._attention.shares = shares
        driver.step([Row(1, 0, list(range(20, 60)))], [driver.seat(1, 40)])
        for slot in (2, 3):
            driver.step([Row(slot, 40, [70 + slot])], [driver.seat(slot, 41)], driver.share(slot, 1, 40))
        tokens = []
        for turn in range(3):
            rows = [Row(1, 40 + turn, [DRAWN]), *(Row(slot, 41 + turn, [DRAWN]) for slot in (2, 3))]
            rows.append(Row(4, 5 * turn, [9, 8, 7, 6, turn]))
            tokens.append(driver.step(rows, [driver.seat(4, 5)] if not turn else []).tokens.tolist())
        assert any(kind.shares for kind in driver.engine._fills._captured) is shares
        found.append(tokens)
    assert found[0] == found[1]
    assert driver.engine._fills.captures


def test_sizes_grow_with_little_padding() -> None:
    for below, size in itertools.pairwise(SIZES):
        assert size % 16 == 0, "kernels are compiled once for numbers that 16 divides"
        assert size - (below + 1) <= max(31, below // 4)
