"""Grok-1 as it was first published: a folder `ckpt-0` of pickled arrays, a file for each, numbered and without names.

They are the leaves of a tree of parameters in the order of its sorted names, which `TOP` and `LAYER` give; matrices are
[inputs, outputs] in 8 bits, with a scale for each output and each group of inputs. A pickle is a program. Nothing runs
it: `_Steps` follows the few instructions that describe an array, calls nothing, and notes where the numbers lie.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

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
RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
QUANTIZED = ("__main__ QuantizedWeight8bit", "model QuantizedWeight8bit")
BFLOAT16 = "ml_dtypes bfloat16"
KNOWN = {*RECONSTRUCT, *QUANTIZED, BFLOAT16, "numpy ndarray", "numpy dtype"}


@dataclass(frozen=True)
class _Noted:
    """Where an array lies in its file. kind: i1, f4 or bfloat16."""

    kind: str
    shape: tuple[int, ...]
    start: int

    def read(self, file: Path, expert: int | None) -> Tensor:
        """Of one of them, where the first dimension is experts."""
        dtype = {"i1": torch.int8, "f4": torch.float32, "bfloat16": torch.bfloat16}[self.kind]
        shape, at = (self.shape, 0) if expert is None else (self.shape[1:], expert)
        size = prod(shape) * dtype.itemsize
        found = np.fromfile(file, np.uint8, size, offset=self.start + at * size)
        return torch.from_numpy(found).view(dtype).view(shape)


@dataclass
class _Name:
    """Of something that a pickle would import."""

    text: str


@dataclass
class _Made:
    """What a pickle would call with what, and then give a state."""

    by: Any
    args: Any
    state: Any = None


@dataclass(frozen=True)
class _Bytes:
    start: int
    size: int


class _Steps:
    """The instructions of a pickle (protocols 3 and 4), one after another, on a stack of values that are only kept."""

    def __init__(self, raw: mmap.mmap):
        self._raw, self._at = raw, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def value(self) -> Any:
        """What the pickle describes. Raises ValueError, struct.error, IndexError, KeyError, TypeError."""
        while (code := self._bytes(1)) != b".":
            self._step(code)
        return self._stack.pop()

    def _bytes(self, size: int) -> bytes:
        found = self._raw[self._at : self._at + size]
        if len(found) != size:
            raise ValueError("it is cut off")
        self._at += size
        return found

    def _number(self, kind: str) -> int:
        (found,) = struct.unpack("<" + kind, self._bytes(struct.calcsize("<" + kind)))
        return found

    def _line(self) -> str:
        end = self._raw.find(b"\n", self._at)
        return self._bytes(end + 1 - self._at)[:-1].decode() if end >= 0 else ""

    def _last(self, count: int) -> tuple[Any, ...]:
        found = tuple(self._stack.pop() for _ in range(count))
        return found[::-1]

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1 - self._stack[::-1].index(_Steps)
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def _name(self, module: str, name: str) -> _Name:
        if f"{module} {name}" not in KNOWN:
            raise ValueError(f"it asks for {module}.{name}, which no array needs")
        return _Name(f"{module} {name}")

    def _step(self, code: bytes) -> None:
        push = self._stack.append
        match code:
            case b"\x80":  # the protocol
                self._number("B")
            case b"\x95":  # how much comes next
                self._number("Q")
            case b"\x94":
                self._memo[len(self._memo)] = self._stack[-1]
            case b"q" | b"r":
                self._memo[self._number("B" if code == b"q" else "I")] = self._stack[-1]
            case b"h" | b"j":
                push(self._memo[self._number("B" if code == b"h" else "I")])
            case b"\x8c" | b"X":
                push(self._bytes(self._number("B" if code == b"\x8c" else "I")).decode())
            case b"C" | b"B" | b"\x8e":
                size = self._number({b"C": "B", b"B": "I", b"\x8e": "Q"}[code])
                if self._at + size > len(self._raw):
                    raise ValueError("it is cut off")
                push(_Bytes(self._at, size))
                self._at += size
            case b"K" | b"M" | b"J":
                push(self._number({b"K": "B", b"M": "H", b"J": "i"}[code]))
            case b"\x8a":
                push(int.from_bytes(self._bytes(self._number("B")), "little", signed=True))
            case b"N" | b"\x88" | b"\x89":
                push({b"N": None, b"\x88": True, b"\x89": False}[code])
            case b"(":
                push(_Steps)
            case b")":
                push(())
            case b"\x85" | b"\x86" | b"\x87":
                push(self._last(code[0] - 0x84))
            case b"t":
                push(tuple(self._since_mark()))
            case b"}":
                push({})
            case b"s":
                key, value = self._last(2)
                self._stack[-1][key] = value
            case b"u":
                items = self._since_mark()
                self._stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case b"c":
                push(self._name(self._line(), self._line()))
            case b"\x93":
                push(self._name(*self._last(2)))
            case b"R" | b"\x81":
                push(_Made(*self._last(2)))
            case b"b":
                made, state = self._last(2)
                made.state = state
                push(made)
            case _:
                raise ValueError(f"instruction {code!r}, which no array needs")


def _noted(value: Any) -> list[_Noted]:
    """The one of a plain array; of a quantised one weight and scales."""
    match value:
        case _Made(_Name(name), _, {"weight": weight, "scales": scales}) if name in QUANTIZED:
            return [_array(weight), _array(scales)]
    return [_array(value)]


def _array(value: Any) -> _Noted:
    match value:
        case _Made(_Name(name), _, (_, tuple(shape), dtype, False, _Bytes(start, size))) if name in RECONSTRUCT:
            match dtype:
                case _Made(_Name("numpy dtype"), ("f4" | "i1" as kind, *_)):
                    pass
                case _Made(_Name("numpy dtype"), (_Name("ml_dtypes bfloat16"), *_)):
                    kind = "bfloat16"
                case _:
                    raise ValueError("numbers of another type")
            if size == prod(shape) * {"i1": 1, "f4": 4, "bfloat16": 2}[kind]:
                return _Noted(kind, shape, start)
    raise ValueError("it holds no array as they were published")


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
            with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                noted = _noted(_Steps(raw).value())
        except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError) as error:
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
