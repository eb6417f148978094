# ruff: noqa: B023 - closures are called before the loop goes on
"""Part `attention` of gpu_check.py: our kernels on keys of 16 and 8 bits and FlashInfer's, against float64, then timed.

FlashInfer's kernels are compiled first, side by side, unless they are there; what fails to compile is left out.
"""

import importlib
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import gpu_kernels
import numpy as np
import torch
from gpu_kernels import DEVICE, _Pools, graph_us
from torch import Tensor

from sglang.attention import flashinfer, long
from sglang.attention.base import Look, Rows, Shape
from sglang.attention.flashinfer import FlashInfer, Module
from sglang.attention.triton import TritonAttention, tiles_of
from sglang.kernels import attention as own

SHAPE = Shape(32, 8, 128, 128**-0.5)
BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
PLAIN = Look()
DECODES = ((1, 4096), (32, 1024), (256, 1024), (512, 600), (16, 16384))
PROMPTS = ((1, 8192, 0), (8, 1024, 0), (1, 1024, 15360), (8, 256, 1024))
SHARED, APART, MEMBERS = 2048, 100, 512
# Keys, warps, stages and registers of tiles over keys of 8 bits, beside those in use.
EIGHT_BITS = (
    (64, 8, 2, None),
    (64, 8, 3, None),
    (32, 8, 3, None),
    (128, 8, 2, None),
    (64, 8, 2, 168),
    (64, 4, 2, None),
)
COMPILE_S = 200  # longer than that nobody waits
# Of a result; rounding of queries, shares and result to bfloat16. What 8 bits do to keys is not a part of it.
BOUND = 1e-2
THERE: set[Module] = set()


