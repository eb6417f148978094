"""Requests wait for their constraint without holding up anybody, and get a cursor or a reason."""

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from sglang.base.messages import Abort, Extend, Piece, Submit, pack
from sglang.base.sampling import SamplingParams
from sglang.grammar.child import Child
from sglang.grammar.rules import Rules
from sglang.grammar.shelf import Shelf
from sglang.worker.grammars import Grammars, Lexicon, in_thread

WORDS = [bytes([i]) for i in range(256)] + [b"<end>", b"ab", b"yes"]
END = 256


def encode(text: str) -> list[int]:
    return list(text.encode())


LEXICON = Lexicon(WORDS, frozenset({END}), encode)


def made(lexicon: Lexicon = LEXICON, **changes: object) -> Grammars:
    done: Future[Lexicon] = Future()
    done.set_result(lexicon)
    return Grammars(done, (END,), len(WORDS), **changes)  # type: ignore[arg-type]


def submit(id: int, **constraint: object) -> Submit:
    return Submit(id, pack([1]), SamplingParams(**constraint))  # type: ignore[arg-type]


def wait(grammars: Grammars, pieces: list[Piece]) -> list:
    found: list = []
    deadline = time.monotonic() + 250  # they are compiled with what a busy machine leaves
    while grammars.waiting and time.monotonic() < deadline:
        found += grammars.ready(pieces)
        time.sleep(0.001)
    assert not grammars.waiting
    return found


@pytest.fixture(scope="module")
def grammars():
    one = made()
    yield one
    one.close()


def test_a_free_request_is_not_kept(grammars: Grammars) -> None:
    assert not grammars.keep(submit(1), [])
    assert not grammars.keep(Abort(1), [])
    assert grammars.ready([]) == []


def test_a_request_waits_until_its_constraint_is_compiled(grammars: Grammars) -> None:
    pieces: list[Piece] = []
    first, second = submit(1, regex="yes|no"), submit(2, regex="yes|no")
    assert grammars.keep(first, pieces)
    assert grammars.keep(second, pieces)
    found = wait(grammars, pieces)
    assert [message for message, _ in found] == [first, second]
    cursors = [cursor for _, cursor in found]
    cursors[0].advance(ord("y"))
    assert cursors[0].forced() == b"es"
    assert cursors[1].forced() == b""
    assert pieces == []


def test_compiled_constraints_go_to_the_shelf_and_come_from_it(tmp_path: Path) -> None:
    for _ in range(2):
        grammars = made(shelf=Shelf(tmp_path))
        pieces: list[Piece] = []
        grammars.keep(submit(1, regex="yes|no"), pieces)
        [(_, cursor)] = wait(grammars, pieces)
        cursor.feed(b"yes")
        assert cursor.finished
        assert grammars._compiler.result()._engine is not None, "the library is ready before it is asked"
        grammars.close()
        assert len(list(tmp_path.iterdir())) == 1


def test_a_refusal_names_the_constraint_and_frees_what_was_to_be_extended(grammars: Grammars) -> None:
    pieces: list[Piece] = []
    grammars.keep(submit(1, regex="("), pieces)
    grammars.keep(Extend(3, 2, 1, [5], SamplingParams(regex="(")), pieces)
    assert wait(grammars, pieces) == [(Abort(2), None)]
    assert [piece.id for piece in pieces] == [1, 3]
    for piece in pieces:
        assert piece.finish is not None
        assert (piece.finish.status, piece.finish.field) == (400, "constraint")
        assert "regular expression" in piece.finish.message


def test_who_leaves_while_it_waits_is_forgotten() -> None:
    lexicon: Future[Lexicon] = Future()
    grammars = Grammars(lexicon, (END,), len(WORDS))
    pieces: list[Piece] = []
    grammars.keep(submit(1, regex="a"), pieces)
    grammars.keep(Extend(3, 2, 1, [5], SamplingParams(regex="a")), pieces)
    grammars.keep(submit(4, regex="b"), pieces)
    assert grammars.ready(pieces) == []  # the words are not there yet
    assert not grammars.keep(Abort(1), pieces)
    assert not grammars.keep(Abort(2), pieces)
    lexicon.set_result(LEXICON)
    assert [message.id for message, _ in wait(grammars, pieces)] == [4]
    grammars.close()


def test_what_nobody_waits_for_any_more_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Event(), threading.Event()
    asked: list[str] = []
    prepare = Child.prepare

    def slow(self: Child, rules: Rules) -> object:
        asked.append(rules.text)
        began.set()
        assert may_end.wait(250)
        return prepare(self, rules)

    monkeypatch.setattr(Child, "prepare", slow)
    grammars = made()
    pieces: list[Piece] = []
    for id, regex in enumerate(["first", "one", "two", "one", "one"], 1):
        assert grammars.keep(submit(id, regex=regex), pieces)
    while not began.is_set():
        grammars.ready(pieces)
    for id in (2, 3, 4):
        grammars.keep(Abort(id), pieces)
    may_end.set()
    assert [message.id for message, _ in wait(grammars, pieces)] == [1, 5], "another waits for the same"
    assert asked == ["first", "one"]
    assert not pieces
    grammars.close()


def test_more_than_may_wait_are_turned_away() -> None:
    lexicon: Future[Lexicon] = Future()
    grammars = Grammars(lexicon, (END,), len(WORDS), most=2)
    pieces: list[Piece] = []
    assert all(grammars.keep(submit(i, regex="a"), pieces) for i in range(3))
    assert grammars.waiting == 2
    [piece] = pieces
    assert piece.id == 2
    assert piece.finish is not None
    assert piece.finish.status == 503
    lexicon.set_exception(RuntimeError("gone"))
    wait(grammars, pieces)
    assert {p.finish.status for p in pieces[1:] if p.finish} == {500}


def test_a_tokenizer_whose_tokens_depend_on_each_other_is_refused() -> None:
    grammars = made(Lexicon(None, frozenset(), encode))
    pieces: list[Piece] = []
    grammars.keep(submit(1, regex="a"), pieces)
    wait(grammars, pieces)
    assert pieces[0].finish is not None
    assert "depends on its neighbours" in pieces[0].finish.message


def test_jumps_are_made_where_they_are_wanted(grammars: Grammars) -> None:
    pieces: list[Piece] = []
    grammars.keep(submit(1, regex="(x|y)abc"), pieces)
    [(_, cursor)] = wait(grammars, pieces)
    cursor.advance(ord("x"))
    beyond = cursor.fork()
    beyond.feed(b"abc")
    assert grammars.jump([1], [ord("x")], b"abc", beyond) == (1, list(b"abc"), b"abc")
    without = made(jumps=False)
    assert without.jump([1], [ord("x")], b"abc", beyond) is None
    without.keep(submit(1, regex="a"), pieces)
    wait(without, pieces)
    without.close()


def test_the_lexicon_is_read_beside_other_work() -> None:
    begin = threading.Event()

    def read() -> Lexicon:
        assert begin.wait(100)
        return LEXICON

    reading = in_thread(read)
    assert not reading.done()
    begin.set()
    assert reading.result(100) is LEXICON
