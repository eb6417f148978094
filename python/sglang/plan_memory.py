"""sglang plan MODEL: the memory that serving a model takes, and whether it fits, from config.json and the headers of
its weight files alone. No weight is read, no device is needed; what is wrong with the files is said as at a start.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sglang.base.config import ServerConfig, fail, from_args
from sglang.base.errors import ConfigError
from sglang.launch_server import server_parser

if TYPE_CHECKING:
    from sglang.engine.blueprint import Blueprint
    from sglang.models.decoder import Model

GIB = 2**30
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# Bytes of a number, and of each group or row its scale: what --quantization rounds maps to while they load.
ROUNDED = {"int8": 1.0, "fp8": 1.0, "int4": 0.5 + 4 / 32}
MOST_RANKS = 16


@dataclass(frozen=True)
class Need:
    """Bytes of a rank. total: what the device has; tokens: how many have room for their keys and values."""

    weights: float
    step: float
    graphs: float
    constraints: float
    cell: float
    total: float
    usable: float
    tokens: int

    def fits(self, context: int) -> bool:
        return self.tokens >= context


class Planner:
    """One model; `need` is asked for several settings."""

    def __init__(self, config: ServerConfig, device_type: str, memory: float | None = None):
        import torch

        from sglang.engine.blueprint import draw_up
        from sglang.layers.memory import free_bytes

        self.device = torch.device(device_type)
        self.plan: Blueprint = draw_up(config, self.device)
        if memory is None:
            cuda = device_type == "cuda"
            memory = float(torch.cuda.mem_get_info()[1]) if cuda else free_bytes(self.device)
        self.memory = memory
        self._load_format = config.load_format
        self._stored: dict[str, tuple[float, float]] = {}

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self._model().places().values())

    def _model(self) -> "Model":
        import torch

        from sglang.models.decoder import Model

        return Model(self.plan.spec, min(self.plan.context, 2**10), torch.device("meta"), self.plan.dtype)

    def _weights(self, kind: str) -> tuple[float, float]:
        """Bytes of weights that are kept as `kind`: of what every rank has, and of what they share."""
        if kind not in self._stored:
            found = self._bytes(kind)  # of a large model, of experts by the ten thousand
            shared = sum(size for place, size in found.items() if split(place))
            self._stored[kind] = sum(found.values()) - shared, shared
        return self._stored[kind]

    def _bytes(self, kind: str) -> dict[str, float]:
        """Place -> bytes."""
        from sglang.models.checkpoint import stored_bytes
        from sglang.models.quantized import quantize, takers

        plan, model = self.plan, self._model()
        quantize(model, kind, plan.form, self.device)
        found = stored_bytes(model, plan.family, plan.folder, self._load_format, plan.form)
        if plan.form is None and kind in ROUNDED:
            shapes = model.places()
            for place in takers(model):
                if found[place] < shapes[place].numel() * plan.dtype.itemsize:
                    continue  # what files have in few bits stays so
                small = "int8" if kind == "int4" and place.startswith("head.") else kind
                found[place] *= ROUNDED[small] / plan.dtype.itemsize
            if plan.spec.tied and plan.spec.has_head:
                found["head.copy"] = float(plan.spec.vocab * plan.spec.hidden)  # the embedding stays as it is
        return found

    def need(self, config: ServerConfig, ranks: int = 1) -> Need:
        from sglang.engine import pool

        plan, spec, cuda = self.plan, self.plan.spec, self.device.type == "cuda"
        kind = config.quantization if plan.form is None and config.quantization else plan.kind
        whole, shared = self._weights(kind)
        weights = whole + shared / ranks
        context = config.context_length or plan.context
        slots, chunk = pool.slots_of(config, self.device), pool.chunk_of(config, context, self.device)
        step = self._step(chunk, ranks) + 4 * spec.vocab * slots * pool.SAMPLER_TENSORS + 4 * spec.vocab * slots
        graphs = 0.0
        if cuda and not config.disable_cuda_graph and plan.pooling is None:
            rows = min(config.cuda_graph_max_bs or slots, slots)
            graphs = self._step(rows, ranks) + 4 * spec.vocab * rows
        holders = ranks if spec.latent is None and spec.kv_heads % ranks == 0 else 1
        cell = pool.cell_bytes(spec, pool.kv_dtype(config, plan.dtype)) / holders
        fraction = config.mem_fraction_static or pool.default_fraction(self.device)
        constraints = float(config.automata_memory_mib << 20) if cuda else 0.0
        if cuda:
            usable = self.memory * fraction
            taken = weights + step + constraints
            room = min(usable - taken, self.memory - taken - graphs)
        else:
            usable = self.memory
            room = max(self.memory - weights, 0) * fraction
            room = min(room, pool.CPU_MOST if config.mem_fraction_static is None else room)
        tokens = int(min(max(room, 0) // cell, slots * context))
        if config.max_total_tokens is not None:
            tokens = config.max_total_tokens if config.max_total_tokens * cell <= room else 0
        tokens = tokens // config.page_size * config.page_size
        return Need(weights, step, graphs, constraints, cell, self.memory, usable, tokens)

    def _step(self, tokens: int, ranks: int) -> float:
        """What the layers pass on, about: the states, and the widest that a map gives, before and behind it."""
        spec, e = self.plan.spec, self.plan.spec.experts
        wide = max(spec.inter * (1 + spec.gated), (spec.heads + 2 * spec.kv_heads) * spec.head_dim)
        if e is not None:
            wide = max(wide, e.routing.top_k * (2 * e.inter + spec.hidden))
        return tokens * self.plan.dtype.itemsize * (4 * spec.hidden + 2 * wide / ranks)


def split(place: str) -> bool:
    """Whether ranks share what fills a place: maps and experts of the layers; not norms, embedding, router, head."""
    return bool(re.search(r"\.(qkv|out|gate_up|down|q_up|kv_b|experts)\.", place)) and not place.endswith(".bias")


def remedies(
    planner: Planner, config: ServerConfig, ranks: int, enough: int | None = None
) -> Iterator[tuple[str, Need]]:
    """Flags that would make the model fit, each by itself. enough: tokens; a text as long as the context by default."""
    now, plan = planner.need(config, ranks), planner.plan
    context = config.context_length or plan.context
    cuda = planner.device.type == "cuda"
    tried: list[tuple[str, ServerConfig, int]] = []
    if now.tokens >= 16 and config.max_total_tokens is None:
        tried.append((f"--context-length {now.tokens}", replace(config, context_length=now.tokens), ranks))
    for fraction in (0.9, 0.95) if cuda else (0.7, 0.9):
        if fraction > (config.mem_fraction_static or 0):
            tried.append((f"--mem-fraction-static {fraction}", replace(config, mem_fraction_static=fraction), ranks))
    for chunk in (4096, 1024, 256):
        tried.append((f"--chunked-prefill-size {chunk}", replace(config, chunked_prefill_size=chunk), ranks))
    for rows in (128, 32):
        tried.append((f"--max-running-requests {rows}", replace(config, max_running_requests=rows), ranks))
    if plan.form is None and plan.kind == "none":
        for kind in ("fp8",) if cuda else ("int8", "int4"):
            tried.append((f"--quantization {kind}", replace(config, quantization=kind), ranks))
    more = ranks * 2
    while more <= MOST_RANKS and plan.spec.heads % more == 0:
        tried.append((f"--tp-size {more}", replace(config, tp_size=more), more))
        more *= 2
    done: set[str] = set()
    for words, changed, count in tried:
        flag = words.split()[0]
        if flag in done or not _taken(changed):
            continue
        need = planner.need(replace(changed, tp_size=1), count)
        if need.fits(enough or changed.context_length or context):
            done.add(flag)  # the least of its kind is enough
            yield words, need


def advice(config: ServerConfig, free: float) -> str:
    """What to do where a start found `free` bytes too few. Raises ConfigError where nothing can be planned."""
    from sglang.engine.pool import LEAST_TOKENS

    planner = Planner(config, _device_type(config.device, None), free)
    found = [words for words, _ in remedies(planner, config, 1, LEAST_TOKENS)]
    if found:
        return "any of these by itself would make it fit: " + ", ".join(found)
    return f"no flag alone makes it fit; it takes {_gib(_least(planner, config, 1))}"


def _taken(config: ServerConfig) -> bool:
    """Whether a server takes these settings."""
    try:
        config.resolve()
    except ConfigError:
        return False
    return True


def report(planner: Planner, config: ServerConfig, ranks: int) -> tuple[list[str], bool]:
    """The lines to print, and whether a text as long as the context fits."""
    plan, need = planner.plan, planner.need(config, ranks)
    context = config.context_length or plan.context
    name = plan.raw["architectures"][0]
    kept = plan.kind if plan.kind != "none" else str(plan.dtype).removeprefix("torch.")
    per = f" a rank of {ranks}" if ranks > 1 else ""
    lines = [
        f"model            {config.model_name} ({name}, {planner.parameters / 1e9:.3g} billion parameters, {kept})",
        f"device           {planner.device.type}, {_gib(need.total)}, of which {_gib(need.usable)} may be used",
        f"weights          {_gib(need.weights)}{per}",
        f"a step           {_gib(need.step)}{per}, about",
    ]
    if planner.device.type == "cuda":
        lines.append(f"graphs           {_gib(need.graphs)}{per}, about")
        lines.append(f"constraints      {_gib(need.constraints)}{per} (--automata-memory-mib)")
    lines += [
        f"keys and values  {need.cell / 1024:.4g} KiB a token{per}; {need.tokens} tokens have room",
        f"context          {context} tokens",
    ]
    if need.fits(context):
        whole = need.tokens // context
        return [*lines, f"It fits, with room for {whole} text{'s' if whole > 1 else ''} as long as the context."], True
    found = list(remedies(planner, config, ranks))
    lines.append("It does not fit." + (" Any one of these would make it fit:" if found else ""))
    lines += [f"  {words:<32}{other.tokens} tokens" for words, other in found]
    if not found:
        lines.append(f"  No flag alone makes it fit; it takes a device with {_gib(_least(planner, config, ranks))}.")
    return lines, False


def _least(planner: Planner, config: ServerConfig, ranks: int) -> float:
    """Memory of the smallest device that would do, to a GiB."""
    before = planner.memory
    try:
        context = config.context_length or planner.plan.context
        for gib in range(1, 2**14):
            planner.memory = gib * GIB
            if planner.need(config, ranks).fits(context):
                return planner.memory
        return float("inf")
    finally:
        planner.memory = before


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def memory(text: str) -> float:
    """80GiB, 24g, 1.5T or plain bytes; units count in 1024s."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"must be an amount of memory such as 80GiB, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def main(argv: Sequence[str] | None = None, prog: str = "sglang plan") -> int:
    """0: it fits; 1: it does not; 2: a setting or a file is wrong."""
    parser = server_parser(prog)
    parser.description = "What memory a model takes, and whether it fits, without loading it. Takes the server's flags."
    parser.add_argument(
        "--device-memory", type=memory, metavar="SIZE", help="of each device; this machine's by default"
    )
    args = parser.parse_args(argv)
    if model := vars(args).get("model"):
        args.model_path = model
    config = from_args(args)
    ranks = config.tp_size
    try:
        if ranks < 1:
            raise ConfigError(f"--tp-size must be at least 1, got {ranks}")
        resolved = replace(config, tp_size=1).resolve()
        planner = Planner(resolved, _device_type(config.device, args.device_memory), args.device_memory)
        lines, fits = report(planner, resolved, ranks)
    except ConfigError as error:
        fail(error)
    if ranks > 1 and not _taken(config):
        lines.append(f"(This release serves with --tp-size 1 only; {ranks} is what the parts would take.)")
    print("\n".join(lines))
    return 0 if fits else 1


def _device_type(flag: str, given: float | None) -> str:
    """auto: of a device whose memory is given a GPU is meant."""
    import torch

    if flag != "auto":
        if flag == "cuda" and given is None and not torch.cuda.is_available():
            raise ConfigError("--device cuda: there is none here; --device-memory 80GiB says how large yours is")
        return flag
    return "cuda" if given is not None or torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
