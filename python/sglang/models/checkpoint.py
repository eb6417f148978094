"""Files -> parameters: which files, which tensor goes where, and what is wrong with them.

Every tensor is checked against its place (name, shape) from the files' headers before anything is read, so a wrong
checkpoint stops the start within seconds.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from sglang.base.errors import ConfigError
from sglang.models import gguf, grok1
from sglang.models.decoder import Model
from sglang.models.layout import Cut, Names, Packed
from sglang.models.quantized import Takers, kept, takers
from sglang.models.shards import check_ranks, joined, rank_of
from sglang.models.spec import Decoder, Family
from sglang.quant.base import Grid, Mxfp4
from sglang.quant.blocks import BLOCKS
from sglang.quant.formats import INTEGERS, KV_SCALES, NARROW, WORDS, Format
from sglang.quant.rounding import dummy, dummy_group
from sglang.quant.stacked import planned_bytes

PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {"U8": torch.uint8}  # types of tensors that are no numbers by themselves
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def folder_of(model_path: str, revision: str | None, download_dir: str | None, pickled: bool = False) -> Path:
    """The local folder of a model: the path itself, or a hub download; a .gguf file stands for one.

    Raises ConfigError.
    """
    path = Path(model_path).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.is_absolute() or model_path.startswith(".") or model_path.count("/") != 1:
        raise ConfigError(f"--model-path {model_path}: no such folder (and not a hub id such as org/name)")
    from huggingface_hub import snapshot_download

    wanted = HUB_FILES + (["*.bin"] if pickled else [])
    try:
        return Path(snapshot_download(model_path, revision=revision, cache_dir=download_dir, allow_patterns=wanted))
    except Exception as error:  # the hub's own errors share no base class with the network's
        raise ConfigError(f"--model-path {model_path}: not a folder, and the hub says: {error}") from None


@dataclass(frozen=True)
class _Job:
    """Tensors of the files that fill places: one and one, or what a `Packed` makes of them.

    module: whose weight in few bits the sources are.
    """

    sources: tuple[tuple[Path, str], ...]
    places: tuple[str, ...]
    cut: Cut
    module: str | None = None

    def parts(self, found: Sequence[Tensor], targets: Sequence[Tensor], spec: Decoder) -> Sequence[Tensor | Mxfp4]:
        return self.cut(found, [t.shape for t in targets], spec)

    def grids(self, found: Sequence[Tensor], targets: Sequence[Tensor], spec: Decoder, form: Format) -> list[Grid]:
        """The weights for the places. Raises ConfigError."""
        assert self.module is not None
        start = len(self.module) + 1
        try:
            grid = form.read(self.module, {name[start:]: t for (_, name), t in zip(self.sources, found, strict=True)})
        except ValueError as error:
            raise ConfigError(f"{self.sources[0][0].name}: {self.module}: {error}") from None
        if self.cut is _whole:
            return [grid]
        return [grid.rows(index) for index in self._rows(grid.shape[0], targets, spec)]

    def _rows(self, rows: int, targets: Sequence[Tensor], spec: Decoder) -> list[Tensor]:
        """Which rows go to each place, found by cutting their numbers; weights that are cut otherwise are refused."""
        numbers = torch.arange(2 * rows).view(rows, 2)
        try:
            found = self.cut([numbers], [torch.Size((t.shape[0], 2)) for t in targets], spec)
            parts = [part for part in found if isinstance(part, Tensor)]
        except (RuntimeError, IndexError, ValueError):
            parts = []
        if len(parts) != len(targets) or any(p.shape[1:] != (2,) or (p[:, 1] != p[:, 0] + 1).any() for p in parts):
            raise ConfigError(f"{self.sources[0][0].name}: {self.module} is laid out in a way not read in few bits")
        return [part[:, 0] // 2 for part in parts]


def load(
    model: Model, family: Family, folder: Path, load_format: str, progress: bool = True, form: Format | None = None
) -> None:
    """Fill all places of `model` from the files in `folder`. Raises ConfigError naming file and tensor.

    form: how weights in few bits are stored, where some are.
    """
    places = model.places()
    takes = takers(model)
    if load_format == "dummy":
        _fill_dummy(places, takes, model.spec.norm == "rms+1", _dummy_kinds(model, form))
        model.finish()
        return
    jobs = _jobs(weight_files(folder, load_format), places, model.spec, family, folder, form)
    total = sum(t.numel() * t.element_size() for t in places.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress or total < 2**26) as bar:
        for job, found in _read(jobs):
            targets = [places[place] for place in job.places]
            if job.module is not None or found[0].dtype in CODES.values():
                found = [t.to(model.device) for t in found]  # which takes words of few bits apart faster than the host
            if job.module is None:
                parts = job.parts(found, targets, model.spec)
            else:
                assert form is not None
                parts = job.grids(found, targets, model.spec, form)
            for place, target, part in zip(job.places, targets, parts, strict=True):
                if place in takes:
                    takes[place](part)
                else:
                    target.copy_(part if isinstance(part, Tensor) else part.dense())
                bar.update(target.numel() * target.element_size())
    places.clear()
    model.finish()


def stored_bytes(
    model: Model, family: Family, folder: Path, load_format: str, form: Format | None = None
) -> dict[str, float]:
    """What each place takes, from the files' headers alone: maps in few bits as they are stored, experts as they are
    kept, the rest in the model's type. Every name and shape is checked. Raises ConfigError.

    model: of which `quantize` has made what it will be.
    """
    places, takes, experts, width = model.places(), takers(model), kept(model), model.dtype.itemsize
    found = {place: float(t.numel() * width) for place, t in places.items()}

    def stays(place: str, kind: str, groups: int) -> float:
        rows, inputs = places[place].shape
        return planned_bytes(rows, inputs, width, kind, groups)

    if load_format == "dummy":
        for place, kind in _dummy_kinds(model, form).items():
            size, inputs = dummy_group(places[place].shape[1]), places[place].shape[1]
            if kind not in ("int4", "mxfp4"):
                found[place] /= width  # to a byte each
            elif size is not None:
                found[place] = stays(place, kind, inputs // size)
        return found
    files = weight_files(folder, load_format)
    headers = {(file, name): (shape, dtype) for file, name, shape, dtype in _headers(files)}
    for job in _jobs(files, places, model.spec, family, folder, form):
        taken = [place for place in job.places if place in takes]
        if job.module is None:
            if headers[job.sources[0]][1] in CODES:
                found |= {place: stays(place, "mxfp4", 0) for place in taken}
            continue
        assert form is not None
        few = {name[len(job.module) + 1 :]: headers[file, name][0] for file, name in job.sources}
        stored = sum(math.prod(shape) * _width(dtype) for shape, dtype in map(headers.__getitem__, job.sources))
        whole = sum(found[place] for place in job.places)
        for place in taken:
            if place in experts and form.kind == "int4":
                found[place] = stays(place, "int4", form.groups(job.module, few))
            else:
                found[place] *= stored / whole
    return found


def _dummy_kinds(model: Model, form: Format | None) -> dict[str, str]:
    """Place -> in what few bits a checkpoint would hold it."""
    found = {} if form is None else {place: form.kind for place in takers(model) if not place.startswith("head.")}
    return found | {place: stacked.files for place, stacked in kept(model).items() if stacked.files is not None}


def _width(dtype: str) -> float:
    """Bytes of one number of a type in safetensors' words, or torch's: F8_E4M3, I32, torch.int32."""
    bits = re.search(r"(?<=[A-Za-z])\d+", dtype)
    return int(bits[0]) / 8 if bits else 1


def _jobs(
    files: list[Path], places: dict[str, Tensor], spec: Decoder, family: Family, folder: Path, form: Format | None
) -> list[_Job]:
    """What to read for each place, every name and shape checked. Raises ConfigError."""
    if files[0].suffix == ".gguf":
        family = gguf.named(files[0], family)
    headers: dict[str, Header] = {}
    pieces: dict[str, list[Path]] = {}  # of tensors that were cut for ranks: their files
    check_ranks(files, folder)
    for file, name, shape, dtype in _headers(files):
        if rank_of(file) is not None:
            pieces.setdefault(name, []).append(file)
            headers.setdefault(name, (file, shape, dtype))
            if headers[name][1:] != (shape, dtype):
                raise ConfigError(f"{file.name}: {name} has shape {list(shape)}, in {headers[name][0].name} another")
            continue
        if name in headers:
            raise ConfigError(f"{file.name}: {name} is also in {headers[name][0].name}")
        headers[name] = file, shape, dtype
    modules = {} if form is None else _modules(headers, form)
    jobs: list[_Job] = []
    filled: dict[str, str] = {}  # place -> tensor
    unexpected: list[str] = []
    second = {packed.beside[1] for packed in family.names.values() if isinstance(packed, Packed) and packed.beside}
    for name, (file, _, dtype) in headers.items():
        if name.endswith(tuple(second)):
            continue  # read with the tensor it belongs to
        job = _job(name, places, family.names)
        if job is None:
            if not _passed_over(name, spec, family) and not (form is not None and _idle(name, file, modules)):
                unexpected.append(f"{file.name}: {name}")
            continue
        wanted, cut, beside = job
        names = [name]
        if beside is not None:
            names.append(name.removesuffix(beside[0]) + beside[1])
            if names[1] not in headers:
                raise ConfigError(f"{folder}: 1 tensors are missing: {names[1]}")
        elif dtype not in PLAIN and name not in modules:
            raise ConfigError(f"{file.name}: {name} has type {dtype}; known: {', '.join(PLAIN)}")
        module = name.removesuffix(".weight") if name in modules else None
        made = _Job(modules.get(name) or tuple((headers[n][0], n) for n in names), wanted, cut, module)
        if len(files_of := pieces.get(name, [])) > 1:
            if module is not None or beside is not None:
                raise ConfigError(f"{file.name}: {name} is cut for ranks, and not in floating point")
            made = _Job(tuple((one, name) for one in files_of), wanted, joined(cut))
            names = names * len(files_of)
        targets = [places[place] for place in wanted]
        _check_shapes(made, [headers[n][1:] for n in names], targets, spec)
        for place in wanted:
            if place in filled:
                raise ConfigError(f"{file.name}: {name} and {filled[place]} are the same weight")
            filled[place] = name
        jobs.append(made)
    if unexpected:
        raise ConfigError(f"{folder}: {len(unexpected)} unexpected tensors: {_some(unexpected)}")
    if missing := list(dict.fromkeys(name_of(place, family.names) for place in places if place not in filled)):
        raise ConfigError(f"{folder}: {len(missing)} tensors are missing: {_some(missing)}")
    return jobs


def _modules(headers: "dict[str, Header]", form: Format) -> dict[str, tuple[tuple[Path, str], ...]]:
    """Replace the tensors of each weight in few bits by one header, as it would be in floating point.

    Returns that header's name -> the tensors. Raises ConfigError.
    """
    found: dict[str, tuple[tuple[Path, str], ...]] = {}
    for name in [n for n in headers if n.rpartition(".")[2] in form.marks]:
        file, _, dtype = headers[name]
        module, _, mark = name.rpartition(".")
        if mark == "weight" and dtype not in NARROW:
            continue
        parts = {part: headers.pop(n) for part in form.parts if (n := f"{module}.{part}") in headers}
        for part, header in parts.items():
            known = (*PLAIN, *NARROW)
            if part in WORDS or part in INTEGERS or part in BLOCKS:
                known = ("U8",) if part in BLOCKS else ("I32",) if part in WORDS else ("I32", "I64", "I8")
            if header[2] not in known:
                raise ConfigError(f"{header[0].name}: {module}.{part} has type {header[2]}; known: {', '.join(known)}")
        if len(parts[mark][1]) != 2:
            raise ConfigError(f"{file.name}: {name} has shape {list(parts[mark][1])}, not two dimensions")
        if lacking := [part for part in form.needed if part not in parts]:
            raise ConfigError(f"{file.name}: {name} lacks {module}.{lacking[0]} ({form.name})")
        try:
            shape = form.shape(module, {part: header[1] for part, header in parts.items()})
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{file.name}: {module}: {error} ({form.name})") from None
        headers[f"{module}.weight"] = file, shape, "F32"
        found[f"{module}.weight"] = tuple((header[0], f"{module}.{part}") for part, header in parts.items())
    return found


def _check_shapes(job: _Job, found: list[tuple[tuple[int, ...], str]], targets: list[Tensor], spec: Decoder) -> None:
    """Do with empty tensors what will be done with the real ones."""
    file, name = job.sources[0]
    wanted = [tuple(t.shape) for t in targets]
    empty = [torch.empty(shape, dtype=(PLAIN | CODES).get(dtype), device="meta") for shape, dtype in found]
    try:
        got = [tuple(part.shape) for part in job.parts(empty, targets, spec)]
    except (RuntimeError, IndexError, ValueError):
        got = []
    if got != wanted:
        asked = list(wanted[0]) if len(set(wanted)) == 1 else " and ".join(str(list(w)) for w in wanted)
        more = f" {len(wanted)} times" if len(wanted) > 1 and len(set(wanted)) == 1 else ""
        raise ConfigError(f"{file.name}: {name} has shape {list(found[0][0])}, the config asks for {asked}{more}")


def _passed_over(name: str, spec: Decoder, family: Family) -> bool:
    """Whether a tensor without a place is none of ours."""
    starts = tuple(i.removesuffix("*") for i in family.ignored if i.endswith("*"))
    ends = tuple(i for i in family.ignored if not i.endswith("*"))
    if (starts and name.startswith(starts)) or (ends and name.endswith(ends)):
        return True
    number = re.search(r"\.layers\.(\d+)\.", name)
    if number is not None and spec.layers <= int(number.group(1)) < spec.layers + spec.spare_layers:
        return True
    place = place_of(name, family.names)
    return spec.tied and isinstance(place, str) and place.startswith("head.")


def _idle(name: str, file: Path, modules: Mapping[str, object]) -> bool:
    """Whether a tensor of a checkpoint in few bits changes nothing: a scale of keys or values, or a bias of zeros."""
    if name.rpartition(".")[2] in KV_SCALES:
        return True
    if not name.endswith(".bias") or name.removesuffix(".bias") + ".weight" not in modules:
        return False
    if file.suffix != ".safetensors":
        return not _pickled(file)[name].any()
    with safe_open(file, framework="pt") as opened:
        return not opened.get_tensor(name).any()


def _job(
    name: str, places: Mapping[str, object], names: Names
) -> tuple[tuple[str, ...], Cut, tuple[str, str] | None] | None:
    """Places of a checkpoint's tensor, all of which must be there; None where it has none."""
    place = place_of(name, names)
    if isinstance(place, str):
        return ((place,), _whole, None) if place in places else None
    if place is None:
        return None
    found = [one for pattern in place.places for one in _expanded(pattern, places)]
    return (tuple(found), place.cut, place.beside) if found and all(p in places for p in found) else None


