"""Part `moe` of gpu_check.py: experts in 4 bits against float64, then their time beside what must be read, and 16 bits.

Where there is no GPU, `TRITON_INTERPRET=1 python scripts/gpu_moe_packed.py` goes through the checks by small shapes.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from gpu_kernels import READ_TB_S
from gpu_moe import BF16, BF16_TFLOP_S, DEVICE, Case, by_definition, compiled, drawn, far, listed, some, words

from sglang.kernels import experts, experts_trial, routing
from sglang.kernels.compiling import compile_ahead
from sglang.kernels.experts_packed import grouped_packed
from sglang.kernels.experts_stack import Gate, Stack
from sglang.kernels.experts_tiles import Tile
from sglang.kernels.packed import LACKS, Kind, Packed
from sglang.layers.moe import Routing

BUDGET_S = 44.0
# hidden, experts, of which a token takes, width of one, whether with biases and a limit
SHAPES = {
    "gpt-oss-20b": (2880, 32, 4, 2880, True),
    "mixtral-8x7b": (4096, 8, 2, 14336, False),
    "qwen1.5-moe": (2048, 60, 4, 1408, False),
}
FORMS: dict[str, tuple[Kind, int]] = {"mxfp4": ("mxfp4", 1), "int4, 128": ("int4", 1), "int4, 32": ("int4", 4)}
MEASURED = {"gpt-oss-20b": ("mxfp4",), "mixtral-8x7b": ("int4, 128", "mxfp4"), "qwen1.5-moe": ("int4, 128", "int4, 32")}
ROWS = (1, 8, 32, 64, 256, 1024, 4096)


def checks(small: bool) -> list[dict[str, Any]]:
    """small: shapes and numbers of rows that an interpreter can do."""
    found: list[dict[str, Any]] = []
    hidden, inter, rows = (128, 128, (1, 5)) if small else (1024, 384, (1, 3, 40, 150, 900))
    for name, form in FORMS.items():
        for dtype, bound in ((BF16, 8e-3), (torch.float16, 2e-3)):
            if small and dtype == BF16:
                continue  # which the interpreter has not
            for n in rows if small or dtype == BF16 else (1, 40, 900):
                for limit in (None, 3.0):
                    row: dict[str, Any] = {
                        "what": f"{name}, {str(dtype)[6:]}",
                        "rows": n,
                        "limit": limit,
                        "bound": bound,
                    }
                    try:
                        row["error"] = differs(form, dtype, n, hidden, inter, limit)
                        found.append({**row, "ok": row["error"] < bound})
                    except Exception as wrong:  # the others are still worth knowing
                        found.append({**row, "ok": False, "wrong": repr(wrong)[:200]})
    return found


def differs(
    form: tuple[Kind, int], dtype: torch.dtype, rows: int, hidden: int, inter: int, limit: float | None
) -> float:
    """limit: with biases, as GPT-OSS has both. Inputs end within a piece where groups let them."""
    count, top_k = 9, 3
    hidden -= 32 if form[0] == "mxfp4" or form[1] == 4 else 0
    made = [experts_trial.squeezed(some(count, n, k), *form) for n, k in ((2 * inter, hidden), (hidden, inter))]
    few, wide = zip(*made, strict=True)
    biases = [None if limit is None else torch.randn(w.shape[:2], device=DEVICE).to(dtype) for w in wide]
    few = [s._replace(bias=bias) for s, bias in zip(few, biases, strict=True)]
    wide = [Stack(w, bias) for w, bias in zip(wide, biases, strict=True)]
    x = some(rows, hidden, dtype=dtype) * hidden**0.5
    weights, ids, _ = routing.choose(Routing(count, top_k), torch.randn(rows, count, device=DEVICE))
    gate = Gate("silu", limit)
    got = experts.forward(x, weights, ids, few[0], few[1], gate)
    return far(got, by_definition(x, weights, ids, wide[0], wide[1], gate, False, 0))


def random_stack(count: int, rows: int, inputs: int, form: tuple[Kind, int], bias: bool) -> Stack:
    packed = Packed.empty(count, rows, inputs, *form, DEVICE)
    packed.words.copy_(torch.randint(-(2**31), 2**31, packed.words.shape, device=DEVICE, dtype=torch.int64))
    if form[0] == "mxfp4":
        packed.steps.fill_(0x01010101 * (LACKS + 122) - 2**32)  # four times 2^-5
    else:
        scale = torch.full_like(packed.steps, inputs**-0.5 / 5, dtype=torch.float32)
        packed.steps.copy_(scale.view(torch.int32) & -256 | 8)
    return Stack(packed, torch.randn(count, rows, device=DEVICE).to(BF16) if bias else None)


class Layer:
    """Experts of one shape, of several layers to be called in turn."""

    def __init__(self, name: str, form: tuple[Kind, int], layers: int):
        self.hidden, self.count, self.top_k, self.inter, bias = SHAPES[name]
        self.rule, self.gate = Routing(self.count, self.top_k), Gate("silu", 7.0 if bias else None)
        sides = ((2 * self.inter, self.hidden), (self.hidden, self.inter))
        self.stacks = [
            tuple(random_stack(self.count, *side, form, bias) for side in sides) for _ in range(layers)
        ]  # fmt: skip
        self.plain = [
            tuple(Stack(some(self.count, *side), s.bias) for side, s in zip(sides, self.stacks[0], strict=True))
        ]
        held = [s.weight for s in self.stacks[0] if isinstance(s.weight, Packed)]
        self.each = sum(packed.bytes for packed in held) / self.count  # of an expert

    def read_gb(self, ids: torch.Tensor) -> float:
        return len(ids.unique()) * self.each / 1e9

    def tflop(self, ids: torch.Tensor) -> float:
        return 6 * ids.numel() * self.hidden * self.inter / 1e12


def times(name: str, form: str, layer: Layer) -> Iterator[Case]:
    for rows in ROWS:
        weights, ids = drawn(layer.rule, rows)
        x, gb, tflop = some(rows, layer.hidden) * layer.hidden**0.5, layer.read_gb(ids), layer.tflop(ids)
        floor = max(gb / READ_TB_S * 1e3, tflop / BF16_TFLOP_S * 1e6)
        calls: dict[str, list[Any]] = {
            key: [lambda s=s, x=x, w=weights, i=ids: experts.forward(x, w, i, s[0], s[1], layer.gate) for s in stacks]
            for key, stacks in (("us", layer.stacks), ("before us", layer.plain))
        }
        row = {"layer": name, "form": form, "rows": rows, "read GB": gb, "floor us": floor}
        yield Case("packed", row, calls, gb, tflop)


TRIED = {
    1: listed("16 64 128 4 4, 16 32 128 4 4 8 2, 16 16 128 4 4 8 4, 16 8 128 4 4 8 8, 16 16 128 8 4 8 8"),
    32: listed("16 64 128 4 3, 16 64 128 4 6, 16 128 128 4 4, 16 128 128 4 3"),
    256: listed("32 64 128 4 4, 32 64 128 4 3, 64 64 128 4 3, 64 64 128 4 4, 64 128 128 8 3"),
    1024: listed("64 64 128 4 3, 64 128 128 4 3, 128 64 128 4 3"),
    4096: listed("128 128 128 8 3, 128 64 128 4 3, 64 128 128 4 3, 128 128 128 8 3 16, 128 128 128 8 4"),
}


def tiles(name: str, form: str, layer: Layer) -> Iterator[Case]:
    """Each product by itself, under each tile; one token's pairs by themselves."""

    def case(rows: int, opens: bool, tile: Tile, weights: torch.Tensor, ids: torch.Tensor) -> Case:
        tokens, inner = some(rows, layer.hidden), some(ids.numel(), layer.inter)
        read, out = (tokens, inner) if opens else (inner, some(ids.numel(), layer.hidden))
        given = None if rows == 1 else routing.sort(ids, layer.count, tile.block_m)
        calls = [
            lambda s=s: grouped_packed(
                read, s[not opens], given, ids, weights, out, layer.gate, opens, False, 0, tile
            )
            for s in layer.stacks
        ]  # fmt: skip
        row = {
            "layer": name,
            "form": form,
            "rows": rows,
            "product": "gate, up" if opens else "down",
            "tile": words(tile),
        }
        share = 2 / 3 if opens else 1 / 3
        return Case("packed tiles", row, {"us": calls}, layer.read_gb(ids) * share, layer.tflop(ids) * share)

    for rows, tried in TRIED.items():
        drew = drawn(layer.rule, rows)
        yield from (case(rows, opens, tile, *drew) for opens in (True, False) for tile in tried)


