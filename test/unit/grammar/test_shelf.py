"""Automata that are kept on disk come back as they were, or not at all."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from sglang.base.errors import ConfigError
from sglang.grammar import automaton, compiler, regex
from sglang.grammar.automaton import Automaton
from sglang.grammar.compiler import Compiler
from sglang.grammar.rules import Rules
from sglang.grammar.shelf import Shelf
from sglang.grammar.vocab import Vocabulary

VOCABULARY = Vocabulary([bytes([b]) for b in range(256)] + [b"<eos>"], [256])
PATTERN = r'\{"name": "[a-zé]{1,9}", "n": (-?[1-9][0-9]*|0)\}'
RULES = Rules("regex", PATTERN)


def made(pattern: str = PATTERN) -> Automaton:
    return automaton.compile(regex.parse(pattern))


def test_what_is_found_is_what_was_kept(tmp_path: Path):
    shelf = Shelf(tmp_path / "new" / "folder")
    assert shelf.find(RULES) is None
    shelf.keep(RULES, made())
    for one in (shelf, Shelf(tmp_path / "new" / "folder")):
        found = one.find(RULES)
        assert found is not None
        for name in ("table", "accepts", "only"):
            assert np.array_equal(getattr(found, name), getattr(made(), name))
            assert getattr(found, name).dtype == getattr(made(), name).dtype
    assert shelf.find(Rules("json_schema", PATTERN)) is None
    assert shelf.find(Rules("regex", PATTERN, spaced=False)) is None


def test_another_process_does_not_compile_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Rules] = []
    prepare = compiler.prepare

    def counted(rules: Rules) -> Automaton | str:
        asked.append(rules)
        return prepare(rules)

    monkeypatch.setattr(compiler, "prepare", counted)
    recursive = Rules("json_schema", '{"type": "array", "items": {"$ref": "#"}}')
    for _ in range(2):
        one = Compiler(VOCABULARY, separate=False, shelf=Shelf(tmp_path))
        cursor = one.compile(RULES).cursor()
        cursor.feed(b'{"name": "zo\xc3\xa9", "n": -12}')
        assert cursor.finished
        one.compile(recursive)
        one.close()
    assert asked == [RULES, recursive, recursive], "what needs a stack is not kept"


def test_a_changed_compiler_finds_nothing_old(tmp_path: Path):
    shelf = Shelf(tmp_path)
    shelf.keep(RULES, made())
    shelf._sources = b"others"
    assert shelf.find(RULES) is None


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "pickle", "far", "shape"])
def test_a_damaged_file_is_no_file(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    shelf = Shelf(tmp_path)
    shelf.keep(RULES, made())
    [path] = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    table, accepts = made().table.copy(), made().accepts
    match damage:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "bit":
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        case "empty":
            path.write_bytes(b"")
        case "pickle":
            np.savez(path, table=np.array([{"a": 1}], object), accepts=accepts)
        case "far":
            table[0, 0] = len(accepts)
            np.savez(path, table=table, accepts=accepts)
        case _:
            np.savez(path, table=table[:, :255], accepts=accepts)
    assert shelf.find(RULES) is None
    assert "cannot be read" in caplog.text
    shelf.keep(RULES, made())
    assert shelf.find(RULES) is not None


def test_what_was_unused_for_longest_makes_room(tmp_path: Path):
    rules = [Rules("regex", f"[a-z]{{{n}}}") for n in (20, 21, 22)]
    shelf = Shelf(tmp_path)
    for age, one in zip((30, 20), rules, strict=False):
        shelf.keep(one, made(one.text))
        shelf._most = 5 * shelf._path(one).stat().st_size // 2  # room for two
        os.utime(shelf._path(one), (time.time() - age, time.time() - age))
    assert shelf.find(rules[0]) is not None
    shelf.keep(rules[2], made(rules[2].text))
    assert [shelf.find(one) is not None for one in rules] == [True, False, True]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--grammar-cache-dir"):
        Shelf(tmp_path / "file")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="written by others"):
        Shelf(tmp_path / "open")


def test_a_disk_that_fails_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shelf = Shelf(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    shelf.keep(RULES, made())
    assert "could not be kept" in caplog.text
    assert shelf.find(RULES) is None
