"""Whom a request stands behind, by what it says that it continues."""

import pytest

from sglang.base import limits
from sglang.server import places
from sglang.server.places import Places


def test_a_request_stands_where_what_it_continues_stood() -> None:
    known = Places()
    assert known.enter(1, "root", "") == ()
    assert known.enter(2, "other", "") == ()
    assert known.enter(3, "child", "root") == (1,)
    assert known.enter(4, "second child", "root") == (1,)
    assert known.enter(5, "grandchild", "child") == (1, 3)
    orders = {name: (*place, id) for name, place, id in (
        ("root", (), 1), ("other", (), 2), ("child", (1,), 3), ("second child", (1,), 4), ("grandchild", (1, 3), 5),
    )}  # fmt: skip
    assert sorted(orders, key=orders.__getitem__) == ["root", "child", "grandchild", "second child", "other"]


def test_siblings_of_a_parent_that_was_never_asked_stand_together() -> None:
    known = Places()
    assert known.enter(1, "a", "text") == ()
    assert known.enter(2, "b", "") == ()
    assert known.enter(3, "c", "text") == (1,)
    assert known.enter(4, "d", "a") == (1,)


def test_a_long_line_stays_a_line() -> None:
    known = Places()
    place: tuple[int, ...] = ()
    for i in range(1, 100):
        before, place = place, known.enter(i, f"r{i}", f"r{i - 1}" if i > 1 else "")
        assert len(place) <= limits.PARENTS
        assert (*before, i - 1) < (*place, i)
    assert place[0] == 1


def test_nobody_is_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(places.time, "monotonic", lambda: now)
    known = Places()
    known.enter(1, "r1", "")
    for i in range(2, 9):
        now += places.HEAD_START_S / 8
        assert known.enter(i, f"r{i}", f"r{i - 1}")[0] == 1
    now += places.HEAD_START_S / 4
    assert known.enter(9, "r9", "r8") == (), "its family has had its time"
    assert known.enter(10, "r10", "r9") == (9,)


def test_names_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NAMES", 3)
    known = Places()
    for i, name in enumerate("abc", 1):
        known.enter(i, name, "")
    known.enter(4, "d", "")
    assert known.enter(5, "e", "d") == (4,)
    assert known.enter(6, "f", "b") == (), "forgotten"
    assert len(known._known) == 3
