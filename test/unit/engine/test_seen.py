"""What is remembered of the steps of earlier runs."""

import logging
import os
from pathlib import Path

import pytest
import torch

from sglang.base.config import ServerConfig
from sglang.engine import seen
from sglang.engine.seen import Seen, describe

OF = {"model": "a"}


def test_what_one_run_met_comes_first_in_the_next_behind_its_own(tmp_path: Path) -> None:
    one = Seen(OF, tmp_path)
    for size in (8, 24, 8, 16):
        one.note("decodes", (size, True))
    one.note("pieces", (64,))
    assert one.first("decodes") == [(8, 1), (24, 1), (16, 1)]
    one.save()
    two = Seen(OF, tmp_path)
    assert two.first("decodes") == [(8, 1), (24, 1), (16, 1)]
    two.note("decodes", (32, 1))
    two.note("decodes", (16, 1))
    two.save()
    three = Seen(OF, tmp_path)
    assert three.first("decodes") == [(32, 1), (16, 1), (8, 1), (24, 1)]
    assert three.first("pieces") == [(64,)], "what was not met again is not forgotten"
    assert Seen({"model": "b"}, tmp_path).first("decodes") == []


def test_what_a_start_did_by_itself_is_not_remembered(tmp_path: Path) -> None:
    one = Seen(OF, tmp_path)
    one.note("decodes", (1,))
    one.begin()
    one.save()
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_only_when_there_is_news(tmp_path: Path) -> None:
    one = Seen(OF, tmp_path)
    one.note("decodes", (1,))
    one.save()
    [file] = tmp_path.iterdir()
    file.unlink()
    one.note("decodes", (1,))
    one.save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b'{"of":{"model":"a"},"met":{"decodes":[["x"]]}}', b"[1]", b"[" * 100_000]
)
def test_a_file_that_cannot_be_read_is_ignored_and_written_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Seen(OF, tmp_path)
    one.note("decodes", (1,))
    one.save()
    [file] = tmp_path.iterdir()
    file.write_bytes(content)
    with caplog.at_level(logging.INFO):
        two = Seen(OF, tmp_path)
    assert two.first("decodes") == []
    assert len(caplog.records) == 1 and str(file) in caplog.records[0].message
    two.note("decodes", (2,))
    two.save()
    assert Seen(OF, tmp_path).first("decodes") == [(2,)]


def test_all_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST", 3)
    monkeypatch.setattr(seen, "MOST_FILES", 4)
    for n in range(7):
        one = Seen({"model": str(n)}, tmp_path)
        for met in range(9):
            one.note("decodes", (met,))
        one.save()
        [newest] = [file for file in tmp_path.iterdir() if file.stat().st_mtime > 1000]
        os.utime(newest, (n + 1, n + 1))
    assert len(list(tmp_path.iterdir())) == 4
    assert Seen({"model": "2"}, tmp_path).first("decodes") == []
    assert Seen({"model": "6"}, tmp_path).first("decodes") == [(0,), (1,), (2,)]


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    one = Seen(OF, tmp_path / "file")
    for met in range(3):
        one.note("decodes", (met,))
        one.save()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_without_a_name_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = Seen()
    one.note("decodes", (1,))
    one.save()
    assert one.first("decodes") == [(1,)]
    assert not list(tmp_path.iterdir())
    two = Seen(OF)
    two.note("decodes", (1,))
    two.save()
    assert [file.suffix for file in (tmp_path / "sglang" / "steps").iterdir()] == [".json"]


def test_flags_and_versions_are_told_apart() -> None:
    device = torch.device("cpu")
    plain = describe(ServerConfig(), device)
    assert describe(ServerConfig(quantization="fp8"), device) != plain
    assert describe(ServerConfig(port=5), device) == plain
    assert plain["torch"] and plain["sglang"]
