# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `few` of gpu_check.py: steps of a few rows of a model in 16 bits, kernel by kernel beside what they replace."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_kernels import DEVICE, graph_us
from gpu_stream import far

from sglang.kernels import attention, cells, skinny, stream
from sglang.kernels.matvec import FEW, early
from sglang.kernels.pointwise import gate, rms_norm

HIDDEN, INTER, QKV = 4096, 14336, 6144  # of Llama 3 8B
HEADS, KV, DIM = 32, 8, 128
BF16 = torch.bfloat16
EPS = 1e-5
LAYERS = 3  # of weights in turn: 1.3 GB, of which a cache of 50 MB keeps nothing
ROWS = (2, 8, 16, 24, 32)
READ_TB_S = 4.33
TILES = [
    skinny.Tile(outputs, inputs, stages, splits)
    for outputs, inputs, stages in ((64, 128, 4), (64, 128, 3), (32, 256, 3))
    for splits in (2, 4)
]
ONCE = [
    skinny.Tile(outputs, inputs, stages)
    for outputs, inputs, stages in ((64, 64, 3), (64, 64, 4), (64, 64, 6), (64, 128, 2), (128, 64, 3))
]


def some(*size: int) -> torch.Tensor:
    return (torch.randn(size, device=DEVICE) * 0.05).to(BF16)


def numerics() -> list[dict[str, Any]]:
    found = []
    for rows in ROWS:
        for outputs, inputs in ((HIDDEN, HIDDEN), (HIDDEN, INTER), (896, 4864), (1000, 200)):
            x, weight = some(rows, inputs), some(outputs, inputs)
            expected = x.double() @ weight.double().T
            error = far(skinny.split(x, weight).sum(0), expected)
            found.append({"what": f"{outputs} x {inputs}", "rows": rows, "error": error, "ok": error < 1e-5})
            half = outputs // 2
            expected = F.silu(expected[:, :half]) * expected[:, half:]
            error = far(skinny.gated(x, weight, "silu"), expected)
            found.append({"what": f"{outputs} x {inputs}, gated", "rows": rows, "error": error, "ok": error < 5e-3})
    for rows in (1, 8, 64, 256):
        for context in (1, 65, 700):
            error = filed(rows, context)
            found.append({"what": f"keys filed after {context - 1}", "rows": rows, "error": error, "ok": error < 5e-3})
    return found


