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
from sglang.quant.blocks import BLOCKS
from sglang.quant.words import awq_unpacked, marlin_scales, marlin_unpacked, unpacked

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # ending of a module's tensor -> its shape
Found = Mapping[str, Tensor]
NARROW = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}  # of a module's `weight`, in safetensors' words
# Types that a part must have, by its ending; all others are floating point.
WORDS = ("qweight", "qzeros", "B", "weight_packed")
INTEGERS = ("g_idx", "weight_g_idx", "weight_shape", "workspace", "weight_zero_point")
INPUT_SCALES = ("input_scale", "act_scale", "activation_scale")  # vLLM's word, its older one, and transformers'
# Scales that keys and values were calibrated to be stored with, which is another's to read (`models/kv_scales.py`).
KV_SCALES = ("k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale", "output_scale")


@dataclass(frozen=True)
class Format:
    """marks: the endings that tell. parts: all endings that make a weight. needed: those that no module may lack.

    shape: module, shapes -> (rows, inputs). read: module, tensors -> the weight. Either raises ValueError for tensors
    that do not fit together. groups: module, shapes -> groups of a row of up to 4 bits that lie in a row; else 0.
    """

    name: str
    marks: tuple[str, ...]
    parts: tuple[str, ...]
    needed: tuple[str, ...]
    shape: Callable[[str, Shapes], tuple[int, int]]
    read: Callable[[str, Found], Grid]
    kind: str = "int4"  # what its weights are most like
    groups: Callable[[str, Shapes], int] = lambda module, shapes: 0


def _refuse(key: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"config.json: quantization_config.{key} = {value!r} is not supported ({why})")


def chosen(
    config: Config | None, flag: str | None, device: str, own: tuple[str, ...] = ()
) -> tuple[str, Format | None]:
    """What weights are kept as, and the checkpoint's format. Raises ConfigError.

    config: `quantization_config`; flag: --quantization; own: methods that the family's name table reads by itself,
    which a CPU's weights are written out from.
    """
    said = None if config is None else str(config.get("quant_method"))
    kept = said if said in own and device != "cpu" else None
    if said in own:
        said, config = None, None
    method = ALIASES.get(said or "", said)
    if config is not None and method not in READERS:
        _refuse("quant_method", config.get("quant_method"), f"known: {', '.join((*READERS, *ALIASES))}")
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
        return flag or kept or "none", None
    assert said is not None and method is not None
    if flag is not None and ALIASES.get(flag, flag) != method:
        raise ConfigError(
            f"--quantization {flag}: config.json says quantization_config.quant_method = {said!r}; leave the flag out"
        )
    try:
        return said, READERS[method](config)
    except (TypeError, AttributeError, ValueError, re.error) as error:
        raise ConfigError(
            f"config.json: a value of quantization_config has the wrong type for {said} ({error})"
        ) from None


