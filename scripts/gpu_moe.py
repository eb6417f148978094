# ruff: noqa: B023 - where loops make closures, they are called before the loop goes on
"""Part `moe` of gpu_check.py: routing and experts against float64, then their time beside what must be read."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gpu_kernels import READ_TB_S, graph_us

from sglang.kernels import experts as kernels
from sglang.kernels import experts_pairs, experts_stack, experts_trial, fp8, routing
from sglang.kernels.compiling import compile_ahead
from sglang.kernels.experts_blocks import grouped
from sglang.kernels.experts_stack import Gate, Stack, Tail
from sglang.kernels.experts_tiles import Tile, tiles_of
from sglang.layers.moe import MoE, Routing, route
from sglang.quant.stacked import Stacked

BF16_TFLOP_S = 770.0  # of an H200, measured
BUDGET_S = 36.0
AWAKE_S = 0.15  # of work before a part's times are taken
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = torch.bfloat16
DECODES, PREFILLS = (1, 8, 32, 64, 256), (1024, 4096, 8192)
# hidden, experts, of which a token takes, width of one, width of the shared one
SHAPES = {"qwen1.5-moe": (2048, 60, 4, 1408, 5632), "mixtral-8x7b": (4096, 8, 2, 14336, 0)}


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))


def some(*size: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return (torch.randn(size, device=DEVICE) * size[-1] ** -0.5).to(dtype)


def rounded(weight: torch.Tensor, groups: int) -> Stack:
    """float8 with a scale a row, or a row and 128 columns."""
    parts = weight.float().unflatten(-1, (groups, -1))
    scales = parts.abs().amax(-1).clamp_min(1e-12) / 448
    codes = (parts / scales[..., None]).to(fp8.FP8).flatten(-2)
    return Stack(codes, None, scales.transpose(1, 2).contiguous())


def wide(stack: Stack) -> torch.Tensor:
    assert isinstance(stack.weight, torch.Tensor)
    weight = stack.weight.double()
    if stack.scales is not None:
        weight *= stack.scales.double().transpose(1, 2).repeat_interleave(weight.shape[-1] // stack.groups, -1)
    return weight


def by_definition(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, opens: Stack, closes: Stack, gate: Gate,
    weigh_inputs: bool, first: int,
) -> torch.Tensor:  # fmt: skip
    """In float64, expert by expert."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=DEVICE)
    up_all, down_all = wide(opens), wide(closes)
    inter = closes.weight.shape[2]
    for e in range(opens.weight.shape[0]):
        token, slot = (ids == e + first).nonzero(as_tuple=True)
        share = weights[token, slot].double()[:, None]
        both = (x.double()[token] * (share if weigh_inputs else 1)) @ up_all[e].T
        both += 0 if opens.bias is None else opens.bias[e].double()
        a, b = both[:, :inter], both[:, inter:]
        if gate.limit is None:
            inner = {"silu": F.silu, "gelu": F.gelu}[gate.act](a) * b
        else:
            a, b = a.clamp(max=gate.limit), b.clamp(-gate.limit, gate.limit)
            inner = a * torch.sigmoid(1.702 * a) * (b + 1)
        given = inner @ down_all[e].T + (0 if closes.bias is None else closes.bias[e].double())
        out.index_add_(0, token, given if weigh_inputs else given * share)
    return out


ROUTINGS = {
    "mixtral": Routing(8, 2),
    "qwen1.5-moe": Routing(60, 4, norm=None),
    "dbrx": Routing(16, 4, norm=2.0),
    "grok": Routing(8, 2, norm=None, softcap=30.0),
    "deepseek v2": Routing(160, 6, norm=None, scale=16.0, groups=8, top_groups=3),
    "deepseek v3": Routing(
        256, 8, score="sigmoid", scale=2.5, groups=8, top_groups=4, group_by=2, correction=True
    ),
    "minimax": Routing(256, 8, score="sigmoid", correction=True),
    "llama 4": Routing(128, 1, score="sigmoid", norm=None, weigh_inputs=True),
}  # fmt: skip


