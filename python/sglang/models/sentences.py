"""The files of a sentence-transformers folder: how a text becomes tokens, and their states one vector.

Served is what `SentenceTransformer(folder).encode(texts)` of version 6 gives; where it is not, the start is refused.
"""

import json
from pathlib import Path, PurePath
from typing import Literal, NoReturn

from sglang.base.errors import ConfigError
from sglang.base.messages import Side
from sglang.models import gguf
from sglang.models.config import read_json
from sglang.models.spec import HFConfig, Pooling

# By every name that the library has for its own: `models` until 5.3, the file that it is in since then.
TYPES = {
    f"sentence_transformers.{place}.{kind}": kind
    for kind, places in {
        "Transformer": ("base.modules", "base.modules.transformer", "sentence_transformer.modules"),
        "Pooling": ("sentence_transformer.modules", "sentence_transformer.modules.pooling"),
        "Normalize": ("base.modules", "base.modules.normalize", "sentence_transformer.modules"),
    }.items()
    for place in ("models", f"models.{kind}", *places)
}
POOLINGS: dict[str, Literal["last", "first", "mean"]] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "first",
    "mean": "mean",
    "lasttoken": "last",
}


def pooling(folder: Path, config: HFConfig, causal: bool) -> Pooling:
    """config: config.json as it is heeded. Raises ConfigError.

    Without modules.json: the last token's state of a model that reads forward, the mean where it sees both ways; of
    length 1.
    """
    usual = "last" if causal else "mean"
    if folder.is_file():
        return gguf.pooling(folder, usual)
    if not (folder / "modules.json").is_file():
        return Pooling(usual)
    if (file := folder / "adapter_config.json").is_file():
        raise ConfigError(f"{file}: adapters are not supported beside sentence-transformers files; merge it first")
    paths = _modules(folder / "modules.json")
    if "Normalize" in paths:
        file, own = folder / paths["Normalize"] / "config.json", "sentence_embedding"
        _heed(file, _read(file), {"module_input_name": (own,), "module_output_name": (own, None)}, others=True)
    file = folder / paths["Pooling"] / "config.json"
    said = read_json(file)
    _heed(file, said, POOLING)
    modes = said.get("pooling_mode") or [key for key, on in said.items() if key.startswith("pooling_mode_") and on]
    modes = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        known = ", ".join(key for key in POOLINGS if "_" in key)
        raise ConfigError(f"{file}: pooling by {' and '.join(modes) or 'nothing'} is not supported; known: {known}")
    name, prompt = _prompt(folder / "config_sentence_transformers.json")
    if prompt and not said.get("include_prompt", True):
        _refuse(file, "include_prompt", said["include_prompt"], f"not with default_prompt_name = {name!r}")
    most, side, lower = _texts(folder, config)
    return Pooling(POOLINGS[modes[0]], "Normalize" in paths, most, side, lower, prompt)


def _modules(file: Path) -> dict[str, str]:
    """Kind of a module -> its folder, within the model's."""
    try:
        entries: list[HFConfig] = json.loads(file.read_text("utf-8"))
        listed = [(str(one["type"]), str(one["path"])) for one in entries]
        names = [str(one["name"]) for one in entries if "name" in one]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: not a list of modules ({error!r})") from None
    for kind, path in listed:
        if kind not in TYPES:
            _refuse(file, "type", kind, "known: Transformer, Pooling and Normalize of sentence_transformers.models")
        if PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            _refuse(file, "path", path, "it must be inside the model's folder")
    if len(set(names)) < len(names):
        _refuse(file, "name", names, "each must be another: the library keeps the last one of a name")
    found = {TYPES[kind]: path for kind, path in listed}
    order = ["Transformer", "Pooling", "Normalize"]
    if (kinds := [TYPES[kind] for kind, _ in listed]) not in (order[:2], order):
        _refuse(file, "type", kinds, f"known: {order[:2]} and {order}, in this order")
    if found["Transformer"]:
        _refuse(file, "path", found["Transformer"], "a Transformer's must be '', the model's folder")
    return found


def _prompt(file: Path) -> tuple[str | None, str]:
    """The default prompt's name, and what is to stand before every text."""
    said = _read(file)
    _heed(file, said, {"model_type": ("SentenceTransformer",)}, others=True)
    if (dim := said.get("truncate_dim")) is not None:
        _refuse(
            file,
            "truncate_dim",
            dim,
            "a request may say it: dimensions, which makes what is left of a vector of length 1 that long again",
        )
    name, prompts = said.get("default_prompt_name"), {"query": None, "document": None}
    prompts |= _part(file, said, ("prompts",), {}, others=True)
    if name is None:
        return None, ""
    if not isinstance(name, str) or name not in prompts:
        _refuse(file, "default_prompt_name", name, f"known: {', '.join(prompts)}")
    if not isinstance(prompts[name], str | None):
        _refuse(file, f"prompts.{name}", prompts[name], "it must be a text")
    return name, prompts[name] or ""


