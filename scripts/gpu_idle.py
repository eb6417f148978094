"""Part `idle` of gpu_check.py: what an engine prepares while nobody waits, how soon it leaves it, and whether tokens
stay the same: after captures that were left, by graphs, and after a step that found no memory."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_steps import LLAMA_8B, SAME, Driver, load

from sglang.base.sampling import SamplingParams
from sglang.engine.engine import Engine

GREEDY = SamplingParams(temperature=0)
SLOTS, PROMPT, STEPS = 64, 96, 6
LEFT_MS = 15  # after somebody came: a layer, and the end of a capture


def run() -> dict[str, Any]:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    folder = tempfile.mkdtemp()
    Path(folder, "config.json").write_text(json.dumps({**LLAMA_8B, "max_position_embeddings": 32768}))
    engine = load(folder, max_running_requests=SLOTS)
    print("memory:", engine.account(), flush=True)
    driver = Driver(engine, 256, SLOTS)
    wanted = _tokens(driver)  # most of it kernel by kernel
    left = [_left(engine, layers) for layers in (0, 1, 3, 8, 16, 31, 32, 33)]
    same = [_check("after captures that were left", wanted, _tokens(driver))]
    times = _prepared(engine)
    same.append(_check("by graphs", wanted, _tokens(driver)))
    graphs, fills = engine._graphs, engine._fills
    assert graphs is not None and fills is not None
    captured = {"decodes": len(graphs._captured), "fills": len(fills._captured)}
    notes = list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json"))
    met = json.loads(notes[0].read_text())["met"] if notes else {}
    engine._seen = type(engine._seen)()
    same.append({"what": "notes on disk", **{kind: len(found) for kind, found in met.items()}, "ok": "decodes" in met})
    same.append(_check("after a step without memory", wanted, _without_memory(engine, driver)))
    print("memory:", engine.account(), flush=True)
    ok = all(row["ok"] for row in (*left, *same))
    return {"left": left, "times": times, "same": same, "captured": [captured], "ok": ok}


def _tokens(driver: Driver) -> np.ndarray:
    """Of prompts and decodes at several numbers of rows."""
    found = []
    for batch in (1, 5, 48):
        driver.fill(batch, PROMPT, GREEDY)
        found.append(driver.drawn)
        found.append(driver.decode(batch, PROMPT, STEPS)[0].reshape(-1))
    return np.concatenate(found)


def _check(what: str, wanted: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Sums in another order change a token here and there, and what follows it."""
    share = float((wanted == found).mean())
    return {"what": what, "same tokens": round(share, 3), "ok": share > SAME}


def _left(engine: Engine, layers: int) -> dict[str, Any]:
    """Somebody comes before a layer of what is prepared."""
    torch.cuda.synchronize()
    seen, came = 0, 0.0

    def wanted() -> bool:
        nonlocal seen, came
        seen += 1
        if seen == layers + 1:
            came = time.perf_counter()
        return seen > layers

    engine.prepare(0.0, wanted)
    ended = time.perf_counter()
    torch.cuda.synchronize()
    queued_ms = 1000 * (time.perf_counter() - ended)
    left_ms = 1000 * (ended - came) if came else 0.0
    return {"layers": layers, "left after ms": left_ms, "device ms": queued_ms, "ok": left_ms < LEFT_MS}


def _prepared(engine: Engine) -> list[dict[str, Any]]:
    """All that there is to prepare: milliseconds of each bit."""
    bits: dict[str, list[float]] = {}
    graphs, fills, tiled = engine._graphs, engine._fills, engine._tiled
    assert graphs is not None and fills is not None and tiled is not None
    more: float | None = 0.0
    while more is not None:
        before = _counts(engine)
        torch.cuda.synchronize()
        began = time.perf_counter()
        more = engine.prepare()
        ms = 1000 * (time.perf_counter() - began)
        names = [name for name, n in _counts(engine).items() if n != before[name]]
        bits.setdefault(names[0] if names else "nothing", []).append(ms)
    return [
        {"bit": name, "times": len(ms), "ms p50": float(np.median(ms)), "ms most": max(ms)} for name, ms in bits.items()
    ]


def _counts(engine: Engine) -> dict[str, int]:
    graphs, fills, tiled = engine._graphs, engine._fills, engine._tiled
    assert graphs is not None and fills is not None and tiled is not None
    return {
        "fills, captured": len(fills._captured),
        "fills, run": len(fills._ran),
        "decode, captured": len(graphs._captured),
        "decode, run": len(graphs._ran),
        "plan for long rows": len(tiled.long_rows._planned),
    }


def _without_memory(engine: Engine, driver: Driver) -> np.ndarray:
    """The same tokens, where the first step finds no memory as long as there are graphs."""
    graphs, fills = engine._graphs, engine._fills
    assert graphs is not None and fills is not None
    launch: Callable[..., Any] = graphs.launch

    def full(*given: Any) -> Any:
        if graphs._captured:
            raise torch.OutOfMemoryError("as if there were no memory")
        return launch(*given)

    graphs.launch = full  # type: ignore[method-assign]
    found = _tokens(driver)
    assert not graphs._captured and not fills._captured
    return found