def numerics() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(what: str, rows: int, error: Callable[[], float], bound: float) -> None:
        try:
            value = error()
            found.append({"what": what, "rows": rows, "error": value, "bound": bound, "ok": bool(value < bound)})
        except Exception as wrong:  # the others are still worth knowing
            found.append({"what": what, "rows": rows, "bound": bound, "ok": False, "wrong": repr(wrong)[:200]})

    for name, r in ROUTINGS.items():
        for rows in (1, 300):
            logits = torch.randn(rows, r.count, device=DEVICE)
            correction = torch.rand(r.count, device=DEVICE) / 4 if r.correction else None

            def chosen() -> float:
                wanted, ids = route(r, logits, correction)
                got, own, _ = routing.choose(r, logits, correction)
                assert torch.equal(ids, own.long()), f"{int((ids != own).sum())} other experts"
                return far(got, wanted.double())

            add(f"routing, {name}", rows, chosen, 1e-5)

    def sums(rows: int, dtype: torch.dtype, case: str, groups: int = 0, **more: Any) -> float:
        count, hidden, inter, top_k = 12, 1024, 384, 3
        first = 2 if case == "parallel" else 0
        r = Routing(count + 3 * first, top_k)
        weights, ids, _ = routing.choose(r, torch.randn(rows, r.count, device=DEVICE))
        if case == "one expert":
            ids = torch.full_like(ids, 5)
        x = some(rows, hidden, dtype=dtype) * hidden**0.5
        opens, closes = some(count, 2 * inter, hidden, dtype=dtype), some(count, hidden, inter, dtype=dtype)
        stacks = [Stack(opens), Stack(closes)]
        if groups:
            stacks = [rounded(opens, groups if groups == 1 else 8), rounded(closes, groups if groups == 1 else 3)]
        gate = Gate("silu", 3.0) if case == "gpt-oss" else Gate("gelu" if case == "gelu" else "silu")
        if case == "gpt-oss":
            stacks = [s._replace(bias=torch.randn(s.weight.shape[:2], device=DEVICE).to(dtype)) for s in stacks]
        tail = Tail()
        wanted = by_definition(x, weights, ids, stacks[0], stacks[1], gate, case == "llama 4", first)
        if case == "tail":
            tail = Tail(
                some(rows, hidden, dtype=dtype), torch.rand(rows, device=DEVICE), some(rows, hidden, dtype=dtype)
            )
            assert tail.shared is not None and tail.gates is not None and tail.other is not None
            wanted += tail.shared.double() * tail.gates.double()[:, None] + tail.other.double()
        got = kernels.forward(x, weights, ids, stacks[0], stacks[1], gate, weigh_inputs=case == "llama 4",
                              first=first, tail=tail, **more)  # fmt: skip
        return far(got, wanted)

    for case in ("plain", "gelu", "gpt-oss", "llama 4", "one expert", "parallel", "tail"):
        for rows in (1, 3, 40, 700) if case in ("plain", "gpt-oss") else (2, 100):
            add(f"bf16, {case}", rows, lambda: sums(rows, BF16, case), 8e-3)
    for rows in (1, 40, 700):
        add("float16", rows, lambda: sums(rows, torch.float16, "plain"), 2e-3)
        add("float32", rows, lambda: sums(rows, torch.float32, "plain"), 1e-5)
        # Inputs are rounded to 8 bits twice: that is what is seen here.
        add("fp8, a scale a row", rows, lambda: sums(rows, BF16, "plain", 1), 0.08)
        add("fp8, a scale a block", rows, lambda: sums(rows, BF16, "plain", 2), 0.08)

    def alone() -> float:
        """A token's numbers, whoever else is in the step, as long as it is computed by the same tiles."""
        count, hidden, inter = 12, 1024, 384
        x, opens, closes = some(64, hidden), Stack(some(count, 2 * inter, hidden)), Stack(some(count, hidden, inter))
        weights, ids, _ = routing.choose(Routing(count, 3), torch.randn(64, count, device=DEVICE))
        tiles = tiles_of(192, count, (opens, closes))
        whole = kernels.forward(x, weights, ids, opens, closes, Gate("silu"), tiles=tiles, few=0)
        part = kernels.forward(x[7:30], weights[7:30], ids[7:30], opens, closes, Gate("silu"), tiles=tiles, few=0)
        return float((whole[7:30] != part).sum())

    add("the same whoever else is there", 64, alone, 0.5)
    return found


