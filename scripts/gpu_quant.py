# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `quant` of gpu_check.py: products of 4 and 8 bits against float64, then their time beside bfloat16 of torch."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_kernels import READ_TB_S, graph_us

from sglang.kernels import fp8, int4

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}  # of Llama 3 8B
ROWS = (1, 16, 64, 256)
GROUP = 128
TURNED = 192 * 2**20  # bytes of weights in turn, of which a cache of 60 MB keeps little
BUDGET_S = 36.0
DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
SCALED = torch.ops.aten._scaled_mm


def random_words(rows: int, inputs: int) -> int4.Words:
    pieces = inputs // int4.COLUMNS
    padded = -(-rows // 128) * 128
    words = torch.randint(-(2**31), 2**31, (padded // 64, pieces, 64, 16), device=DEVICE, dtype=torch.int64)
    scales = torch.rand(pieces, padded, device=DEVICE) * 0.01 + 0.01
    steps = (scales.view(torch.int32) & -256) | torch.randint(0, 16, scales.shape, device=DEVICE, dtype=torch.int32)
    return int4.Words(words.int(), steps, rows, inputs, GROUP)


def random_fp8(rows: int, inputs: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, inputs, device=DEVICE).to(fp8.FP8), torch.rand(groups, rows, device=DEVICE) + 0.5


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))


def numerics() -> list[dict[str, Any]]:
    found = []

    def add(name: str, rows: int, error: float, bound: float) -> None:
        found.append({"product": name, "rows": rows, "error": error, "bound": bound, "ok": error < bound})

    for dtype, size in ((BF16, 128), (torch.float16, 128), (BF16, 32)):
        n, k = 1088, 2048
        codes = torch.randint(0, 16, (n, k), device=DEVICE, dtype=torch.uint8)
        zeros = torch.randint(0, 16, (n, k // size), device=DEVICE).float()
        scales = torch.rand(n, k // size, device=DEVICE) * 0.01 + 0.01
        weight = (codes.double() - zeros.double().repeat_interleave(size, 1)) * scales.double().repeat_interleave(
            size, 1
        )
        words = int4.words_of(codes, scales, zeros, size)
        for rows in (*ROWS, 300) if size == 128 and dtype == BF16 else (1, 64):
            x = torch.randn(rows, k, device=DEVICE).to(dtype)
            bound = 6e-3 if dtype == BF16 else 1e-3
            add(
                f"int4, groups of {size}, {str(dtype)[6:]}",
                rows,
                far(int4.multiply(x, words), x.double() @ weight.T),
                bound,
            )
    for groups in (1, 16):
        weight, scales = random_fp8(1088, 2048, groups)
        wide = weight.double() * scales.double().T.repeat_interleave(2048 // groups, 1)
        for rows in ROWS:
            x = torch.randn(rows, 2048, device=DEVICE, dtype=BF16)
            codes, own = fp8.rounded(x, None, groups)
            given = codes.double() * own.double().repeat_interleave(2048 // groups, 1)
            add(f"fp8 inputs, {groups} scales a row", rows, far(given, x.double()), 0.04)
            got = fp8.multiply(codes, own, weight, scales, BF16)
            add(f"fp8, {groups} scales a row", rows, far(got, given @ wide.T), 6e-3)
    return found


def turn(bytes_each: int, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(min(max(math.ceil(TURNED / bytes_each), 2), 24))]


def times() -> list[dict[str, Any]]:
    found = []
    one = torch.ones(1, device=DEVICE)
    for name, (n, k) in SHAPES.items():
        plain = turn(2 * n * k, lambda: torch.randn(n, k, device=DEVICE, dtype=BF16))
        words = turn(n * k // 2, lambda: random_words(n, k))
        bytes8 = turn(n * k, lambda: random_fp8(n, k, 1))
        for rows in ROWS:
            x = torch.randn(rows, k, device=DEVICE, dtype=BF16)
            bf16 = graph_us([lambda w=w: F.linear(x, w) for w in plain])
            four = graph_us([lambda w=w: int4.multiply(x, w) for w in words])
            eight = graph_us([lambda w=w: fp8.multiply(*fp8.rounded(x), *w, BF16) for w in bytes8])
            codes, own = fp8.rounded(x)
            scaled = graph_us([lambda w=w, s=s: SCALED(codes, w.t(), own, s, out_dtype=BF16) for w, s in bytes8])
            tensor = graph_us([lambda w=w: SCALED(codes, w.t(), one, one, out_dtype=BF16) for w, _ in bytes8])
            found.append({
                "shape": name, "rows": rows, "bf16 us": bf16, "int4 us": four, "int4 x": bf16 / four,
                "int4 share %": 100 * words[0].bytes / four / READ_TB_S / 1e6,
                "fp8 us, inputs rounded": eight, "fp8 x": bf16 / eight,
                "_scaled_mm a row us": scaled, "_scaled_mm a tensor us": tensor,
            })  # fmt: skip
    return found


def tiles(until: float) -> list[dict[str, Any]]:
    """The other tiles of the 4-bit product, as far as time allows."""
    found = []
    for name in ("gate_up", "o", "down"):
        n, k = SHAPES[name]
        words = turn(n * k // 2, lambda: random_words(n, k))
        for rows in ROWS:
            x = torch.randn(rows, k, device=DEVICE, dtype=BF16)
            for tile in int4.tiles_of(rows):
                if time.monotonic() > until:
                    return found
                us = graph_us([lambda w=w, t=tile: int4.multiply(x, w, tile=t) for w in words])
                found.append({"shape": name, "rows": rows, "tile": " ".join(map(str, tile)), "us": us})
    return found


def run() -> dict[str, Any]:
    began = time.monotonic()
    torch.manual_seed(0)
    works = {str(d)[6:]: int4.works(d, GROUP) for d in (BF16, torch.float16)} | {"fp8": fp8.works(False)}
    checks = numerics()
    print(f"works: {works}, asm: {int4.switch.asm}, checks after {time.monotonic() - began:.1f} s")
    measured = times()
    return {
        "checks": checks,
        "times": measured,
        "tiles": tiles(began + BUDGET_S),
        "works": works,
        "seconds": time.monotonic() - began,
        "ok": all(c["ok"] for c in checks) and all(works.values()),
    }
