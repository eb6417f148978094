"""What is said of memory, and what a start says that finds too little: one line, flags, values that fit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import load

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, NoRoom
from sglang.engine import account, pool
from sglang.engine import engine as engines
from sglang.engine.account import GIB, Account, check_room, less, room_for
from sglang.engine.engine import Engine
from sglang.launch_worker import explain
from sglang.plan_memory import Planner

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 2000,
    "max_position_embeddings": 4096, "eos_token_id": 3, "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def config_of(folder: Path, **flags: Any) -> ServerConfig:
    return ServerConfig(model_path=str(folder), device="cpu", load_format="dummy", dtype="float32", **flags).resolve()


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"\d+\.\d+", text)]


def test_all_of_a_device_is_accounted_for() -> None:
    told = str(Account(15 * GIB, 98 * GIB, 800_000, GIB / 2, 3 * GIB, 24 * GIB, 140 * GIB))
    assert told == (
        "weights 15.00, keys and values 98.00 (800000 tokens), constraints 0.50, a step at most 3.00, "
        "graphs so far, kernels, workspaces and others 2.50, left free 21.00; in all 140.00 (GiB)"
    )
    *parts, total = numbers(told)
    assert sum(parts) == pytest.approx(total)


def test_a_start_says_what_was_planned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        engine = load(folder, load_format="dummy", max_total_tokens=4096)
    [told] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("memory: ")]
    config = config_of(folder, max_total_tokens=4096)
    need = Planner(config, "cpu").need(config)
    weights, cells, _ = numbers(told)
    assert weights == pytest.approx(need.weights / GIB, abs=0.005)
    assert cells == pytest.approx(need.tokens * need.cell / GIB, abs=0.005)
    assert f"({need.tokens} tokens)" in told and need.tokens == engine.pages


def limit(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    for module in (account, pool, engines):
        monkeypatch.setattr(module, "free_bytes", lambda device: free)


def refused(config: ServerConfig) -> str:
    with pytest.raises(ConfigError) as refusal:
        Engine.load(config, progress=False)
    assert refusal.value.__cause__ is None
    told = explain(config, refusal.value)
    assert "\n" not in told
    return told


def test_weights_that_do_not_fit_are_refused_with_flags_that_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0.04 * GIB)
    told = refused(config_of(folder))
    assert told.startswith("0.04 GiB of memory are too little for the weights, which take 0.05; any of these")
    [flag] = re.findall(r"--quantization \w+", told)
    assert Engine.load(config_of(folder, quantization=flag.split()[1]), progress=False).pages >= 16


def test_a_pool_that_does_not_fit_is_refused_with_flags_that_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0.06 * GIB)
    told = refused(config_of(folder, mem_fraction_static=0.001))
    assert "--mem-fraction-static 0.001 leaves 0.00 GiB for keys and values, 16 tokens need 0.00: " in told
    [fraction] = re.findall(r"--mem-fraction-static (0\.\d\d) is enough", told)
    assert Engine.load(config_of(folder, mem_fraction_static=float(fraction)), progress=False).pages >= 16


def test_advice_counts_what_was_free_before_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0.06 * GIB)
    monkeypatch.setattr(pool, "free_bytes", lambda device: 10_000.0)
    with pytest.raises(NoRoom, match=r"--mem-fraction-static 0\.5 leaves 0\.00 GiB") as refusal:
        Engine.load(config_of(folder), progress=False)
    assert refusal.value.free == 0.06 * GIB
    assert "; any of these by itself would make it fit: --context-length " in explain(config_of(folder), refusal.value)


def test_nothing_helps_where_nothing_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1000.0)
    assert refused(config_of(folder)).endswith("no flag alone makes it fit; it takes 1.00 GiB")


def test_whatever_finds_no_memory_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.96 GiB.\nGPU 0 has ...")

    with monkeypatch.context() as patched:
        patched.setattr(engines, "load", full)
        assert "GiB of memory are too little for the weights; " in refused(config_of(folder))
    with monkeypatch.context() as patched:
        patched.setattr(engines, "make_pool", full)
        assert "GiB of memory are too little for keys and values and what" in refused(config_of(folder))
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "warm", full)
        limit(patched, 20 * GIB)
        told = refused(config_of(folder, max_total_tokens=64, mem_fraction_static=0.6))
        assert told.startswith("--mem-fraction-static 0.6 leaves too little memory for the first steps beside 0.00 GiB")
        assert told.endswith("--mem-fraction-static 0.5, or --chunked-prefill-size 256 leaves more")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="illegal"), room_for("weights", CPU):
        raise RuntimeError("an illegal memory access")
    with pytest.raises(NoRoom, match="too little for weights"), room_for("weights", CPU):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(NoRoom), room_for("weights", CPU):
        raise MemoryError
    check_room(1, "weights", CPU)


@pytest.mark.parametrize(("fraction", "gib", "lower"), [(0.88, 140, 0.85), (0.88, 24, 0.79), (0.9, 8, 0.8)])
def test_a_lower_share_leaves_two_gib_or_a_tenth(fraction: float, gib: int, lower: float) -> None:
    assert less(fraction, gib * GIB) == lower