class Compiled:
    """Modules of FlashInfer, compiled side by side. In one that is not `there` something went wrong."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        names = "bfloat16", "float8_e4m3fn"
        wanted = [Module("fa2", names[0], cells, 128, False, False) for cells in names]
        wanted += [
            Module("fa3", names[0], names[0], 128, False, False),
            Module("fa2", names[0], names[0], 128, True, True),
        ]
        self._threads = [threading.Thread(target=self._build, args=(one,)) for one in wanted if flashinfer.installed()]
        for thread in self._threads:
            thread.start()

    def wait(self) -> list[dict[str, Any]]:
        until = time.monotonic() + COMPILE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return self.rows

    def _build(self, one: Module) -> None:
        began = time.monotonic()
        row: dict[str, Any] = {"module": f"{one.kernel} {one.cells}{' window, cap' if one.window else ''}"}
        try:
            had = one.spec().is_compiled
            if not had:
                flashinfer.build([one])
            one.load()
            THERE.add(one)
            row |= {"there before": had, "s": time.monotonic() - began, "ok": True}
        except Exception as error:
            row |= {"s": time.monotonic() - began, "ok": False, "error": str(error)[-300:]}
        self.rows.append(row)
        print(row, flush=True)


def run() -> dict[str, Any]:
    import os

    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    compiled = Compiled()
    checks: list[dict[str, Any]] = []
    _add(checks, eight_bits)
    modules = compiled.wait()
    if flashinfer.installed():
        _add(checks, flashed)
    times: dict[str, list[dict[str, Any]]] = {"decodes": [], "prompts": [], "shared": []}
    for name, part in (("decodes", decodes), ("prompts", prompts), ("shared", shared)):
        _add(times[name], part)
    ok = all(row["ok"] for row in checks)
    return {"modules": modules, "checks": checks, **times, "ok": ok}


def _add(rows: list[dict[str, Any]], part: Callable[[list[dict[str, Any]]], None]) -> None:
    """What a part found out before it failed is kept."""
    try:
        part(rows)
    except Exception:
        traceback.print_exc()
        rows.append({"what": part.__name__, "ok": False})


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        print("not possible:", str(error)[-300:], flush=True)
        return None


def eight_bits(rows: list[dict[str, Any]]) -> None:
    """Ragged rows with cached prefixes: our kernels on keys and values of 8 bits, and of 16."""
    random = np.random.default_rng(7)
    looks = {
        "plain": Look(),
        "cap, sinks": Look(softcap=20.0, sinks=torch.linspace(-1, 2, 32)),
        "window": Look(window=100),
    }
    for cells in (None, E4M3, E5M2):
        for name, look in looks.items():
            page = int(random.choice([1, 16]))
            error = gpu_kernels._attention_error(SHAPE, BF16, look, page, random, cells)
            rows.append({"what": f"triton {cells or BF16} {name}", "error": error, "bound": BOUND, "ok": error < BOUND})


def ready_flash(backend: TritonAttention, look: Look) -> FlashInfer:
    backend.use_flashinfer([look], True)
    assert backend.flash is not None
    return _there(backend.flash, look)


def _there(flash: FlashInfer, look: Look) -> FlashInfer:
    if look.window:
        flash.kernel = "fa2"  # one module less to compile
    if lacking := [module for module in flash.modules if module not in THERE]:
        raise RuntimeError(f"not compiled: {lacking}")
    flash._loaded.set()
    return flash


def flashed(rows: list[dict[str, Any]]) -> None:
    """The same by FlashInfer, and its decodes in a graph, with padding."""
    random = np.random.default_rng(8)
    least, flashinfer.LEAST_PAIRS = flashinfer.LEAST_PAIRS, 0
    for cells in (None, E4M3):
        looks = {"plain": Look()} | ({} if cells else {"window, cap": Look(window=100, softcap=20.0)})
        for name, look in looks.items():
            for page in (1, 16):
                used: list[FlashInfer] = []

                def ready(backend: TritonAttention) -> None:
                    used.append(ready_flash(backend, look))

                error = _tried(lambda: gpu_kernels._attention_error(SHAPE, BF16, look, page, random, cells, ready))
                row: dict[str, Any] = {
                    "what": f"flashinfer {cells or BF16} {name} page {page}",
                    "error": error,
                    "bound": BOUND,
                }
                works = bool(used) and all(used[0]._works.values())
                rows.append({**row, "ok": error is not None and error < BOUND and works})
                print(rows[-1], flush=True)
    flashinfer.LEAST_PAIRS = least
    for cells in (BF16, E4M3):
        error = _tried(lambda: _graph_error(cells))
        rows.append({"what": f"flashinfer {cells}, decodes in a graph", "error": error, "bound": BOUND,
                     "ok": error is not None and error < BOUND})  # fmt: skip


def _graph_error(cells: torch.dtype) -> float:
    """A graph of 8 rows is captured with none, then replayed for 5 and for 7 of other lengths."""
    pools = [torch.randn(4096, 8, 128, device=DEVICE).to(cells) for _ in range(2)]
    table = np.random.default_rng(1).permutation(4096).reshape(8, 512).astype(np.int32)
    backend = TritonAttention(SHAPE, [pools[0]], [pools[1]], torch.from_numpy(table).to(DEVICE), 1, dtype=BF16)
    ready_flash(backend, PLAIN)
    packed = torch.randn(8, 48, 128, device=DEVICE).to(BF16)
    slots, at = torch.full((8,), -1, device=DEVICE), torch.zeros(8, dtype=torch.int64, device=DEVICE)
    none = np.zeros(0, np.int64)
    assert backend.foresee(none, none, 8), "FlashInfer is not used"

    def step() -> Tensor:
        backend.fix(slots, at, torch.arange(8, device=DEVICE), None, True)
        return backend.attend(*packed.split([32, 8, 8], 1), 0, PLAIN)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    worst = 0.0
    for starts in (np.array([3, 511, 100, 0, 64]), np.array([17, 20, 300, 301, 444, 1, 510])):
        n = len(starts)
        assert backend.foresee(np.arange(n), starts, 8)
        slots.fill_(-1)
        slots[:n], at[:n] = torch.arange(n, device=DEVICE), torch.from_numpy(starts).to(DEVICE)
        packed.copy_(torch.randn(packed.shape, device=DEVICE))
        graph.replay()
        got = out.clone().view(8, 32, 128)
        backend.plan(Rows(np.arange(n), starts, np.ones(n, int), table, 1))
        assert backend._step is not None
        backend._step.flash_decodes = None
        wanted = backend.attend(*packed[:n].split([32, 8, 8], 1), 0, PLAIN).view(n, 32, 128)
        worst = max(worst, float((got[:n] - wanted).float().norm() / wanted.float().norm()))
        assert got.isfinite().all()
    return worst


def _flash(pools: _Pools, table: Tensor, cells: torch.dtype) -> FlashInfer:
    return _there(FlashInfer(SHAPE, [PLAIN], BF16, [pools.layer(i, table) for i in range(pools.layers)], True), PLAIN)


def decodes(rows: list[dict[str, Any]]) -> None:
    for batch, context in DECODES:
        row: dict[str, Any] = {"decodes": f"{batch} x {context}"}
        table = torch.randperm(batch * context, device=DEVICE).int().view(batch, context)
        q = torch.randn(batch, 32, 128, device=DEVICE).to(BF16)
        out, at = torch.empty_like(q), torch.arange(batch, device=DEVICE)
        starts = np.full(batch, context - 1)
        positions = torch.from_numpy(starts).to(DEVICE)
        splits = own.splits_for(batch, 8)
        for name, cells in (("bf16", BF16), ("e4m3", E4M3), ("e5m2", E5M2)):
            pools = _Pools(batch * context, dtype=cells)
            bytes_ = batch * context * 2 * 8 * 128 * cells.itemsize
            layers = [pools.layer(i, table) for i in range(pools.layers)]
            many = layers * max(1, 8 // len(layers))

            def ours(t: own.Tuning | None = None) -> float:
                return graph_us(
                    [lambda p=p: own.decode(q, p, pools.score, at, positions, at, out, splits, t) for p in many], 5
                )

            row |= _rate(f"triton {name}", ours(), bytes_)
            if name == "e4m3":
                tunings = [
                    own.Tuning(1, *t) for t in ((64, 4, 5), (128, 8, 3), (32, 4, 4), (32, 4, 6), (32, 4, 8), (64, 8, 4))
                ]
                found = {t: us for t in tunings if (us := _tried(lambda: ours(t))) is not None}
                print(
                    row["decodes"],
                    *(f"{t.keys} {t.warps} {t.stages}: {us:.1f} us" for t, us in found.items()),
                    sep="; ",
                )
                best = min(found, key=lambda t: found[t])
                row |= {"e4m3 best us": found[best], "e4m3 best": f"{best.keys} {best.warps} {best.stages}"}
            if name == "e5m2" or not THERE:
                continue

            def theirs() -> dict[str, float]:
                flash = _flash(pools, table, cells)
                assert flash.foresee(np.arange(batch), starts, batch)
                flash.list_fixed(at)
                us = graph_us([lambda p=p: flash.decode_fixed(batch, q, p, PLAIN, out) for p in many], 5)
                began = time.perf_counter()
                for _ in range(5):
                    flash.foresee(np.arange(batch), starts, batch)
                plan_ms = (time.perf_counter() - began) * 200
                return _rate(f"flashinfer {name}", us, bytes_) | {f"flashinfer {name} plan ms": plan_ms}

            row |= _tried(theirs) or {}
        rows.append(row)
        print(row, flush=True)


def _rate(name: str, us: float, bytes_: float) -> dict[str, float]:
    return {f"{name} us": us, f"{name} TB/s": bytes_ / us / 1e6}


def prompts(rows: list[dict[str, Any]]) -> None:
    for batch, new, cached in PROMPTS:
        length, looked = new + cached, batch * new
        row: dict[str, Any] = {"prompts": f"{batch} x {new} over {cached}"}
        table = torch.randperm(batch * length, device=DEVICE).int().view(batch, length)
        q = torch.randn(looked, 48, 128, device=DEVICE).to(BF16)[:, :32]
        out = torch.empty(looked, 32, 128, dtype=BF16, device=DEVICE)
        operations = 4 * 128 * 32 * batch * long.pairs(new, cached)
        host = Rows(np.arange(batch), np.full(batch, cached), np.full(batch, new), np.zeros((batch, 1), np.int32), 1)
        begins = np.arange(batch) * new
        height = own.extend_tokens(32, 8, 128, BF16, new)
        tiles = torch.from_numpy(tiles_of(host, begins, height)).to(DEVICE)

        def rate(name: str, call: Callable[[], Any]) -> None:
            us = _tried(lambda: graph_us([call] * 3, 5))
            if us is not None:
                row.update({f"{name} us": us, f"{name} TFLOP/s": operations / us / 1e6})

        for name, cells in (("bf16", BF16), ("e4m3", E4M3)):
            pools = _Pools(batch * length, dtype=cells)
            pool = pools.layer(0, table)
            rate(f"triton {name}", lambda: own.extend(q, pool, pools.score, tiles, out, new))
            if name == "e4m3":
                tried: dict[own.Tuning, float] = {}
                for t in (own.Tuning(128, *t) for t in EIGHT_BITS):
                    us = _tried(lambda: graph_us([lambda: own.extend(q, pool, pools.score, tiles, out, new, t)] * 3, 3))
                    if us is not None:
                        tried[t] = us
                        print("extend e4m3", row["prompts"], t, f"{us:.1f} us", flush=True)
                fast = min(tried, key=lambda t: tried[t])
                row |= {
                    "e4m3 best us": tried[fast],
                    "e4m3 best": f"{fast.keys} {fast.warps} {fast.stages} {fast.registers}",
                }
            flash = _tried(lambda: _flash(pools, table, cells)) if THERE else None
            if flash is None:
                continue
            job = _tried(lambda: flash.job("rows", host.slots, host.starts, host.counts, 0))
            first = _tried(lambda: flash.attend(job, q, pool, PLAIN, out) or True)
            torch.cuda.synchronize()
            if first:
                row[f"flashinfer {name} kernel"] = flash.kernel
                rate(f"flashinfer {name}", lambda: flash.attend(job, q, pool, PLAIN, out))
                torch.cuda.synchronize()
                began = time.perf_counter()
                flash.attend(flash.job("rows", host.slots, host.starts, host.counts, 0), q, pool, PLAIN, out)
                row[f"flashinfer {name} host ms"] = (time.perf_counter() - began) * 1000
                torch.cuda.synchronize()
            if name == "bf16" and batch == 1 and (cut := long.cut(cached, new)) is not None:
                one = long.Row(0, cached, new, 0, cut)
                rate("cuDNN", lambda: long.attend(q, pool, SHAPE.scale, one, out))
        rows.append(row)
        print(row, flush=True)


def shared(rows: list[dict[str, Any]]) -> None:
    """Decodes behind a prefix that all share: our kernels, and FlashInfer's put together by hand."""
    cells = SHARED + MEMBERS * APART
    table = np.zeros((MEMBERS, SHARED + APART), np.int32)
    table[:, :SHARED] = np.arange(SHARED)
    table[:, SHARED:] = SHARED + np.random.default_rng(2).permutation(MEMBERS * APART).reshape(MEMBERS, APART)
    device_table = torch.from_numpy(table).to(DEVICE)
    starts = np.full(MEMBERS, SHARED + APART - 1)
    q = torch.randn(MEMBERS, 32, 128, device=DEVICE).to(BF16)
    at, positions = torch.arange(MEMBERS, device=DEVICE), torch.from_numpy(starts).to(DEVICE)
    for name, dtype in (("bf16", BF16), ("e4m3", E4M3)):
        row: dict[str, Any] = {"shared": f"{MEMBERS} x ({SHARED} + {APART}), {name}"}
        pools = _Pools(cells, dtype=dtype)
        layers = [pools.layer(i, device_table) for i in range(pools.layers)]
        backend = TritonAttention(SHAPE, pools.keys, pools.values, device_table, 1, dtype=BF16)
        found = backend.sharing(np.arange(MEMBERS), starts, table, 1)
        assert found is not None
        from sglang.attention.cascade import ENTRIES

        mine = [torch.from_numpy(a).to(DEVICE) for a in (found.own, found.used, found.members, found.tiles)]
        common = own.Shared(*mine, ENTRIES)
        splits = own.splits_for(MEMBERS, 8)
        outs = [torch.empty_like(q) for _ in range(3)]

        def ours(p: own.Pool, with_: own.Shared | None, out: Tensor) -> None:
            own.decode(q, p, pools.score, at, positions, at, out, splits, shared=with_)

        row["triton us"] = graph_us([lambda p=p: ours(p, common, outs[0]) for p in layers], 5)
        row["triton apart us"] = graph_us([lambda p=p: ours(p, None, outs[1]) for p in layers], 5)
        row["difference"] = float((outs[0] - outs[1]).float().norm() / outs[1].float().norm())
        row |= _tried(lambda: _by_hand(layers, q, dtype, outs[1])) or {}
        row["ok"] = row["difference"] < BOUND and row.get("by hand difference", 0.0) < BOUND
        rows.append(row)
        print(row, flush=True)