class Layer:
    """Layers of one shape with weights of their own, to be called in turn."""

    def __init__(self, name: str, layers: int):
        self.hidden, self.count, self.top_k, self.inter, self.shared = SHAPES[name]
        self.rule = Routing(self.count, self.top_k, norm=None if self.shared else 1.0)
        self.layers = []
        for _ in range(layers):
            made = MoE(
                self.hidden, self.rule, self.inter, self.shared, self.shared > 0, "silu", False, None, DEVICE, BF16
            )
            for place in made.places("m").values():
                place.normal_(0, place.shape[-1] ** -0.5)
            for linear in made.linears().values():
                for place in linear.places("m").values():
                    place.normal_(0, place.shape[-1] ** -0.5)
                linear.finish()
            made.finish()
            self.layers.append(made)

    def inputs(self, rows: int) -> torch.Tensor:
        return some(rows, self.hidden) * self.hidden**0.5

    def read_gb(self, tokens: int, each: int = 2) -> float:
        """Gigabytes of weights of the experts that random routing of so many tokens needs, and the shared part's."""
        taken = self.count * (1 - (1 - self.top_k / self.count) ** tokens)
        return (taken * 3 * self.hidden * self.inter * each + 3 * self.hidden * self.shared * 2) / 1e9

    def tflop(self, tokens: int) -> float:
        return 6 * tokens * self.hidden * (self.top_k * self.inter + self.shared) / 1e12

    def floor_us(self, tokens: int) -> float:
        return max(self.read_gb(tokens) / READ_TB_S * 1e3, self.tflop(tokens) / BF16_TFLOP_S * 1e6)


@dataclass
class Case:
    """A line of a table, and what is called to fill it: several calls, of weights in turn."""

    part: str
    row: dict[str, Any]
    calls: dict[str, list[Callable[[], Any]]]
    gb: float = 0.0
    tflop: float = 0.0

    def measure(self) -> dict[str, Any]:
        row = self.row
        for name, calls in self.calls.items():
            try:
                row[name] = graph_us(calls, 5)
            except Exception as wrong:  # the others are still worth knowing
                row["wrong"] = repr(wrong)[:160]
        if self.gb and "us" in row:
            row |= {"GB/s": self.gb / row["us"] * 1e6, "TFLOP/s": self.tflop / row["us"] * 1e6}
            if "floor us" in row:
                row["share of floor %"] = 100 * row["floor us"] / row["us"]
        if "us" in row and "before us" in row:
            row["x"] = row["before us"] / row["us"]
        return row


