"""Files -> parameters: which files, which tensor goes where, and what is wrong with them.

Every tensor is checked against its place (name, shape) from the files' headers before anything is read, so a wrong
checkpoint stops the start within seconds.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from sglang.base.errors import ConfigError
from sglang.models.decoder import Model
from sglang.models.spec import Family, Names

PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def folder_of(model_path: str, revision: str | None, download_dir: str | None, pickled: bool = False) -> Path:
    """The local folder of a model: the path itself, or a hub download. Raises ConfigError."""
    path = Path(model_path).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model_path.startswith(".") or model_path.count("/") != 1:
        raise ConfigError(f"--model-path {model_path}: no such folder (and not a hub id such as org/name)")
    from huggingface_hub import snapshot_download

    wanted = HUB_FILES + (["*.bin"] if pickled else [])
    try:
        return Path(snapshot_download(model_path, revision=revision, cache_dir=download_dir, allow_patterns=wanted))
    except Exception as error:  # the hub's own errors share no base class with the network's
        raise ConfigError(f"--model-path {model_path}: not a folder, and the hub says: {error}") from None


def load(model: Model, family: Family, folder: Path, load_format: str, progress: bool = True) -> None:
    """Fill all places of `model` from the files in `folder`. Raises ConfigError naming file and tensor."""
    places = model.places()
    if load_format == "dummy":
        _fill_dummy(places)
        model.finish()
        return
    files = _files(folder, load_format)
    target: dict[str, str] = {}  # tensor name -> place
    unexpected: list[str] = []
    source: dict[str, Path] = {}  # place -> file
    for file, name, shape in _headers(files):
        place = place_of(name, family.names)
        if place is None or place not in places:
            known_but_tied = place is not None and place.startswith("head.") and model.spec.tied
            if not known_but_tied and not name.endswith(family.ignored or ("\0",)):
                unexpected.append(f"{file.name}: {name}")
            continue
        if place in source:
            raise ConfigError(f"{file.name}: {name} is also in {source[place].name}")
        if tuple(shape) != tuple(places[place].shape):
            raise ConfigError(
                f"{file.name}: {name} has shape {list(shape)}, the config asks for {list(places[place].shape)}"
            )
        target[name] = place
        source[place] = file
    if unexpected:
        raise ConfigError(f"{folder}: {len(unexpected)} unexpected tensors: {_some(unexpected)}")
    if missing := [name_of(place, family.names) for place in places if place not in source]:
        raise ConfigError(f"{folder}: {len(missing)} tensors are missing: {_some(missing)}")
    total = sum(t.numel() * t.element_size() for t in places.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress or total < 2**26) as bar:
        for name, tensor in _tensors(files, target):
            place = places[target[name]]
            place.copy_(tensor)
            bar.update(place.numel() * place.element_size())
    places.clear()
    model.finish()


def place_of(name: str, names: Names) -> str | None:
    """The place of a checkpoint's tensor; None where the family has no such tensor."""
    pattern, number = name, None
    if (found := re.search(r"\.(\d+)\.", name)) is not None:
        number = found.group(1)
        pattern = f"{name[: found.start()]}.*.{name[found.end() :]}"
    for suffix in ("", ".weight", ".bias"):
        if suffix and not pattern.endswith(suffix):
            continue
        place = names.get(pattern.removesuffix(suffix) if suffix else pattern)
        if place is not None:
            return (place if number is None else place.replace("*", number)) + suffix
    return None


def name_of(place: str, names: Names) -> str:
    """What a checkpoint calls the tensor of a place: `place_of` backwards."""
    number = re.search(r"(?<=\.)\d+(?=\.)", place)
    pattern = place if number is None else f"{place[: number.start()]}*{place[number.end() :]}"
    for name, target in names.items():
        if pattern == target or pattern in (target + ".weight", target + ".bias"):
            return (name if number is None else name.replace("*", number.group())) + pattern[len(target) :]
    raise AssertionError(f"no checkpoint name leads to {place}")


def _files(folder: Path, load_format: str) -> list[Path]:
    """The weight files, indexed ones first. Raises ConfigError where there are none, or one is missing."""
    if load_format in ("auto", "safetensors"):
        found = _indexed(folder, "model.safetensors.index.json")
        if not found:
            whole = folder / "model.safetensors"  # beside it the same weights may lie under other names
            found = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
        if found:
            return found
        if load_format == "safetensors":
            raise ConfigError(f"{folder}: no *.safetensors there (--load-format safetensors)")
    found = _indexed(folder, "pytorch_model.bin.index.json") or sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise ConfigError(f"{folder}: no weights there; --load-format dummy serves random ones")
    return found


def _indexed(folder: Path, name: str) -> list[Path]:
    index = folder / name
    if not index.is_file():
        return []
    try:
        names = sorted({str(n) for n in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index}: not a weight index ({error!r})") from None
    for n in names:
        if Path(n).name != n or n in ("", ".", ".."):
            raise ConfigError(f"{index}: {n} is outside the model's folder")
        if not (folder / n).is_file():
            raise ConfigError(f"{index}: {n} is missing")
    return [folder / n for n in names]


def _headers(files: list[Path]) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of every tensor. Raises ConfigError for one whose values are no floating-point numbers."""
    for file in files:
        if file.suffix != ".safetensors":
            for name, tensor in _pickled(file).items():
                _check_type(file, name, tensor.dtype in PLAIN.values(), tensor.dtype)
                yield file, name, tuple(tensor.shape)
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    header = opened.get_slice(name)
                    _check_type(file, name, header.get_dtype() in PLAIN, header.get_dtype())
                    yield file, name, tuple(header.get_shape())
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: not a readable safetensors file ({error})") from None


def _check_type(file: Path, name: str, plain: bool, dtype: object) -> None:
    if not plain and not name.endswith("inv_freq"):
        raise ConfigError(f"{file.name}: {name} has type {dtype}; known: {', '.join(PLAIN)}")


def _tensors(files: list[Path], wanted: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        if file.suffix != ".safetensors":
            yield from ((name, tensor) for name, tensor in _pickled(file).items() if name in wanted)
            continue
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name in wanted:
                    yield name, opened.get_tensor(name)


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises whatever unpickling raises
        raise ConfigError(f"{file}: not loadable as plain weights ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConfigError(f"{file}: not a table of tensors")
    return found


def _fill_dummy(places: dict[str, Tensor]) -> None:
    """Random weights of a trained model's scale: norms 1, maps N(0, 1 / fan-in), embeddings N(0, 0.02)."""
    device = next(iter(places.values())).device
    generator = torch.Generator(device).manual_seed(0)
    for place, tensor in places.items():
        if tensor.dim() == 1:
            tensor.zero_() if place.endswith(".bias") else tensor.fill_(1.0)
        else:
            std = 0.02 if place == "embed" else tensor.shape[1] ** -0.5
            tensor.normal_(0.0, std, generator=generator)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