def _by_hand(layers: list[own.Pool], q: Tensor, cells: torch.dtype, wanted: Tensor) -> dict[str, float]:
    """One pass over what is shared, as of one row of many tokens; decodes of the rest; and a merge."""
    module = importlib.import_module("flashinfer")
    space = torch.zeros(128 << 20, dtype=torch.uint8, device=DEVICE)
    more = {"q_data_type": BF16, "kv_data_type": cells, "sm_scale": SHAPE.scale}
    first = module.BatchPrefillWithPagedKVCacheWrapper(space, "NHD", backend="fa3" if cells == BF16 else "fa2")
    ints = lambda *values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
    first.plan(
        ints(0, MEMBERS),
        ints(0, SHARED),
        torch.arange(SHARED, dtype=torch.int32),
        ints(1),
        32,
        8,
        128,
        1,
        causal=False,
        **more,
    )
    rest = module.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros_like(space), "NHD", use_tensor_cores=True, backend="fa2"
    )
    pages = layers[0].table[:, SHARED:].reshape(-1).contiguous()
    ends = torch.arange(MEMBERS + 1, dtype=torch.int32) * APART
    rest.plan(ends, pages, torch.ones(MEMBERS, dtype=torch.int32), 32, 8, 128, 1, **more)

    def call(p: own.Pool) -> Tensor:
        pages_of = p.keys.view(-1, 1, 8, 128), p.values.view(-1, 1, 8, 128)
        one, one_norm = first.run(q, pages_of, return_lse=True)
        two, two_norm = rest.run(q, pages_of, return_lse=True)
        return module.merge_state(one, one_norm, two, two_norm)[0]

    got = call(layers[-1])
    us = graph_us([lambda p=p: call(p) for p in layers], 5)
    return {"by hand us": us, "by hand difference": float((got - wanted).float().norm() / wanted.float().norm())}
