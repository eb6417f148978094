"""Grok-1 as it was first published: a folder `ckpt-0` of pickled arrays, a file for each, numbered and without names.

They are the leaves of a tree of parameters in the order of its sorted names, which `NAMES` gives; matrices are [inputs,
outputs] in 8 bits, with a scale for each output and each group of inputs. Pickles are programs: these may call nothing
but the three constructors below, which only note where numbers lie, and the numbers are read from the file itself.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.models.spec import HFConfig

FIRST = "tensor00000_000"
# Published with the code; the checkpoint itself says nothing.
CONFIG: HFConfig = {
    "architectures": ["Grok1ForCausalLM"],
    "model_type": "grok-1",
    "vocab_size": 131072,
    "hidden_size": 6144,
    "intermediate_size": 32768,
    "num_hidden_layers": 64,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "attn_output_multiplier": 0.08838834764831845,
    "embedding_multiplier_scale": 78.38367176906169,
    "output_multiplier_scale": 0.5773502691896257,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}
TOP = ("model.embed_tokens", "model.norm")  # language_model/in_out_embed, language_model/rms_norm
# transformer/decoder_layer_*/moe/linear, linear_1, linear_v, multi_head_attention/key, linear, query, value, ...
LAYER = (
    "moe_block.experts.*.linear",
    "moe_block.experts.*.linear_1",
    "moe_block.experts.*.linear_v",
    "attn.k_proj",
    "attn.o_proj",
    "attn.q_proj",
    "attn.v_proj",
    "pre_attn_norm",
    "post_attn_norm",
    "pre_moe_norm",
    "post_moe_norm",
    "moe_block.gate",
)
LARGE = 2**16  # bytes; less is read with the rest


@dataclass(frozen=True)
class _Noted:
    """Where an array lies in its file. kind: i1, f4 or bfloat16."""

    kind: str
    shape: tuple[int, ...]
    start: int
    raw: bytes

    def read(self, file: Path, expert: int | None) -> Tensor:
        """Of one of them, where the first dimension is experts."""
        dtype = {"i1": torch.int8, "f4": torch.float32, "bfloat16": torch.bfloat16}[self.kind]
        shape, at = (self.shape, 0) if expert is None else (self.shape[1:], expert)
        size = prod(shape) * dtype.itemsize
        if self.raw:
            found = np.frombuffer(self.raw, np.uint8, size, at * size).copy()
        else:
            found = np.fromfile(file, np.uint8, size, offset=self.start + at * size)
        return torch.from_numpy(found).view(dtype).view(shape)


class _Skimmed:
    """A file whose long strings of bytes are passed over."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self._last: tuple[int, int] | None = None  # start and size

    def read(self, n: int = -1) -> bytes:
        return self._file.read(n)

    def readline(self) -> bytes:
        return self._file.readline()

    def readinto(self, into: bytearray) -> int:
        if len(into) < LARGE:
            return self._file.readinto(into)  # type: ignore[attr-defined]
        start = self._file.tell()
        if start + len(into) > self._size:
            raise ValueError("it is cut off")
        self._last = start, len(into)
        self._file.seek(len(into), 1)
        return len(into)

    def taken(self, size: int) -> int:
        """Where the last one began, which had that size."""
        start, found = self._last or (0, -1)
        self._last = None
        if found != size:
            raise ValueError("an array whose numbers are elsewhere")
        return start