def filed(rows: int, context: int) -> float:
    """Decodes that file their own keys beside those whose keys are filed first: what they give, and what is filed."""
    table = torch.randperm(rows * context, device=DEVICE).int().view(rows, context)
    q, k, v = some(rows, HEADS + 2 * KV, DIM).mul_(20).split([HEADS, KV, KV], 1)
    at, positions = torch.arange(rows, device=DEVICE), torch.full((rows,), context - 1, device=DEVICE)
    angle = torch.rand(rows, 1, DIM // 2, device=DEVICE)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.cat((cos, cos), -1).to(BF16), torch.cat((-sin, sin), -1).to(BF16)
    cells_of = [some(rows * context, KV, DIM).mul_(20) for _ in range(2)]
    gave = []
    for fresh in (attention.Fresh(k, v, turn), None):
        pool, out = attention.Pool(*(one.clone() for one in cells_of), table, 1), torch.empty_like(q).contiguous()
        early_ = early(rows, FEW)
        if fresh is None:
            cells.file_cells(q, k, v, turn, pool, at, positions, early_)
        splits = attention.splits_for(rows, KV)
        attention.decode(q, pool, attention.Score(DIM**-0.5), at, positions, at, out, splits, fresh=fresh, early=early_)
        gave.append((out, pool.keys, pool.values))
    return max(far(own, other.double()) for own, other in zip(*gave, strict=True))


def products() -> list[dict[str, Any]]:
    """One product, its residual and the norm that reads it."""
    found = []
    norm = torch.ones(HIDDEN, device=DEVICE, dtype=BF16), EPS
    for name, inputs in (("o", HIDDEN), ("down", INTER)):
        weights = [some(HIDDEN, inputs) for _ in range(8 if inputs == HIDDEN else 3)]
        for rows in ROWS:
            x, other = some(rows, inputs), some(rows, HIDDEN)
            chained = early(rows, FEW)

            def torchs(w: torch.Tensor) -> None:
                rms_norm(other.addmm_(x, w.t()), *norm, chained)

            def ours(w: torch.Tensor, tile: skinny.Tile) -> None:
                stream.join(skinny.split(x, w, tile), None, other, norm=norm)

            def alone(w: torch.Tensor, tile: skinny.Tile) -> None:
                skinny.split(x, w, tile)

            us = {tile: graph_us([lambda w=w: ours(w, tile) for w in weights] * 4) for tile in TILES}
            best = min(us, key=lambda tile: us[tile])
            own = us[skinny.tile_of(rows, HIDDEN, inputs)]
            single = graph_us([lambda w=w: alone(w, skinny.tile_of(rows, HIDDEN, inputs)) for w in weights] * 4)
            row = {"product": name, "rows": rows, "torch us": graph_us([lambda w=w: torchs(w) for w in weights] * 4),
                   "ours us": own, "product alone us": single, "best us": us[best],
                   "share %": 100 * 2 * HIDDEN * inputs / single / 1e6 / READ_TB_S,
                   "best": f"{best.outputs} x {best.inputs}, {best.stages} stages, {best.splits} splits"}  # fmt: skip
            found.append(row)
            print(row, flush=True)
    return found


def wide() -> list[dict[str, Any]]:
    """Gate and up with the gate: torch's product and a kernel of its own, and one kernel."""
    found = []
    weights = [some(2 * INTER, HIDDEN) for _ in range(LAYERS)]
    for rows in ROWS:
        x = some(rows, HIDDEN)
        us = {tile: graph_us([lambda w=w: skinny.gated(x, w, "silu", tile) for w in weights] * 4) for tile in ONCE}
        row: dict[str, Any] = {"product": "gate, up", "rows": rows}
        row["torch us"] = graph_us([lambda w=w: gate(F.linear(x, w), "silu", early(rows, FEW)) for w in weights] * 4)
        row["best us"] = min(us.values())
        row["share %"] = 100 * 4 * INTER * HIDDEN / row["best us"] / 1e6 / READ_TB_S
        row |= {f"{t.outputs} x {t.inputs}, {t.stages}": each for t, each in us.items()}
        found.append(row)
        print(row, flush=True)
    return found


def layers() -> list[dict[str, Any]]:
    """A layer with attention over `context` keys: what is new apart, each beside what it replaces."""
    found = []
    weights = [[some(QKV, HIDDEN), some(HIDDEN, HIDDEN), some(2 * INTER, HIDDEN), some(HIDDEN, INTER)]
               for _ in range(LAYERS)]  # fmt: skip
    norm = torch.ones(HIDDEN, device=DEVICE, dtype=BF16), EPS
    score = attention.Score(DIM**-0.5)
    for rows, context in ((1, 384), (8, 384), (16, 384), (32, 384), (32, 2048)):
        cells_of = [torch.randn(rows * context, KV, DIM, device=DEVICE).to(BF16) for _ in range(2 * LAYERS)]
        table = torch.randperm(rows * context, device=DEVICE).int().view(rows, context)
        at = torch.arange(rows, device=DEVICE)
        positions = torch.full((rows,), context - 1, device=DEVICE)
        turn = torch.randn(rows, 1, DIM, device=DEVICE).to(BF16), torch.randn(rows, 1, DIM, device=DEVICE).to(BF16)
        x = some(rows, HIDDEN)
        splits = attention.splits_for(rows, KV)

        def layer(i: int, way: str) -> None:
            qkv, o, gate_up, down = weights[i]
            pool = attention.Pool(cells_of[2 * i], cells_of[2 * i + 1], table, 1)
            chained = early(rows, FEW) and (way != "before" or rows == 1)
            read = rms_norm(x, *norm, chained)
            q, k, v = F.linear(read, qkv).view(rows, -1, DIM).split([HEADS, KV, KV], 1)
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            fresh = attention.Fresh(k, v, turn) if way == "own keys" else None
            if fresh is None:
                cells.file_cells(q, k, v, turn, pool, at, positions, chained)
            attention.decode(q, pool, score, at, positions, at, out, splits, fresh=fresh, early=chained)
            seen = out.view(rows, -1)
            if way == "before":
                read = rms_norm(x.addmm_(seen, o.t()), *norm, chained)
                x.addmm_(gate(F.linear(read, gate_up), "silu"), down.t())
                return
            read, _ = stream.join(skinny.split(seen, o), None, x, norm=norm)
            if way == "pair":
                inner = skinny.gated(read, gate_up, "silu")
            else:
                inner = gate(F.linear(read, gate_up), "silu", chained)
            stream.join(skinny.split(inner, down), None, x, norm=norm)

        row: dict[str, Any] = {"rows": rows, "context": context}
        for way in ("before", "few", "own keys", "pair"):
            calls: list[Callable[[], None]] = [lambda i=i: layer(i, way) for i in range(LAYERS)]
            row[f"{way} us"] = graph_us(calls * 4)
        found.append(row)
        print(row, flush=True)
    return found


def run() -> dict[str, Any]:
    began = time.monotonic()
    torch.manual_seed(0)
    checks = numerics()
    found: dict[str, Any] = {"checks": checks, "layers": layers(), "wide": wide(), "products": products()}
    return found | {"seconds": time.monotonic() - began, "ok": all(c["ok"] for c in checks)}
