# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `kernels` of gpu_check.py: each kernel against float64, then its time beside the chip's ceilings."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sglang.attention.base import Look, Rows, Shape
from sglang.attention.torch_native import TorchAttention
from sglang.attention.triton import TritonAttention, tiles_of
from sglang.kernels import attention as own
from sglang.kernels import sample
from sglang.kernels.pointwise import gate, rms_norm

READ_TB_S = 4.33  # an H200's, measured
DEVICE = torch.device("cuda")


def graph_us(calls: list[Callable[[], Any]], replays: int = 7) -> float:
    """Median microseconds of one call, all of them captured in one graph after a first run outside it."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / len(calls))
    return sorted(times)[len(times) // 2]


def numerics() -> list[dict[str, Any]]:
    """Ragged batches with cached prefixes, in every type and look, against the torch backend in float64 on the CPU."""
    random = np.random.default_rng(5)
    rows = []
    for name, shape in {
        "32/8x128": Shape(32, 8, 128, 128**-0.5),
        "14/2x64": Shape(14, 2, 64, 0.125),
        "8/4x256": Shape(8, 4, 256, 1 / 16),
        "8/8x80": Shape(8, 8, 80, 80**-0.5),
        "12/2x96": Shape(12, 2, 96, 96**-0.5),
    }.items():
        sinks = torch.linspace(-1, 2, shape.heads)
        looks = {
            "plain": Look(),
            "window": Look(window=100),
            "chunk": Look(chunk=64),
            "cap, sinks": Look(softcap=20.0, sinks=sinks),
        }
        first = name == "32/8x128"
        for dtype, bound in ((torch.bfloat16, 8e-3), (torch.float16, 1.5e-3), (torch.float32, 5e-6)):
            if dtype != torch.bfloat16 and not first and (dtype, name) != (torch.float32, "14/2x64"):
                continue  # every case is compiled anew: a few for each type will do
            for look_name, look in looks.items() if first and dtype == torch.bfloat16 else [("plain", Look())]:
                page = int(random.choice([1, 16]))
                error = _attention_error(shape, dtype, look, page, random)
                row = {"shape": name, "type": str(dtype)[6:], "look": look_name, "page": page, "error": error}
                rows.append({**row, "bound": bound, "ok": bool(error < bound)})
    return rows


def _attention_error(
    shape: Shape,
    dtype: torch.dtype,
    look: Look,
    page: int,
    random: np.random.Generator,
    kept: torch.dtype | None = None,
    ready: Callable[[TritonAttention], object] = lambda _: None,
) -> float:
    """kept: the pool's type, if another. ready: done with the backend first."""
    lengths = random.integers(1, 900, 10)
    counts = np.where(np.arange(10) < 5, 1, np.minimum(lengths, random.integers(2, 300, 10)))
    need = -(-lengths // page)
    cells = int(need.sum()) * page
    pages = random.permutation(int(need.sum())).astype(np.int32)
    table = np.zeros((10, int(need.max())), np.int32)
    at = 0
    for slot, n in enumerate(need):
        table[slot, :n] = pages[at : at + n]
        at += n
    generator = torch.Generator().manual_seed(1)
    tokens = int(counts.sum())

    def some(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    pool = [some(cells, shape.kv_heads, shape.head_dim) for _ in range(2)]
    packed = some(tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    parts = [shape.heads, shape.kv_heads, shape.kv_heads]
    rows = Rows(np.arange(10), lengths - counts, counts, table, page)
    scales = [(1.0, 1.0)]
    if kept is not None:
        pool, scales = [(t * 2).to(kept) for t in pool], [(0.5, 0.25)]
        wide = TorchAttention(shape, [pool[0].clone()], [pool[1].clone()], scales)
    else:
        wide = TorchAttention(shape, [pool[0].double()], [pool[1].double()])
    wide.plan(rows)
    wanted = wide.attend(*(t.double() for t in packed.split(parts, 1)), 0, look)
    backend = TritonAttention(
        shape,
        [pool[0].to(DEVICE)],
        [pool[1].to(DEVICE)],
        torch.from_numpy(table).to(DEVICE),
        page,
        dtype=dtype,
        scales=scales,
    )
    ready(backend)
    backend.plan(rows)
    moved = look if look.sinks is None else Look(look.window, look.chunk, look.softcap, look.sinks.to(DEVICE))
    got = backend.attend(*packed.to(DEVICE).split(parts, 1), 0, moved).double().cpu()
    return float(torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted))


def others() -> list[dict[str, Any]]:
    """Norm, gate and draws against their definitions."""
    rows = []

    def row(name: str, error: float, bound: float) -> None:
        rows.append({"shape": name, "type": "bfloat16", "error": error, "bound": bound, "ok": bool(error < bound)})

    for n in (1, 33, 300):
        x, w = torch.randn(n, 4096, device=DEVICE).bfloat16(), torch.randn(4096, device=DEVICE).bfloat16()
        wide = x.double()
        wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
        got = rms_norm(x, w, 1e-5).double()
        row(f"rms_norm {n}", float(torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted)), 4e-3)
        both = torch.randn(n, 2 * 14336, device=DEVICE).bfloat16()
        wanted = torch.nn.functional.silu(both[:, :14336].double()) * both[:, 14336:].double()
        got = gate(both, "silu").double()
        row(f"gate {n}", float(torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted)), 4e-3)
    for vocab in (1000, 32000, 128256):
        logits = (torch.randn(64, vocab, device=DEVICE) * 2).bfloat16()
        wishes = _wishes(64, 0.0)
        tokens = _draw(logits, wishes)
        wrong = (logits.gather(1, tokens[:, None])[:, 0] != logits.max(-1).values).sum()
        row(f"argmax {vocab}", float(wrong), 0.5)
        for kind in ({}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}):
            wishes = _wishes(64, 0.8, **kind)
            row(f"draw {vocab} {kind or ''}", _draw_error(logits, wishes, _draw(logits, wishes), **kind), 0.5)
    return rows


