# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `stream` of gpu_check.py: what lies between the products of a layer, in one kernel and step by step."""

import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_kernels import DEVICE, graph_us

from sglang.kernels import fp8, stream
from sglang.kernels.matvec import early
from sglang.kernels.parts import ended
from sglang.kernels.pointwise import rms_norm

HIDDEN, INTER, QKV = 4096, 14336, 6144  # of Llama 3 8B
BF16 = torch.bfloat16
EPS = 1e-5
LAYERS = 3  # of weights in turn: 650 MB, of which a cache of 50 MB keeps nothing
AHEADS = (0, 2, 4, 8)
ROWS = (1, 16, 64, 128)
Form = tuple[int, float | None] | None


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))


def wide(read: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    if scales is None:
        return read.double()
    return read.double() * scales.double().repeat_interleave(read.shape[1] // scales.shape[1], 1)


def norm64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def numerics() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(name: str, rows: int, error: float, bound: float) -> None:
        found.append({"what": name, "rows": rows, "error": error, "bound": bound, "ok": error < bound})

    weight, post = (torch.randn(HIDDEN, device=DEVICE).to(BF16) for _ in range(2))
    for rows in (1, 33, 300):
        for splits in (1, 4):
            x = torch.randn(rows, HIDDEN, device=DEVICE).to(BF16)
            parts = torch.randn(splits, rows, HIDDEN, device=DEVICE).to(BF16 if splits == 1 else torch.float32)
            for form in (None, (1, None), (HIDDEN // fp8.COLUMNS, None)):
                for after, factor in ((None, 1.0), (post, 0.25)):
                    got = x.clone()
                    read, scales = stream.join(
                        parts, None, got, None if after is None else (after, EPS), factor, (weight, EPS), form
                    )
                    y = parts.double().sum(0)
                    y = x.double() + factor * (y if after is None else norm64(y, after))
                    case = f"{splits} parts, {'values' if form is None else f'{form[0]} scales'}"
                    case += "" if after is None else ", norm and factor before"
                    add(f"stream: {case}", rows, far(got, y), 5e-3)
                    # 3 bits behind the leading one: half of the last, spread evenly
                    add(
                        f"norm: {case}",
                        rows,
                        far(wide(read, scales), norm64(y, weight)),
                        6e-3 if form is None else 0.04,
                    )
        both = torch.randn(1, rows, 2 * INTER, device=DEVICE).to(BF16)
        gate, up = both[0].double().chunk(2, 1)
        for groups in (1, INTER // fp8.COLUMNS):
            got = wide(*stream.opened(both, None, "silu", BF16, (groups, None)))
            add(f"gate, {groups} scales", rows, far(got, torch.nn.functional.silu(gate) * up), 0.04)
    return found


def times() -> list[dict[str, Any]]:
    """One kernel, and the same in steps."""
    found = []
    weight = torch.randn(HIDDEN, device=DEVICE).to(BF16)
    for rows in (1, 16, 64, 256, 2048):
        x = torch.randn(rows, HIDDEN, device=DEVICE).to(BF16)
        both = torch.randn(1, rows, 2 * INTER, device=DEVICE).to(BF16)
        chained = early(rows)

        def case(name: str, one: Callable[[], Any], steps: Callable[[], Any]) -> None:
            found.append({"what": name, "rows": rows, "us": graph_us([one] * 30), "steps us": graph_us([steps] * 30)})
            print(found[-1], flush=True)

        splits = 4 if rows <= 64 else 1
        parts = torch.randn(splits, rows, HIDDEN, device=DEVICE).to(torch.float32 if splits > 1 else BF16)
        plain = parts[:1].to(BF16)
        form = (1, None)
        case(
            f"sum of {splits}, residual, norm, 8 bits",
            lambda: stream.join(parts, None, x, norm=(weight, EPS), form=form),
            lambda: fp8.rounded(rms_norm(ended(parts, None, x, None, BF16), weight, EPS, chained)),
        )
        case("gate, 8 bits", lambda: stream.opened(both, None, "silu", BF16, form),
             lambda: fp8.rounded(ended(both, None, None, "silu", BF16)))  # fmt: skip
        case(
            "norm, residual, norm",
            lambda: stream.join(plain, None, x, (weight, EPS), 1.0, (weight, EPS)),
            lambda: rms_norm(x.add_(rms_norm(plain[0], weight, EPS, chained)), weight, EPS, chained),
        )
    return found


def warps() -> list[dict[str, Any]]:
    """Programs of other sizes."""
    found = []
    weight = torch.randn(HIDDEN, device=DEVICE).to(BF16)
    for rows in (1, 16, 64, 256):
        x = torch.randn(rows, HIDDEN, device=DEVICE).to(BF16)
        both = torch.randn(1, rows, 2 * INTER, device=DEVICE).to(BF16)
        parts = torch.randn(4, rows, HIDDEN, device=DEVICE)
        for name, sizes, call in (
            ("sum of 4, residual, norm, 8 bits", (4, 8, 16, 32),
             lambda n: stream.join(parts, None, x, norm=(weight, EPS), form=(1, None), warps=n)),
            ("norm", (4, 8, 16, 32), lambda n: rms_norm(x, weight, EPS, early(rows), n)),
            ("gate, 8 bits", (8, 16, 32), lambda n: stream.opened(both, None, "silu", BF16, (1, None), n)),
        ):  # fmt: skip
            times = {f"{n} warps us": graph_us([lambda n=n: call(n)] * 30) for n in sizes}
            found.append({"what": name, "rows": rows, **times})
            print(found[-1], flush=True)
    return found


def layers() -> list[dict[str, Any]]:
    """A layer of 8 bits but for its attention, which is left out: its kernels in steps, joined, and fetching ahead."""
    found = []
    shapes = {"qkv": (QKV, HIDDEN), "o": (HIDDEN, HIDDEN), "gate_up": (2 * INTER, HIDDEN), "down": (HIDDEN, INTER)}
    weights = [
        {
            name: (torch.randn(n, k, device=DEVICE).to(fp8.FP8), torch.rand(1, n, device=DEVICE) * 1e-3)
            for name, (n, k) in shapes.items()
        }
        for _ in range(LAYERS)
    ]
    norm = torch.ones(HIDDEN, device=DEVICE, dtype=BF16), EPS
    form = (1, None)
    for rows in ROWS:
        x = torch.randn(rows, HIDDEN, device=DEVICE).to(BF16)
        chained = early(rows)

        def stepwise(w: dict[str, Any]) -> None:
            read = fp8.rounded(rms_norm(x, *norm, chained))
            seen = fp8.multiply(*read, *w["qkv"], BF16)[:, :HIDDEN]
            fp8.multiply(*fp8.rounded(seen), *w["o"], BF16, other=x)
            wide = fp8.multiply(*fp8.rounded(rms_norm(x, *norm, chained)), *w["gate_up"], BF16, act="silu")
            fp8.multiply(*fp8.rounded(wide), *w["down"], BF16, other=x)

        def joined(w: dict[str, Any], ahead: int) -> None:
            nonlocal read
            seen = ended(fp8.partial(*read, *w["qkv"], BF16, ahead), None, None, None, BF16)[:, :HIDDEN]
            parts = fp8.partial(*fp8.rounded(seen), *w["o"], BF16, ahead)
            read = stream.join(parts, None, x, norm=norm, form=form)
            parts = fp8.partial(*read, *w["gate_up"], BF16, ahead)
            if rows <= stream.FEW:
                wide = fp8.rounded(ended(parts, None, None, "silu", BF16))
            else:
                wide = stream.opened(parts, None, "silu", BF16, form)
            read = stream.join(fp8.partial(*wide, *w["down"], BF16, ahead), None, x, norm=norm, form=form)

        read: Any = fp8.rounded(x)
        row: dict[str, Any] = {"rows": rows, "steps us": graph_us([lambda w=w: stepwise(w) for w in weights] * 3)}
        for ahead in AHEADS if chained else (0,):
            us = graph_us([lambda w=w: joined(w, ahead) for w in weights] * 3)
            row["joined us" if ahead == 0 else f"{ahead} lines ahead us"] = us
        found.append(row)
        print(row, flush=True)
    return found


def run() -> dict[str, Any]:
    began = time.monotonic()
    torch.manual_seed(0)
    checks = numerics()
    print(f"checks after {time.monotonic() - began:.1f} s", flush=True)
    found: dict[str, Any] = {"checks": checks, "times": times(), "warps": warps(), "layers": layers()}
    return found | {"seconds": time.monotonic() - began, "ok": all(c["ok"] for c in checks)}
