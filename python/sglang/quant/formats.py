"""Checkpoints whose linear weights are not floating point: which formats are read, and how one of their weights is.

A format is chosen by config.json's `quantization_config`. A module is in it if the file holds its `mark`; others, which
a config's list of skipped modules names, are stored as they are and found that way.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.quant.base import Grid
from sglang.quant.words import awq_unpacked, marlin_scales, marlin_unpacked, unpacked

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # ending of a module's tensor -> its shape
Found = Mapping[str, Tensor]
NARROW = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}  # of a module's `weight`, in safetensors' words


@dataclass(frozen=True)
class Format:
    """mark: the ending that tells. parts: all endings that make a weight. needed: those that no module may lack.

    shape: module, shapes -> (rows, inputs). read: module, tensors -> the weight. Either raises ValueError for tensors
    that do not fit together.
    """

    name: str
    mark: str
    parts: tuple[str, ...]
    needed: tuple[str, ...]
    shape: Callable[[str, Shapes], tuple[int, int]]
    read: Callable[[str, Found], Grid]


def _refuse(key: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"config.json: quantization_config.{key} = {value!r} is not supported ({why})")


def chosen(
    config: Config | None, flag: str | None, device: str, own: tuple[str, ...] = ()
) -> tuple[str, Format | None]:
    """What weights are kept as, and the checkpoint's format. Raises ConfigError.

    config: `quantization_config`; flag: --quantization; own: methods that the family's name table reads by itself.
    """
    said = None if config is None else str(config.get("quant_method"))
    if said in own:
        said, config = None, None
    if config is not None and said not in READERS:
        _refuse("quant_method", config.get("quant_method"), f"known: {', '.join(READERS)}")
    if flag is not None and flag not in (*KINDS, *READERS, *ALIASES):
        known = ", ".join((*KINDS, *READERS, *ALIASES))
        raise ConfigError(f"--quantization {flag} is not supported; known: {known}")
    if config is None:
        if flag is not None and flag not in KINDS:
            raise ConfigError(
                f"--quantization {flag}: the checkpoint's config.json has no quantization_config; "
                f"{', '.join(KINDS)} round its weights while it loads"
            )
        if flag in ("int8", "int4") and device != "cpu":
            raise ConfigError(f"--quantization {flag} runs on --device cpu; on cuda fp8 does")
        if flag == "fp8" and device == "cpu":
            raise ConfigError("--quantization fp8 needs --device cuda; on cpu int8 and int4 do")
        return flag or "none", None
    assert said is not None
    if flag is not None and ALIASES.get(flag, flag) != ALIASES.get(said, said):
        raise ConfigError(
            f"--quantization {flag}: config.json says quantization_config.quant_method = {said!r}; leave the flag out"
        )
    return said, READERS[said](config)


KINDS = ("int8", "int4", "fp8")  # that weights are rounded to while they load
ALIASES = {"gptq_marlin": "gptq", "awq_marlin": "awq", "fbgemm_fp8": "fp8"}


def _bits(config: Config, *keys: str, known: tuple[int, ...]) -> int:
    key = next((k for k in keys if config.get(k) is not None), keys[0])
    value = config.get(key, 4)
    if value not in known or isinstance(value, bool):
        _refuse(key, value, f"known: {', '.join(map(str, known))}")
    return int(value)


def _awq(config: Config) -> Format:
    _bits(config, "bits", "w_bit", known=(4,))
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        _refuse("version", config.get("version"), "known: gemm")

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        inputs, words = shapes["qweight"]
        groups = _groups(shapes["scales"], (words * 8,), inputs)
        if shapes.get("qzeros", (groups, words)) != (groups, words):
            raise ValueError(f"qzeros has shape {list(shapes['qzeros'])}, not {[groups, words]}")
        return words * 8, inputs

    def read(module: str, found: Found) -> Grid:
        scales = found["scales"].t().contiguous()
        zeros = awq_unpacked(found["qzeros"]).t().float() if "qzeros" in found else torch.full_like(scales, 8.0)
        codes = awq_unpacked(found["qweight"]).t().contiguous()
        return Grid(codes, scales, 4, codes.shape[1] // scales.shape[1], zeros.contiguous())

    return Format("awq", "qweight", ("qweight", "qzeros", "scales"), ("scales",), shape, read)


def _groups(scales: Shape, rows: Shape, inputs: int) -> int:
    """Groups of `scales`, [groups, rows]; ValueError where they do not share out the inputs."""
    if len(scales) != 2 or scales[1:] != rows or scales[0] < 1 or (inputs % scales[0] and scales[0] > 1):
        raise ValueError(f"scales has shape {list(scales)}, which does not fit {list(rows)} rows and {inputs} inputs")
    return scales[0]


def _gptq(config: Config) -> Format:
    if config.get("is_marlin_format") or config.get("checkpoint_format") == "marlin":
        return _marlin(config)
    bits = _bits(config, "bits", known=(2, 3, 4, 8))
    layout = config.get("checkpoint_format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        _refuse("checkpoint_format", layout, "known: gptq, gptq_v2, marlin")
    rules = list((config.get("dynamic") or {}).items())
    for rule, change in rules:
        if not rule.startswith("-:"):
            _bits(change, "bits", known=(2, 3, 4, 8)) if "bits" in change else None

    def bits_of(module: str) -> int:
        for rule, change in rules:
            if not rule.startswith("-:") and re.match(rule.removeprefix("+:"), module):
                return int(change.get("bits", bits))
        return bits

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        words, rows = shapes["qweight"]
        inputs = words * 32 // bits_of(module)
        if shapes.get("g_idx", (inputs,)) != (inputs,):
            raise ValueError(f"g_idx has shape {list(shapes['g_idx'])}, qweight holds {inputs} inputs")
        groups = shapes["scales"][0]
        if shapes["scales"] != (groups, rows):
            raise ValueError(f"scales has shape {list(shapes['scales'])}, qweight {rows} rows")
        wanted = (groups, rows * bits_of(module) // 32)
        if shapes["qzeros"] != wanted:
            raise ValueError(f"qzeros has shape {list(shapes['qzeros'])}, not {list(wanted)}")
        return rows, inputs

    def read(module: str, found: Found) -> Grid:
        own = bits_of(module)
        codes = unpacked(found["qweight"].t().contiguous(), own)
        scales = found["scales"].t().contiguous()
        zeros = unpacked(found["qzeros"], own)
        if layout == "gptq":
            zeros = (zeros + 1) & (2**own - 1)  # stored less one, which wraps around
        groups, inputs = scales.shape[1], codes.shape[1]
        size = math.ceil(inputs / groups)
        size = int(config["group_size"]) if config.get("group_size", -1) > 0 and groups > 1 else size
        group_of = found["g_idx"].long() if "g_idx" in found else None
        if group_of is not None:
            if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
                raise ValueError(f"g_idx must be in [0, {groups}), got {int(group_of.min())} .. {int(group_of.max())}")
            if torch.equal(group_of, torch.arange(inputs) // size):
                group_of = None
        return Grid(codes, scales, own, size, zeros.t().float().contiguous(), group_of)

    return Format("gptq", "qweight", ("qweight", "qzeros", "scales", "g_idx"), ("qzeros", "scales"), shape, read)


def _marlin(config: Config) -> Format:
    _bits(config, "bits", known=(4,))

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        tiles, words = shapes["B"]
        if words % 128:
            raise ValueError(f"B has shape {list(shapes['B'])}; rows must be a multiple of 64")
        _groups(shapes["s"], (words // 2,), tiles * 16)
        return words // 2, tiles * 16

    def read(module: str, found: Found) -> Grid:
        codes, scales = marlin_unpacked(found["B"]), marlin_scales(found["s"]).contiguous()
        return Grid(codes, scales, 4, codes.shape[1] // scales.shape[1], torch.full_like(scales, 8.0))

    return Format("marlin", "B", ("B", "s", "workspace"), ("s",), shape, read)


READERS: dict[str, Callable[[Config], Format]] = {"awq": _awq, "gptq": _gptq, "marlin": _marlin}