def _wishes(n: int, temperature: float, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0) -> sample.Draws:
    def column(value: float) -> torch.Tensor:
        return torch.full((n,), value, dtype=torch.float64, device=DEVICE)

    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    top_ks = torch.full((n,), top_k, device=DEVICE)
    return sample.Draws(torch.arange(n, device=DEVICE), column(temperature), top_ks, column(top_p), column(min_p), u)


def _draw(logits: torch.Tensor, wishes: sample.Draws) -> torch.Tensor:
    out = torch.full((len(logits),), -1, device=DEVICE)
    sample.draw(logits, wishes, torch.zeros_like(out), out)
    return out


def _draw_error(
    logits: torch.Tensor,
    wishes: sample.Draws,
    tokens: torch.Tensor,
    top_k: int = -1,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> float:
    """Rows whose token is not the one at u of the cumulative distribution, by more than rounding (1e-5 of its mass)."""
    probs = (logits.double() / 0.8).softmax(-1)
    ranked, _ = probs.sort(-1, descending=True)
    floor = ranked[:, :1] * min_p
    if top_k > 0:
        floor = torch.maximum(floor, ranked[:, top_k - 1 : top_k])
    if top_p < 1:
        last = ((ranked.cumsum(-1) - ranked) < top_p).sum(-1, keepdim=True) - 1
        floor = torch.maximum(floor, ranked.gather(1, last))
    probs = probs * (probs >= floor * (1 - 1e-6))
    probs = probs / probs.sum(-1, keepdim=True)
    cumulative = probs.cumsum(-1)
    upper = cumulative.gather(1, tokens[:, None])[:, 0]
    lower = upper - probs.gather(1, tokens[:, None])[:, 0]
    wrong = (wishes.uniforms < lower - 1e-5) | (wishes.uniforms > upper + 1e-5)
    return float(wrong.sum())


class _Pools:
    """Several layers of one pool, so that repeated reads come from memory and not from the cache."""

    def __init__(self, cells: int, heads: int = 32, kv: int = 8, dim: int = 128, dtype: torch.dtype = torch.bfloat16):
        self.heads, self.kv, self.dim, self.cells = heads, kv, dim, cells
        layer = cells * kv * dim * 2 * dtype.itemsize
        self.layers = max(1, min(32, math.ceil(1e9 / layer)))
        shape = (cells, kv, dim)
        self.keys = [torch.randn(shape, device=DEVICE).to(dtype) for _ in range(self.layers)]
        self.values = [torch.randn(shape, device=DEVICE).to(dtype) for _ in range(self.layers)]
        self.score = own.Score(dim**-0.5)

    def layer(self, i: int, table: torch.Tensor) -> own.Pool:
        return own.Pool(self.keys[i], self.values[i], table, 1)


def decodes() -> list[dict[str, Any]]:
    """Paged decode, page size 1, scattered; the engine's tuning first, then others."""
    rows = []
    default = own.decode_tuning(128, torch.bfloat16)
    tunings = [
        default,
        own.Tuning(1, 64, 4, 2),
        own.Tuning(1, 64, 4, 4),
        own.Tuning(1, 32, 4, 4),
        own.Tuning(1, 32, 2, 4),
    ]
    tunings += [own.Tuning(1, 128, 4, 2), own.Tuning(1, 128, 8, 3), own.Tuning(1, 64, 8, 3), own.Tuning(1, 64, 2, 3)]
    for batch, context in ((1, 300), (1, 4096), (32, 300), (32, 1024), (256, 1024), (512, 600), (16, 16384)):
        pools = _Pools(batch * context)
        table = torch.randperm(batch * context, device=DEVICE).int().view(batch, context)
        q = torch.randn(batch, 32, 128, device=DEVICE).bfloat16()
        out = torch.empty_like(q)
        at = torch.arange(batch, device=DEVICE)
        positions = torch.full((batch,), context - 1, device=DEVICE)
        bytes_ = batch * context * 4096

        def time_of(splits: int, tuning: own.Tuning) -> float:
            def call(i: int) -> Callable[[], None]:
                pool = pools.layer(i, table)
                return lambda: own.decode(q, pool, pools.score, at, positions, at, out, splits, tuning)

            calls = [call(i) for i in range(pools.layers)]
            return graph_us(calls * max(1, 8 // len(calls)))

        usual = own.splits_for(batch, 8)
        found = {(usual, t): time_of(usual, t) for t in tunings}
        best = min(tunings, key=lambda t: found[usual, t])
        splits = sorted({max(1, usual // 4), max(1, usual // 2), min(64, usual * 2), usual})
        found |= {(s, best): time_of(s, best) for s in splits if s != usual}
        us = found[usual, default]
        (fast_splits, fast), fast_us = min(found.items(), key=lambda kv: kv[1])
        rows.append(
            {
                "kernel": f"decode {batch} x {context}",
                "us": us,
                "TB/s": bytes_ / us / 1e6,
                "share %": 100 * bytes_ / us / 1e6 / READ_TB_S,
                "best us": fast_us,
                "best": f"splits {fast_splits} of {usual}, keys {fast.keys}, warps {fast.warps}, stages {fast.stages}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def extends() -> list[dict[str, Any]]:
    rows = []
    default = own.extend_tuning(128, torch.bfloat16, 1024)
    tunings = [default, own.Tuning(128, 64, 8, 3), own.Tuning(128, 64, 8, 4, 128), own.Tuning(128, 128, 8, 2)]
    tunings += [own.Tuning(64, 64, 4, 3), own.Tuning(64, 64, 4, 3, 128), own.Tuning(128, 32, 8, 4, 128)]
    for batch, new, cached in (
        (1, 8192, 0),
        (1, 4096, 0),
        (8, 1024, 0),
        (1, 1024, 15360),
        (8, 256, 1024),
        (16, 512, 0),
    ):
        length = new + cached
        pools = _Pools(batch * length)
        table = torch.randperm(batch * length, device=DEVICE).int().view(batch, length)
        q = torch.randn(batch * new, 32, 128, device=DEVICE).bfloat16()
        out = torch.empty_like(q)
        operations = 4 * 128 * 32 * batch * (new * cached + new * (new + 1) / 2)
        found = {}
        host = Rows(np.arange(batch), np.full(batch, cached), np.full(batch, new), np.zeros((batch, 1), np.int32), 1)
        for t in tunings:
            tiles = torch.from_numpy(tiles_of(host, np.arange(batch) * new, t.queries // own.packed(32, 8))).to(DEVICE)
            pool = pools.layer(0, table)
            try:
                found[t] = graph_us([lambda: own.extend(q, pool, pools.score, tiles, out, new, t)] * 3)
            except Exception as error:
                print("not possible:", t, str(error)[:100], flush=True)
        fast = min(found, key=lambda t: found[t])
        rows.append(
            {
                "kernel": f"extend {batch} x {new} over {cached}",
                "us": found[default],
                "TFLOP/s": operations / found[default] / 1e6,
                "best us": found[fast],
                "best": f"queries {fast.queries}, keys {fast.keys}, warps {fast.warps}, stages {fast.stages}, "
                f"registers {fast.registers}",
            }
        )
        if cached == 0:
            heads = [torch.randn(batch, n, new, 128, device=DEVICE).bfloat16() for n in (32, 8, 8)]
            from torch.nn.attention import SDPBackend, sdpa_kernel

            for name, kind in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
                with sdpa_kernel(kind):
                    attend = torch.nn.functional.scaled_dot_product_attention
                    us = graph_us([lambda: attend(*heads, is_causal=True, enable_gqa=True)] * 3)
                rows[-1][f"torch {name} us"] = us
        print(rows[-1], flush=True)
    return rows


def small() -> list[dict[str, Any]]:
    """What stands between the products, and the products themselves, of an 8B layer."""
    rows = []

    def row(name: str, us: float, bytes_: float) -> None:
        rows.append({"kernel": name, "us": us, "share %": 100 * bytes_ / us / 1e6 / READ_TB_S})
        print(rows[-1], flush=True)

    weight = torch.randn(4096, device=DEVICE).bfloat16()
    for n in (1, 32, 256):
        x = torch.randn(n, 4096, device=DEVICE).bfloat16()
        row(f"rms_norm {n}", graph_us([lambda: rms_norm(x, weight, 1e-5)] * 50), 4 * x.numel())
        both = torch.randn(n, 28672, device=DEVICE).bfloat16()
        row(f"gate {n}", graph_us([lambda: gate(both, "silu")] * 50), 3 * both.numel())
        logits = [(torch.randn(n, 128256, device=DEVICE) * 2).bfloat16() for _ in range(4)]
        for name, wishes in {
            "greedy": _wishes(n, 0.0),
            "random": _wishes(n, 1.0),
            "top_p 0.9": _wishes(n, 1.0, top_p=0.9),
            "top_k 40": _wishes(n, 1.0, top_k=40),
        }.items():
            out, last = (
                torch.zeros(n, dtype=torch.int64, device=DEVICE),
                torch.zeros(n + 1, dtype=torch.int64, device=DEVICE),
            )
            calls = [lambda one=one: sample.draw(one, wishes, last, out) for one in logits]
            row(f"draw {name} {n}", graph_us(calls * 4), 2 * n * 128256)
    for name, (outputs, inputs) in {"o": (4096, 4096), "down": (4096, 14336), "qkv": (6144, 4096)}.items():
        for n in (1, 32):
            weights = [torch.randn(outputs, inputs, device=DEVICE).bfloat16() for _ in range(6)]
            x = torch.randn(n, inputs, device=DEVICE).bfloat16()
            y = torch.randn(n, outputs, device=DEVICE).bfloat16()
            linear = torch.nn.functional.linear
            row(f"{name} linear {n}", graph_us([lambda w=w: linear(x, w) for w in weights] * 3), 2 * outputs * inputs)
            row(
                f"{name} addmm_ {n}",
                graph_us([lambda w=w: y.addmm_(x, w.t()) for w in weights] * 3),
                2 * outputs * inputs,
            )
    return rows