def _expanded(pattern: str, places: Mapping[str, object]) -> list[str]:
    if "*" not in pattern:
        return [pattern]
    listed = []
    while (one := pattern.replace("*", str(len(listed)))) in places:
        listed.append(one)
    return listed


def _whole(found: Sequence[Tensor], shapes: Sequence[torch.Size], spec: Decoder) -> Sequence[Tensor]:
    return found


NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def place_of(name: str, names: Names) -> str | Packed | None:
    """Where a checkpoint's tensor goes; None where the family has no such tensor. Stars of experts stay."""
    numbers = NUMBER.findall(name)
    pattern = NUMBER.sub("*", name)
    for suffix in ("", ".weight", ".bias"):
        if suffix and not pattern.endswith(suffix):
            continue
        place = names.get(pattern.removesuffix(suffix) if suffix else pattern)
        if isinstance(place, Packed):
            return replace(place, places=tuple(_numbered(one, numbers) + suffix for one in place.places))
        if place is not None:
            return _numbered(place, numbers) + suffix
    return None


def _numbered(pattern: str, numbers: Sequence[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def name_of(place: str, names: Names) -> str:
    """What a checkpoint calls the tensor of a place: `place_of` backwards."""
    numbers = NUMBER.findall(place)
    pattern = NUMBER.sub("*", place)
    for name, packed in reversed(names.items()):  # a family's own come after those it took over
        for target in (packed,) if isinstance(packed, str) else packed.places:
            if pattern in (target, target + ".weight", target + ".bias"):
                return _numbered(name, numbers) + pattern[len(target) :]
    raise AssertionError(f"no checkpoint name leads to {place}")


def weight_files(folder: Path, load_format: str) -> list[Path]:
    """The weight files, indexed ones first. Raises ConfigError where there are none, or one is missing."""
    if folder.is_file() and load_format in ("auto", "gguf"):
        return [folder]
    if folder.is_file() or load_format == "gguf":
        raise ConfigError(f"--load-format {load_format} does not read {folder}; leave it at auto")
    if load_format in ("auto", "safetensors"):
        found = _indexed(folder, "model.safetensors.index.json")
        if not found:
            whole = folder / "model.safetensors"  # beside it the same weights may lie under other names
            found = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
        if found:
            return found
        if load_format == "safetensors":
            raise ConfigError(f"{folder}: no *.safetensors there (--load-format safetensors)")
    if (first := grok1.first_of(folder)) is not None:
        return [first]
    found = _indexed(folder, "pytorch_model.bin.index.json") or sorted(folder.glob("pytorch_model*.bin"))
    found = found or sorted(file for file in folder.glob("*.bin") if rank_of(file) is not None)
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


def _reader(file: Path) -> ModuleType | None:
    """Of a file that stands for a whole checkpoint of a format of its own."""
    return gguf if file.suffix == ".gguf" else grok1 if file.name == grok1.FIRST else None


Header = tuple[Path, tuple[int, ...], str]  # file, shape, type in safetensors' words


def _headers(files: list[Path]) -> Iterator[tuple[Path, str, tuple[int, ...], str]]:
    """File, name, shape and safetensors' word for the type of every tensor."""
    words = {dtype: word for word, dtype in PLAIN.items()}
    for file in files:
        if (reader := _reader(file)) is not None:
            for name, shape, word in reader.headers(file):
                yield file, name, shape, word
            continue
        if file.suffix != ".safetensors":
            for name, tensor in _pickled(file).items():
                yield file, name, tuple(tensor.shape), words.get(tensor.dtype, str(tensor.dtype))
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    header = opened.get_slice(name)
                    yield file, name, tuple(header.get_shape()), header.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: not a readable safetensors file ({error})") from None


def _read(jobs: list[_Job]) -> Iterator[tuple[_Job, list[Tensor]]]:
    """The tensors of each job, file after file."""
    opened: dict[Path, Callable[[str], Tensor]] = {}
    first = {path: at for at, path in enumerate(dict.fromkeys(job.sources[0][0] for job in jobs))}
    with ExitStack() as stack:
        for job in sorted(jobs, key=lambda job: first[job.sources[0][0]]):
            for file, _ in job.sources:
                if file not in opened and file.suffix == ".safetensors":
                    opened[file] = stack.enter_context(safe_open(file, framework="pt")).get_tensor
                elif file not in opened and (reader := _reader(file)) is not None:
                    opened[file] = partial(reader.tensor, file)
                elif file not in opened:
                    opened[file] = _pickled(file).__getitem__
            yield job, [opened[file](name) for file, name in job.sources]


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises whatever unpickling raises
        raise ConfigError(f"{file}: not loadable as plain weights ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConfigError(f"{file}: not a table of tensors")
    return found


def _fill_dummy(places: dict[str, Tensor], takes: Takers, plus_one: bool, kinds: Mapping[str, str]) -> None:
    """Random weights of a trained model's scale: norms 1, maps N(0, 1 / fan-in), embeddings N(0, 0.02).

    kinds: where the checkpoint would hold few bits, they have as many.
    """
    device = next(iter(places.values())).device
    generator = torch.Generator(device).manual_seed(0)
    for place, tensor in places.items():
        if tensor.dim() == 1:
            tensor.fill_(0.0 if place.endswith(".bias") or plus_one else 1.0)
        else:
            std = 0.02 if place in ("embed.weight", "positions.weight") else tensor.shape[1] ** -0.5
            taker = takes.get(place)
            whole = tensor if taker is None else torch.empty_like(tensor, device=device)
            whole.normal_(0.0, std, generator=generator)
            if taker is not None:
                taker(dummy(whole, kinds[place]) if place in kinds else whole)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
