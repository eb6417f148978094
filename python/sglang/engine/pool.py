"""KV memory: how much there is, and where it lies."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sglang.attention.base import Feature, Look, Rows
from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, NoRoom
from sglang.engine.account import room_for
from sglang.layers.memory import free_bytes
from sglang.models.decoder import Model
from sglang.models.spec import Decoder

GIB = 2**30
CPU_FRACTION = 0.5  # of the RAM that is free: the rest belongs to whoever else uses the machine
CPU_MOST = 4 * GIB  # a prefix cache larger than this earns little on a CPU
CUDA_FRACTION = 0.88
CPU_SLOTS, CUDA_SLOTS = 256, 512
CPU_CHUNK = 512  # tokens of a step: about a second of a 1B model on a laptop, the longest pause of a stream
CUDA_CHUNK = 8192
CUDA_BESIDE = 2048  # where sequences wait for their next tokens: some 50 ms of an 8B model on an H200
CUDA_GRAIN = 256  # tokens: what cuDNN's attention plans for is then the same for most rows
SAMPLER_TENSORS = 4  # float32 [slots, vocab], alive at once where rows are sampled
KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
LEAST_TOKENS = 16  # a pool below this serves nothing


@dataclass
class Pool:
    """keys, values: one [cells, kv_heads, head_dim] a layer; cell = page * page_size + offset.

    Where values are narrower than keys (latent attention), they are the first dims of the keys, in the same memory.
    """

    keys: list[Tensor]
    values: list[Tensor]
    pages: int
    page_size: int
    step: float = 0.0  # bytes of the largest step besides weights and pool, where it was measured

    @property
    def bytes(self) -> int:
        return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in (*self.keys, *self.values)}.values())


def slots_of(config: ServerConfig, device: torch.device) -> int:
    return config.max_running_requests or (CPU_SLOTS if device.type == "cpu" else CUDA_SLOTS)


def chunk_of(config: ServerConfig, context: int, device: torch.device) -> int:
    """Most tokens of one step."""
    chunk = config.chunked_prefill_size or (CPU_CHUNK if device.type == "cpu" else CUDA_CHUNK)
    return chunk if chunk > 0 else context


def largest(config: ServerConfig, context: int, device: torch.device) -> int:
    """The same where a part of a prompt ends at a multiple of `grain_of`."""
    return chunk_of(config, context, device) + grain_of(config, device) // 2


def beside_of(config: ServerConfig, device: torch.device) -> int | None:
    """Most tokens of a step with decodes, where these have no say in `chunk_of`."""
    return CUDA_BESIDE if device.type == "cuda" and config.chunked_prefill_size is None else None


def kv_dtype(config: ServerConfig, dtype: torch.dtype) -> torch.dtype:
    """Of keys and values. dtype: of activations."""
    return KV_DTYPES.get(config.kv_cache_dtype, dtype)


def grain_of(config: ServerConfig, device: torch.device) -> int:
    """Long parts of prompts end at its multiples, where nobody said how long they are to be."""
    return CUDA_GRAIN if device.type == "cuda" and config.chunked_prefill_size is None else 1


def cell_bytes(spec: Decoder, dtype: torch.dtype) -> int:
    """Keys and values of a token, in all layers. dtype: theirs."""
    return (1 if spec.latent else 2) * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize


def make_pool(config: ServerConfig, model: Model, context: int) -> Pool:
    """Size and allocate the pool; weights must be loaded. Raises ConfigError naming the flag and a value that fits."""
    spec, device, size, step = model.spec, model.device, config.page_size, 0.0
    dtype = kv_dtype(config, model.dtype)
    cell = cell_bytes(spec, dtype)
    if config.max_total_tokens is not None:
        tokens = config.max_total_tokens
        most = int(free_bytes(device) // cell)
        if tokens > most:
            raise ConfigError(
                f"--max-total-tokens {tokens} needs {tokens * cell / GIB:.1f} GiB of KV memory; at most {most} fit"
            )
        if tokens < size:
            raise ConfigError(f"--max-total-tokens {tokens} is less than a page; at least --page-size {size}")
    else:
        room, whole, step = _room(config, model, context)
        tokens = int(min(room // cell, slots_of(config, device) * context))
        least = max(size, min(context, LEAST_TOKENS))
        if tokens < least:
            fraction = config.mem_fraction_static or default_fraction(device)
            enough = fraction + (least * cell - room) / whole
            says = (
                f"--mem-fraction-static {fraction:g} leaves {max(room, 0) / GIB:.2f} GiB for keys and values, "
                f"{least} tokens need {least * cell / GIB:.2f}"
            )
            if enough >= 0.995:
                raise NoRoom(says, free_bytes(device))
            raise ConfigError(
                f"{says}: --mem-fraction-static {enough + 0.005:.2f} is enough (or lower --chunked-prefill-size)"
            )
    pages = tokens // size
    shape = (pages * size, spec.kv_heads, spec.head_dim)
    keys = [_zeros(shape, device, dtype) for _ in range(spec.layers)]
    values = [k[..., : spec.value_dim] if spec.latent else _zeros(shape, device, dtype) for k in keys]
    return Pool(keys, values, pages, size, step)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, not empty: what nobody has written must not be a NaN, which no mask can hide."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    # The system gives numpy pages that are zero when they are first touched: a pool takes memory as it fills.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def default_fraction(device: torch.device) -> float:
    return CPU_FRACTION if device.type == "cpu" else CUDA_FRACTION


def _room(config: ServerConfig, model: Model, context: int) -> tuple[float, float, float]:
    """Bytes for keys and values, those that --mem-fraction-static is a share of, and of a step."""
    device = model.device
    fraction = config.mem_fraction_static or default_fraction(device)
    if device.type == "cpu":
        free = free_bytes(device)
        return min(free * fraction, CPU_MOST if config.mem_fraction_static is None else free), free, 0.0
    slots, chunk = slots_of(config, device), largest(config, context, device)
    with room_for(f"a step of {chunk} tokens beside the weights (a lower --chunked-prefill-size has less)", device):
        passing = _step_bytes(model, chunk, min(slots, chunk)) + SAMPLER_TENSORS * 4 * model.spec.vocab * slots
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return free - total * (1 - fraction) - passing, total, passing


class _Blind:
    """Stands in for attention where only the memory of everything else is asked for."""

    features: ClassVar[frozenset[Feature]] = frozenset()

    def plan(self, rows: Rows) -> None: ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, look: Look) -> Tensor:
        return q.new_zeros(len(q), q.shape[1] * v.shape[-1])


def blind_step(model: Model, tokens: int, draws: int) -> None:
    """All that `tokens` tokens of a prompt need but attention, and what `draws` draws are made from."""
    zeros = torch.zeros(tokens, dtype=torch.int64, device=model.device)
    last = model.forward(zeros, zeros, _Blind())[:draws]
    model.logits(last) if model.spec.has_head else model.states(last)


def _step_bytes(model: Model, tokens: int, draws: int) -> int:
    """What a step of `tokens` tokens takes on a CUDA device besides weights and pool, measured."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    blind_step(model, tokens, draws)
    return torch.cuda.max_memory_allocated(model.device) - before
