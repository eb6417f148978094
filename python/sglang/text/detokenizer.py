"""Ids -> text as it becomes printable, and the search for stop strings and patterns in it.

For every way of cutting a sequence of ids into pushes, the deltas joined are the same text: what the ids add to the
prompt they continue, `Tokenizer.decode(ids, continues=True)`, up to the first place where a stop string occurs
or a pattern matches.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from sglang.text.pieces import Table
from sglang.text.tokenizer import Tokenizer

WINDOW = 8  # ids kept before the new ones where a token's text depends on its neighbours
PATIENCE = 4  # ids that may wait for the rest of a character: no character has more bytes
UNKNOWN = "\ufffd"  # how an incomplete character decodes


class Text(NamedTuple):
    """What a push brought. Nothing comes after `stop`.

    delta: new text, final. stop: the stop string that was found, or the text that a pattern matched. tokens_used: how
    many of the tokens of this push were read to say so: all of them without a stop, else up to the one that decided it,
    which mostly completes it.
    """

    delta: str
    stop: str | None
    tokens_used: int


class Search(Protocol):
    """For the first match of patterns in one text (`grammar/search.py`). Counts characters from its beginning."""

    found: tuple[int, int] | None  # where the first match so far begins, and its length

    @property
    def open(self) -> int:
        """Where the earliest match begins that may still come."""
        ...

    def read(self, text: str) -> None: ...


class Detokenizer:
    """Of one sequence."""

    __slots__ = ("_firsts", "_found", "_gone", "_held", "_keep_stop", "_reader", "_search", "_stop", "read")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        search: Search | None = None,
        no_stop_trim: bool = False,
    ):
        table = tokenizer.table(skip_special_tokens)
        if table is not None:
            self._reader: _Bytes | _Window = _Bytes(table, tokenizer.errors)
        else:
            self._reader = _Window(
                lambda ids: tokenizer.decode(ids, skip_special_tokens, spaces_between_special_tokens)
            )
        self.read = self._reader.read  # as `push` where there is nothing to stop at: the new text alone
        self._stop = tuple(stop)
        self._firsts = frozenset(s[0] for s in stop)
        self._search = search
        self._keep_stop = no_stop_trim
        self._held = ""  # printable, but may be the beginning of a stop
        self._gone = 0  # characters before that
        self._found: tuple[int, int] | None = None  # where in it a stop is, if one begun before it may still come

    def take_back(self, tokens: Sequence[int]) -> None:
        """The last tokens pushed are replaced by those pushed next, which spell the same and more."""
        self._reader.take_back(tokens)

    def push(self, tokens: Sequence[int], final: bool) -> Text:
        """More ids. final: no more will come, so what was held back comes out, half characters as U+FFFD."""
        read = self.read
        if not self._stop and self._search is None:
            return Text(read(tokens, final), None, len(tokens))
        out: list[str] = []
        for i, token in enumerate(tokens):
            text = read((token,), False)
            if self._search is None and not self._held and self._firsts.isdisjoint(text):
                out.append(text)
                continue
            stop = self._find(text, False, out)
            if stop is not None:
                return Text("".join(out), stop, i + 1)
        stop = self._find(read((), True), True, out) if final else None
        return Text("".join(out), stop, len(tokens))

    def _find(self, more: str, final: bool, out: list[str]) -> str | None:
        """Moves to `out` what can be no part of a stop; returns the stop that comes next, if decided.

        Of several the one that begins first counts, then the shortest, as if the whole text had been searched at once:
        one that was found waits while another, begun before it, may still come.
        """
        known, text = len(self._held), self._held + more
        stops = [(at, len(s)) for s in self._stop if (at := text.find(s, max(0, known - len(s) + 1))) >= 0]
        if self._found is not None:
            stops.append(self._found)
        open_at = len(text) if final else self._unfinished(text)
        if (search := self._search) is not None:
            search.read(more)
            if search.found is not None:
                at, size = search.found
                stops.append((at - self._gone, size))
            if not final:
                open_at = min(open_at, search.open - self._gone)
        found = min(stops, default=None)
        if found is not None and found[0] <= open_at:
            at, size = found
            out.append(text[: at + size if self._keep_stop else at])
            self._held = ""
            return text[at : at + size]
        out.append(text[:open_at])
        self._held = text[open_at:]
        self._gone += open_at
        self._found = found and (found[0] - open_at, found[1])
        return None

    def _unfinished(self, text: str) -> int:
        """Where the earliest stop string begins of which `text` ends with the beginning; its length if none does."""
        earliest = len(text)
        for s in self._stop:
            at = text.find(s[0], max(0, len(text) - len(s) + 1))
            while 0 <= at < earliest:
                if s.startswith(text[at:]):
                    earliest = at
                    break
                at = text.find(s[0], at + 1)
        return earliest


class _Bytes:
    """Tokens are bytes, whatever stands beside them; a character's first bytes wait for its last."""

    __slots__ = ("_again", "_errors", "_rest", "_spell", "_words")

    def __init__(self, table: Table, errors: str):
        self._spell = table.__getitem__
        self._words = table.words
        self._errors = errors
        self._rest = b""
        self._again = 0  # bytes to come that were read before

    def take_back(self, tokens: Sequence[int]) -> None:
        self._again += sum(len(self._spell(token)) for token in tokens)

    def read(self, tokens: Sequence[int], final: bool) -> str:
        alone = tokens[0] if len(tokens) == 1 and not self._rest and not self._again else None
        if alone is not None and (word := self._words.get(alone)) is not None:
            return word
        more = b"".join(map(self._spell, tokens))
        if self._again:
            more, self._again = more[self._again :], max(0, self._again - len(more))
        data = self._rest + more
        text, used = codecs.utf_8_decode(data, self._errors, final)
        self._rest = data[used:]
        if alone is not None and used == len(more) and not final:
            self._words[alone] = text
        return text


class _Window:
    """Any decoder: the last few ids are decoded with and without the new ones; the difference is new text."""

    __slots__ = ("_decode", "_ids", "_out", "_waiting")

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._waiting = 0  # how many of these are not in the text yet
        self._out = ""  # the text of the others

    def take_back(self, tokens: Sequence[int]) -> None:
        raise ValueError("only texts under a constraint are taken back, and this tokenizer cannot be constrained")

    def read(self, tokens: Sequence[int], final: bool) -> str:
        self._ids += tokens
        self._waiting += len(tokens)
        if not self._waiting:
            return ""
        text = self._decode(self._ids)
        if not final and text.endswith(UNKNOWN) and self._waiting < PATIENCE:
            return ""
        delta = text[len(self._out) :]
        self._waiting = 0
        self._out = text
        if len(self._ids) > 2 * WINDOW:
            del self._ids[:-WINDOW]
            self._out = self._decode(self._ids)
        return delta