# Keys -> what they may say: these values, whole numbers from 1 where `int` is among them, anything where `object` is.
# `object` stands for what is read elsewhere, or changes no vector that `encode` gives of a text.
Rules = dict[str, tuple[object, ...]]
POOLING: Rules = {
    **dict.fromkeys(("word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode"), (object,)),
    **{f"pooling_mode_{mode}_tokens": (object,) for mode in ("max", "mean", "mean_sqrt_len", "weightedmean")},
    **dict.fromkeys(("pooling_mode_cls_token", "pooling_mode_lasttoken"), (object,)),
}
TRANSFORMER: Rules = {
    "max_seq_length": (int, None),
    "do_lower_case": (False, True, None),
    "transformer_task": ("feature-extraction",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "module_output_name": ("token_embeddings",),
    "tokenizer_name_or_path": (None,),
    "unpad_inputs": (object,),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), (object,)),  # for calls with a `task`
    **dict.fromkeys(("tokenizer_args", "processor_kwargs", "processing_kwargs"), (object,)),
    **dict.fromkeys(("model_args", "model_kwargs", "config_args", "config_kwargs"), (object,)),
}
PROCESSOR: Rules = {
    "model_max_length": (int,),
    "truncation_side": ("right", "left"),
    "padding_side": (object,),
    "trust_remote_code": (object,),
}
MODEL: Rules = {"attn_implementation": (object,), "trust_remote_code": (object,)}
CALL: Rules = dict.fromkeys(("text", "common", "audio", "image", "video", "chat_template"), (object,))
OF_TEXT: Rules = {"max_length": (int, None), "truncation": (True, "longest_first"), "padding": (True, "longest")}
# The first that says something counts.
FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
MANY = 2**31  # tokens: more than any model's context


def _texts(folder: Path, config: HFConfig) -> tuple[int | None, Side, bool]:
    """How many tokens of a text are read, where a longer one is cut, and whether capitals are made small first."""
    files = [folder / f"sentence_{kind}_config.json" for kind in FILES]
    file = next((one for one in files if _read(one)), files[0])
    said = _read(file)
    _heed(file, said, TRANSFORMER)
    processor = _part(file, said, ("tokenizer_args", "processor_kwargs"), PROCESSOR)
    _part(file, said, ("model_args", "model_kwargs"), MODEL)
    _part(file, said, ("config_args", "config_kwargs"), {"trust_remote_code": (object,)})
    call = _part(file, said, ("processing_kwargs",), CALL)
    text, common = (_part(file, call, (key,), OF_TEXT, "processing_kwargs.") for key in ("text", "common"))
    most = (text | common).get("max_length") or processor.get("model_max_length") or said.get("max_seq_length")
    tokenizer = _read(file := folder / "tokenizer_config.json")
    if most is None:
        limit = tokenizer.get("model_max_length", tokenizer.get("max_len"))
        if not isinstance(limit, int | float | None) or (limit is not None and not limit >= 1):
            _refuse(file, "model_max_length", limit, "it must be a number, at least 1")
        # transformers does not look for a limit of its own inside a `text_config`
        own = None if "text_config" in config else config.get("max_position_embeddings") or config.get("n_positions")
        most = min((one for one in (limit, own) if one is not None), default=MANY)
    _heed(file, tokenizer, {"truncation_side": ("right", "left", None)}, others=True)
    side = processor.get("truncation_side") or tokenizer.get("truncation_side")
    if side is None:
        cut = _read(folder / "tokenizer.json").get("truncation") or {}
        side = str(cut.get("direction", "right")).lower()
    return int(most) if most < MANY else None, "left" if side == "left" else "right", bool(said.get("do_lower_case"))


def _part(
    file: Path, said: HFConfig, keys: tuple[str, ...], rules: Rules, under: str = "", others: bool = False
) -> HFConfig:
    """The object at the first of `keys` that is there."""
    key = next((one for one in keys if one in said), keys[0])
    part = said.get(key) or {}
    if not isinstance(part, dict):
        _refuse(file, under + key, part, "it must be an object")
    _heed(file, part, rules, f"{under}{key}.", others)
    return part


def _heed(file: Path, said: HFConfig, rules: Rules, under: str = "", others: bool = False) -> None:
    """Refuse what `rules` do not allow. others: but keys that they do not name may say anything."""
    for key, value in said.items():
        rule = rules.get(key, (object,) if others else ())
        whole = type(value) is int and value > 0
        if not any(one is object or (one is int and whole) or (type(one), one) == (type(value), value) for one in rule):
            known = ["a whole number, at least 1" if one is int else repr(one) for one in rule]
            _refuse(file, under + key, value, f"known: {', '.join(known or rules)}")


def _read(file: Path) -> HFConfig:
    return read_json(file) if file.is_file() else {}


def _refuse(file: Path, key: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"{file}: {key} = {value!r} is not supported ({why})")
