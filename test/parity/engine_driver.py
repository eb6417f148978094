"""Drives an Engine by hand: sequences in slots of their own, pages handed out by the test, no scheduler."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang.attention.torch_native import TorchAttention
from sglang.base.config import ServerConfig
from sglang.base.plan import DRAWN, Ask, Plan, PromptAsk, Result, Seat
from sglang.base.sampling import SamplingParams
from sglang.engine.engine import Engine

GREEDY = SamplingParams(temperature=0)
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "eos_token_id": 3,
    "torch_dtype": "float32",
}


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


@dataclass
class Row:
    """One row of a step. tokens: known ones, or [DRAWN]."""

    slot: int
    start: int
    tokens: list[int]
    samples: bool = True
    scores: PromptAsk | None = None
    ask: Ask | None = None


@dataclass
class Driver:
    """`table` remembers the pages of each slot; new ones come from `free`, in an order that leaves no neighbours."""

    engine: Engine
    scattered: bool = True
    table: dict[int, list[int]] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        pages = list(range(self.engine.pages))
        self.free = pages[1::2] + pages[0::2] if self.scattered else pages[::-1]

    def seat(self, slot: int, first: int, sampling: SamplingParams = GREEDY, **more: Any) -> Seat:
        return Seat(slot, sampling, first, **more)

    def share(self, slot: int, other: int, pages: int) -> list[tuple[int, int, int]]:
        """Give `slot` the first pages of another slot; table entries to plan."""
        self.table[slot] = self.table[other][:pages]
        return [(slot, i, page) for i, page in enumerate(self.table[slot])]

    def step(self, rows: list[Row], seats: list[Seat] | None = None, shared: Any = ()) -> Result:
        entries = list(shared)
        for row in rows:
            pages = self.table.setdefault(row.slot, [])
            while len(pages) * self.engine.page_size < row.start + len(row.tokens):
                entries.append((row.slot, len(pages), self.free[-1]))
                pages.append(self.free.pop())
        columns = list(zip(*entries, strict=True)) if entries else [(), (), ()]
        plan = Plan(
            step=0,
            slots=ints([r.slot for r in rows]),
            starts=ints([r.start for r in rows]),
            counts=ints([len(r.tokens) for r in rows]),
            samples=np.array([r.samples for r in rows], np.bool_),
            tokens=ints([t for r in rows for t in r.tokens]),
            table_slots=ints(columns[0]),
            table_index=ints(columns[1]),
            table_pages=ints(columns[2]),
            seats=seats or [],
            asks=[r.ask._replace(row=i) for i, r in enumerate(rows) if r.ask],
            prompt_asks=[r.scores._replace(row=i) for i, r in enumerate(rows) if r.scores],
        )
        return self.engine.launch(plan).wait()

    def generate(self, slot: int, prompt: list[int], n: int, sampling: SamplingParams = GREEDY) -> list[int]:
        """`n` tokens after `prompt`, one step each."""
        drawn = [int(self.step([Row(slot, 0, prompt)], [self.seat(slot, len(prompt), sampling)]).tokens[0])]
        for i in range(n - 1):
            drawn.append(int(self.step([Row(slot, len(prompt) + i, [DRAWN])]).tokens[0]))
        return drawn


def load(folder: Path, device: str = "cpu", **flags: Any) -> Engine:
    settings: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 2048, "max_running_requests": 8}
    config = ServerConfig(model_path=str(folder), device=device, **{**settings, **flags})  # type: ignore[arg-type]
    return Engine.load(config.resolve(), progress=False)


class Copied:
    """A Landing without pinned memory: steps in flight do not share theirs."""

    def begin(self) -> None: ...

    def bring(self, tensor: torch.Tensor) -> Any:
        return tensor.clone(), self, self

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Any) -> float:
        return 1.0


def on_device(folder: Path, **flags: Any) -> Engine:
    """An engine of a folder with TINY's config as it is on CUDA; without a GPU, put together like it on the CPU."""
    from sglang.attention.base import Shape
    from sglang.attention.triton import TritonAttention
    from sglang.engine.automata import Automata
    from sglang.engine.graphs import DecodeGraphs
    from sglang.kernels.staging import Stager

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = load(folder, device.type, load_format="dummy", max_total_tokens=256, **flags)
    if device.type == "cpu":
        tables, plain = engine._tables, engine._attention
        assert isinstance(plain, TorchAttention)
        tables.device_pages = torch.zeros(tables.pages.shape, dtype=torch.int32)
        shape = Shape(4, 2, 16, 0.25)
        pools = plain._keys, plain._values
        own = TritonAttention(shape, *pools, tables.device_pages, engine.page_size, 8, engine._model.dtype)
        engine._attention = own
        engine._automata = Automata(engine.slots, engine.ready.vocab_size, 1 << 18, device)
        engine._sampler._stager = Stager(device)
        engine._graphs = DecodeGraphs(engine._model, own, tables, engine._sampler, engine._automata, engine.slots)
        engine._landing, engine.overlap = Copied(), True  # type: ignore[assignment]
    return engine


def all_logprobs(engine: Engine, rows: list[Row], driver: Driver, seats: list[Seat] | None = None) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary after the last token of each row. Float32 [rows, vocab]."""
    vocab = engine.ready.vocab_size
    everything = tuple(range(vocab))
    result = driver.step([Row(r.slot, r.start, r.tokens, True, None, Ask(0, 0, everything)) for r in rows], seats)
    return torch.tensor([[value for _, value in result.scores[i].ids] for i in range(len(rows))])
