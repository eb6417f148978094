# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `quant` of gpu_check.py: products of 4 and 8 bits against float64, then their time beside bfloat16 of torch."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_kernels import READ_TB_S, graph_us

from sglang.kernels import cuda_code, fp8, fragments, int4

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}  # of Llama 3 8B
ROWS = (1, 8, 16, 64, 256)
GROUP = 128
TURNED = 192 * 2**20  # bytes of weights in turn, of which a cache of 60 MB keeps little
BUDGET_S = 40.0
DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
SCALED = torch.ops.aten._scaled_mm


def random_fragments(rows: int, inputs: int) -> fragments.Fragments:
    pieces = inputs // fragments.COLUMNS
    whole = torch.randint(-(2**31), 2**31, (-(-rows // 128), pieces, 8, 272), device=DEVICE, dtype=torch.int64).int()
    scales = torch.rand(*whole.shape[:3], 16, device=DEVICE) * 0.01 + 0.01
    whole[..., 256:] = (scales.view(torch.int32) & -256) | (whole[..., 256:] & 15)
    return fragments.Fragments(whole.view(torch.uint8), rows, inputs, 1)


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
        spread = [t.double().repeat_interleave(size, 1) for t in (zeros, scales)]
        weight = (codes.double() - spread[0]) * spread[1]
        words, pieces = (make(codes, scales, zeros, size) for make in (int4.laid_out, fragments.laid_out))
        name = f"groups of {size}, {str(dtype)[6:]}"
        add(f"written out, {name}", n, far(fragments.written_out(pieces, dtype), weight), 3e-3)
        for rows in (*ROWS, 300) if size == 128 and dtype == BF16 else (1, 64):
            x, bias, other = (torch.randn(*s, device=DEVICE).to(dtype) for s in ((rows, k), (n,), (rows, n)))
            wide = x.double() @ weight.T
            more = wide + bias.double()
            gated = F.silu(more[:, : n // 2]) * more[:, n // 2 :]
            cases = {
                f"int4, {name}": lambda: far(int4.multiply(x, words), wide),
                f"fragments, {name}": lambda: far(fragments.multiply(x, pieces), wide),
                f"fragments, {name}, gate": lambda: far(fragments.multiply(x, pieces, bias, None, "silu"), gated),
                f"fragments, {name}, residual": lambda: far(
                    fragments.multiply(x, pieces, bias, other.clone()), more + other.double()
                ),
            }
            for tile in tried(rows, k) if size == 128 and dtype == BF16 else ():
                cases[f"fragments, {name}, {tile}"] = lambda tile=tile: far(
                    fragments.multiply(x, pieces, tile=tile), wide
                )
            for case, error in cases.items():
                attempt(add, case, rows, 6e-3 if dtype == BF16 else 1e-3, error)
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


def tried(rows: int, inputs: int) -> list[fragments.Few | fragments.Many]:
    """Tiles that make sense for so many rows."""
    few = fragments.FEW if rows <= fragments.FEWEST and rows * inputs <= 2**15 else ()
    many = [t for some in fragments.MANY.values() for t in some if rows / 2 <= t.rows < max(2 * rows, 17)]
    return list(dict.fromkeys([*few, *many]))


def attempt(add: Callable[..., None], name: str, rows: int, bound: float, measure: Callable[[], float]) -> None:
    """A case that fails is one line of the table."""
    try:
        error = measure()
    except Exception as wrong:
        print(f"{name}, {rows} rows: {wrong}")
        error = math.inf
    add(name, rows, error, bound)


def turn(bytes_each: int, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(min(max(math.ceil(TURNED / bytes_each), 2), 24))]


def times() -> list[dict[str, Any]]:
    found = []
    one = torch.ones(1, device=DEVICE)
    for name, (n, k) in SHAPES.items():
        plain = turn(2 * n * k, lambda: torch.randn(n, k, device=DEVICE, dtype=BF16))
        words = turn(n * k // 2, lambda: random_fragments(n, k))
        bytes8 = turn(n * k, lambda: random_fp8(n, k, 1))
        for rows in ROWS:
            x = torch.randn(rows, k, device=DEVICE, dtype=BF16)
            bf16 = graph_us([lambda w=w: F.linear(x, w) for w in plain])
            four = timed([lambda w=w: fragments.multiply(x, w) for w in words])
            eight = graph_us([lambda w=w: _eight(x, *w) for w in bytes8])
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


def prompts() -> list[dict[str, Any]]:
    """Products of 8 bits of many rows, as torch computes them, inputs rounded by us."""
    found = []
    one = torch.ones((), device=DEVICE)
    for name, (n, k) in SHAPES.items():
        for rows in (2048, 8192):
            x = torch.randn(rows, k, device=DEVICE, dtype=BF16)
            plain, (w, s) = torch.randn(n, k, device=DEVICE, dtype=BF16), random_fp8(n, k, 1)
            codes, own = fp8.rounded(x)
            us = {
                "bf16": graph_us([lambda: F.linear(x, plain)] * 8),
                "fp8": graph_us([lambda: _eight(x, w, s)] * 8),
                "a row": graph_us([lambda: SCALED(codes, w.t(), own, s, out_dtype=BF16)] * 8),
                "a tensor": graph_us([lambda: SCALED(codes, w.t(), one, one, out_dtype=BF16)] * 8),
            }
            found.append({
                "shape": name, "rows": rows, "bf16 us": us["bf16"], "fp8 us, inputs rounded": us["fp8"],
                "fp8 x": us["bf16"] / us["fp8"], "fp8 TFLOP/s": 2 * rows * n * k / us["a row"] / 1e6,
                "_scaled_mm a row us": us["a row"], "_scaled_mm a tensor us": us["a tensor"],
            })  # fmt: skip
    return found


def _eight(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As `quant.float8` does it."""
    if len(x) <= fp8.FEW:
        return fp8.multiply(*fp8.rounded(x), weight, scales, BF16)
    return SCALED(*_both(x, weight), scales, out_dtype=BF16)


def _both(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first arguments of a product with scales."""
    codes, scales = fp8.rounded(x)
    return codes, weight.t(), scales


def timed(calls: list[Callable[[], Any]]) -> float:
    try:
        return graph_us(calls)
    except Exception as wrong:
        print(str(wrong).splitlines()[0])
        return math.inf


def tiles(until: float) -> list[dict[str, Any]]:
    """All tiles of the 4-bit product, as far as time allows."""
    found: list[dict[str, Any]] = []
    for name in ("gate_up", "o", "qkv", "down"):
        n, k = SHAPES[name]
        words = turn(n * k // 2, lambda: random_fragments(n, k))
        rows = 0

        def measure(how: str, call: Callable[[Any], torch.Tensor]) -> None:
            us = timed([lambda w=w: call(w) for w in words])
            share = 100 * words[0].bytes / us / READ_TB_S / 1e6
            found.append({"shape": name, "rows": rows, "how": how, "us": us, "share %": share})

        for rows in ROWS:
            x = torch.randn(rows, k, device=DEVICE, dtype=BF16)
            for tile in tried(rows, k):
                if time.monotonic() > until:
                    return found
                measure(str(tile), lambda w: fragments.multiply(x, w, tile=tile))
            if rows == 1 and name == "gate_up":
                for tile in fragments.FEW:
                    measure(f"{tile}, gated", lambda w: fragments.multiply(x, w, act="silu", tile=tile))
        for rows in (512, 1024, 2048) if name in ("gate_up", "o") else ():
            x = torch.randn(rows, k, device=DEVICE, dtype=BF16)
            measure("written out", lambda w: F.linear(x, fragments.written_out(w, BF16)))
            measure("many", lambda w: fragments.multiply(x, w, tile=fragments.tiles_of(256)[0]))
            plain = turn(2 * n * k, lambda: torch.randn(n, k, device=DEVICE, dtype=BF16))
            us = timed([lambda w=w: F.linear(x, w) for w in plain])
            found.append({"shape": name, "rows": rows, "how": "bf16", "us": us})
    return found


def compile_all() -> None:
    few = [
        (tile, each, dtype, act) for tile in fragments.FEW for each, dtype, act in ((1, BF16, None), (1, BF16, "silu"))
    ]
    few += [
        (fragments.FEW[0], each, dtype, act)
        for each, dtype in ((1, torch.float16), (4, BF16))
        for act in (None, "silu")
    ]
    many = [(t, 1, BF16) for some in fragments.MANY.values() for t in some]
    many += [
        (fragments.tiles_of(m)[0], each, dtype) for m in (16, 64) for each, dtype in ((1, torch.float16), (4, BF16))
    ]
    kernels = [fragments.few_kernel(*one) for one in few] + [fragments.many_kernel(*one) for one in many]
    cuda_code.compile_all(kernels)


def run() -> dict[str, Any]:
    began = time.monotonic()
    torch.manual_seed(0)
    torch.zeros(1, device=DEVICE)
    try:
        compile_all()
    except Exception as wrong:
        print("compiling:", wrong)
    print(f"compiled after {time.monotonic() - began:.1f} s", flush=True)
    works = {str(d)[6:]: int4.works(d, GROUP) for d in (BF16, torch.float16)}
    works |= {f"fragments, {str(d)[6:]}": fragments.works(d, GROUP) for d in (BF16, torch.float16)} | {
        "fp8": fp8.works(False)
    }
    checks = numerics()
    print(f"works: {works}, asm: {int4.switch.asm}, checks after {time.monotonic() - began:.1f} s")
    measured = times()
    return {
        "checks": checks,
        "times": measured,
        "prompts": prompts(),
        "tiles": tiles(began + BUDGET_S),
        "works": works,
        "seconds": time.monotonic() - began,
        "ok": all(c["ok"] for c in checks) and all(works.values()),
    }
