"""What steps were met, remembered from one start to the next: that is what is prepared first.

One small file for each combination of model, flags, versions and device, in the user's cache folder. It is advice: what
cannot be read is ignored, and what is wrong costs a preparation that nobody needed.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec
import torch

from sglang.base.config import ServerConfig

log = logging.getLogger("sglang.engine")
MOST = 256  # that are remembered of each kind
MOST_FILES = 64
MOST_BYTES = 1 << 20
Met = tuple[int, ...]
# What decides which steps there are, and which of them are alike.
FLAGS = (
    "model_path", "revision", "load_format", "dtype", "quantization", "kv_cache_dtype", "context_length", "page_size",
    "max_running_requests", "chunked_prefill_size", "cuda_graph_max_bs", "attention_backend", "disable_flashinfer",
    "disable_cascade_attention", "disable_radix_cache",
)  # fmt: skip


class _File(msgspec.Struct):
    of: dict[str, str]
    met: dict[str, list[Met]]


class Seen:
    """kind: what was met, as "decodes"; met: numbers that say which. Those of this run come first."""

    def __init__(self, of: dict[str, str] | None = None, folder: Path | None = None):
        """of: what the file is for. None: nothing is read or written."""
        self._of = of or {}
        self._path: Path | None = None
        self._now: dict[str, dict[Met, None]] = {}  # a set that keeps its order
        self._before: dict[str, list[Met]] = {}
        self._saved = True
        if of is not None:
            key = hashlib.sha256(msgspec.json.encode(of, order="sorted")).hexdigest()[:16]
            self._path = (folder or _folder()) / f"{key}.json"
            self._before = _read(self._path, of)

    def note(self, kind: str, met: Met) -> None:
        now = self._now.setdefault(kind, {})
        if met not in now and len(now) < MOST:
            now[met] = None
            self._saved = False

    def know(self, kind: str, one: Met) -> None:
        """What was found out and need not be again, in place of what was known of that kind."""
        self._before[kind] = [one]

    def begin(self) -> None:
        """What was noted so far was not asked for by anybody."""
        self._now, self._saved = {}, True

    def first(self, kind: str) -> list[Met]:
        """What to prepare first."""
        return list(dict.fromkeys((*self._now.get(kind, ()), *self._before.get(kind, ()))))[:MOST]

    def save(self) -> None:
        """Write the file if there is news."""
        if self._saved or self._path is None:
            return
        self._saved = True
        kinds = {**self._before, **self._now}
        content = _File(self._of, {kind: [tuple(map(int, met)) for met in self.first(kind)] for kind in kinds})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as new:
                new.write(msgspec.json.encode(content))
            os.replace(new.name, self._path)
            _prune(self._path.parent)
        except OSError as error:
            log.warning("What steps were met is not remembered: %s", error)
            self._path = None


def describe(config: ServerConfig, device: torch.device) -> dict[str, str]:
    """For `Seen`."""
    found = {name: str(getattr(config, name)) for name in FLAGS}
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for package in ("sglang", "torch", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sglang", "steps")


def _read(path: Path, of: dict[str, str]) -> dict[str, list[Met]]:
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(MOST_BYTES), type=_File)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        log.info("%s says nothing about earlier runs: %s", path, error)
        return {}
    return {kind: met[:MOST] for kind, met in found.met.items()} if found.of == of else {}


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MOST_FILES]:
        file.unlink(missing_ok=True)
