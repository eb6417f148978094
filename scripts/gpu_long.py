# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `long` of gpu_check.py: attention of long rows by cuDNN and by tiles, against float64, then both their times."""

import time
import traceback
from typing import Any

import numpy as np
import torch
from gpu_kernels import graph_us
from torch import Tensor

from sglang.attention import long
from sglang.attention.base import Rows, Shape
from sglang.attention.triton import tiles_of
from sglang.kernels import attention as own

SHAPE = Shape(32, 8, 128, 128**-0.5)
# New tokens and those before them. The first are more than once in a server's life; then what must be padded.
SPANS = [(8192, 0), (8192, 8192), (4096, 0), (2048, 14336), (1024, 0), (2048, 0), (3000, 100), (8190, 8190)]
LOOKED_AT = 48  # queries of a row that are compared
BOUND = 1e-2  # relative, of the worst of them; bfloat16


def run(device: str = "cuda", spans: list[tuple[int, int]] = SPANS) -> dict[str, Any]:
    """device: cpu, to try the numbers in Triton's interpreter, where there are no times."""
    on, dtype = torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32
    began = time.perf_counter()
    works = long.possible(SHAPE, dtype, on) and long.works(SHAPE, dtype)
    trial_ms = (time.perf_counter() - began) * 1000
    print(f"cuDNN's attention {'works' if works else 'is not used here'}, found out in {trial_ms:.0f} ms", flush=True)
    if device == "cuda" and not works:
        try:
            print("relative error:", long.disagreement(SHAPE, dtype, on))
        except Exception:
            traceback.print_exc()
        return {"checks": [], "times": [], "trial_ms": trial_ms, "ok": False}
    checks, times = [], []
    random = torch.Generator(on).manual_seed(0)
    for count, start in spans:
        length = start + count
        found = long.cut(start, count)
        assert found is not None
        row = long.Row(0, start, count, 0, found)
        cells = [torch.randn(length, 8, 128, generator=random, device=on).to(dtype) for _ in range(2)]
        table = torch.randperm(length, generator=random, device=on).int().view(1, length)
        pool, score = own.Pool(cells[0], cells[1], table, 1), own.Score(SHAPE.scale)
        q = torch.randn(count, 48, 128, generator=random, device=on).to(dtype)[:, :32]  # of a product, as in a step
        out, by_tiles = (torch.zeros(count, 32, 128, dtype=dtype, device=on) for _ in range(2))
        height = own.extend_tokens(32, 8, 128, dtype, count)
        rows = Rows(np.array([0]), np.array([start]), np.array([count]), np.zeros((1, 1), np.int32), 1)
        tiles = torch.from_numpy(tiles_of(rows, np.zeros(1, np.int64), height)).to(on)
        calls = [
            lambda: long.attend(q, pool, SHAPE.scale, row, out),
            lambda: own.extend(q, pool, score, tiles, by_tiles, count),
        ]
        name = f"{count} after {start}"
        time_row: dict[str, Any] = {
            "tokens": name,
            "square": found.square,
            "lead": found.lead,
            "blocks": str(found.blocks),
        }
        for by, call in zip(("cuDNN", "tiles"), calls, strict=True):
            first_ms = _host_ms(call, on)
            again_ms = _host_ms(call, on)
            time_row |= {f"{by} first ms": first_ms, f"{by} again ms": again_ms}
        errors = [_error(q, pool, row, found) for found in (calls[0](), by_tiles)]
        checks.append(
            {"tokens": name, "cuDNN": errors[0], "tiles": errors[1], "bound": BOUND, "ok": max(errors) < BOUND}
        )
        if device == "cuda":
            operations = 4 * 128 * 32 * long.pairs(count, start)
            for by, call in zip(("cuDNN", "tiles"), calls, strict=True):
                us = graph_us([call] * 3)
                time_row |= {f"{by} us": us, f"{by} TFLOP/s": operations / us / 1e6}
            time_row["times as fast"] = time_row["tiles us"] / time_row["cuDNN us"]
        times.append(time_row)
        print(checks[-1], times[-1], flush=True)
    return {"checks": checks, "times": times, "trial_ms": trial_ms, "ok": all(c["ok"] for c in checks)}


def _host_ms(call: Any, on: torch.device) -> float:
    began = time.perf_counter()
    call()
    if on.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1000


def _error(q: Tensor, pool: own.Pool, row: long.Row, out: Tensor) -> float:
    """Of the first, the last and some queries between: as rows of one token, by definition."""
    at = np.unique(np.linspace(0, row.count - 1, LOOKED_AT).astype(int)).tolist()
    wanted = torch.cat(
        [long.reference(q[i : i + 1], pool, SHAPE.scale, long.Row(0, row.start + i, 1, 0, row.cut)) for i in at]
    )
    got = out[at].double()
    error = (torch.linalg.vector_norm(got - wanted, dim=(1, 2)) / torch.linalg.vector_norm(wanted, dim=(1, 2))).max()
    return error.item() if error == error else float("inf")