def unfused(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """As it was before: torch's products by group."""
    layer.experts.fused = False
    try:
        return layer(x)
    finally:
        layer.experts.fused = True


def times(name: str, layer: Layer) -> Iterator[Case]:
    def case(rows: int) -> Case:
        x, gb = layer.inputs(rows), layer.read_gb(rows)
        row = {"layer": name, "rows": rows, "read GB": gb, "floor us": layer.floor_us(rows)}
        return Case("times", row, {"us": [lambda m=m: m(x) for m in layer.layers]}, gb, layer.tflop(rows))

    yield from map(case, (*DECODES, *PREFILLS))


def before(name: str, layer: Layer) -> Iterator[Case]:
    if layer.shared:  # whose weights are the last experts' by now
        return

    def case(rows: int) -> Case:
        x = layer.inputs(rows)
        return Case("before", {"layer": name, "rows": rows}, {"us": [lambda m=m: unfused(m, x) for m in layer.layers]})

    yield from map(case, (*DECODES, *PREFILLS))


def parts(name: str, layer: Layer) -> Iterator[Case]:
    """Where the time of a step goes."""

    def case(rows: int) -> Case:
        x, (weights, ids) = layer.inputs(rows), drawn(layer.rule, rows)
        logits = torch.randn(rows, layer.count + 1, device=DEVICE)[:, :-1]
        calls: dict[str, list[Callable[[], Any]]] = {
            "scores": [lambda m=m: routing.scores(x, m._scores, None) for m in layer.layers],
            "choose": [lambda: routing.choose(layer.rule, logits)] * 4,
            "sort": [lambda: routing.sort(ids, layer.count, 16)] * 4,
            "shared": [lambda m=m: m._shared(x) for m in layer.layers if m.shared],
            "experts": [lambda m=m: m.experts.sums(x, weights, ids, False) for m in layer.layers],
        }
        return Case("parts", {"layer": name, "rows": rows}, {what: some for what, some in calls.items() if some})

    yield from map(case, (1, 32, 4096))


def few(name: str, layer: Layer) -> Iterator[Case]:
    """Few tokens: pair by pair, or in blocks of an expert's."""

    def case(rows: int, weights: torch.Tensor, ids: torch.Tensor, way: str, most: int) -> Case:
        x = layer.inputs(rows)
        calls = [
            lambda m=m: kernels.forward(
                x, weights, ids, Stack(m.experts.gate_up.weight), Stack(m.experts.down.weight), Gate("silu"), few=most
            )
            for m in layer.layers
        ]
        gb = 6e-9 * len(ids.unique()) * layer.hidden * layer.inter
        return Case("few", {"layer": name, "rows": rows, "way": way}, {"us": calls}, gb)

    for rows in (1, 2, 4):
        drew = drawn(layer.rule, rows)  # the same experts both ways
        yield from (case(rows, *drew, *way) for way in (("pairs", 8), ("blocks", 0)))


def ones(name: str, layer: Layer) -> Iterator[Case]:
    """One token: rows of a program, columns of a step, warps."""
    x = layer.inputs(1)
    weights, ids = drawn(layer.rule, 1)
    plain = experts_pairs.tuning
    first = ((1, 2048, 4), (2, 2048, 8), (1, 1024, 2))
    last = ((2, 512, 4), (1, 512, 4), (2, 1024, 4), (2, 2048, 8))

    def tuned(choice: tuple[int, int, int], opens: bool, m: MoE) -> None:
        experts_pairs.tuning = lambda inputs, o=True: choice if o == opens else plain(inputs, o)  # type: ignore[assignment]
        try:
            m.experts.sums(x, weights, ids, False)
        finally:
            experts_pairs.tuning = plain

    def case(opens: bool, choice: tuple[int, int, int]) -> Case:
        row = {"layer": name, "product": "gate, up" if opens else "down", "tile": words(choice)}
        calls = [lambda m=m: tuned(choice, opens, m) for m in layer.layers]
        return Case("one", row, {"us": calls}, layer.read_gb(1) - 6e-9 * layer.hidden * layer.shared)

    yield from (case(opens, choice) for opens, tried in ((True, first), (False, last)) for choice in tried)


Tried = dict[int, tuple[list[Tile], list[Tile]]]  # rows: of gate and up, of down


def listed(text: str) -> list[Tile]:
    return [Tile(*map(int, one.split())) for one in text.split(",")]


OPEN = listed("128 128 64 8 3, 128 64 64 4 3, 128 64 64 4 4, 128 128 64 8 4, 128 128 64 8 3 16")
CLOSE = listed("128 256 64 8 3, 128 128 64 4 3, 128 128 64 8 4, 256 128 64 8 3")
T16 = listed("16 64 128 4 4, 16 64 128 4 3, 16 128 128 8 3, 16 64 128 4 5")
T64 = listed("32 64 64 4 4, 32 64 128 4 3, 64 64 128 4 3, 64 64 64 4 4, 128 64 64 4 3")
TRIED: Tried = {4096: (OPEN, CLOSE), 32: (T16, T16), 8192: (OPEN[:4], CLOSE), 256: (T64, T64), 1024: (OPEN[:4], CLOSE)}
# The same of 8 bits with a scale a block.
SCALED: Tried = {
    4096: (listed("128 64 128 8 3, 64 64 128 8 3, 128 32 128 4 3, 128 64 128 8 4"),
           listed("128 128 128 8 3, 64 128 128 8 3, 128 64 128 4 3, 128 128 128 8 4")),
    256: (listed("64 64 128 8 3, 64 32 128 4 3, 32 64 128 4 3"),
          listed("64 64 128 4 3, 64 128 128 8 3, 32 64 128 4 3")),
    32: (listed("16 64 128 4 4, 16 32 128 4 4, 16 64 128 8 4"), listed("16 64 128 4 4, 16 128 128 8 4")),
}  # fmt: skip


def tiles(name: str, layer: Layer) -> Iterator[Case]:
    """Each product by itself, under each tile."""
    stacks = [(Stack(m.experts.gate_up.weight), Stack(m.experts.down.weight)) for m in layer.layers]
    yield from under("tiles", name, layer, stacks, TRIED)


def scaled(name: str, layer: Layer) -> Iterator[Case]:
    """The same of 8 bits with a scale a block."""
    stacks = [(narrow(m.experts.gate_up, 128), narrow(m.experts.down, 128)) for m in layer.layers[:2]]
    yield from under("fp8 tiles", name, layer, stacks, SCALED)


def under(part: str, name: str, layer: Layer, stacks: list[tuple[Stack, Stack]], tried: Tried) -> Iterator[Case]:
    def case(rows: int, opens: bool, tile: Tile, weights: torch.Tensor, ids: torch.Tensor) -> Case:
        own = [both[not opens] for both in stacks]
        assert isinstance(own[0].weight, torch.Tensor)
        gb = layer.read_gb(rows, own[0].weight.itemsize) - 6e-9 * layer.hidden * layer.shared
        share = 2 / 3 if opens else 1 / 3
        tflop = 6 * share * ids.numel() * layer.hidden * layer.inter / 1e12
        tokens, inner = some(rows, layer.hidden), some(ids.numel(), layer.inter)
        read, out = (tokens, inner) if opens else (inner, some(ids.numel(), layer.hidden))
        read, given = experts_stack.rounded(read, own[0]), routing.sort(ids, layer.count, tile.block_m)
        row = {"layer": name, "rows": rows, "product": "gate, up" if opens else "down", "tile": words(tile)}
        calls = [
            lambda s=s: grouped(*read, s, given, weights, out, Gate("silu"), layer.top_k, opens, False, tile)
            for s in own
        ]  # fmt: skip
        return Case(part, row, {"us": calls}, gb * share, tflop)

    for rows, both in tried.items():
        drew = drawn(layer.rule, rows)
        yield from (case(rows, opens, tile, *drew) for opens in (True, False) for tile in both[not opens])


def eight_bits(name: str, layer: Layer) -> Iterator[Case]:
    def case(stacks: list[tuple[Stack, Stack]], groups: int, rows: int) -> Case:
        weights, ids = drawn(layer.rule, rows)
        x = layer.inputs(rows)
        row = {"layer": name, "scales": "a row" if groups == 1 else "a block", "rows": rows}
        calls = {
            "us": [lambda s=s: kernels.forward(x, weights, ids, *s, Gate("silu")) for s in stacks],
            "before us": [lambda m=m: m.experts.sums(x, weights, ids, False) for m in layer.layers],
        }
        gb = layer.read_gb(rows, 1) - 6e-9 * layer.hidden * layer.shared
        return Case("fp8", row, calls, gb, 6 * ids.numel() * layer.hidden * layer.inter / 1e12)

    for groups in (1, 128):
        stacks = [
            (narrow(m.experts.gate_up, groups), narrow(m.experts.down, groups)) for m in layer.layers[:2]
        ]  # fmt: skip
        yield from (case(stacks, groups, rows) for rows in (1, 32, 256, 4096))


def narrow(one: Stacked, groups: int) -> Stack:
    return rounded(one.weight, 1 if groups == 1 else one.inputs // groups)


def words(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def drawn(rule: Routing, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids of random tokens."""
    weights, ids = route(rule, torch.randn(rows, rule.count, device=DEVICE))
    return weights, ids.int()


def compiled(cases: list[Case]) -> None:
    """Compile their kernels side by side; then wake the device, which has slept: it began up to 20% slower."""

    def launch() -> None:
        for case in cases:
            for calls in case.calls.values():
                calls[0]()

    compile_ahead(launch)
    some = torch.empty(2, 1 << 28, dtype=torch.uint8, device=DEVICE)
    until = time.monotonic() + AWAKE_S
    while time.monotonic() < until:
        some[0].copy_(some[1])
        torch.cuda.synchronize()


def run() -> dict[str, Any]:
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{what}: after {time.monotonic() - began:.1f} s", flush=True)

    torch.manual_seed(0)
    tables: dict[str, list[dict[str, Any]]] = {}
    with torch.inference_mode():
        works = {str(d)[6:]: experts_trial.works(d) for d in (BF16, fp8.FP8)}
        say(f"works: {works}")
        compile_ahead(numerics)
        tables["checks"] = numerics()
        say("checks")
        for name, layers, ends in (("qwen1.5-moe", 4, 0.7), ("mixtral-8x7b", 2, 1.0)):
            layer = Layer(name, layers)
            cases: list[Case] = []
            for made in (times, before, tiles, few, parts, eight_bits, scaled, ones):
                if time.monotonic() > began + BUDGET_S * ends:
                    say(f"{name}, no time for {made.__name__}")
                    continue
                try:
                    cases = list(made(name, layer))
                    if made is not before:
                        compiled(cases)
                    for case in cases:
                        if time.monotonic() < began + BUDGET_S * ends:
                            tables.setdefault(case.part, []).append(case.measure())
                except Exception as wrong:
                    tables.setdefault("wrong", []).append({"part": made.__name__, "wrong": repr(wrong)[:300]})
                say(f"{name}, {made.__name__}")
            del layer, cases
            torch.cuda.empty_cache()
    old = {(row["layer"], row["rows"]): row.get("us") for row in tables.pop("before", [])}
    for row in tables.get("times", []):
        was = old.get((row["layer"], row["rows"]))
        if was and "us" in row:
            row |= {"unfused us": was, "x": was / row["us"]}
    seconds = time.monotonic() - began
    good = all(c["ok"] for c in tables["checks"]) and all(works.values())
    return {**tables, "works": works, "seconds": seconds, "ok": good}
