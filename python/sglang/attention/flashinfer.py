"""FlashInfer's kernels, an extra: for rows of several tokens the fastest paged ones of a Hopper; decodes if asked for.

nvcc compiles them before their first use, which takes minutes. Another process does that with the time that nobody else
wants; our own kernels serve meanwhile, and for good where it fails or the results are not right.

What they need to know of a step is planned once for all layers that look alike, on the host, in memory that a copy to
the device reads later: it is not planned in again before that was done.
"""

import atexit
import contextlib
import copy
import functools
import importlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import Feature, Ints, Look, Rows, Shape, require
from sglang.attention.torch_native import TorchAttention
from sglang.base.errors import ConfigError
from sglang.kernels import attention as kernels
from sglang.kernels.compiling import trial
from sglang.kernels.long import list_pages
from sglang.kernels.staging import Stager

log = logging.getLogger("sglang.attention")
HEAD_DIMS = (64, 128, 256)
WORKSPACE_BYTES = 128 << 20  # of partial results; all wrappers use it, one after another
DECODES_BYTES = 384 << 20  # the same where there are decodes: 512 rows of 32 heads of 128 take 160 MiB
PLAN_BYTES = 8 << 20
MOST_PAGES = 16 << 20  # that the rows of a step can name
LEAST_PAIRS = 1 << 23  # of a query and a key in a step, 4096 tokens alone: below, planning takes as long as is won
BOUND = 0.02  # relative error of a trial
DECODES = {"use_tensor_cores": True, "backend": "fa2"}  # fa3 is several times slower on one query


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("flashinfer", "tvm_ffi"))


def check(shape: Shape, looks: Iterable[Look], dtype: torch.dtype) -> None:
    """Raise ConfigError where a model needs what FlashInfer cannot do."""
    require("flashinfer", FlashInfer.features, shape, looks)
    instead = "--attention-backend triton can"
    if shape.head_dim not in HEAD_DIMS:
        dims = ", ".join(map(str, HEAD_DIMS))
        raise ConfigError(f"--attention-backend flashinfer: heads of {shape.head_dim} are not among {dims}; {instead}")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"--attention-backend flashinfer does not compute in {str(dtype)[6:]}; {instead}")


def kernel(dtype: torch.dtype, cells: torch.dtype, device: torch.device) -> str:
    """For rows of several tokens: fa3 where it runs, on queries and keys of one type. On an H200 it is 7 to 20 % faster
    than our own kernels, which are faster than fa2."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return "fa3" if hopper and cells == dtype else "fa2"


@dataclass(frozen=True)
class Module:
    """What is compiled by itself. kernel: fa2 or fa3; queries, cells: names of torch's types."""

    kernel: str
    queries: str
    cells: str
    dim: int
    window: bool
    capped: bool

    def _arguments(self) -> tuple[Any, ...]:
        q, cells = getattr(torch, self.queries), getattr(torch, self.cells)
        return self.kernel, q, cells, q, torch.int32, self.dim, self.dim, 0, self.window, self.capped, False

    def spec(self) -> Any:
        return importlib.import_module("flashinfer.jit").gen_batch_prefill_module(*self._arguments())

    def load(self) -> None:
        importlib.import_module("flashinfer.prefill").get_batch_prefill_module(*self._arguments())


Sight = tuple[int, float]  # window or -1 for all, as FlashInfer counts it; cap or 0


def able(look: Look) -> bool:
    return look.chunk is None and look.sinks is None and look.causal


def sight(look: Look) -> Sight:
    return -1 if look.window is None else look.window - 1, look.softcap or 0.0


@dataclass
class Job:
    """Rows of a step, side by side in it. tokens: the first and the end of theirs; turn: whose wrappers plan; ends:
    where each row's tokens, and its pages in `pages`, end (a zero before them); last: tokens on each row's last page.
    """

    tokens: tuple[int, int]
    turn: int
    token_ends: Tensor
    page_ends: Tensor
    last: Tensor
    pages: Tensor
    wrappers: dict[Sight, "_Wrapper"] = field(default_factory=dict)


class _Wrapper:
    """One of FlashInfer's, which holds a plan."""

    def __init__(self, one: Any):
        self.one = one
        self._copied = torch.cuda.Event() if torch.cuda.is_available() else None

    def plan(self, *args: Any, **options: Any) -> None:
        if self._copied is None:
            self.one.plan(*args, **options)
            return
        self._copied.synchronize()
        self.one.plan(*args, **options)
        self._copied.record()


