"""config.json of a checkpoint: found, read, checked. No code of the checkpoint runs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from sglang.base.errors import ConfigError, FieldError
from sglang.base.sampling import parse_sampling
from sglang.layers.linear import Act
from sglang.layers.rope import KINDS, Rope
from sglang.models import gguf, grok1
from sglang.models.spec import HFConfig

T = TypeVar("T")
ACTS: dict[str, Act] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read(folder: Path, overrides: str = "{}") -> HFConfig:
    """The folder's config.json with `overrides` (a JSON object) merged in, and `text_config` on top.

    Raises ConfigError, also for a size that is none.
    """
    path = folder / "config.json"
    if folder.is_file():
        config = gguf.config(folder)
    elif not path.is_file() and grok1.first_of(folder) is not None:
        config = grok1.CONFIG
    elif not path.is_file():
        raise ConfigError(f"--model-path {folder}: no config.json there; give a model folder or a hub id")
    else:
        config = read_json(path)
    config = config | _object(overrides, "--json-model-override-args")
    text = config.get("text_config")
    if isinstance(text, dict):  # of a model that also sees: what is said of its language part goes for the whole
        config |= {key: value for key, value in text.items() if key not in ("architectures", "model_type")}
    _check(config)
    return config


# Keys whose value is a whole number, at least 1; null, or a list with one for each layer, where a family allows it.
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size", "max_position_embeddings", "original_max_position_embeddings"),
    *("n_embd", "n_layer", "n_head", "n_inner", "n_positions", "n_layers", "n_heads", "d_model", "max_seq_len"),
    *("num_layers", "ffn_hidden_size", "kv_channels", "padded_vocab_size", "multi_query_group_num", "seq_length"),
    *("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
)
# As above, or 0 where a model has none.
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
COUNTS += ("q_lora_rank", "kv_lora_rank", "first_k_dense_replace", "sliding_window")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MOST_LAYERS = 10_000  # the records of more would fill memory before a file is looked at
NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_epsilon", "rope_theta")
OF_ROPE = ("factor", "rope_theta", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")
OF_ROPE += ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "partial_rotary_factor")


def _check(config: HFConfig) -> None:
    for key in (*SIZES, *COUNTS):
        value, least = config.get(key), int(key in SIZES)
        if value is None or isinstance(value, list):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            refuse(config, key, f"it must be a whole number of at least {least}")
    for key in LAYERS:
        if isinstance(value := config.get(key), int) and value > MOST_LAYERS:
            refuse(config, key, f"at most {MOST_LAYERS} are")
    for key in NUMBERS:
        _check_number(config, key, key)
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            refuse(config, key, "it must be an object or null")
        parts: list[HFConfig] = [] if value is None else [value, *(v for v in value.values() if isinstance(v, dict))]
        for part in parts:
            for name in OF_ROPE:
                _check_number(part, name, f"{key}.{name}")


def _check_number(part: HFConfig, key: str, name: str) -> None:
    value = part.get(key)
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:  # NaN fails too
        raise ConfigError(f"config.json: {name} = {value!r} is not supported (it must be a number)")


# Where older files say what newer ones say in config.json; ModelOpt's is a part of its file.
OLDER = {"quant_config.json": "awq", "quantize_config.json": "gptq", "hf_quant_config.json": "modelopt"}


def quantization(folder: Path, config: HFConfig) -> HFConfig | None:
    """How the weights are stored, where not in floating point: `quantization_config`, or a file of its own."""
    for key in ("quantization_config", "compression_config"):
        if found := config.get(key):
            if not isinstance(found, dict):
                refuse(config, key, "it must be an object or null")
            size = found.get("group_size")
            if size is not None and not isinstance(size, int):
                raise ConfigError(f"config.json: {key}.group_size = {size!r} is not supported (it must be a number)")
            return found
    for name, method in OLDER.items():
        if (folder / name).is_file():
            said = read_json(folder / name)
            if method == "modelopt":
                said = said.get("quantization")
            if not isinstance(said, dict):
                raise ConfigError(f"{folder / name}: quantization must be an object, got {said!r}")
            return {"quant_method": method, **said}
    return None


def read_json(path: Path) -> HFConfig:
    """The object that a file holds. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as text ({error})") from None
    return _object(text, str(path))


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
        sources.append(read_json(generation))
    ids: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, int) for one in ids):
            refuse(source, "eos_token_id", "it must be a number or a list of numbers")
    return tuple(dict.fromkeys(ids))


# generation_config.json has more, which nobody means when they say how a model should be sampled.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling(folder: Path) -> dict[str, float]:
    """What generation_config.json says of sampling, in our words; nothing where it decodes greedily.

    Raises ConfigError for what is no such setting.
    """
    file = folder / "generation_config.json"
    said = read_json(file) if file.is_file() else {}
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
    if not isinstance(length := config[key], int):
        refuse(config, key, "it must be a whole number")
    scaling = _scaling(config)
    factor = float(scaling.get("factor") or 1)
    match _kind(scaling):
        case "linear" | "dynamic" if key == "max_position_embeddings":  # the other keys name the final length
            return int(length * factor)
        case "yarn":  # some files give the length before, some after
            return max(length, int((scaling.get("original_max_position_embeddings") or length) * factor))
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
    if kind in ("linear", "dynamic", "llama3", "yarn") and not scaling.get("factor"):
        raise ConfigError(f"config.json: factor is missing (rope_type = {kind!r} needs it)")
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