KINDS = ("int8", "int4", "fp8")  # that weights are rounded to while they load
ALIASES = {"gptq_marlin": "gptq", "awq_marlin": "awq", "fbgemm_fp8": "fp8"}  # others' names for the same files


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
    size = int(config.get("group_size") or config.get("q_group_size") or -1)

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        inputs, words = shapes["qweight"]
        groups = _groups(shapes["scales"], (words * 8,), inputs, size)
        if shapes.get("qzeros", (groups, words)) != (groups, words):
            raise ValueError(f"qzeros has shape {list(shapes['qzeros'])}, not {[groups, words]}")
        return words * 8, inputs

    def read(module: str, found: Found) -> Grid:
        scales = found["scales"].t().contiguous()
        zeros = awq_unpacked(found["qzeros"]).t().float() if "qzeros" in found else torch.full_like(scales, 8.0)
        codes = awq_unpacked(found["qweight"]).t().contiguous()
        return Grid(codes, scales, 4, codes.shape[1] // scales.shape[1], zeros.contiguous())

    def groups(module: str, shapes: Shapes) -> int:
        return shapes["scales"][0]

    parts = ("qweight", "qzeros", "scales")
    return Format("awq", ("qweight",), parts, ("scales",), shape, read, groups=groups)


def _groups(scales: Shape, rows: Shape, inputs: int, size: int) -> int:
    """Groups of `scales`, [groups, rows]; ValueError where they do not share out the inputs. size: as in `_columns`."""
    if len(scales) != 2 or scales[1:] != rows or scales[0] < 1 or (inputs % scales[0] and scales[0] > 1):
        raise ValueError(f"scales has shape {list(scales)}, which does not fit {list(rows)} rows and {inputs} inputs")
    if size > 0 and 1 < scales[0] != inputs / size:
        raise ValueError(f"scales has shape {list(scales)}; groups of {size} columns are not {inputs} inputs")
    return scales[0]


def _gptq(config: Config) -> Format:
    if config.get("is_marlin_format") or config.get("checkpoint_format") == "marlin":
        return _marlin(config)
    bits = _bits(config, "bits", known=(2, 3, 4, 8))
    layout = config.get("checkpoint_format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        _refuse("checkpoint_format", layout, "known: gptq, gptq_v2, marlin")
    dynamic = (config.get("dynamic") or {}).items()
    # The others, "-:", name modules that are left as they are.
    rules = [(re.compile(rule.removeprefix("+:")), change) for rule, change in dynamic if not rule.startswith("-:")]
    for _, change in rules:
        if change.get("bits") is not None:
            _bits(change, "bits", known=(2, 3, 4, 8))

    def own(module: str, key: str, usual: int) -> int:
        return next((int(change.get(key, usual)) for rule, change in rules if rule.match(module)), usual)

    def bits_of(module: str) -> int:
        return own(module, "bits", bits)

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
        few = bits_of(module)
        codes = unpacked(found["qweight"].t().contiguous(), few)
        scales = found["scales"].t().contiguous()
        zeros = unpacked(found["qzeros"], few)
        if layout == "gptq":
            zeros = (zeros + 1) & (2**few - 1)  # stored less one, which wraps around
        size = own(module, "group_size", int(config.get("group_size") or -1))
        group_of, size = _columns("g_idx", found, codes.shape[1], scales.shape[1], size)
        return Grid(codes, scales, few, size, zeros.t().float().contiguous(), group_of)

    def groups(module: str, shapes: Shapes) -> int:
        count = shapes["scales"][0]
        return 0 if bits_of(module) > 4 or (count > 1 and config.get("desc_act")) else count

    parts = ("qweight", "qzeros", "scales", "g_idx")
    return Format("gptq", ("qweight",), parts, ("qzeros", "scales"), shape, read, groups=groups)


def _columns(part: str, found: Found, inputs: int, groups: int, size: int) -> tuple[Tensor | None, int]:
    """The group of each column, None where they follow each other, and their size. size: of the config, or -1."""
    size = size if size > 0 and groups > 1 else math.ceil(inputs / groups)
    if math.ceil(inputs / size) != groups:
        raise ValueError(f"{groups} groups of {size} columns are not {inputs} inputs")
    if part not in found:
        return None, size
    group_of = found[part].long()
    if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
        raise ValueError(f"{part} must be in [0, {groups}), got {int(group_of.min())} .. {int(group_of.max())}")
    plain = torch.equal(group_of, torch.arange(inputs, device=group_of.device) // size)
    return None if plain else group_of, size


def _marlin(config: Config) -> Format:
    _bits(config, "bits", known=(4,))
    size = int(config.get("group_size") or -1)

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        tiles, words = shapes["B"]
        if words % 128:
            raise ValueError(f"B has shape {list(shapes['B'])}; rows must be a multiple of 64")
        _groups(shapes["s"], (words // 2,), tiles * 16, size)
        return words // 2, tiles * 16

    def read(module: str, found: Found) -> Grid:
        codes, scales = marlin_unpacked(found["B"]), marlin_scales(found["s"]).contiguous()
        return Grid(codes, scales, 4, codes.shape[1] // scales.shape[1], torch.full_like(scales, 8.0))

    def groups(module: str, shapes: Shapes) -> int:
        return shapes["s"][0]

    return Format("marlin", ("B",), ("B", "s", "workspace"), ("s",), shape, read, groups=groups)


def _fp8(config: Config) -> Format:
    scheme = config.get("activation_scheme", "dynamic")
    if scheme not in ("static", "dynamic"):
        _refuse("activation_scheme", scheme, "known: static, dynamic")
    if "e4m3" not in str(config.get("fmt", "e4m3")):
        _refuse("fmt", config.get("fmt"), "known: e4m3")
    return _whole("fp8", torch.float8_e4m3fn, scheme == "static", _block("weight_block_size", config))


def _modelopt(config: Config) -> Format:
    algorithm = config.get("quant_algo")
    if algorithm != "FP8":
        _refuse("quant_algo", algorithm, "known: FP8")
    return _whole("modelopt", torch.float8_e4m3fn, True, None)


def _block(key: str, config: Config) -> tuple[int, int] | None:
    sides = config.get(key)
    if sides is None:
        return None
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        _refuse(key, sides, "known: two sides such as [128, 128]")
    return sides[0], sides[1]


def _whole(name: str, dtype: torch.dtype, static: bool, block: tuple[int, int] | None) -> Format:
    """A byte for each weight, with one scale, one a row, or one a block of rows and columns."""

    def scale_of(there: Mapping[str, Any]) -> str:
        # DeepSeek's name says inverse; it is a factor all the same.
        found = next((part for part in ("weight_scale_inv", "weight_scale") if part in there), None)
        if found is None:
            raise ValueError("weight_scale is missing")
        return found

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        rows, inputs = shapes["weight"]
        scale = scale_of(shapes)
        given = shapes[scale]
        known: list[Shape] = [(), (1,), (rows,), (rows, 1)]
        if block is not None:
            known = [(math.ceil(rows / block[0]), math.ceil(inputs / block[1]))]
        if given not in known:
            raise ValueError(f"{scale} has shape {list(given)}, not {' or '.join(str(list(one)) for one in known)}")
        if static and not any(part in shapes for part in INPUT_SCALES):
            raise ValueError("input_scale is missing")
        return rows, inputs

    def read(module: str, found: Found) -> Grid:
        codes, scales = found["weight"], found[scale_of(found)].float()
        if codes.dtype != dtype:
            raise ValueError(f"weight has type {codes.dtype}, the config says {dtype}")
        rows, inputs = codes.shape
        if block is not None:
            size = block[1]
            scales = scales.repeat_interleave(block[0], 0)[:rows]
        else:
            size = inputs
            scales = scales.reshape(-1, 1).expand(rows, 1)
        zeros = (
            found["weight_zero_point"].float().reshape(-1, 1).expand(rows, 1) if "weight_zero_point" in found else None
        )
        inputs_by = [found[part] for part in INPUT_SCALES if part in found] if static else []
        bound = float(inputs_by[0].max()) if inputs_by else None
        return Grid(codes, scales.contiguous(), 8, size, zeros, input_scale=bound)

    parts = ("weight", "weight_scale", "weight_scale_inv", "weight_zero_point", *INPUT_SCALES, "input_zero_point")
    kind = "int8" if dtype == torch.int8 else "fp8"
    return Format(name, ("weight",), parts, (), shape, read, kind)


def _compressed(config: Config) -> Format:
    groups = config.get("config_groups") or {}
    schemes = [{"format": config.get("format"), **one} for one in groups.values() if isinstance(one, dict)]
    if not schemes or any(
        (one["format"], one.get("weights")) != (schemes[0]["format"], schemes[0].get("weights")) for one in schemes
    ):
        _refuse("config_groups", groups, "known: one scheme for all weights")
    for key, none in (("sparsity_config", "dense"), ("transform_config", None)):
        if (given := config.get(key)) and given.get("format", "") != none:
            _refuse(key, given, "known: none")
    scheme, weights = schemes[0], schemes[0].get("weights") or {}
    layout, kind, strategy = scheme["format"], weights.get("type", "int"), weights.get("strategy") or "tensor"
    inputs = scheme.get("input_activations") or {}
    if layout == "naive-quantized":
        layout = f"{kind}-quantized"
    if layout == "pack-quantized":
        if kind != "int" or strategy not in ("group", "channel") or inputs:
            _refuse(
                "config_groups", scheme, "pack-quantized: known: int weights by group or channel, no rounded inputs"
            )
        return _packed(_bits(weights, "num_bits", known=(2, 4, 8)), int(weights.get("group_size") or -1))
    narrow = {"int-quantized": torch.int8, "float-quantized": torch.float8_e4m3fn}
    if layout not in narrow:
        _refuse("format", layout, f"known: pack-quantized, naive-quantized, {', '.join(narrow)}")
    _bits(weights, "num_bits", known=(8,))
    if strategy not in ("tensor", "channel", "block"):
        _refuse("strategy", strategy, "known: tensor, channel, block")
    static = bool(inputs) and not inputs.get("dynamic", False) and layout == "float-quantized"
    block = _block("block_structure", weights) if strategy == "block" else None
    return _whole("compressed-tensors", narrow[layout], static, block)


def _packed(bits: int, size: int) -> Format:
    """compressed-tensors' weights in words along the inputs, stored as what they are above the least value."""
    each = 32 // bits

    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        rows, words = shapes["weight_packed"]
        groups = shapes["weight_scale"][1]
        if shapes["weight_scale"] != (rows, groups):
            raise ValueError(f"weight_scale has shape {list(shapes['weight_scale'])}, weight_packed {rows} rows")
        wanted = (math.ceil(rows / each), groups)
        if shapes.get("weight_zero_point", wanted) != wanted:
            raise ValueError(f"weight_zero_point has shape {list(shapes['weight_zero_point'])}, not {list(wanted)}")
        return rows, words * each

    def read(module: str, found: Found) -> Grid:
        codes, scales = unpacked(found["weight_packed"], bits), found["weight_scale"]
        zeros = torch.full_like(scales, 2 ** (bits - 1), dtype=torch.float32)
        if "weight_zero_point" in found:
            zeros = unpacked(found["weight_zero_point"].t().contiguous(), bits).t()[: len(codes)].float().contiguous()
        group_of, own = _columns("weight_g_idx", found, codes.shape[1], scales.shape[1], size)
        return Grid(codes, scales, bits, own, zeros, group_of)

    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")

    def counted(module: str, shapes: Shapes) -> int:
        return 0 if bits > 4 or "weight_g_idx" in shapes else shapes["weight_scale"][1]

    return Format("compressed-tensors", ("weight_packed",), parts, ("weight_scale",), shape, read, groups=counted)


def _gguf(config: Config) -> Format:
    def shape(module: str, shapes: Shapes) -> tuple[int, int]:
        ((kind, (rows, size)),) = shapes.items()
        return rows, size // BLOCKS[kind].bytes * BLOCKS[kind].columns

    def read(module: str, found: Found) -> Grid:
        ((kind, raw),) = found.items()
        return BLOCKS[kind].read(raw.view(raw.shape[0], -1, BLOCKS[kind].bytes))

    def groups(module: str, shapes: Shapes) -> int:
        ((kind, _),) = shapes.items()
        return shape(module, shapes)[1] // BLOCKS[kind].columns if kind == "Q4_0" else 0  # others' zeros are not whole

    return Format("gguf", tuple(BLOCKS), tuple(BLOCKS), (), shape, read, groups=groups)


READERS: dict[str, Callable[[Config], Format]] = {
    "awq": _awq,
    "gptq": _gptq,
    "marlin": _marlin,
    "fp8": _fp8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
    "gguf": _gguf,
}
