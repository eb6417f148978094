"""Engine: a loaded model, its KV pool, and `launch(plan)`."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import AttentionBackend, Look, Scales, Shape, require
from sglang.attention.torch_native import TorchAttention
from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, NoRoom
from sglang.base.messages import Ready
from sglang.base.plan import Plan, Result
from sglang.engine import scores
from sglang.engine.account import Account, check_room, less, room_for, short, unheld
from sglang.engine.batch import Batch, Tables
from sglang.engine.blueprint import Blueprint, draw_up, load_foreign
from sglang.engine.pool import GIB, beside_of, chunk_of, default_fraction, grain_of, largest, make_pool, slots_of
from sglang.engine.pooling import Pooler
from sglang.engine.sampler import Masked, Sampler, most_likely, next_positions
from sglang.engine.seen import Seen, describe
from sglang.kernels.staging import Landing, triton_works
from sglang.layers.memory import free_bytes
from sglang.models import config as hf
from sglang.models.checkpoint import load
from sglang.models.decoder import Model
from sglang.models.foreign import Foreign
from sglang.models.kv_scales import kv_scales
from sglang.models.quantized import quantize, weight_bytes
from sglang.models.spec import Pooling

if TYPE_CHECKING:
    from sglang.attention.triton import TritonAttention
    from sglang.engine.automata import Automata
    from sglang.engine.fills import Fills
    from sglang.engine.graphs import DecodeGraphs

log = logging.getLogger("sglang.engine")
Told = Callable[[tuple[int, ...], int], None]
# How long there must be no step before graphs are captured, which is soon left, and before cuDNN plans, which is not.
SOON_S, LATER_S = 0.02, 1.0
THREAD_BYTES = 32 << 20  # weights for a thread of a CPU: with fewer it gains little, and loses much beside other work


class Flight:
    """A launched step. `wait` reads its tokens, once the device has them."""

    def __init__(
        self,
        result: Result,
        rows: np.ndarray,
        drawn: Tensor,
        landing: Landing | None,
        scored: Sequence[scores.Drawn | scores.Known] = (),
    ):
        """rows: [S], those that draw; drawn: [S], on the device. scored: what is to be read with them."""
        self._result = result
        self._rows = rows
        self._scored = scored
        self._drawn, self._begun, self._ended = (drawn, None, None) if landing is None else landing.bring(drawn)

    def done(self) -> bool:
        return self._ended is None or self._ended.query()

    @property
    def took_s(self) -> float | None:
        """Of the device, once the step was waited for. None: it is not known, and nobody waits."""
        if self._begun is None or self._ended is None:
            return None
        return self._begun.elapsed_time(self._ended) / 1000

    def wait(self) -> Result:
        if self._ended is not None:
            self._ended.synchronize()
        self._result.tokens[self._rows] = self._drawn.numpy()
        for one in self._scored:
            one.file(self._result)
        return self._result


class Engine:
    """Plans are executed in the order they are launched; a later one may rely on what an earlier one computes."""

    def __init__(
        self,
        config: ServerConfig,
        model: Model,
        context: int,
        eos_ids: tuple[int, ...],
        device: torch.device,
        pooling: Pooling | None = None,
        scales: Scales | None = None,
    ):
        spec = model.spec
        self.causal = spec.causal
        self.overlap = device.type == "cuda"
        self.context_length = context
        self.eos_ids = eos_ids
        self.slots = slots_of(config, device)
        self.chunk_tokens = chunk_of(config, context, device)
        self.beside_tokens, self.grain = beside_of(config, device), grain_of(config, device)
        self.pooler = None if pooling is None else Pooler(pooling, model, self.slots)
        self._automata: Automata | None = None  # where draws are made by kernels; before the pool takes what is left
        if device.type == "cuda" and triton_works():
            from sglang.engine import automata, warmup

            tokens = largest(config, context, device)
            warmup.begin(model, tokens, min(self.slots, tokens))
            self._automata = automata.Automata(self.slots, spec.vocab, config.automata_memory_mib << 20, device)
        pool = make_pool(config, model, context)
        self.pages, self.page_size, self.kv_bytes = pool.pages, pool.page_size, pool.bytes
        self._step_bytes = pool.step
        shape = Shape(spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.value_dim if spec.latent else None)
        self._model = model
        longest = min(-(-context // pool.page_size), pool.pages)  # pages of one sequence
        model.reach(min(context, longest * pool.page_size))
        self._tables = Tables(self.slots, longest, pool.page_size, device, model.routes.padded)
        self._sampler = Sampler(self.slots, spec.vocab, eos_ids, device)
        self._landing = Landing(self.slots, device) if device.type == "cuda" else None
        self._attention: AttentionBackend
        self._graphs: DecodeGraphs | None = None
        self._fills: Fills | None = None
        self._tiled: TritonAttention | None = None
        self._seen = Seen()
        backend = attention_of(config, device, shape, model.looks, model.dtype)
        if backend == "torch":
            self._attention = TorchAttention(shape, pool.keys, pool.values, scales)
            return
        # Triton is imported where it is used: it is not installed everywhere.
        from sglang.attention import triton
        from sglang.engine import capture, fills, graphs

        table = self._tables.device_pages
        assert table is not None
        tiled = triton.TritonAttention(
            shape, pool.keys, pool.values, table, pool.page_size, dtype=model.dtype, scales=scales
        )
        self._attention = self._tiled = tiled
        self._seen = Seen(describe(config, device))
        tiled.shares = tiled.shares and not config.disable_cascade_attention
        if backend == "flashinfer" or flashinfer_helps(config, shape, model.looks, model.dtype):
            tiled.use_flashinfer(model.looks, decodes=backend == "flashinfer")
        if not config.disable_cuda_graph and model.capturable:
            most = min(config.cuda_graph_max_bs or self.slots, self.slots)
            # Two memories: graphs of decodes outlive a capture of the others that fails.
            decodes, others = capture.cuda_graphs(device), capture.cuda_graphs(device)
            assert self._automata is not None and others is not None
            self._graphs = graphs.DecodeGraphs(
                model, tiled, self._tables, self._sampler, self._automata, most, decodes, self._seen
            )
            self._fills = fills.Fills(model, tiled, self._tables, others, self._seen)
        self.ready: Ready  # set by load

    @classmethod
    def load(cls, config: ServerConfig, progress: bool = True, told: Told = lambda eos_ids, vocab: None) -> "Engine":
        """Read config and weights, size the pool. `config` must be resolved. Raises ConfigError.

        told: before weights are read, what ends a text and how many tokens there are.
        """
        began = time.monotonic()
        device = _device(config.device)
        if device.type == "cpu" and config.cpu_threads is not None:
            torch.set_num_threads(config.cpu_threads)
        free = free_bytes(device)
        try:
            return cls._load(config, progress, told, device, began)
        except NoRoom as error:
            error.free = free  # of which weights may have been taken when it was raised
            raise

    @classmethod
    def _load(cls, config: ServerConfig, progress: bool, told: Told, device: torch.device, began: float) -> "Engine":
        with torch.inference_mode():
            with room_for("the weights", device):
                model, plan, parameters, became = _loaded(config, device, progress, told)
            spec = plan.spec
            held = parameters * model.dtype.itemsize if isinstance(model, Foreign) else weight_bytes(model, parameters)
            if device.type == "cpu" and config.cpu_threads is None:
                torch.set_num_threads(max(1, min(torch.get_num_threads(), held // THREAD_BYTES)))
            loaded = time.monotonic()
            if became:
                counts = " ".join(f"{name}={count}" for name, count in became.items())
                log.info("quantization=%s maps: %s", plan.kind, counts)
            scales = None
            if config.kv_cache_dtype != "auto" and not spec.latent:
                scales = kv_scales(plan.folder, config.load_format, spec.layers)
            with room_for("keys and values and what sequences need besides", device):
                engine = cls(config, model, plan.context, plan.eos_ids, device, plan.pooling, scales)
        pooled = time.monotonic()
        log.info("start: weights %.1f s, memory for keys and values %.1f s", loaded - began, pooled - loaded)
        if plan.pooling is None:
            try:
                engine.warm()
            except RuntimeError as error:
                if not short(error):
                    raise
                raise ConfigError(engine._advice(config)) from None
        texts = plan.pooling or Pooling("last")
        engine.ready = Ready(
            model_type=str(plan.raw.get("model_type", "")),
            architecture=plan.raw["architectures"][0],
            dtype=str(plan.dtype).removeprefix("torch."),
            device=str(device),
            vocab_size=spec.vocab,
            context_length=plan.context,
            total_tokens=engine.pages * engine.page_size,
            page_size=engine.page_size,
            max_running=engine.slots,
            parameters=parameters,
            weight_bytes=held,
            kv_bytes=engine.kv_bytes,
            load_s=time.monotonic() - began,
            eos_ids=engine.eos_ids,
            embedding=spec.hidden if plan.pooling else 0,
            text_tokens=texts.most or 0,
            text_side=texts.side,
            text_prompt=texts.prompt,
            lower_case=texts.lower,
            sampling=hf.sampling(plan.folder) if config.sampling_defaults == "model" else {},
        )
        log.info("memory: %s", engine.account())
        return engine

    def account(self) -> Account:
        free, total = unheld(self._model.device)
        ready, automata = self.ready, self._automata
        constraints = 0 if automata is None else automata.nbytes
        tokens = self.pages * self.page_size
        return Account(ready.weight_bytes, self.kv_bytes, tokens, constraints, self._step_bytes, free, total)

    def _advice(self, config: ServerConfig) -> str:
        """Where the pool is there, and the first steps find no memory beside it."""
        device = self._model.device
        fraction = config.mem_fraction_static or default_fraction(device)
        total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else free_bytes(device)
        found = [f"--mem-fraction-static {less(fraction, total):g}", f"--chunked-prefill-size {self.chunk_tokens // 2}"]
        if self._graphs is not None:
            found.append(f"--cuda-graph-max-bs {max(1, min(config.cuda_graph_max_bs or self.slots, self.slots) // 2)}")
        left = f"--mem-fraction-static {fraction:g} leaves too little memory for the first steps"
        return f"{left} beside {self.kv_bytes / GIB:.2f} GiB of keys and values: {', or '.join(found)} leaves more"

    def learn(self, tokens: Sequence[bytes], eos_ids: Sequence[int]) -> tuple[int, int]:
        """What each token says, for automata; nothing for special ones. The rows of the arena that are for these, as
        (first, number): (0, 0) where masks must come from the host.
        """
        if self._automata is None or not self._automata.learn(tokens, eos_ids):
            return 0, 0
        return self._automata.first, self._automata.rows - self._automata.first

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Flight:
        """Run one step. On CUDA it returns before the device is done."""
        try:
            return self._launch(plan)
        except torch.OutOfMemoryError:
            if not self._give_back():
                raise
        return self._launch(plan)  # what it has written so far is written again

    def _give_back(self) -> bool:
        """The memory of graphs, where a step has none left: whether there were any."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        dropped = sum(one.drop() for one in (self._fills, self._graphs) if one is not None)
        if dropped:
            log.warning("No memory is left for a step: %d CUDA graphs are given up, it goes on without", dropped)
            torch.cuda.empty_cache()
        return dropped > 0

    def _launch(self, plan: Plan) -> Flight:
        if self._landing is not None:
            self._landing.begin()
        for seat in plan.seats:
            self._sampler.seat(seat)
        places = self._automata.places(plan) if self._automata is not None else None
        held = places is not None or not len(plan.masked)  # where it must be held, it is
        if self._graphs is not None and held and self._graphs.fits(plan):
            return self._decode(plan, self._graphs, places)
        found = self._fills.launch(plan) if self._fills is not None else None
        batch, hidden = self._one_by_one(plan) if found is None else found
        result = Result(np.full(len(plan.slots), -1, np.int32))
        scored: list[scores.Drawn | scores.Known] = []
        for ask in plan.prompt_asks:
            scored.append(known := scores.Known(ask))
            begin = int(batch.offsets[ask.row]) + ask.offset
            for part in hidden[begin : begin + len(ask.targets)].split(scores.BLOCK):
                known.add(self._model.logits(part))
        if self.pooler is not None:
            result.embeddings = self.pooler.pool(plan, batch, hidden)
        rows, drawn = batch.sampled_rows, batch.sampled_slots
        if len(rows):
            last = hidden if batch.sampled is None else hidden[batch.sampled]
            ranked = not plan.asks and self._sampler.ranks(plan, rows)
            logits = self._model.logits(last, widen=not ranked)[: len(rows)]
            drawn = most_likely(logits) if ranked else self._draw(plan, rows, logits, batch.sampled_slots, places)
            self._tables.keep(batch.sampled_slots, drawn)
            if plan.asks:
                scored.append(scores.Drawn(logits, drawn, plan.asks, rows))
        return Flight(result, rows, drawn, self._landing, scored)

    def _one_by_one(self, plan: Plan) -> tuple[Batch, Tensor]:
        """The forward pass of a step without a graph: its layout, and [T + padding, hidden]."""
        batch = self._tables.batch(plan)
        self._attention.plan(batch.rows)
        return batch, self._model.forward(batch.tokens, batch.positions, self._attention)

    def _decode(self, plan: Plan, graphs: "DecodeGraphs", places: np.ndarray | None) -> Flight:
        """`launch` where all rows decode."""
        rows = np.arange(len(plan.slots))
        logits, drawn, slots = graphs.launch(plan, places)
        result = Result(np.full(len(rows), -1, np.int32))
        if drawn is None:
            drawn = self._draw(plan, rows, logits, slots, places)
            self._tables.last[slots] = drawn
        scored = [scores.Drawn(logits, drawn, plan.asks, rows)] if plan.asks else []
        return Flight(result, rows, drawn, self._landing, scored)

    def _draw(self, plan: Plan, rows: np.ndarray, logits: Tensor, slots: Tensor, places: np.ndarray | None) -> Tensor:
        """A token for each of `rows`. slots: theirs, on the device."""
        positions = next_positions(plan, rows)
        if self._automata is None:
            return self._sampler.draw(logits, plan.slots[rows], positions, Masked.of(plan, rows, logits.device))
        held = self._automata.held(slots, places[rows]) if places is not None else None
        drawn = self._sampler.draw(logits, plan.slots[rows], positions, held=held)
        if held is not None:
            self._automata.advance(held, drawn)
        return drawn

    @torch.inference_mode()
    def prepare(self, quiet_s: float = math.inf, wanted: Callable[[], bool] = lambda: False) -> float | None:
        """Do a little of what later steps would wait for otherwise, while there is no step. quiet_s: for how long there
        was none. Graphs are left unfinished, until another time, when somebody is `wanted`.

        How long there must be none for what is left to do; None: nothing is.
        """
        tiled = self._tiled
        for shape in tiled.long_rows.met if tiled is not None else ():
            self._seen.note("long", shape)
        self._seen.save()
        captures = [one for one in (self._fills, self._graphs) if one is not None]
        try:
            if any(one.prepare(wanted, met) for met in (True, False) for one in captures):
                return SOON_S
        except torch.OutOfMemoryError:  # steps go on with what there is
            log.warning("No memory is left for more graphs; a lower --mem-fraction-static leaves some")
            for one in captures:
                one.captures = False
        if tiled is None or not tiled.long_rows.missing:
            return None
        return LATER_S if quiet_s < LATER_S or tiled.plan_one() else None

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile and run what the first requests would wait for. Before any real plan: it writes to slots, cells."""
        if self._landing is None or not triton_works():
            return
        from sglang.engine import warmup

        shares = self._tiled is not None and self._tiled.shares
        sizes = self.slots, self._model.spec.kv_heads, self.pages, self.page_size, self.context_length, shares
        plans = warmup.plans(*sizes)
        held = warmup.held([plans[0], *(plan for plan in plans if len(plan.tokens) in (1, self.slots))])
        automata = self._automata
        assert automata is not None
        captures = [one for one in (self._graphs, self._fills) if one is not None]

        def rehearse() -> None:
            for plan in held:
                self.launch(plan)
            automata.rehearse()
            for plan in warmup.beside(*sizes) if self._tiled is not None else ():
                self._one_by_one(plan)
            if self._fills is not None:
                self._fills.rehearse(experts=self._model.spec.experts is not None)
            if self._tiled is not None:  # last: it takes a while, in which the others are compiled
                self._tiled.long_rows.rehearse()

        warmup.warm(self.launch, plans, captures, self._model, rehearse)
        if self._fills is not None:
            self._fills.start(min(self.pages * self.page_size, self.context_length))
        if self._graphs is not None:
            self._graphs.start()
        began = time.monotonic()
        try:
            for plan in held:
                self.launch(plan).wait()
        except Exception as error:  # whatever a compiler throws
            log.warning("Constraints are slow, their draws cannot be compiled for this device: %s", error)
            self._automata = None
        drawn = time.monotonic()
        if self._tiled is not None:
            self._tiled.prepare(self.chunk_tokens, min(self.context_length, self.pages * self.page_size))
            self._tiled.long_rows.expect((met[0], met[1]) for met in self._seen.first("long") if len(met) == 2)
        self._seen.begin()
        times = drawn - began, time.monotonic() - drawn
        log.info("start: draws under constraints %.1f s, attention of long rows %.1f s", *times)


def _loaded(
    config: ServerConfig, device: torch.device, progress: bool, told: Told
) -> tuple[Model, Blueprint, int, Counter[str]]:
    """The model, how many parameters it has, and what those became that are kept in few bits."""
    if (foreign := load_foreign(config, device)) is not None:
        model, plan = foreign
        told(plan.eos_ids, plan.spec.vocab)
        return model, plan, model.parameters, Counter()
    plan = draw_up(config, device)
    told(plan.eos_ids, plan.spec.vocab)
    model = Model(plan.spec, plan.context, device, plan.dtype)
    became = quantize(model, plan.kind, plan.form)
    parameters = sum(t.numel() for t in model.places().values())
    if plan.kind == "none":
        check_room(parameters * plan.dtype.itemsize, "the weights", device)
    load(model, plan.family, plan.folder, config.load_format, progress, plan.form)
    return model, plan, parameters, became


def attention_of(
    config: ServerConfig, device: torch.device, shape: Shape, looks: list[Look], dtype: torch.dtype
) -> str:
    """The backend that --attention-backend asks for, or the fastest one that can. Raises ConfigError."""
    asked = config.attention_backend
    able = device.type == "cuda" and triton_works()
    if asked in ("triton", "flashinfer") and not able:
        where = "Triton is not installed" if device.type == "cuda" else f"--device is {device.type}"
        raise ConfigError(f"--attention-backend {asked} needs a CUDA device and Triton, but {where}; torch works")
    if asked == "torch" or not able:
        return "torch"
    from sglang.attention import flashinfer
    from sglang.attention.triton import TritonAttention

    if asked == "flashinfer":
        if not flashinfer.installed():
            raise ConfigError('--attention-backend flashinfer: pip install "sglang[flashinfer]"; triton works without')
        flashinfer.check(shape, looks, dtype)
        return "flashinfer"
    if config.kv_cache_dtype == "fp8_e4m3" and torch.cuda.get_device_capability(device) < (8, 9):
        if asked == "triton":
            raise ConfigError("--kv-cache-dtype fp8_e4m3 needs a newer device (8.9); fp8_e5m2 works with triton")
        return "torch"
    try:
        require("triton", TritonAttention.features, shape, looks)
    except ConfigError:
        if asked == "triton":
            raise
        return "torch"
    return "triton"


def flashinfer_helps(config: ServerConfig, shape: Shape, looks: list[Look], dtype: torch.dtype) -> bool:
    """Whether prompts are to be computed by FlashInfer where nobody says what is to be."""
    from sglang.attention import flashinfer

    if config.disable_flashinfer or config.attention_backend != "auto" or not flashinfer.installed():
        return False
    try:
        flashinfer.check(shape, [look for look in looks if flashinfer.able(look)], dtype)
    except ConfigError:
        return False
    return any(map(flashinfer.able, looks))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; --device cpu works")
    return torch.device(name)
