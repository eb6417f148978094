"""Requests whose constraint is being compiled wait here, where they hold up nobody.

Everything that takes long happens elsewhere: the tokenizer's words are read in a thread while the model loads, and
constraints are compiled as `grammar/compiler.py` says. The loop looks in between two steps.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from sglang.base.errors import FieldError
from sglang.base.messages import Abort, Extend, Finish, Piece, Resume, Submit
from sglang.grammar.compiler import Compiler
from sglang.grammar.jump import Jumper
from sglang.grammar.rules import Compiled, Cursor, Rules
from sglang.grammar.shelf import Shelf
from sglang.grammar.vocab import Vocabulary

log = logging.getLogger("sglang.worker")

T = TypeVar("T")
Constrained = Submit | Extend


class Lexicon(NamedTuple):
    """A tokenizer as constraints see it.

    words: the bytes that each id stands for inside a text; None where that depends on its neighbours.
    encode: text -> ids, adding no special tokens.
    """

    words: list[bytes] | None
    special_ids: frozenset[int]
    encode: Callable[[str], list[int]]


def in_thread(read: Callable[[], Lexicon]) -> "Future[Lexicon]":
    """The lexicon, read while the model loads."""
    return _later(read)


class Grammars:
    """Compiles, and keeps the requests that wait for it.

    eos_ids: what ends a text, vocab: number of logits, jumps: text that is forced is appended instead of drawn,
    most: requests that may wait, shelf: for the compiler, learn: told what each token says before the first constraint
    is compiled.
    """

    def __init__(
        self,
        lexicon: "Future[Lexicon]",
        eos_ids: tuple[int, ...],
        vocab: int,
        *,
        jumps: bool = True,
        most: int = 4096,
        shelf: Shelf | None = None,
        learn: Callable[[Vocabulary], None] | None = None,
    ):
        self._lexicon = lexicon
        self._eos_ids = eos_ids
        self._vocab = vocab
        self._jumps = jumps
        self._most = most
        self._shelf = shelf
        self._learn = learn
        self._jumper: Jumper | None = None
        self._held: list[tuple[Constrained, Rules, Future[Compiled] | None]] = []
        self._compiler = _later(self._start)

    @property
    def waiting(self) -> int:
        return len(self._held)

    def keep(self, message: Constrained | Resume | Abort, pieces: list[Piece]) -> bool:
        """Whether `message` is kept here, or refused into `pieces`: then it is not to be filed yet, or at all."""
        if isinstance(message, Abort):
            self._leave(message.id)
            return False
        rules = None if isinstance(message, Resume) else Rules.of(message.sampling)
        if rules is None or isinstance(message, Resume):
            return False
        if len(self._held) >= self._most:
            text = f"the queue is full ({self._most} requests wait for their constraints)"
            pieces.append(Piece(message.id, [], Finish("abort", message=text, status=503)))
        else:
            self._held.append((message, rules, None))
        return True

    def ready(self, pieces: list[Piece]) -> list[tuple[Constrained | Abort, Cursor | None]]:
        """Those whose constraint is compiled now, in order of arrival.

        Refusals go into `pieces`; a sequence that a refused message was to extend is aborted.
        """
        if not self._held or not self._compiler.done():
            return []
        done: list[tuple[Constrained | Abort, Cursor | None]] = []
        held, self._held = self._held, []
        for message, rules, future in held:
            refusal = None
            try:
                future = future or self._compiler.result().submit(rules)
                if future.done():
                    done.append((message, future.result().cursor()))
                else:
                    self._held.append((message, rules, future))
            except FieldError as error:
                refusal = _refusal(message, str(error), error.status)
            except Exception as error:
                log.exception("a constraint could not be compiled: %r", rules)
                refusal = _refusal(message, f"{rules.kind}: {type(error).__name__}: {error}", 500)
            if refusal is not None:
                pieces.append(refusal)
                if isinstance(message, Extend):
                    done += [(Abort(id), None) for id in names(message)[1:]]
        return done

    def _leave(self, id: int) -> None:
        gone = [held for held in self._held if id in names(held[0])]
        self._held = [held for held in self._held if id not in names(held[0])]
        for _, rules, future in gone:
            if future is not None and all(rules != other for _, other, _ in self._held):
                self._compiler.result().drop(rules)

    def jump(
        self, prompt: list[int], generated: list[int], forced: bytes, beyond: Cursor
    ) -> tuple[int, list[int], bytes] | None:
        """For `State.jump`."""
        if self._jumper is None:
            return None
        found = self._jumper.jump(prompt, generated, forced, beyond.follows, beyond.place)
        return None if found is None else (found.keep, found.tokens, found.text)

    def close(self) -> None:
        if self._compiler.done() and self._compiler.exception() is None:
            self._compiler.result().close()

    def _start(self) -> Compiler:
        lexicon = self._lexicon.result()
        if lexicon.words is None:
            raise FieldError(
                "constraint",
                "this model's tokenizer cannot be constrained: what a token of it stands for depends on its neighbours",
            )
        words = lexicon.words[: self._vocab]
        vocabulary = Vocabulary(words, self._eos_ids, lexicon.special_ids, self._vocab)
        compiler = Compiler(vocabulary, shelf=self._shelf)
        compiler.rehearse()
        if self._learn is not None:
            try:
                self._learn(vocabulary)
            except BaseException:
                compiler.close()
                raise
        if self._jumps:
            self._jumper = Jumper(vocabulary, lexicon.encode)
        return compiler


def names(message: Constrained) -> tuple[int, ...]:
    """The ids that its sequence goes by."""
    if isinstance(message, Submit):
        return (message.id,)
    return (message.id, message.of, message.ahead) if message.ahead else (message.id, message.of)


def _refusal(message: Constrained, text: str, status: int) -> Piece:
    return Piece(message.id, [], Finish("abort", message=text, status=status, field="constraint"))


def _later(work: Callable[[], T]) -> "Future[T]":
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="grammar-start", daemon=True).start()
    return future
