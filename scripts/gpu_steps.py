"""Part `graphs` of gpu_check.py: whole steps of an 8B model with random weights, with graphs and without."""

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang.base.config import ServerConfig
from sglang.base.plan import DRAWN, Plan, Seat
from sglang.base.sampling import SamplingParams
from sglang.engine.engine import Engine, Flight

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "eos_token_id": 128001,
    "bos_token_id": 128000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WEIGHT_BYTES = 15.01e9  # read by a step
READ_TB_S, TFLOP_S = 4.33, 770.0
# Of tokens. Decodes in a graph add a row's own key to others in another order, and random weights give many tokens that
# are almost as likely.
SAME = 0.95


class Driver:
    """Sequences in slots of their own; their pages are scattered over the pool."""

    def __init__(self, engine: Engine, context: int, slots: int):
        self.engine = engine
        self.context = context
        pages = np.random.default_rng(0).permutation(engine.pages)[: slots * context]
        self.table = pages.reshape(slots, context).astype(np.int32)
        self.step = 0
        self.drawn, self.host_ms = np.empty(0, np.int32), 0.0  # of the last step of `fill`

    def plan(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray, tokens: np.ndarray, **more: Any) -> Plan:
        rows = np.repeat(slots, counts)
        index = np.arange(len(rows)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        self.step += 1
        return Plan(
            step=self.step, slots=slots.astype(np.int32), starts=starts.astype(np.int32),
            counts=counts.astype(np.int32), samples=np.ones(len(slots), np.bool_), tokens=tokens.astype(np.int32),
            table_slots=rows.astype(np.int32), table_index=index.astype(np.int32),
            table_pages=self.table[rows, index], **more,
        )  # fmt: skip

    @torch.inference_mode()
    def tabled(self, batch: int, common: int = 0) -> None:
        """Tell the engine the pages of `batch` sequences, of which the first `common` are everybody's. Nobody computed
        their keys: what they hold takes as long to read."""
        self.table[:batch, :common] = self.table[0, :common]
        tables = self.engine._tables
        assert tables.device_pages is not None
        tables.pages[:batch, : self.context] = self.table[:batch]
        tables.device_pages[:batch, : self.context] = torch.from_numpy(self.table[:batch]).to(
            tables.device_pages.device
        )

    def fill(self, batch: int, length: int, sampling: SamplingParams) -> float:
        """Prompts of `length` random tokens; seconds of the last step."""
        random = np.random.default_rng(1)
        at_once = max(1, 8192 // length)
        seconds = 0.0
        for first in range(0, batch, at_once):
            slots = np.arange(first, min(batch, first + at_once))
            n = len(slots)
            seats = [Seat(int(slot), sampling, length) for slot in slots]
            tokens = random.integers(0, 128000, n * length) % self.engine.ready.vocab_size
            torch.cuda.synchronize()
            began = time.perf_counter()
            plan = self.plan(slots, np.zeros(n, np.int64), np.full(n, length), tokens, seats=seats)
            flight = self.engine.launch(plan)
            self.host_ms = 1000 * (time.perf_counter() - began)
            self.drawn = flight.wait().tokens
            seconds = time.perf_counter() - began
        return seconds

    def decode(self, batch: int, length: int, steps: int) -> tuple[np.ndarray, float, float]:
        """Tokens [steps, batch], milliseconds a step, host milliseconds a launch; one step is planned ahead."""
        slots, ones = np.arange(batch), np.ones(batch, np.int64)
        flying: Flight | None = None
        found = []
        host = 0.0
        began = time.perf_counter()
        for i in range(steps):
            plan = self.plan(slots, np.full(batch, length + i), ones, np.full(batch, DRAWN))
            t = time.perf_counter()
            landed, flying = flying, self.engine.launch(plan)
            host += time.perf_counter() - t
            if landed is not None:
                found.append(landed.wait().tokens)
        assert flying is not None
        found.append(flying.wait().tokens)
        return np.stack(found), 1000 * (time.perf_counter() - began) / steps, 1000 * host / steps


def load(folder: str, **flags: Any) -> Engine:
    config = ServerConfig(
        model_path=folder, load_format="dummy", device="cuda", max_total_tokens=700_000, **flags
    ).resolve()
    return Engine.load(config, progress=False)


def floor_ms(batch: int, context: int) -> float:
    operations = 2 * WEIGHT_BYTES / 2 * batch
    return 1000 * (
        max(WEIGHT_BYTES / READ_TB_S / 1e12, operations / TFLOP_S / 1e12) + batch * context * 131072 / READ_TB_S / 1e12
    )


def run() -> dict[str, Any]:
    folder = tempfile.mkdtemp()
    Path(folder, "config.json").write_text(json.dumps(LLAMA_8B))
    began = time.perf_counter()
    engine = load(folder)
    print(f"engine of the 8B shape, warmed up: {time.perf_counter() - began:.1f} s", flush=True)
    graphs, fills = engine._graphs, engine._fills
    assert graphs is not None, "this engine captures nothing"
    greedy, random = SamplingParams(temperature=0), SamplingParams(seed=5, temperature=0.8, top_p=0.95)
    rows: list[dict[str, Any]] = []
    ok = True
    for batch, context, sampling in (
        (1, 300, greedy), (1, 300, random), (8, 300, greedy), (32, 400, greedy), (64, 600, greedy), (64, 600, random),
        (128, 600, greedy), (256, 1000, greedy), (512, 1000, greedy), (300, 600, greedy),
    ):  # fmt: skip
        driver = Driver(engine, context + 200, 512)
        filled = driver.fill(batch, context, sampling)
        engine._graphs = engine._fills = None
        plain, plain_ms, plain_host = driver.decode(batch, context, 8)
        # The same eight tokens again, now captured: the first step starts from the same drawn token.
        engine._fills = fills
        filled = driver.fill(batch, context, sampling)
        engine._graphs = graphs
        captured, _, _ = driver.decode(batch, context, 8)
        same = float((plain == captured).mean())
        _, ms, host = driver.decode(batch, context + 8, 40)
        kind = "greedy" if sampling.temperature == 0 else "top_p 0.95"
        floor = floor_ms(batch, context + 30)
        rows.append(
            {
                "batch": batch, "context": context, "draws": kind, "ms": ms, "floor ms": floor,
                "share %": 100 * floor / ms,
                "host ms": host, "without graphs ms": plain_ms, "host without ms": plain_host,
                "same tokens %": 100 * same, "prefill ms (last step)": 1000 * filled,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
        # A lone row has other kernels in a graph, and its random draws differ where the last bit of a logit does: all
        # tokens are about as likely with these weights.
        ok = ok and (same > SAME or (batch == 1 and sampling is random))
    prefills = []
    driver = Driver(engine, 8200, 64)
    for batch, length in (
        (1, 128),
        (1, 200),
        (1, 256),
        (1, 512),
        (1, 1024),
        (1, 2048),
        (1, 4096),
        (1, 8192),
        (8, 1024),
    ):
        seconds = min(driver.fill(batch, length, greedy) for _ in range(4))
        host, drawn = driver.host_ms, driver.drawn
        engine._fills = None
        plain = min(driver.fill(batch, length, greedy) for _ in range(3))
        engine._fills = fills
        operations = batch * (2 * (WEIGHT_BYTES - 1.05e9) / 2 * length + 32 * 4 * 4096 * length * length / 2)
        prefills.append(
            {
                "prompts": batch, "tokens": length, "ms": 1000 * seconds, "floor ms": operations / TFLOP_S / 1e9,
                "host ms": host, "without graphs ms": 1000 * plain, "host without ms": driver.host_ms,
                "same tokens": bool((drawn == driver.drawn).all()),
            }
        )  # fmt: skip
        print(prefills[-1], flush=True)
    ok = ok and fills is not None and fills.captures
    ok = ok and all(row["same tokens"] for row in prefills if row["tokens"] != 200)  # that one is padded
    return {"steps": rows, "prefills": prefills, "ok": ok}


def profile() -> dict[str, Any]:
    folder = tempfile.mkdtemp()
    Path(folder, "config.json").write_text(json.dumps(LLAMA_8B))
    engine = load(folder)
    return {"profile": _profile(engine), "ok": True}


def _profile(engine: Engine) -> list[dict[str, Any]]:
    """Kernels of a step by device time, and how many there are."""
    found = []
    driver = Driver(engine, 1200, 512)
    for batch, context in ((1, 300), (64, 600), (256, 600), (512, 600)):
        driver.tabled(batch)
        driver.decode(batch, context, 4)
        found += _kernels(f"{batch} decodes", 5, functools.partial(driver.decode, batch, context + 4, 5))
    driver = Driver(engine, 2300, 300)
    driver.tabled(300, common=2048)
    driver.decode(300, 2150, 4)
    found += _kernels("300 decodes after 2048 in common", 5, functools.partial(driver.decode, 300, 2154, 5))
    for tokens in (2048, 4096):
        driver = Driver(engine, 8200, 64)
        for _ in range(3):
            driver.fill(1, tokens, SamplingParams(temperature=0))
        found += _kernels(
            f"{tokens} of a prompt", 1, functools.partial(driver.fill, 1, tokens, SamplingParams(temperature=0))
        )
    for batch, prompts, tokens, cached in ((256, 28, 64, 2048), (100, 1, 512, 0), (250, 3, 600, 0)):
        driver = Driver(engine, 2200, 300)
        driver.tabled(300)
        for _ in range(3):
            _mixed(driver, batch, prompts, tokens, cached)
        name = f"{batch} decodes, {prompts} x {tokens} of prompts after {cached}"
        found += _kernels(name, 1, functools.partial(_mixed, driver, batch, prompts, tokens, cached))
    return found


def _mixed(driver: Driver, batch: int, prompts: int, tokens: int, cached: int) -> None:
    """A step of decodes beside prompts, whose cached keys are whatever the pool holds."""
    slots = np.arange(batch + prompts)
    starts = np.where(slots < batch, 600, cached)
    counts = np.where(slots < batch, 1, tokens)
    known = np.where(np.repeat(slots < batch, counts), DRAWN, 7)
    seats = [Seat(int(slot), SamplingParams(temperature=0), cached + tokens) for slot in slots[batch:]]
    driver.engine.launch(driver.plan(slots, starts, counts, known, seats=seats)).wait()


def _kernels(case: str, steps: int, work: Callable[[], Any]) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    wall = 1e6 * (time.perf_counter() - began) / steps
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
        work()
        torch.cuda.synchronize()
    events = [e for e in prof.events() or [] if "cuda" in str(e.device_type).lower() and e.device_time > 0]
    events.sort(key=lambda e: e.time_range.start)
    gaps = [b.time_range.start - a.time_range.end for a, b in itertools.pairwise(events)]
    long = sorted((g for g in gaps if g > 0), reverse=True)[:6]
    total: dict[str, list[float]] = {}
    for e in events:
        total.setdefault(e.name[:60], []).append(e.device_time)
    rows: list[dict[str, Any]] = [
        {"case": case, "kernel": name, "a step": len(times) / steps, "us a step": sum(times) / steps}
        for name, times in sorted(total.items(), key=lambda kv: -sum(kv[1]))[:14]
    ]
    whole = f"all, of {wall:.0f} us without a profiler; longest gaps us: {', '.join(f'{g:.0f}' for g in long)}"
    us = sum(sum(t) for t in total.values()) / steps
    return [*rows, {"case": case, "kernel": whole, "a step": len(events) / steps, "us a step": us}]
