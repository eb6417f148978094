"""Ids -> text as it becomes printable, and the search for stop strings in it.

For every way of cutting a sequence of ids into pushes, the deltas joined are what decoding all ids at once gives.
"""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from sglang.text.tokenizer import Tokenizer

WINDOW = 6  # ids decoded before the new ones where a token's text depends on its neighbours
UNKNOWN = "\ufffd"  # how an incomplete character decodes


class Text(NamedTuple):
    """delta: new printable text. stop: the stop string that was found; nothing comes after it.
    tokens_used: how many of the pushed tokens the text needs, the one that completes the stop string included."""

    delta: str
    stop: str | None
    tokens_used: int


class Detokenizer:
    """Of one sequence."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        no_stop_trim: bool = False,
    ):
        if tokenizer.byte_level:
            self._reader: _Bytes | _Window = _Bytes(tokenizer, skip_special_tokens)
        else:
            self._reader = _Window(tokenizer, skip_special_tokens, spaces_between_special_tokens)
        self._stop = tuple(stop)
        self._keep_stop = no_stop_trim
        self._held = ""  # printable, but may be the beginning of a stop string

    def push(self, tokens: Sequence[int], final: bool) -> Text:
        """More ids. final: no more will come, so what was held back comes out, half characters as U+FFFD."""
        if not self._stop:
            return Text(self._reader.read(tokens, final), None, len(tokens))
        for i, token in enumerate(tokens):
            self._held += self._reader.read((token,), False)
            if (found := self._find()) is not None:
                return Text(found[0], found[1], i + 1)
        if final:
            self._held += self._reader.read((), True)
            if (found := self._find()) is not None:
                return Text(found[0], found[1], len(tokens))
            delta, self._held = self._held, ""
            return Text(delta, None, len(tokens))
        safe = self._safe()
        delta, self._held = self._held[:safe], self._held[safe:]
        return Text(delta, None, len(tokens))

    def _find(self) -> tuple[str, str] | None:
        """(text up to the first stop string, the string). Earliest place first, then the shortest."""
        places = [(at, len(s), s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if not places:
            return None
        at, size, stop = min(places)
        return self._held[: at + size if self._keep_stop else at], stop

    def _safe(self) -> int:
        """Characters of what is held that cannot begin a stop string any more."""
        text = self._held
        longest = max(map(len, self._stop)) - 1
        for at in range(max(0, len(text) - longest), len(text)):
            rest = text[at:]
            if any(s.startswith(rest) for s in self._stop):
                return at
        return len(text)


class _Bytes:
    """Byte-level tokenizers: a token is bytes, whatever stands beside it."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool):
        self._bytes = tokenizer.token_bytes if skip_special_tokens else tokenizer._raw
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def read(self, tokens: Sequence[int], final: bool) -> str:
        return self._decode(b"".join([self._bytes(t) for t in tokens]), final)


class _Window:
    """Any tokenizer: decodes the last few ids with and without the new ones; the difference is new text.

    The window begins at a token that is a word by itself, and whose text is out: a blank at the very beginning, special
    tokens and runs of single bytes would decode otherwise than they do in the whole.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, spaces_between_special_tokens: bool):
        self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens, spaces_between_special_tokens)
        self._is_word = tokenizer.is_word
        self._ids: list[int] = []
        self._read = 0  # ids whose text is out
        self._out = ""  # that text

    def read(self, tokens: Sequence[int], final: bool) -> str:
        self._ids += tokens
        if self._read == len(self._ids):
            return ""
        text = self._decode(self._ids)
        if not final and text.endswith(UNKNOWN):
            return ""
        delta = text[len(self._out) :]
        begin = max(0, len(self._ids) - WINDOW)
        while begin and not self._is_word(self._ids[begin]):
            begin -= 1
        del self._ids[:begin]
        self._read = len(self._ids)
        self._out = self._decode(self._ids) if begin else text
        return delta
