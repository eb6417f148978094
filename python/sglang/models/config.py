"""config.json of a checkpoint: found, read, checked. No code of the checkpoint runs."""

import json
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sglang.base.errors import ConfigError
from sglang.layers.rope import KINDS, Rope
from sglang.models.spec import HFConfig

T = TypeVar("T")


def read(folder: Path, overrides: str = "{}") -> HFConfig:
    """The folder's config.json with `overrides` (a JSON object) merged in, its language part if it is nested."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"--model-path {folder}: no config.json there; give a model folder or a hub id")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    try:
        extra = json.loads(overrides)
    except ValueError as error:
        raise ConfigError(f"--json-model-override-args: not valid JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(extra, dict):
        raise ConfigError(f"{path} and --json-model-override-args must be JSON objects")
    return {**config, **extra}


def eos_ids(folder: Path, config: HFConfig) -> tuple[int, ...]:
    """Every id that ends a generation: of config.json and generation_config.json, one or a list in either."""
    ids: list[int] = []
    sources = [config]
    generation = folder / "generation_config.json"
    if generation.is_file():
        sources.append(json.loads(generation.read_text("utf-8")))
    for source in sources:
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def context_length(config: HFConfig) -> int:
    """The first of the keys that models use, times what rope scaling adds; 2048 where there is none."""
    keys = ("max_sequence_length", "seq_length", "max_position_embeddings", "max_seq_len", "model_max_length")
    length = next((config[k] for k in keys if config.get(k)), 2048)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # llama3 and longrope already count their factor in max_position_embeddings.
    return int(length * scaling.get("factor", 1)) if kind in ("linear", "dynamic", "yarn") else length


def refuse(config: HFConfig, key: str, why: str) -> NoReturn:
    raise ConfigError(f"config.json: {key} = {config.get(key)!r} is not supported ({why})")


def choice(config: HFConfig, key: str, known: dict[str, T], default: str) -> T:
    """What `config[key]` stands for in our words; a value we do not know stops the start."""
    value = config.get(key) or default
    if value not in known:
        refuse(config, key, f"known: {', '.join(known)}")
    return known[value]


def rope(config: HFConfig, head_dim: int) -> Rope:
    """Rotary embedding of `rope_theta` + `rope_scaling`, or of transformers 5's `rope_parameters`."""
    parameters: dict[str, Any] = config.get("rope_parameters") or {}
    if any(isinstance(v, dict) for v in parameters.values()):
        refuse(config, "rope_parameters", "one set for all layers is")
    scaling = {**(config.get("rope_scaling") or {}), **parameters}
    kind = scaling.get("rope_type", scaling.get("type", "default")) or "default"
    if kind not in KINDS:
        raise ConfigError(f"config.json: rope_type = {kind!r} is not supported; known: {', '.join(KINDS)}")
    partial = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    positions = config.get("max_position_embeddings", 2048)
    return Rope(
        dim=int(head_dim * partial),
        theta=float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0),
        kind=kind,
        positions=positions,
        factor=float(scaling.get("factor") or 1.0),
        original=int(
            scaling.get("original_max_position_embeddings")
            or config.get("original_max_position_embeddings")
            or positions
        ),
        low=float(scaling.get("low_freq_factor", 1.0)),
        high=float(scaling.get("high_freq_factor", 4.0)),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        attention_factor=scaling.get("attention_factor"),
        mscale=scaling.get("mscale"),
        mscale_all_dim=scaling.get("mscale_all_dim"),
        truncate=bool(scaling.get("truncate", True)),
        short=tuple(scaling.get("short_factor") or ()),
        long=tuple(scaling.get("long_factor") or ()),
    )