def run() -> dict[str, Any]:
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{what}: after {time.monotonic() - began:.1f} s", flush=True)

    torch.manual_seed(0)
    tables: dict[str, list[dict[str, Any]]] = {}
    with torch.inference_mode():
        works = {f"experts, {name}": experts_trial.packed_works(BF16, *form) for name, form in FORMS.items()}
        say(f"works: {works}")
        compile_ahead(lambda: checks(False))
        tables["packed checks"] = checks(False)
        say("checks of 4 bits")
        for part in (times, tiles):
            for name, forms in MEASURED.items():
                for form in forms if part is times else forms[:1]:
                    if time.monotonic() > began + BUDGET_S:
                        say(f"{name}, {form}: no time for {part.__name__}")
                        continue
                    try:
                        layer = Layer(name, FORMS[form], 4 if name == "qwen1.5-moe" else 2)
                        cases = list(part(name, form, layer))
                        compiled(cases)
                        for case in cases:
                            if time.monotonic() < began + BUDGET_S:
                                tables.setdefault(case.part, []).append(case.measure())
                        del layer, cases
                    except Exception as wrong:
                        tables.setdefault("packed wrong", []).append(
                            {"part": part.__name__, "wrong": repr(wrong)[:300]}
                        )
                    torch.cuda.empty_cache()
                    say(f"{name}, {form}, {part.__name__}")
    good = all(row["ok"] for row in tables["packed checks"]) and all(works.values())
    return {**tables, "packed works": works, "packed seconds": time.monotonic() - began, "ok": good}


if __name__ == "__main__":
    found = checks(DEVICE.type == "cpu")
    for row in found:
        print(row)
    sys.exit(0 if all(row["ok"] for row in found) else 1)
