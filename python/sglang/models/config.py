"""config.json of a checkpoint: found, read, checked. No code of the checkpoint runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from sglang.base.errors import ConfigError, FieldError
from sglang.base.sampling import parse_sampling
from sglang.layers.linear import Act
from sglang.layers.rope import KINDS, Rope
from sglang.models import gguf, grok1
from sglang.models.spec import HFConfig, Pooling

T = TypeVar("T")
ACTS: dict[str, Act] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read(folder: Path, overrides: str = "{}") -> HFConfig:
    """The folder's config.json with `overrides` (a JSON object) merged in, and `text_config` on top."""
    path = folder / "config.json"
    if folder.is_file():
        return gguf.config(folder) | _object(overrides, "--json-model-override-args")
    if not path.is_file() and grok1.first_of(folder) is not None:
        return grok1.CONFIG | _object(overrides, "--json-model-override-args")
    if not path.is_file():
        raise ConfigError(f"--model-path {folder}: no config.json there; give a model folder or a hub id")
    config = {**_object(path.read_text("utf-8"), str(path)), **_object(overrides, "--json-model-override-args")}
    text = config.get("text_config")
    if isinstance(text, dict):  # of a model that also sees: what is said of its language part goes for the whole
        config |= {key: value for key, value in text.items() if key not in ("architectures", "model_type")}
    return config


# Where older files say what newer ones say in config.json.
OLDER = {"quant_config.json": "awq", "quantize_config.json": "gptq"}


def quantization(folder: Path, config: HFConfig) -> HFConfig | None:
    """How the weights are stored, where not in floating point: `quantization_config`, or a file of its own."""
    found = config.get("quantization_config") or config.get("compression_config")
    if isinstance(found, dict):
        return found
    for name, method in OLDER.items():
        if (folder / name).is_file():
            return {"quant_method": method, **_object((folder / name).read_text("utf-8"), str(folder / name))}
    return None


def _object(text: str, source: str) -> HFConfig:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: must be a JSON object, got {type(value).__name__}")
    return value


def eos_ids(folder: Path, config: HFConfig) -> tuple[int, ...]:
    """Every id that ends a generation: of config.json and generation_config.json, one or a list in either."""
    sources = [config]
    generation = folder / "generation_config.json"
    if generation.is_file():
        sources.append(_object(generation.read_text("utf-8"), str(generation)))
    ids: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


# generation_config.json has more, which nobody means when they say how a model should be sampled.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling(folder: Path) -> dict[str, float]:
    """What generation_config.json says of sampling, in our words; nothing where it decodes greedily.

    Raises ConfigError for what is no such setting.
    """
    file = folder / "generation_config.json"
    said = _object(file.read_text("utf-8"), str(file)) if file.is_file() else {}
    if said.get("do_sample") is False:
        return {}
    found = {name: said[name] for name in SAMPLING if said.get(name) is not None}
    if found.get("top_k") == 0:  # transformers' way to turn it off
        del found["top_k"]
    try:
        parse_sampling(found, str(file))
    except FieldError as error:
        raise ConfigError(f"{error}; --sampling-defaults openai does without") from None
    return found


def context_length(config: HFConfig) -> int:
    """The first of the keys that models use, times what rope scaling adds; 2048 where there is none."""
    keys = (
        "max_sequence_length",
        "seq_length",
        "max_position_embeddings",
        "max_seq_len",
        "model_max_length",
        "n_positions",
    )
    key = next((k for k in keys if config.get(k)), None)
    if key is None:
        return 2048
    length = int(config[key])
    scaling = _scaling(config)
    factor = float(scaling.get("factor") or 1)
    match _kind(scaling):
        case "linear" | "dynamic" if key == "max_position_embeddings":  # the other keys name the final length
            return int(length * factor)
        case "yarn":  # some files give the length before, some after
            return max(length, int(scaling.get("original_max_position_embeddings", length) * factor))
        case _:  # llama3 and longrope count their factor in
            return length


