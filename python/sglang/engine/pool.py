"""KV memory: how much there is, and where it lies."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.layers.memory import free_bytes
from sglang.models.spec import Decoder

GIB = 2**30
CPU_FRACTION = 0.5  # of the RAM that is free: the rest belongs to whoever else uses the machine
CPU_MOST = 4 * GIB  # a prefix cache larger than this earns little on a CPU
CUDA_FRACTION = 0.88
CPU_SLOTS, CUDA_SLOTS = 256, 512
ACTIVATION_TENSORS = 6  # of the widest kind, alive at once in a step


@dataclass
class Pool:
    """keys, values: one [cells, kv_heads, head_dim] a layer; cell = page * page_size + offset."""

    keys: list[Tensor]
    values: list[Tensor]
    pages: int
    page_size: int

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


def slots_of(config: ServerConfig, device: torch.device) -> int:
    return config.max_running_requests or (CPU_SLOTS if device.type == "cpu" else CUDA_SLOTS)


def make_pool(
    config: ServerConfig, spec: Decoder, context: int, chunk: int, device: torch.device, dtype: torch.dtype
) -> Pool:
    """Size and allocate the pool; weights must be loaded. Raises ConfigError naming the flag and a value that fits."""
    cell = 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize
    room = _room(config, spec, chunk, device, dtype)
    if config.max_total_tokens is not None:
        tokens = config.max_total_tokens
        if tokens * cell > free_bytes(device):
            raise ConfigError(
                f"--max-total-tokens {tokens} needs {tokens * cell / GIB:.1f} GiB of KV memory; "
                f"{free_bytes(device) / GIB:.1f} GiB are free: at most {int(free_bytes(device) // cell)} fit"
            )
    else:
        tokens = int(min(room // cell, slots_of(config, device) * context))
    pages = tokens // config.page_size
    if pages < 1 or tokens < min(context, 16):
        fraction = config.mem_fraction_static or CUDA_FRACTION
        raise ConfigError(
            f"no memory is left for keys and values ({max(room, 0) / GIB:.2f} GiB, {cell} bytes a token); "
            f"raise --mem-fraction-static above {fraction:g}, or lower --chunked-prefill-size"
        )
    shape = (pages * config.page_size, spec.kv_heads, spec.head_dim)
    # Zeros, not empty: cell 0 pads gathered rows, and masking cannot hide a NaN that memory happens to hold.
    keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(spec.layers)]
    values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(spec.layers)]
    return Pool(keys, values, pages, config.page_size)


def _room(config: ServerConfig, spec: Decoder, chunk: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes for keys and values."""
    fraction = config.mem_fraction_static
    if device.type == "cpu":
        return min(free_bytes(device) * (fraction or CPU_FRACTION), CPU_MOST if fraction is None else float("inf"))
    free, total = torch.cuda.mem_get_info(device)
    tokens = max(chunk, 512)
    widest = max(spec.inter, spec.hidden * 2, (spec.heads + 2 * spec.kv_heads) * spec.head_dim)
    activations = ACTIVATION_TENSORS * tokens * widest * dtype.itemsize
    logits = 3 * 4 * spec.vocab * slots_of(config, device)  # float32, with what sampling makes of them
    return free - total * (1 - (fraction or CUDA_FRACTION)) - activations - logits
