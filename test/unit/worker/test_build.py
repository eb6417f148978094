"""A worker's parts, of the demo model."""

import threading
from typing import Any

import pytest

from sglang.base.config import ServerConfig
from sglang.engine.engine import Engine
from sglang.grammar.compiler import Compiler
from sglang.launch_worker import lexicon
from sglang.worker.build import build

HANG_S = 60


def config() -> ServerConfig:
    return ServerConfig(max_total_tokens=2000, device="cpu").resolve()


def called(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """When a compiler's method of that name has returned."""
    event, method = threading.Event(), getattr(Compiler, name)

    def noted(compiler: Compiler) -> None:
        method(compiler)
        event.set()

    monkeypatch.setattr(Compiler, name, noted)
    return event


def test_constraints_are_prepared_while_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed, load = called(monkeypatch, "rehearse"), Engine.load

    def slow(config: ServerConfig, told: Any) -> Engine:
        engine = load(config, told=told)
        assert rehearsed.wait(HANG_S), "it waits for the model"
        return engine

    monkeypatch.setattr(Engine, "load", slow)
    one = config()
    state, _, grammars = build(one, lambda: lexicon(one))
    grammars._compiler.result(HANG_S)
    assert state.words
    grammars.close()


def test_a_load_that_fails_leaves_no_compiler_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, load = called(monkeypatch, "close"), Engine.load

    def failing(config: ServerConfig, told: Any) -> Engine:
        load(config, told=told)
        raise RuntimeError("no memory")

    monkeypatch.setattr(Engine, "load", failing)
    one = config()
    with pytest.raises(RuntimeError, match="no memory"):
        build(one, lambda: lexicon(one))
    assert closed.wait(HANG_S)