def _scaling(config: HFConfig, layer_type: str = "full_attention") -> HFConfig:
    """`rope_scaling`, or transformers 5's `rope_parameters`, which may differ by the type of a layer."""
    parameters: HFConfig = config.get("rope_parameters") or {}
    if any(isinstance(v, dict) for v in parameters.values()):
        if layer_type not in parameters:
            refuse(config, "rope_parameters", f"there is no {layer_type}")
        return parameters[layer_type]
    return {**(config.get("rope_scaling") or {}), **parameters}


def _kind(scaling: HFConfig) -> str:
    return scaling.get("rope_type") or scaling.get("type") or "default"


def refuse(config: HFConfig, key: str, why: str) -> NoReturn:
    raise ConfigError(f"config.json: {key} = {config.get(key)!r} is not supported ({why})")


def choice(config: HFConfig, key: str, known: dict[str, T], default: str) -> T:
    """What `config[key]` stands for in our words; a value we do not know stops the start."""
    value = config.get(key) or default
    if value not in known:
        refuse(config, key, f"known: {', '.join(known)}")
    return known[value]


def act(config: HFConfig, key: str = "hidden_act", default: str = "silu") -> Act:
    """The activation that `config[key]` names."""
    return choice(config, key, ACTS, default)


def local_layers(config: HFConfig, local: Callable[[int], bool]) -> Callable[[int], bool]:
    """Which layers see a part of their sequence: by `layer_types`; `local` where the file does not say."""
    types = config.get("layer_types")
    if types is None:
        return local
    known = ("full_attention", "sliding_attention", "chunked_attention")
    if len(types) < config["num_hidden_layers"] or not all(t in known for t in types):
        refuse(config, "layer_types", f"one of {', '.join(known)} for each of num_hidden_layers")
    return lambda layer: types[layer] != "full_attention"


def rope(
    config: HFConfig,
    head_dim: int,
    *,
    layer_type: str = "full_attention",
    partial: float | None = None,
    theta: float | None = None,
    interleaved: bool = False,
) -> Rope:
    """The rotary embedding that config.json describes.

    partial: share of a head's dims, theta: base, where the file names neither (or by keys of its own).
    """
    scaling = _scaling(config, layer_type)
    kind = _kind(scaling)
    if kind not in KINDS:
        raise ConfigError(f"config.json: rope_type = {kind!r} is not supported; known: {', '.join(KINDS)}")
    share = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", partial or 1.0))
    positions = int(config.get("max_position_embeddings") or 2048)
    dim = int(head_dim * share)
    for key in ("short_factor", "long_factor") if kind in ("longrope", "su") else ():
        if len(scaling.get(key) or ()) != dim // 2:
            raise ConfigError(f"config.json: {key} must hold {dim // 2} numbers, got {len(scaling.get(key) or ())}")
    return Rope(
        dim=dim,
        theta=float(scaling.get("rope_theta") or config.get("rope_theta") or theta or 10000.0),
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
        interleaved=interleaved,
    )


POOLINGS: dict[str, Literal["last", "first", "mean"]] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "first",
    "mean": "mean",
    "lasttoken": "last",
}


def pooling(folder: Path, causal: bool) -> Pooling:
    """How the folder's sentence-transformers files make a vector of a text. Raises ConfigError.

    Without them: the last token's state of a model that reads forward, the mean where it sees both ways; of length 1.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return Pooling("last" if causal else "mean")
    try:
        listed = json.loads(modules.read_text("utf-8"))
        parts = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{modules}: not a list of modules ({error!r})") from None
    kinds = [kind for kind, _ in parts]
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigError(f"{modules}: a module of type {unknown[0]} is not supported (Pooling and Normalize are)")
    if kinds.count("Pooling") != 1:
        raise ConfigError(f"{modules}: must name one module of type Pooling, got {kinds.count('Pooling')}")
    path = folder / dict(parts)["Pooling"] / "config.json"
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(f"{modules}: {path} is missing, or outside the model's folder")
    said = _object(path.read_text("utf-8"), str(path))
    modes = [said["pooling_mode"]] if isinstance(said.get("pooling_mode"), str) else []
    modes = modes or [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        known = ", ".join(key for key in POOLINGS if "_" in key)
        raise ConfigError(f"{path}: pooling by {' and '.join(modes) or 'nothing'} is not supported; known: {known}")
    return Pooling(POOLINGS[modes[0]], "Normalize" in kinds)
