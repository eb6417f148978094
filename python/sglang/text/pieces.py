"""What each token stands for, in bytes: what makes incremental decoding exact and cheap.

In the tokenizers that language models have, the text of a token does not depend on its neighbours, except at the very
beginning of a text and where a character is spread over tokens. So text is a join of bytes and one UTF-8 decoding.
"""

import codecs
import json
from collections.abc import Callable
from typing import Any, Literal

Decode = Callable[[list[str]], str]  # tokens, as the vocabulary spells them -> text
BOUNDARY = "x"  # a token no decoder changes; what follows it is not at the beginning of a text


class Table(dict[int, bytes]):
    """id -> bytes, filled as ids are met: a large vocabulary would cost a tenth of a second at start.

    `words`: what ids are as text where no character is begun before them, of those met that leave none unfinished.
    """

    def __init__(self, spell: Callable[[int], bytes]):
        super().__init__()
        self.words: dict[int, str] = {}
        self._spell = spell

    def __missing__(self, id: int) -> bytes:
        known = self[id] = self._spell(id)
        return known


class Pieces:
    """Tokens as bytes. `decoder`: the decoder section of a tokenizer.json; `decode`: that decoder at work.

    head: what is special about the beginning of a text. "strip": one blank is taken off it; "token": the first token
    is spelled otherwise (`first`); "": nothing.
    errors: how bytes that are no character decode, as Python's codecs name it.
    """

    def __init__(self, decoder: dict[str, Any] | None, decode: Decode | None):
        kinds = [part["type"] for part in _parts(decoder)]
        self._decode: Decode = decode or " ".join
        self._byte_level = "ByteLevel" in kinds
        self._fallback = "ByteFallback" in kinds
        self.errors: Literal["replace", "replace-each-byte"] = "replace-each-byte" if self._fallback else "replace"
        self.head: Literal["", "strip", "token"] = "token"
        if self._byte_level:
            self.head = ""
        elif kinds and "Metaspace" not in kinds and "WordPiece" not in kinds:
            self.head = "strip" if "Strip" in kinds else ""

    def spell(self, token: str) -> bytes:
        """The bytes of `token` where it does not begin a text."""
        if self._byte_level:
            try:
                return bytes([_BYTES[c] for c in token])
            except KeyError:  # an added token, written as it is
                return token.encode()
        if self._is_byte(token):
            return bytes([int(token[3:5], 16)])
        return self._decode([BOUNDARY, token])[len(BOUNDARY) :].encode()

    def first(self, token: str) -> bytes:
        """The bytes of `token` as the first of a text, where head is "token"."""
        return self.spell(token) if self._is_byte(token) else self._decode([token]).encode()

    def _is_byte(self, token: str) -> bool:
        return self._fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def is_local(decoder: dict[str, Any] | None) -> bool:
    """Whether Pieces can say what this decoder does: then a token's text does not depend on its neighbours."""
    kinds = [part["type"] for part in _parts(decoder)]
    if kinds in ([], ["ByteLevel"], ["WordPiece"]):
        return True
    known = ["Replace", "ByteFallback", "Metaspace", "Fuse", "Strip"]
    if any(kind not in known for kind in kinds) or kinds != sorted(kinds, key=known.index):
        return False
    strips = [(part["content"], part["start"], part["stop"]) for part in _parts(decoder) if part["type"] == "Strip"]
    return not strips or (strips == [(" ", 1, 0)] and "Fuse" in kinds and "Metaspace" not in kinds)


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _parts(inner)]
    return [decoder]


def decoder_of(engine: Any) -> dict[str, Any] | None:
    """The decoder section of a `tokenizers` tokenizer."""
    return None if engine.decoder is None else json.loads(engine.decoder.__getstate__())


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte; bytes that are none are moved beyond 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """Byte-fallback tokens that make no character decode to one U+FFFD each, as sentencepiece does."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


_BYTES = _byte_alphabet()
codecs.register_error("replace-each-byte", _each_byte)
