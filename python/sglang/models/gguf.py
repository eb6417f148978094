"""GGUF: one file with a model's sizes, its tokenizer and its weights in blocks, under names of llama.cpp's own.

Read as if it were a folder: `config` gives what config.json would say, `headers` and `tensor` the weights, `named` the
family with the file's names for them. What differs by architecture: `gguf_architectures`. The tokenizer: `text.gguf`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.base.gguf import Header, Stored, header
from sglang.models.gguf_architectures import ARCHITECTURES, KEYS, VALUES_APART, names
from sglang.models.spec import Family, HFConfig, Pooling
from sglang.quant.blocks import BLOCKS

NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
# Types of tensors: the file's numbers.
PLAIN = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 30: ("BF16", torch.bfloat16)}
PACKED = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
          14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}  # fmt: skip
OTHERS = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
          29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4"}  # fmt: skip


@dataclass(frozen=True)
class _Tensor(Stored):
    """bytes: that it takes; part: number of the file, where a model lies in several."""

    bytes: int
    part: int = 0


class File:
    """tensors: by their names; one for all experts is as many, `NAME.7.weight`."""

    def __init__(self, path: Path):
        self.path, self.header = path, header(path)
        name = self.header.architecture
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConfigError(f"{path.name}: general.architecture = {name!r} is not supported; known: {known}")
        self.architecture = ARCHITECTURES[name]
        for need in NEEDED:
            if self.key(need) is None:
                raise ConfigError(f"{path.name}: {name}.{need} is missing")
        if self.key("expert_count") and "expert_count" not in self.architecture.keys:
            raise self.refused("expert_count", "not supported")
        files = _files(path, self.header)
        self.raw = [np.memmap(file, np.uint8, "r") for file in files]
        self.tensors: dict[str, _Tensor] = {}
        self.factors: dict[str, Tensor] = {}  # of the rotation's wavelengths, by "freqs", "long", "short"
        for part, file in enumerate(files):
            for own, stored in header(file).tensors.items():
                placed = self._placed(own, stored, part)
                if own.startswith("rope_") and stored.kind in PLAIN:
                    kind = own.removeprefix("rope_").removeprefix("factors_").removesuffix(".weight")
                    self.factors[kind] = self._plain(placed)
                elif not self._ahead(own):
                    self.tensors |= _apart(own, placed)
        self.halves: dict[str, tuple[_Tensor, _Tensor]] = {}
        for own in [name for name in self.tensors if name.endswith(".attn_k_b.weight")]:
            self._join(own)

    def _ahead(self, name: str) -> bool:
        """Of a layer that guesses ahead."""
        number = name.split(".", 2)[1] if name.startswith("blk.") else ""
        return number.isdecimal() and self.layers <= int(number) < self.key("block_count")

    def _placed(self, name: str, stored: Stored, part: int) -> _Tensor:
        kind, shape = stored.kind, stored.shape
        if kind in PLAIN:
            size = int(np.prod(shape, dtype=object)) * PLAIN[kind][1].itemsize
        elif kind in PACKED:
            block = BLOCKS[PACKED[kind]]
            if len(shape) not in (2, 3) or shape[-1] % block.columns:
                raise ConfigError(f"{self.path.name}: {name} has shape {list(shape)}, which {PACKED[kind]} cannot hold")
            size = int(np.prod(shape[:-1], dtype=object)) * (shape[-1] // block.columns) * block.bytes
        else:
            known = ", ".join((*(word for word, _ in PLAIN.values()), *PACKED.values()))
            raise ConfigError(f"{self.path.name}: {name} has type {OTHERS.get(kind, kind)}; known: {known}")
        if (beyond := stored.start + size - len(self.raw[part])) > 0:
            raise ConfigError(f"{self.path.name}: {name} ends {beyond} bytes beyond the file")
        return _Tensor(kind, shape, stored.start, size, part)

    def _join(self, name: str) -> None:
        """Latent attention's maps to keys and values, which newer files keep apart, are one here."""
        whole, other = name.replace("attn_k_b", "attn_kv_b"), name.replace("attn_k_b", "attn_v_b")
        if other not in self.tensors:
            raise ConfigError(f"{self.path.name}: {other} is missing beside {name}")
        keys, values = self.halves[whole] = self.tensors.pop(name), self.tensors.pop(other)
        shapes = keys.shape, values.shape  # [heads, latent, key], [heads, value, latent]
        if [len(s) for s in shapes] != [3, 3] or (shapes[0][0], shapes[0][1]) != (shapes[1][0], shapes[1][2]):
            raise ConfigError(f"{self.path.name}: {name} has shape {list(shapes[0])}, {other} {list(shapes[1])}")
        rows = shapes[0][0] * (shapes[0][2] + shapes[1][1])
        self.tensors[whole] = _Tensor(0, (rows, shapes[0][1]), -1, 4 * rows * shapes[0][1])

    def refused(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.path.name}: {self.header.architecture}.{key} = {self.key(key)}; {why}")

    def key(self, name: str) -> Any:
        return self.header.keys.get(f"{self.header.architecture}.{name}")

    def has(self, name: str) -> bool:
        """Of the first layer."""
        return f"blk.0.{name}" in self.tensors

    @property
    def layers(self) -> int:
        return self.key("block_count") - (self.key("nextn_predict_layers") or 0)

    @property
    def head_dim(self) -> int:
        return self.key("attention.key_length") or self.key("embedding_length") // self.key("attention.head_count")

    @property
    def biased(self) -> bool:
        return self.has("attn_q.bias") or self.has("attn_qkv.bias")

    def _bytes(self, stored: _Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.raw[stored.part][stored.start : stored.start + stored.bytes]))

    def _plain(self, stored: _Tensor) -> Tensor:
        return self._bytes(stored).view(PLAIN[stored.kind][1]).view(stored.shape)

    def _dense(self, stored: _Tensor) -> Tensor:
        """float32, as the file has it, in blocks or not."""
        if stored.kind in PLAIN:
            return self._plain(stored).float()
        block = BLOCKS[PACKED[stored.kind]]
        rows = self._bytes(stored).view(-1, stored.shape[-1] // block.columns, block.bytes)
        return block.read(rows).dense().view(stored.shape)

    def tensor(self, name: str) -> Tensor:
        """In floating point as it is, else uint8 [rows, bytes]."""
        if name in self.halves:
            keys, values = (self._dense(half) for half in self.halves[name])
            return torch.cat((keys.transpose(1, 2), values), 1).flatten(0, 1)
        stored = self.tensors[name]
        found = self._plain(stored) if stored.kind in PLAIN else self._bytes(stored).view(stored.shape[0], -1)
        part = name.split(".")[-2]
        if self.architecture.turned and part in ("attn_q", "attn_k"):
            heads = self.key("attention.head_count")
            heads = heads if part == "attn_q" else self.key("attention.head_count_kv") or heads
            found = found.view(heads, -1, 2, *found.shape[1:]).transpose(1, 2).reshape(found.shape)
        return found - 1 if self.architecture.plus_one and name.endswith("norm.weight") else found

    def config(self) -> HFConfig:
        keys = KEYS | self.architecture.keys
        found: HFConfig = {name: self.key(key) for key, name in keys.items() if self.key(key) is not None}
        for key, name in keys.items():
            if isinstance(value := found.get(name), list):
                if not value or any(one != value[0] for one in value):
                    raise ConfigError(f"{self.path.name}: {self.header.architecture}.{key} differs from layer to "
                                      "layer; not supported")  # fmt: skip
                found[name] = value[0]
        apart = self.header.architecture in VALUES_APART
        if not apart and self.key("attention.value_length") not in (None, self.head_dim):
            raise self.refused("attention.value_length", f"values are as wide as keys here ({self.head_dim})")
        embedding = self.tensors.get("token_embd.weight")
        if embedding is None:
            raise ConfigError(f"{self.path.name}: token_embd.weight is missing")
        top, ends = self.header.keys, ("eos", "eot", "eom")  # of a text, of a turn, of a message to a tool
        plain = "bfloat16" if any(stored.kind == 30 for stored in self.tensors.values()) else "float16"
        return {
            **found,
            "architectures": [self.architecture.model],
            "model_type": self.header.architecture,
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "bos_token_id": top.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": [top[key] for end in ends if (key := f"tokenizer.ggml.{end}_token_id") in top],
            "torch_dtype": plain,
            "rope_scaling": self.scaling(),
            "quantization_config": {"quant_method": "gguf"},
            **self.architecture.more(self),
        }

    def scaling(self) -> HFConfig | None:
        kind, factor = self.key("rope.scaling.type"), self.key("rope.scaling.factor")
        length = self.key("rope.scaling.original_context_length")
        before = {} if length is None else {"original_max_position_embeddings": length}
        if "freqs" in self.factors:  # Llama 3.1's, whose rule the file does not say
            each = self.factors["freqs"].tolist()
            return {"rope_type": "longrope", "short_factor": each, "long_factor": each, "attention_factor": 1.0}
        if {"long", "short"} <= self.factors.keys():
            lists = {f"{name}_factor": self.factors[name].tolist() for name in ("long", "short")}
            return {"rope_type": "longrope", **before, **lists}
        if kind in (None, "none"):
            return None
        found: HFConfig = {"rope_type": kind, "factor": factor, **before}
        for key in ("beta_fast", "beta_slow"):
            if (value := self.key(f"rope.scaling.yarn_{key}")) is not None:
                found[key] = value
        if (value := self.key("rope.scaling.yarn_log_multiplier")) is not None:  # a tenth: of the scores' own scale
            found |= {"mscale": 10 * value, "mscale_all_dim": 10 * value}
        return found


def _apart(name: str, placed: _Tensor) -> dict[str, _Tensor]:
    stem, _, end = name.rpartition(".")
    if stem.endswith("ffn_gate_inp_shexp") and len(placed.shape) == 1:
        placed = replace(placed, shape=(1, *placed.shape))
    if not stem.endswith("_exps"):
        return {name: placed}
    count, size = placed.shape[0], placed.bytes // max(placed.shape[0], 1)
    return {
        f"{stem}.{i}.{end}": replace(placed, shape=placed.shape[1:], start=placed.start + i * size, bytes=size)
        for i in range(count)
    }


def _files(path: Path, first: Header) -> list[Path]:
    """All of a model that lies in several: NAME-00001-of-00003.gguf, ..., of which `path` is the first."""
    count = first.keys.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [path]
    stem, _, rest = path.stem.rpartition("-00001-of-")
    if not stem or rest != f"{count:05d}":
        raise ConfigError(f"{path.name}: one of {count} files; --model-path names the first, -00001-of-{count:05d}")
    files = [path.with_name(f"{stem}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{path.name}: {file.name} is missing beside it")
    return files


@functools.lru_cache(maxsize=2)
def _opened(path: Path, written: int) -> File:
    return File(path)


def _file(path: Path) -> File:
    return _opened(path, path.stat().st_mtime_ns)


def config(path: Path) -> HFConfig:
    """What the model's config.json would say. Raises ConfigError."""
    return _file(path).config()


POOLINGS: dict[int, Literal["mean", "first", "last"]] = {1: "mean", 2: "first", 3: "last"}


def pooling(path: Path, usual: Literal["mean", "first", "last"]) -> Pooling:
    """How the file makes a vector of a text, `usual` where it does not say; of length 1. Raises ConfigError."""
    file = _file(path)
    kind = file.key("pooling_type") or 0
    if kind and kind not in POOLINGS:
        raise file.refused("pooling_type", f"known: {', '.join(f'{n} ({word})' for n, word in POOLINGS.items())}")
    return Pooling(POOLINGS.get(kind, usual))


def named(path: Path, family: Family) -> Family:
    """The family with the file's names."""
    return replace(family, names=names(_file(path).architecture.names), ignored=())


def headers(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every tensor; those in blocks end in their type, and are bytes."""
    for name, stored in _file(path).tensors.items():
        if stored.kind in PLAIN:
            yield name, stored.shape, PLAIN[stored.kind][0]
        else:
            module = name.removesuffix(".weight")
            yield f"{module}.{PACKED[stored.kind]}", (stored.shape[0], stored.bytes // stored.shape[0]), "U8"


def tensor(path: Path, name: str) -> Tensor:
    """name: of `headers`."""
    stem, _, end = name.rpartition(".")
    return _file(path).tensor(f"{stem}.weight" if end in BLOCKS else name)
