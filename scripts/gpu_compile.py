"""Compile the kernels of an 8B model's steps for a GPU that is not there: `python scripts/gpu_compile.py [sm]`.

The launchers of `sglang.kernels` run as they do in the engine, on CPU tensors; what would be launched is compiled for
the target instead. Printed: registers, spilled bytes, shared memory, seconds. Exits 1 where a kernel spills, or where
one that may start early (`kernels/matvec.py`) touches what others write before it waits.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

BEFORE = {"_matvec": 1, "_gated": 2, "_split": 2, "_pair": 2}  # loads of weights
MOST_SPILLED = 64  # bytes of a thread: a loop's counter, not a loop's tile


class _Driver:
    """A device to compile for."""

    def __init__(self, sm: int):
        self._target = GPUTarget("cuda", sm, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Compiler:
    """What was compiled: name, options, resources."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._why = ""
        run = JITFunction.run

        def instead(fn: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            began = time.perf_counter()
            compiled = run(fn, *args, grid=grid, warmup=True, **options)
            self._note(fn.fn.__name__, compiled, options, time.perf_counter() - began)
            return compiled

        JITFunction.run = instead  # type: ignore[method-assign]

    def of(self, why: str) -> None:
        self._why = why

    def _note(self, name: str, compiled: Any, options: dict[str, Any], seconds: float) -> None:
        if compiled.hash in self._seen:
            return
        self._seen.add(compiled.hash)
        early = bool(options.get("launch_pdl"))
        row = {"kernel": name, "for": self._why, **resources(compiled.asm["cubin"])}
        row |= {"dynamic shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps, "early": early}
        row["ok"] = row["spilled"] <= MOST_SPILLED and early == waits(compiled.asm["ptx"]) and (
            not early or loads_before_the_wait(compiled.asm["ptx"]) <= BEFORE.get(name, 0)
        )  # fmt: skip
        self.rows.append({**row, "s": round(seconds, 2)})
        print(self.rows[-1], flush=True)


def resources(cubin: bytes) -> dict[str, int]:
    import triton.backends.nvidia

    [tool] = Path(triton.backends.nvidia.__path__[0], "bin").glob("cuobjdump*")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
        code = subprocess.run([tool, "--dump-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", said.stdout)}
    local = len(re.findall(r"\b(?:STL|LDL)\b", code))
    return {"registers": found["REG"], "spilled": found["STACK"] + found.get("LOCAL", 0), "local accesses": local}


def waits(ptx: str) -> bool:
    return "griddepcontrol.wait" in ptx


def loads_before_the_wait(ptx: str) -> int:
    """Groups of loads (of different base addresses are not told apart): 0, or how many 4 KB tiles' worth there are."""
    before = ptx.partition("griddepcontrol.wait")[0]
    if re.search(r"\bst\.global|\batom\.|\bred\.|\bcp\.async", before):
        return 1 << 30
    loads = re.findall(r"\bld\.global[^;]*\[\s*(%\w+)", before)
    return 0 if not loads else 1 if len(loads) <= 8 else 2


def kernels(compiler: Compiler) -> None:
    from sglang.kernels import attention as own
    from sglang.kernels import (
        automata,
        cells,
        enter,
        experts,
        experts_stack,
        fp8,
        int4,
        long,
        matvec,
        packed,
        pointwise,
        routing,
        sample,
        skinny,
        stream,
    )

    matvec._capable = lambda: True  # type: ignore[assignment]
    int4._asm = lambda: True  # type: ignore[assignment]
    sample._processors = lambda device: 132  # type: ignore[assignment]
    bf16 = torch.bfloat16

    def some(*shape: int, dtype: torch.dtype = bf16) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def ints(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    hidden, inter, heads, kv, dim = 4096, 14336, 32, 8, 128
    table = some(512, 32768, dtype=torch.int32)
    pool = own.Pool(some(64, kv, dim), some(64, kv, dim), table, 1)
    score = own.Score(dim**-0.5)
    compiler.of("one row")
    x = some(1, hidden)
    for rows, inputs, other in ((6144, hidden, None), (hidden, hidden, x), (hidden, inter, x), (128256, hidden, None)):
        matvec.matvec(some(1, inputs), some(rows, inputs), None, other)
    matvec.matvec_gated(x, some(2 * inter, hidden), None, "silu")
    vocab, words, states = 128256, 4008, 4096
    arena = automata.Arena(some(states, 256, dtype=torch.int16), some(states, dtype=torch.uint8),
                           some(states, words, dtype=torch.int32))  # fmt: skip
    bytes_, numbers = some(2 * vocab, dtype=torch.uint8), some(vocab, dtype=torch.int32)
    spelling = automata.Spelling(some(vocab + 1, dtype=torch.int32), bytes_, numbers, numbers, bytes_, numbers)
    compiler.of("automata")
    automata.make_masks(arena, spelling, 512, 300)
    compiler.of("masks")
    bytes_, words = some(600000, dtype=torch.uint8), [some(n, dtype=torch.int32) for n in (128257, 128256, 128000, 33)]
    spelling = automata.Spelling(words[0], bytes_, words[1], words[2], bytes_, words[3])
    arena = automata.Arena(some(900, 256, dtype=torch.int16), bytes_[:900], some(900, 4008, dtype=torch.int32))
    automata.make_masks(arena, spelling, 512, 300)
    for rows in (1, 2, 8, 16, 32, 64, 128, 512):
        compiler.of(f"{rows} rows")
        early = rows <= matvec.FEW
        pointwise.rms_norm(some(rows, hidden), some(hidden), 1e-5, early)
        pointwise.gate(some(rows, 2 * inter), "silu")
        qkv = some(rows, heads + 2 * kv, dim)
        q, k, v = qkv.split([heads, kv, kv], 1)
        turn = some(rows, 1, dim), some(rows, 1, dim)
        cells.file_cells(q, k, v, turn, pool, ints(rows), ints(rows), early)
        out = some(rows, heads, dim)
        splits = own.splits_for(rows, kv)
        own.decode(q, pool, score, ints(rows), ints(rows), ints(rows), out, splits, early=early)
        shared = own.Shared(ints(rows), ints(rows), ints(3 * rows), ints(36, 6), 8)
        fresh = own.Fresh(k, v, turn)
        own.decode(q, pool, score, ints(rows), ints(rows), ints(rows), out, splits, fresh=fresh, early=early)
        if rows > 1:
            own.decode(q, pool, score, ints(rows), ints(rows), ints(rows), out, splits, shared=shared)
            own.decode(q, pool, score, ints(rows), ints(rows), ints(rows), out, ints(2))
            own.decode(q, pool, score, ints(rows), ints(rows), ints(rows), out, ints(2), shared=shared)
        if 1 < rows <= matvec.FEW:
            for inputs in (hidden, inter):
                skinny.split(some(rows, inputs), some(hidden, inputs))
                skinny.gated(some(rows, inputs), some(2 * hidden, inputs), "silu")
        entries = ints(rows), ints(rows), ints(rows)
        enter.enter(ints(rows), ints(rows), entries, ints(512), table, ints(rows))
        held = automata.Held(arena.masks, ints(rows), ints(rows), ints(512))
        automata.advance(arena, spelling, held, ints(rows))
        for dtype in (bf16, torch.float32):
            columns = [ints(rows) for _ in range(5)]
            draws = sample.Draws.of(ints(rows), columns)
            held = automata.Held(arena.masks, ints(rows), ints(rows), ints(512))
            for under in (None, held):
                sample.draw(some(rows, vocab, dtype=dtype), draws, ints(512), ints(rows), under)
            automata.advance(arena, spelling, held, ints(rows))
    few = int4.Words(
        some(128, hidden // 128, 64, 16, dtype=torch.int32), some(32, 128, dtype=torch.int32), 64, hidden, 128
    )
    for rows in (1, 8, 32, 64, 128):
        compiler.of(f"few bits, {rows} rows")
        x = some(rows, hidden)
        int4.multiply(x, few)
        for groups in (1, hidden // fp8.COLUMNS):
            codes, scales = fp8.rounded(x, None, groups)
            weight, own_scales = some(6144, hidden, dtype=fp8.FP8), some(groups, 6144, dtype=torch.float32)
            fp8.multiply(codes, scales, weight, own_scales, bf16)
            for splits, held in ((1, bf16), (2, torch.float32), (4, torch.float32)):
                parts, norm = some(splits, rows, hidden, dtype=held), (some(hidden), 1e-5)
                stream.join(parts, None, x, norm=norm, form=(groups, None))
                wide = 1 if groups == 1 else inter // fp8.COLUMNS
                stream.opened(some(1, rows, 2 * inter), None, "silu", bf16, (wide, None))
    for post, factor in (((some(hidden), 1e-5), 1.0), (None, 0.5)):
        stream.join(some(1, 1, hidden), None, some(1, hidden), post, factor, (some(hidden), 1e-5))
    rule = SimpleNamespace(count=60, top_k=4, score="softmax", norm=None, scale=1.0, groups=1, top_groups=1, group_by=1,
                           softcap=None)  # fmt: skip
    for dtype, groups in ((bf16, 0), (fp8.FP8, 1), (fp8.FP8, 16)):
        # Of Qwen1.5-MoE-A2.7B, all experts in one's memory.
        stacks = [
            experts_stack.Stack(
                some(1, rows, inputs, dtype=dtype).expand(60, -1, -1), None,
                some(60, min(groups, inputs // 128), rows, dtype=torch.float32) if groups else None,
            )
            for rows, inputs in ((2816, 2048), (2048, 1408))
        ]  # fmt: skip
        for rows in (1, 16, 256, 512, 1024, 4096, 8192):
            compiler.of(f"experts, {rows} rows")
            x = some(rows, 2048)
            logits = routing.scores(x, some(61, 2048), None) if rows <= routing.FEW else some(rows, 61)
            weights, ids, gates = routing.choose(rule, logits, None, True)
            experts.forward(x, weights, ids, *stacks, experts_stack.Gate("silu"), tail=experts_stack.Tail(x, gates, x))
    for dtype in (bf16, fp8.FP8):
        # Of Mixtral 8x7B, whose inputs are many.
        stacks = [
            experts_stack.Stack(
                some(1, rows, inputs, dtype=dtype).expand(8, -1, -1), None,
                None if dtype == bf16 else some(1, inputs // 128, rows, dtype=torch.float32).expand(8, -1, -1),
            )
            for rows, inputs in ((2 * inter, hidden), (hidden, inter))
        ]  # fmt: skip
        for rows in (1, 1024, 8192):
            compiler.of(f"experts of Mixtral, {rows} rows")
            ids, weights = some(rows, 2, dtype=torch.int32), some(rows, 2, dtype=torch.float32)
            experts.forward(some(rows, hidden), weights, ids, *stacks, experts_stack.Gate("silu"))
    for kind, each, hidden, inter, count, bias in (
        ("mxfp4", 1, 2880, 2880, 32, True),  # of GPT-OSS 20B
        ("int4", 1, 4096, 14336, 8, False),  # of Mixtral 8x7B
        ("int4", 4, 2048, 1408, 60, False),
    ):
        stacks = []
        for rows, inputs in ((2 * inter, hidden), (hidden, inter)):
            one = packed.Packed.empty(1, rows, inputs, kind, each, torch.device("cpu"))
            words, steps = (t.expand(count, -1, -1, -1) for t in (one.words, one.steps))
            bias_of = some(count, rows) if bias else None
            stacks.append(experts_stack.Stack(packed.Packed(words, steps, inputs, kind), bias_of))
        for rows in (1, 16, 64, 256, 4096):
            compiler.of(f"experts, {kind}, {each} groups, {rows} rows")
            ids, weights = some(rows, 4, dtype=torch.int32), some(rows, 4, dtype=torch.float32)
            gate = experts_stack.Gate("silu", 7.0 if bias else None)
            experts.forward(some(rows, hidden), weights, ids, *stacks, gate)
    hidden, inter = 4096, 14336
    for longest in (2, 64, 128):
        compiler.of(f"rows of {longest}")
        q = some(256, heads + 2 * kv, dim)[:, :heads]
        own.extend(q, pool, score, ints(4, 5), some(256, heads, dim), longest)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        compiler.of(f"{str(dtype)[6:]} keys and values")
        few8 = own.Pool(some(64, kv, dim, dtype=dtype), some(64, kv, dim, dtype=dtype), table, 1, 0.5, 0.25)
        q, k, v = some(32, heads + 2 * kv, dim).split([heads, kv, kv], 1)
        out, turn, shared = (
            some(32, heads, dim),
            (some(32, 1, dim), some(32, 1, dim)),
            own.Shared(ints(32), ints(32), ints(96), ints(36, 6), 8),
        )
        cells.file_cells(q, k, v, turn, few8, ints(32), ints(32))
        own.decode(q, few8, score, ints(32), ints(32), ints(32), out, 4, shared=shared)
        own.extend(q, few8, score, ints(4, 5), out, 128)
        long.gather(few8, 3, 200, 256, bf16)
    compiler.of("long rows")
    long.gather(pool, 3, 200, 256, q.dtype)
    parts, norms = some(256, heads, dim), some(heads, 256, dtype=torch.float32)
    long.unite(parts, parts, norms, norms, parts)


def main() -> int:
    sm = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    driver.set_active(_Driver(sm))  # type: ignore[arg-type]
    compiler = Compiler()
    kernels(compiler)
    bad = [row for row in compiler.rows if not row["ok"]]
    seconds = sum(row["s"] for row in compiler.rows)
    print(f"\nTriton {triton.__version__}, sm_{sm}: {len(compiler.rows)} kernels in {seconds:.0f} s, {len(bad)} wrong")
    for row in bad:
        print(row)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