@dataclass
class _Fixed:
    """What the graphs of a size read. page_ends: int32 [size + 1]."""

    page_ends: Tensor
    wrappers: dict[Sight, _Wrapper] = field(default_factory=dict)


class FlashInfer:
    """pools: of the layers. decodes: rows of one token are to be computed too."""

    features: ClassVar[frozenset[Feature]] = frozenset({"window", "softcap", "turn"})

    def __init__(
        self, shape: Shape, looks: Sequence[Look], dtype: torch.dtype, pools: Sequence[kernels.Pool], decodes: bool
    ):
        self.shape, self.dtype, self._pool, self.page_size = shape, dtype, pools[0], pools[0].page_size
        self.cells = pools[0].keys.dtype
        self.device = pools[0].table.device
        self.kernel = kernel(self.dtype, self.cells, self.device)
        self.sights = list(dict.fromkeys(sight(look) for look in looks if able(look)))
        self._loaded = threading.Event()
        self._decodes, self._works = decodes, {"rows": True, "decodes": decodes}
        self._tried = False
        self._stager = Stager(self.device)
        self._turns = {"rows": 0, "decodes": 0}
        self._wrappers: dict[tuple[str, Sight, int], _Wrapper] = {}
        self._fixed: dict[int, _Fixed] = {}

    @property
    def modules(self) -> list[Module]:
        """The first ones first: those of decodes are compiled in a third of the time."""
        names = str(self.dtype)[6:], str(self.cells)[6:]
        found = [("fa2", one) for one in self.sights] if self._decodes else []
        found += [(self.kernel, one) for one in self.sights]
        return list(dict.fromkeys(Module(k, *names, self.shape.head_dim, w >= 0, c > 0) for k, (w, c) in found))

    def prepare(self) -> None:
        """Compile what is not there yet, and load it; returns at once."""
        threading.Thread(target=self._compile, name="flashinfer", daemon=True).start()

    def _compile(self) -> None:
        try:
            began = time.monotonic()
            os.environ.setdefault(
                "FLASHINFER_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability(self.device))
            )
            build([one for one in self.modules if not one.spec().is_compiled])
            for module in self.modules:
                module.load()
        except Exception as error:  # of nvcc, a linker, an import: whatever it is, our own kernels are there
            log.warning("FlashInfer cannot be used: %s", str(error).strip()[-500:])
            return
        log.info("flashinfer=%s ready after %.1f s", self.kernel, time.monotonic() - began)
        self._loaded.set()

    def can(self, what: str) -> bool:
        """Whether it is there, and gives what a reference in float64 gives."""
        if not self._loaded.is_set():
            return False
        if not self._tried:
            self._tried = True
            for name in [name for name, on in self._works.items() if on]:
                self._works[name] = self._right(name)
        return self._works[what]

    def _right(self, what: str) -> bool:
        try:
            error = disagreement(self, what)
            if error < BOUND:
                return True
            reason = f"results differ by {error:.2g}"
        except Exception as problem:
            reason = str(problem)
        log.warning("FlashInfer is not used for %s: %s", what, reason)
        return False

    def fail(self, what: str, error: Exception) -> None:
        log.warning("FlashInfer is not used for %s from now on: %s", what, error)
        self._works[what] = False

    # Rows of several tokens

    def wants(self, rows: Rows) -> bool:
        """Whether `find` finds some."""
        pairs = (rows.counts * (rows.starts + (rows.counts + 1) // 2))[rows.counts > 1].sum()
        return bool(pairs >= LEAST_PAIRS) and self.can("rows")

    def find(self, rows: Rows, begins: Ints) -> Job | None:
        """All rows from the first of several tokens on, where that is worth planning. begins: [R], of their tokens."""
        if not self.wants(rows):
            return None
        longer = np.flatnonzero(rows.counts > 1)
        some = slice(int(longer[0]), None)
        return self.job("rows", rows.slots[some], rows.starts[some], rows.counts[some], int(begins[longer[0]]))

    def attend(self, job: Job, q: Tensor, pool: kernels.Pool, look: Look, out: Tensor) -> None:
        """q, out: [tokens, heads, dim] of the step; what the job's rows yield is written to out."""
        s = sight(look)
        if s not in job.wrappers:
            job.wrappers[s] = one = self._wrapper("rows", s, job.turn)
            one.plan(job.token_ends, job.page_ends, job.pages, job.last, *self._sizes(), causal=True, **self._more(s))
        self._run(job.wrappers[s], q[slice(*job.tokens)], pool, out[slice(*job.tokens)])

    # Rows of one token

    def find_decodes(self, slots: Ints, starts: Ints) -> Job | None:
        """They are the step's first tokens."""
        return self.job("decodes", slots, starts, np.ones_like(starts), 0) if self.can("decodes") else None

    def decode(self, job: Job, q: Tensor, pool: kernels.Pool, look: Look, out: Tensor) -> None:
        s = sight(look)
        if s not in job.wrappers:
            job.wrappers[s] = one = self._wrapper("decodes", s, job.turn)
            one.plan(job.page_ends, job.pages, job.last, *self._sizes(), **self._more(s))
        self._run(job.wrappers[s], q[slice(*job.tokens)], pool, out[slice(*job.tokens)])

    def foresee(self, slots: Ints, starts: Ints, size: int) -> bool:
        """Plan decodes for the graph of `size` rows; whether it can be run. What is left of the size sees one cell."""
        if not self.can("decodes"):
            return False
        more = size - len(slots)
        page_ends, last = self._layout(np.pad(starts, (0, more)) + 1)
        if page_ends[-1] > MOST_PAGES:
            return False
        if size not in self._fixed:
            self._fixed[size] = _Fixed(torch.zeros(size + 1, dtype=torch.int32, device=self.device))
        fixed, host = self._fixed[size], (_int32(page_ends), self._pages[:0], _int32(last))
        for s in self.sights:
            if s not in fixed.wrappers:
                fixed.wrappers[s] = self._fixed_wrapper(fixed.page_ends, s)
            fixed.wrappers[s].plan(*host, *self._sizes(), **self._more(s))
        return True

    def list_fixed(self, slots: Tensor) -> None:
        """Part of a graph, once the page tables are as they are to be. slots: of its rows."""
        list_pages(self._pool.table, slots, self._fixed[len(slots)].page_ends, self._pages)

    def decode_fixed(self, size: int, q: Tensor, pool: kernels.Pool, look: Look, out: Tensor) -> None:
        self._run(self._fixed[size].wrappers[sight(look)], q, pool, out)

    # FlashInfer's own

    def _layout(self, lengths: Ints) -> tuple[Ints, Ints]:
        """Where each row's pages end, and the tokens on its last one."""
        need = -(-lengths // self.page_size)
        return np.concatenate(([0], np.cumsum(need))), lengths - (need - 1) * self.page_size

    def job(self, what: str, slots: Ints, starts: Ints, counts: Ints, first: int) -> Job | None:
        page_ends, last = self._layout(starts + counts)
        if page_ends[-1] > MOST_PAGES:
            return None
        token_ends = np.concatenate(([0], np.cumsum(counts)))
        device_slots, device_ends = self._stager.put([slots, page_ends])
        pages = torch.empty(int(page_ends[-1]), dtype=torch.int32, device=self.device)
        list_pages(self._pool.table, device_slots, device_ends, pages)
        self._turns[what] ^= 1
        tokens = first, first + int(token_ends[-1])
        return Job(tokens, self._turns[what], _int32(token_ends), _int32(page_ends), _int32(last), pages)

    def _sizes(self) -> tuple[int, ...]:
        s = self.shape
        return s.heads, s.kv_heads, s.head_dim, self.page_size

    def _more(self, s: Sight) -> dict[str, Any]:
        types = {"q_data_type": self.dtype, "kv_data_type": self.cells, "o_data_type": self.dtype}
        return {"window_left": s[0], "logits_soft_cap": s[1], "sm_scale": self.shape.scale, **types}

    def _run(self, wrapper: _Wrapper, q: Tensor, pool: kernels.Pool, out: Tensor) -> None:
        cells = [t.view(-1, pool.page_size, *t.shape[1:]) for t in (pool.keys, pool.values)]
        wrapper.one.run(q, tuple(cells), out=out, k_scale=pool.k_scale, v_scale=pool.v_scale)

    @functools.cached_property
    def _workspace(self) -> Tensor:
        return torch.zeros(DECODES_BYTES if self._decodes else WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)

    @functools.cached_property
    def _pages(self) -> Tensor:
        """Where graphs list pages."""
        slots, pages = self._pool.table.shape
        return torch.zeros(min(slots * pages, MOST_PAGES), dtype=torch.int32, device=self.device)

    def _wrapper(self, what: str, s: Sight, turn: int) -> _Wrapper:
        """turn: of two, so that a step is planned while the last one's plan is still to be copied."""
        key = what, s, turn
        if key not in self._wrappers:
            module = importlib.import_module("flashinfer")
            if what == "rows":
                one = module.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD", backend=self.kernel)
            else:
                one = module.BatchDecodeWithPagedKVCacheWrapper(self._workspace, "NHD", **DECODES)
            self._wrappers[key] = _Wrapper(one)
        return self._wrappers[key]

    @functools.cached_property
    def _plans(self) -> dict[Sight, Tensor]:
        """Where the plan of whichever graph is next is copied to."""
        return {s: torch.zeros(PLAN_BYTES, dtype=torch.uint8, device=self.device) for s in self.sights}

    def _fixed_wrapper(self, page_ends: Tensor, s: Sight) -> _Wrapper:
        module = importlib.import_module("flashinfer")
        one = module.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, "NHD", use_cuda_graph=True, paged_kv_indptr_buffer=page_ends,
            paged_kv_indices_buffer=self._pages, paged_kv_last_page_len_buffer=torch.zeros_like(page_ends[1:]),
            **DECODES,
        )  # fmt: skip
        one.reset_workspace_buffer(self._workspace, self._plans[s])
        return _Wrapper(one)


def _int32(array: Ints) -> Tensor:
    return torch.from_numpy(array.astype(np.int32))


def build(modules: Sequence[Module]) -> None:
    """Have another process compile them, as long as that takes. Raises RuntimeError."""
    if not modules:
        return
    command = [sys.executable, "-m", "sglang.attention.flashinfer", json.dumps([astuple(one) for one in modules])]
    jobs = {"MAX_JOBS": str(max(1, (os.cpu_count() or 2) // 2))}  # each takes gigabytes
    environment = (
        os.environ
        | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
        | ({} if "MAX_JOBS" in os.environ else jobs)
    )
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        atexit.register(_end, process)
        said, _ = process.communicate()
        atexit.unregister(_end)
    if process.returncode:
        raise RuntimeError(f"compiling ended with {process.returncode}: {said}")


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def main() -> None:
    """The other process."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    for values in json.loads(sys.argv[1]):
        Module(*values).spec().build(verbose=False)


@trial
@torch.inference_mode()
def disagreement(one: FlashInfer, what: str) -> float:
    """The largest relative error of two rows, behind cached keys and behind none, by each of the layers' looks."""
    shape, dtype, device, size = one.shape, one.dtype, one.device, one.page_size
    random = torch.Generator(device).manual_seed(0)

    def some(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=random, device=device).to(dtype)

    table = torch.randperm(2 * (512 // size + 1), generator=random, device=device).int().view(2, -1)
    wide = table.numel() * size, shape.kv_heads, shape.head_dim
    scales = (0.5, 2.0) if one.cells.itemsize == 1 else (1.0, 1.0)
    pool = kernels.Pool(some(*wide).to(one.cells), some(*wide).to(one.cells), table, size, *scales)
    starts, counts = (
        (np.array([150, 0]), np.array([300, 256])) if what == "rows" else (np.array([401, 0]), np.ones(2, int))
    )
    rows = Rows(np.array([1, 0]), starts, counts, table.cpu().numpy(), size)
    n = int(counts.sum())
    q, k, v = some(n, shape.heads + 2 * shape.kv_heads, shape.head_dim).split(
        [shape.heads, shape.kv_heads, shape.kv_heads], 1
    )
    cells = pool.keys, pool.values
    exactly = [t if t.itemsize == 1 else t.double() for t in cells]
    exact = TorchAttention(shape, exactly[:1], exactly[1:], [scales])
    exact.plan(rows)
    own = copy.copy(one)
    own._pool = pool
    out, worst = torch.zeros(n, shape.heads, shape.head_dim, dtype=dtype, device=device), 0.0
    for window, cap in one.sights:
        look = Look(None if window < 0 else window + 1, softcap=cap or None)
        wanted = exact.attend(q.double(), k.double(), v.double(), 0, look).view(out.shape)
        for t, filed in zip(cells, exactly, strict=True):
            t.copy_(filed)
        job = own.job(what, rows.slots, starts, counts, 0)
        assert job is not None
        (own.attend if what == "rows" else own.decode)(job, q, pool, look, out)
        error = (torch.linalg.norm(out.double() - wanted) / torch.linalg.norm(wanted)).item()
        worst = max(worst, error) if error == error else float("inf")
    return worst


if __name__ == "__main__":
    main()
