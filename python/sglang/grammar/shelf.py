"""Automata on disk: what was compiled once need not be compiled again by the next process.

A file holds two arrays and is read as nothing else. Its name is a hash of the rules and of the sources that compile
them, so a changed compiler finds nothing old. Automata are over bytes: servers of different models may share a folder.
"""

import contextlib
import hashlib
import io
import logging
import os
import zipfile
from pathlib import Path

import msgspec
import numpy as np

from sglang.base import limits
from sglang.base.errors import ConfigError
from sglang.grammar.automaton import Automaton
from sglang.grammar.minimal import DEAD
from sglang.grammar.rules import Rules

log = logging.getLogger("sglang.grammar")

MOST_BYTES = 256 << 20  # of all files; those unused for longest go first
SUFFIX = ".npz"


class Shelf:
    """Raises ConfigError for a folder that cannot be used, or into which others may write."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES):
        self._folder = folder
        self._most = most_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = folder.stat().st_mode
        except OSError as error:
            raise ConfigError(f"--grammar-cache-dir {folder} cannot be used: {error}") from None
        if mode & 0o022:
            raise ConfigError(
                f"--grammar-cache-dir {folder} may be written by others, who could change what is allowed: chmod go-w"
            )
        sources = hashlib.blake2b(repr((limits.GRAMMAR_STATES, limits.GRAMMAR_WORK)).encode())
        for path in sorted(Path(__file__).parent.glob("*.py")):
            sources.update(path.read_bytes())
        self._sources = sources.digest()

    def find(self, rules: Rules) -> Automaton | None:
        path = self._path(rules)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = _checked(arrays["table"], arrays["accepts"])
            os.utime(path)  # used now
            return found
        except FileNotFoundError:
            return None
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            zipfile.BadZipFile,
        ) as error:  # damaged: as if it were not there
            log.warning("%s cannot be read: %s", path, error)
            return None

    def keep(self, rules: Rules, automaton: Automaton) -> None:
        """A full or broken disk is told of and harms nothing."""
        data = io.BytesIO()
        np.savez(data, table=automaton.table, accepts=automaton.accepts)
        path = self._path(rules)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            part.write_bytes(data.getbuffer())
            part.replace(path)  # whole or not at all, also for other processes
            self._tidy()
        except OSError as error:
            log.warning("A compiled constraint could not be kept in %s: %s", self._folder, error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _path(self, rules: Rules) -> Path:
        name = hashlib.blake2b(msgspec.msgpack.encode(rules), key=self._sources, digest_size=24)
        return self._folder / (name.hexdigest() + SUFFIX)

    def _tidy(self) -> None:
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.glob(f"*{SUFFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # another process tidies too
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._most:
                return
            path.unlink(missing_ok=True)
            total -= size


def _checked(table: np.ndarray, accepts: np.ndarray) -> Automaton:
    """Raises ValueError for arrays that are no automaton."""
    states = len(accepts)
    fits = table.dtype == np.int16 and accepts.dtype == np.bool_ and table.shape == (states, 256)
    if not fits or not 0 < states <= limits.GRAMMAR_STATES or table.min() < DEAD or table.max() >= states:
        raise ValueError("it holds no automaton")
    return Automaton.of(table, accepts)
