"""Part `loop` of gpu_check.py: the worker's loop on an 8B model with random weights: how long the device stands still
between two steps; then what a step takes by how many sequences and by how many keys.
"""

import gc
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_steps import LLAMA_8B, Driver, floor_ms, load

from sglang import schedule
from sglang.base.link import pair
from sglang.base.messages import Step, Stop, Submit, pack
from sglang.base.plan import Plan
from sglang.base.sampling import SamplingParams
from sglang.engine.engine import Engine, Flight
from sglang.worker.build import budget
from sglang.worker.loop import serve
from sglang.worker.process import COLLECT
from sglang.worker.report import Report

GAP_US = 50  # between decode steps, at most
CELLS = 700_000
GREEDY = SamplingParams(temperature=0)


class Watched:
    """An engine, with the device's own time before and after what each launch enqueues."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.overlap = engine.overlap
        self.steps: list[tuple[int, int, torch.cuda.Event, torch.cuda.Event]] = []  # rows, tokens, begun, ended

    def prepare(self, quiet_s: float, wanted: Callable[[], bool]) -> float | None:
        return self._engine.prepare(quiet_s, wanted)

    def launch(self, plan: Plan) -> Flight:
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        flight = self._engine.launch(plan)
        ended.record()
        self.steps.append((len(plan.slots), len(plan.tokens), begun, ended))
        return flight

    def gaps(self, rows: int) -> np.ndarray:
        """Microseconds between two steps of so many decodes."""
        torch.cuda.synchronize()
        found = []
        for (n, tokens, _, ended), (m, more, begun, _) in zip(self.steps, self.steps[1:], strict=False):
            if n == tokens == m == more == rows:
                found.append(1000 * ended.elapsed_time(begun))
        return np.array(found)


def run() -> dict[str, Any]:
    folder = tempfile.mkdtemp()
    Path(folder, "config.json").write_text(json.dumps({**LLAMA_8B, "max_position_embeddings": 140_000}))
    engine = load(folder, max_running_requests=1024)
    while engine.prepare(1e9, lambda: False) is not None:
        pass
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)  # as a worker does
    gaps = [_served(engine, rows, overlap) for rows in (1, 64, 256, 512) for overlap in (True, False)]
    ok = all(row["gap us p50"] < GAP_US for row in gaps if row["overlap"])
    batches = [_step(engine, n, 600) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    contexts = [_step(engine, 1, 1024 * n) for n in (1, 2, 4, 8, 16, 32, 64, 128)]
    contexts += [_step(engine, 16, 1024 * n) for n in (1, 4, 16, 40)]
    return {"gaps": gaps, "batches": batches, "contexts": contexts, "ok": ok}


def _served(engine: Engine, rows: int, overlap: bool) -> dict[str, Any]:
    """The loop with so many requests at once, each of 32 tokens in and 150 out."""
    state = schedule.State(budget_of(engine))
    watched = Watched(engine)
    near, far = pair()
    loop = threading.Thread(target=serve, args=(far, state, watched, Report(1 << 30), overlap), daemon=True)
    sampling = SamplingParams(max_new_tokens=150, temperature=0, ignore_eos=True)
    dice = np.random.default_rng(rows)
    for i in range(rows):
        near.send(Submit(i, pack(dice.integers(0, 100_000, 32).tolist()), sampling))
    began = time.perf_counter()
    loop.start()
    left = rows
    while left:
        for message in near.receive(30):
            if isinstance(message, Step):
                left -= sum(piece.finish is not None for piece in message.pieces)
    wall = time.perf_counter() - began
    near.send(Stop())
    loop.join(30)
    gaps = watched.gaps(rows)[5:]
    row = {
        "running": rows, "overlap": overlap, "steps": len(gaps), "gap us p50": float(np.median(gaps)),
        "p99": float(np.percentile(gaps, 99)), "most": float(gaps.max()), "ms a step": 1000 * wall / 150,
    }  # fmt: skip
    print(row, flush=True)
    return row


def budget_of(engine: Engine) -> schedule.Budget:
    from sglang.base.config import ServerConfig

    return budget(ServerConfig(disable_radix_cache=True, random_seed=1), engine)


def _step(engine: Engine, batch: int, context: int) -> dict[str, Any]:
    """Decode steps after keys that nobody computed: pages hold zeros, which take as long."""
    driver = Driver(engine, min(CELLS // batch, context + 64), batch)
    driver.tabled(batch)
    driver.decode(batch, context, 8)
    _, ms, host = driver.decode(batch, context + 8, 30)
    floor = floor_ms(batch, context + 23)
    row = {
        "batch": batch,
        "context": context,
        "ms": ms,
        "floor ms": floor,
        "share %": 100 * floor / ms,
        "host ms": host,
    }
    print(row, flush=True)
    return row
