"""Steps before the first request leave no kernel to compile for later."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import load

pytest.importorskip("triton")
from sglang.attention import cascade
from sglang.engine import warmup
from sglang.engine.graphs import DecodeGraphs, _Kind, sizes
from sglang.kernels import attention as kernels
from sglang.kernels.compiling import _load, compile_ahead, trial
from sglang.kernels.matvec import FEW


def sets(rows: int, kv_heads: int) -> tuple[Any, ...]:
    """What decides about the kernels of a decode of as many rows."""
    return warmup.kind_of(rows), kernels.merge_room(kernels.splits_for(rows, kv_heads))


@pytest.mark.parametrize("slots", [1, 3, 64, 512])
@pytest.mark.parametrize("kv_heads", [1, 2, 8, 32])
def test_every_kernel_of_a_decode_is_met(slots: int, kv_heads: int) -> None:
    met = {sets(rows, kv_heads) for rows in warmup.decodes(slots, kv_heads)}
    assert met == {sets(rows, kv_heads) for rows in sizes(slots)}


@pytest.mark.parametrize("slots", [1, 3, 64, 512])
@pytest.mark.parametrize("kv_heads", [1, 2, 8, 32])
def test_every_kernel_of_a_decode_that_shares_is_met(slots: int, kv_heads: int) -> None:
    def shared(rows: int) -> tuple[Any, ...]:
        return rows <= FEW, kernels.merge_room(kernels.splits_for(rows, kv_heads) + cascade.ENTRIES)

    found = warmup.sharing(slots, kv_heads)
    assert {shared(rows) for rows, _ in found} == {shared(rows) for rows in sizes(slots) if rows > 1}


def test_decodes_beside_a_prompt_that_no_graph_computes_meet_their_kernels() -> None:
    for slots, pages, context, page_size in ((512, 40000, 32768, 1), (8, 64, 4096, 16), (2, 300, 32, 1), (1, 9, 9, 1)):
        found = warmup.beside(slots, 8, pages, page_size, context, True)
        for plan in found:
            assert plan.counts[-1] > 1
            assert (plan.counts[:-1] == 1).all()
            assert len(plan.slots) <= slots
            assert plan.table_pages.max() < pages
            assert (plan.starts + plan.counts <= min(context, pages * page_size)).all()
        parts = {kernels.merge_room(kernels.splits_for(len(plan.slots) - 1, 8)) for plan in found}
        assert parts == {kernels.merge_room(kernels.splits_for(rows, 8)) for rows in sizes(slots - 1) if slots > 1}


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("pages", "context"), [(40000, 32768), (64, 4096), (3, 32)])
def test_plans_stay_within_the_pool(page_size: int, pages: int, context: int) -> None:
    found = warmup.plans(64, 8, pages, page_size, context, True)
    assert {int(plan.counts.max()) for plan in found} >= {1}
    assert {1, 64} <= {len(plan.slots) for plan in found if plan.counts.max() == 1}, "drawn by several programs, by one"
    for plan in found:
        assert len(plan.slots) <= 64
        assert plan.table_pages.max() < pages
        assert (plan.starts + plan.counts <= min(context, pages * page_size)).all()
        assert plan.table_index.max() == (int(plan.starts[0]) + int(plan.counts[0]) - 1) // page_size
        assert len(plan.tokens) == plan.counts.sum()


def test_what_is_shared_is_worth_reading_once() -> None:
    for rows, keys in warmup.sharing(512, 8):
        slots, starts = np.arange(rows), np.full(rows, keys)
        table = np.tile(np.arange(keys + 1), (rows, 1))
        assert cascade.find(slots, starts, table, 1, 8, 32) is not None


def test_the_plans_run(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50,
        "max_position_embeddings": 256, "eos_token_id": 3, "torch_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = load(tmp_path, device, load_format="dummy", max_total_tokens=256, max_running_requests=8)
    for plan in warmup.plans(engine.slots, 2, engine.pages, engine.page_size, engine.context_length, True):
        tokens = engine.launch(plan).wait().tokens
        assert ((tokens >= 0) & (tokens < 50)).all()


def test_whatever_fails_while_compiling_is_left_to_the_first_launch(caplog: pytest.LogCaptureFixture) -> None:
    def launch() -> None:
        raise RuntimeError("no compiler")

    assert compile_ahead(launch) == 0
    assert "no compiler" in caplog.text
    from triton.runtime.jit import JITFunction

    assert JITFunction.run.__qualname__ == "JITFunction.run"


def test_a_kernel_that_cannot_be_loaded_is_loaded_again_by_its_first_launch() -> None:
    class Kernel:
        _run: object = None

        def _init_handles(self) -> None:
            self._run = "half"
            raise RuntimeError("no context")

    kernel = Kernel()
    _load(kernel)
    assert kernel._run is None


def test_kernels_that_were_compiled_before_and_that_failed_are_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from triton.runtime._async_compile import FutureKernel
    from triton.runtime.jit import JITFunction

    class Compiled:
        kernel = b"its code"
        src = SimpleNamespace(signature={"x": "*bf16"})
        loaded = 0

        def _init_handles(self) -> None:
            self.loaded = 1

    before, now = Compiled(), Compiled()
    promise, broken = FutureKernel.__new__(FutureKernel), FutureKernel.__new__(FutureKernel)
    promise.kernel, broken.kernel = now, None
    kernels = iter([before, broken, promise, before])
    monkeypatch.setattr(JITFunction, "run", lambda fn, grid, warmup: next(kernels))

    def launch() -> None:
        for _ in range(4):
            JITFunction.run("any", grid=(1,), warmup=False)  # type: ignore[arg-type]

    assert compile_ahead(launch) == 4
    assert (before.loaded, now.loaded) == (1, 1)
    assert not caplog.records


def test_what_is_tried_runs_while_others_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    launched: list[tuple[str, bool]] = []
    monkeypatch.setattr(JITFunction, "run", lambda fn, grid, warmup: launched.append((fn, warmup)))

    @trial
    def check() -> bool:
        JITFunction.run("tried", grid=(1,), warmup=False)  # type: ignore[arg-type]
        return True

    def launch() -> None:
        JITFunction.run("a", grid=(1,), warmup=False)  # type: ignore[arg-type]
        assert check()
        JITFunction.run("b", grid=(1,), warmup=False)  # type: ignore[arg-type]

    assert compile_ahead(launch) == 2
    assert launched == [("a", True), ("tried", False), ("b", True)]


def test_masked_steps_are_captured_only_once_states_follow_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that warm up come before the vocabulary is known: their graphs would never move a state."""
    graphs = DecodeGraphs.__new__(DecodeGraphs)
    captured: list[_Kind] = []
    automata = SimpleNamespace(learned=False)
    for name, value in {"captures": True, "_captured": {}, "_automata": automata, "_capture": captured.append}.items():
        monkeypatch.setattr(graphs, name, value, raising=False)
    monkeypatch.setattr(graphs, "_step", lambda kind: torch.zeros(1))
    free, held = _Kind(1, True, False, False), _Kind(1, True, True, False)
    for kind in (free, held):
        graphs._run(kind)
    assert captured == [free]
    automata.learned = True
    graphs._run(held)
    assert captured == [free, held]
