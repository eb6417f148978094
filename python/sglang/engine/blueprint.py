"""What a configuration and a model's folder say, before anything is loaded: which model, in what type, how long."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.layers.linear import bfloat16_arithmetic
from sglang.models import config as hf
from sglang.models import foreign, sentences
from sglang.models.checkpoint import folder_of
from sglang.models.quantized import Format, chosen
from sglang.models.spec import FAMILIES, Decoder, Family, Pooling, check, headless

DTYPES = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Blueprint:
    """raw: config.json. pooling: of a model that makes vectors. kind, form: of `chosen`. context: longest sequence."""

    folder: Path
    raw: hf.HFConfig
    family: Family
    spec: Decoder
    pooling: Pooling | None
    kind: str
    form: Format | None
    dtype: torch.dtype
    context: int

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Raises ConfigError."""
        return hf.eos_ids(self.folder, self.raw)


def load_foreign(config: ServerConfig, device: torch.device) -> tuple[foreign.Foreign, Blueprint] | None:
    """A model that transformers' code computes, where --model-impl wants one; None: one of ours. Raises ConfigError."""
    if config.model_impl == "sglang":
        return None
    folder, raw = _read(config)
    if config.model_impl == "auto" and (_known(raw) or not foreign.known(raw)):
        return None
    for flag, value in (("--is-embedding", config.is_embedding), ("--quantization", config.quantization)):
        if value:
            raise ConfigError(f"{flag} is not supported by --model-impl transformers")
    dtype, context = _dtype(config.dtype, raw, device, False), config.context_length or hf.context_length(raw)
    model = foreign.load(folder, raw, config.load_format, device, dtype)
    family = Family(tuple(raw["architectures"]), lambda _: model.spec)
    return model, Blueprint(folder, raw, family, model.spec, None, "none", None, dtype, context)


def _read(config: ServerConfig) -> tuple[Path, hf.HFConfig]:
    pickled = config.load_format == "pt"
    folder = folder_of(config.model_path, config.revision, config.download_dir, pickled)
    return folder, hf.read(folder, config.json_model_override_args)


def _known(raw: hf.HFConfig) -> bool:
    try:
        _family(raw, False)
    except ConfigError:
        return False
    return True


def draw_up(config: ServerConfig, device: torch.device) -> Blueprint:
    """Of a model of ours. Raises ConfigError for what cannot be."""
    folder, raw = _read(config)
    family, embeds = _family(raw, config.is_embedding)
    raw = family.defaults | raw
    spec = _spec(family, raw)
    pooling = None
    if embeds or not spec.has_head:
        spec, family = replace(spec, has_head=False, tied=True), headless(family)
        pooling = sentences.pooling(folder, raw, spec.causal)
    elif not spec.causal:
        hf.refuse(raw, "is_causal", "only --is-embedding serves it")
    kind, form = chosen(hf.quantization(folder, raw), config.quantization, device.type, family.formats)
    dtype = _dtype(config.dtype, raw, device, form is not None)
    context = config.context_length or spec.context or hf.context_length(raw)
    return Blueprint(folder, raw, family, spec, pooling, kind, form, dtype, context)


def _family(raw: hf.HFConfig, embeds: bool) -> tuple[Family, bool]:
    """Of the first architecture that is known; and whether it, or `embeds`, says that there is no head to generate."""
    import sglang.models.families  # noqa: F401 - fills the registry

    names = raw.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name], embeds
        if name.endswith("Model") and (whole := name.removesuffix("Model") + "ForCausalLM") in FAMILIES:
            return FAMILIES[whole], True
    raise ConfigError(f"Unsupported architectures: {names}. Supported list: {sorted(FAMILIES)}")


def _spec(family: Family, raw: hf.HFConfig) -> Decoder:
    name = raw["architectures"][0]
    try:
        spec = family.build(raw)
    except KeyError as error:
        raise ConfigError(f"config.json: {error} is missing ({name} needs it)") from None
    except (TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"config.json: a value has the wrong type for {name} ({error})") from None
    try:
        check(spec)
    except ValueError as error:
        raise ConfigError(f"config.json: {error}") from None
    except (TypeError, LookupError) as error:
        raise ConfigError(f"config.json: a list of {name}'s layers is none, or too short ({error})") from None
    return spec


def _dtype(flag: str, raw: hf.HFConfig, device: torch.device, few: bool) -> torch.dtype:
    """few: weights come in few bits, so that the saved type is only that of their scales."""
    if flag != "auto":
        return DTYPES[flag]
    saved = str(raw.get("torch_dtype") or raw.get("dtype") or "float32").removeprefix("torch.")
    dtype = DTYPES.get(saved, torch.float32)
    if device.type == "cuda":
        return torch.float16 if dtype == torch.float32 else dtype
    # A CPU without arithmetic for a 16-bit type is several times slower in it than in float32.
    if (dtype == torch.bfloat16 or (few and dtype == torch.float16)) and bfloat16_arithmetic():
        return torch.bfloat16
    return torch.float32
