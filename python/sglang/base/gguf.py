"""The header of a GGUF file: metadata, and where tensors lie. Every length in it is checked against the file."""

import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sglang.base.errors import ConfigError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
MOST = 2**31  # of anything a header counts; more is a broken file
DEEPEST = 4  # lists in lists


@dataclass(frozen=True)
class Stored:
    """kind: the file's number of a type; shape: as torch has it, slowest first; start: byte in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Header:
    """keys: metadata, in the file's words; tensors: by the file's names."""

    keys: dict[str, Any]
    tensors: dict[str, Stored]
    bytes: int  # of the whole file

    @property
    def architecture(self) -> str:
        return str(self.keys.get("general.architecture"))


class _Bytes:
    """What is read from the start of a file on; struct.error at its end."""

    def __init__(self, raw: mmap.mmap):
        self.raw, self.at = raw, 0

    def one(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.raw, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def count(self) -> int:
        value = self.one("Q")
        if value > MOST:
            raise struct.error(f"a count of {value}")
        return value

    def text(self) -> str:
        size = self.count()
        found = self.raw[self.at : self.at + size]
        if len(found) != size:
            raise struct.error("a text ends beyond the file")
        self.at += size
        return found.decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST and depth < DEEPEST:
            of, count = self.one("I"), self.count()
            if of in SCALARS:
                size = struct.calcsize("<" + SCALARS[of]) * count
                if self.at + size > len(self.raw):
                    raise struct.error("a list ends beyond the file")
                found = struct.unpack_from(f"<{count}{SCALARS[of]}", self.raw, self.at)
                self.at += size
                return list(found)
            return [self.value(of, depth + 1) for _ in range(count)]
        if kind not in SCALARS:
            raise struct.error(f"metadata of type {kind}")
        return self.one(SCALARS[kind])


def header(path: Path) -> Header:
    """Raises ConfigError for what is no GGUF file of version 2 or 3, or is cut off in its header."""
    try:
        return _header(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, struct.error) as error:
        raise ConfigError(f"{path}: not a readable GGUF file ({error})") from None


@lru_cache(maxsize=2)
def _header(path: Path, written: int) -> Header:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        if raw[:4] != b"GGUF":
            raise struct.error("it does not begin with GGUF")
        given = _Bytes(raw)
        given.at = 4
        version = given.one("I")
        if version not in (2, 3):
            raise struct.error(f"version {version}; known: 2, 3")
        tensors, keys = given.count(), given.count()
        metadata = {given.text(): given.value(given.one("I")) for _ in range(keys)}
        found = [_tensor(given) for _ in range(tensors)]
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            raise struct.error(f"general.alignment = {align!r}")
        base = -(-given.at // align) * align
        placed = {name: Stored(kind, shape, base + offset) for name, kind, shape, offset in found}
        return Header(metadata, placed, len(raw))


def _tensor(given: _Bytes) -> tuple[str, int, tuple[int, ...], int]:
    name = given.text()
    dims = [given.count() for _ in range(given.one("I"))]
    return name, given.one("I"), tuple(reversed(dims)), given.one("Q")