class _Reader(pickle.Unpickler):
    def __init__(self, file: _Skimmed):
        super().__init__(file)  # type: ignore[arg-type]
        skimmed = file

        class Dtype:
            """numpy.dtype: of a short name, or of a type by its name."""

            def __init__(self, kind: Any, *rest: Any):
                self.kind = kind if isinstance(kind, str) else "bfloat16" if kind is Bfloat16 else repr(kind)

            def __setstate__(self, state: Any) -> None: ...

        class Bfloat16: ...

        class Ndarray: ...

        class Array:
            noted: _Noted

            def __init__(self, *rest: Any): ...

            def __setstate__(self, state: Any) -> None:
                _, shape, dtype, columns_first, raw = state
                size, start = prod(shape) * {"i1": 1, "f4": 4, "bfloat16": 2}[dtype.kind], 0
                if columns_first or len(raw) != size:
                    raise ValueError("an array that is not as it was published")
                if len(raw) >= LARGE:
                    start, raw = skimmed.taken(size), b""
                self.noted = _Noted(dtype.kind, tuple(shape), start, bytes(raw))

        class Quantized:
            def __init__(self, *rest: Any): ...

        self._known: dict[tuple[str, str], type] = {
            ("numpy.core.multiarray", "_reconstruct"): Array,
            ("numpy._core.multiarray", "_reconstruct"): Array,
            ("numpy", "ndarray"): Ndarray,
            ("numpy", "dtype"): Dtype,
            ("__main__", "QuantizedWeight8bit"): Quantized,
            ("model", "QuantizedWeight8bit"): Quantized,
            ("ml_dtypes", "bfloat16"): Bfloat16,
        }
        self._array, self._quantized = Array, Quantized

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module, name))
        if known is None:
            raise ValueError(f"it asks for {module}.{name}, which no array needs")
        return known

    def arrays(self) -> list[_Noted]:
        """The one of a plain array; of a quantised one weight and scales."""
        found = self.load()
        if isinstance(found, self._quantized):
            parts = [getattr(found, name, None) for name in ("weight", "scales")]
        else:
            parts = [found]
        if not all(isinstance(part, self._array) and hasattr(part, "noted") for part in parts):
            raise ValueError("it holds no array")
        return [part.noted for part in parts]  # type: ignore[union-attr]


def first_of(folder: Path) -> Path | None:
    """The first file of such a checkpoint, in the folder or in its ckpt-0."""
    return next((f for f in (folder / FIRST, folder / "ckpt-0" / FIRST) if f.is_file()), None)


@lru_cache(maxsize=1)
def _opened(first: Path) -> dict[str, tuple[Path, list[_Noted], int | None]]:
    """Name -> its file, what is in it, and which of its experts is meant."""
    count = sum(1 for _ in first.parent.glob("tensor?????_000"))
    if (count - len(TOP)) % len(LAYER):
        raise ConfigError(f"{first.parent}: {count} arrays are not {len(TOP)} and {len(LAYER)} for each layer")
    layers = sorted(range((count - len(TOP)) // len(LAYER)), key=lambda i: f"decoder_layer_{i}/")
    names = [*TOP, *(f"model.layers.{i}.{name}" for i in layers for name in LAYER)]
    found: dict[str, tuple[Path, list[_Noted], int | None]] = {}
    for number, name in enumerate(names):
        file = first.parent / f"tensor{number:05d}_000"
        try:
            with open(file, "rb") as opened:
                noted = _Reader(_Skimmed(opened, file.stat().st_size)).arrays()
        except Exception as error:  # unpickling raises whatever it likes
            raise ConfigError(f"{file}: not an array of Grok-1 ({error})") from None
        experts = range(noted[0].shape[0]) if "*" in name else [None]
        end = ".scale" if name.endswith("norm") and name not in TOP else ".weight"
        found |= {name.replace("*", str(e)) + end: (file, noted, e) for e in experts}
    return found


def headers(first: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every tensor, as `tensor` gives it. Raises ConfigError."""
    for name, (_, noted, expert) in _opened(first).items():
        shape = noted[0].shape if expert is None else noted[0].shape[1:]
        turned = len(shape) == 2 and not name.startswith(TOP)
        yield name, shape[::-1] if turned else shape, "F32" if noted[0].kind == "f4" else "BF16"


def tensor(first: Path, name: str) -> Tensor:
    """[outputs, inputs]; 8 bits as what they stand for."""
    file, noted, expert = _opened(first)[name]
    weight, *scales = [one.read(file, expert) for one in noted]
    if scales:
        (scale,) = scales
        groups = weight.view(scale.shape[0], -1, weight.shape[1])  # of inputs
        weight = (groups.to(scale.dtype) * scale[:, None]).view(weight.shape).to(torch.bfloat16)
    return weight.t().contiguous() if weight.dim() == 2 and not name.startswith(TOP) else weight
