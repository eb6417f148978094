"""What needs a stack: recursive schemas, free JSON, EBNF and Lark grammars, through llguidance.

The only file that knows llguidance. It computes masks lazily (tens of microseconds a token), bounds its own work, and
lets go of the interpreter lock while it does.
"""

import json
import re
from typing import Any

import numpy as np

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar import documents, strings
from sglang.grammar.language import to_regex
from sglang.grammar.rules import Illegal, Words
from sglang.grammar.vocab import Vocabulary

FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))


class Engine:
    """llguidance's idea of a vocabulary. Made once a vocabulary, in a third of a second for 128k tokens."""

    def __init__(self, vocabulary: Vocabulary):
        import llguidance as library  # here: its import is not paid where nothing is constrained

        self.vocabulary = vocabulary
        size = vocabulary.size
        eos = list(vocabulary.eos_ids) or [size]  # there must be one; an id behind the last never shows
        self.tokenizer = library.LLTokenizer(
            library.TokenizerWrapper(_Tokens(vocabulary, eos[0])), n_vocab=max(size, eos[0] + 1), eos_token=eos
        )
        self.words = -(-max(size, eos[0] + 1) // 32)
        self.limits = library.LLParserLimits()


class _Tokens:
    """The interface llguidance wants of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary, eos: int):
        self.eos_token_id = eos
        self.bos_token_id = None
        # A leading 0xff marks what is not text.
        self.tokens = [token or b"\xff[%d]" % i for i, token in enumerate(vocabulary.bytes)]
        self.tokens += [b"\xff[%d]" % i for i in range(len(self.tokens), max(vocabulary.size, eos + 1))]
        self.special_token_ids = [i for i, token in enumerate(self.tokens) if token[:1] == b"\xff"]
        self._vocabulary = vocabulary
        self._ids = {token: i for i, token in reversed(list(enumerate(vocabulary.bytes))) if token}

    def __call__(self, text: bytes | str) -> list[int]:
        """Longest token first. Only the bytes matter: we never ask for canonical tokens here."""
        data = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        at = 0
        while at < len(data):
            for end in range(min(len(data), at + self._vocabulary.longest), at, -1):
                if data[at:end] in self._ids:
                    ids.append(self._ids[data[at:end]])
                    at = end
                    break
            else:
                at += 1  # a byte the vocabulary cannot say
        return ids


def from_schema(schema: dict[str, Any] | bool, strict: bool, spaced: bool) -> str:
    """Any JSON schema -> llguidance's grammar. oneOf is taken as anyOf: see `schema.check_one_of`."""
    import llguidance

    options = _options(strict, spaced)
    text = json.dumps({} if schema is True else _told(schema))  # options need an object to go into
    return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]  # its stub forgets dicts


def _options(strict: bool, spaced: bool) -> dict[str, Any]:
    return {
        "coerce_one_of": True,
        "lenient": not strict,
        "whitespace_flexible": False,
        "item_separator": ", " if spaced else ",",
        "key_separator": ": " if spaced else ":",
    }


def _told(schema: dict[str, Any] | bool) -> Any:
    """`schema` with patterns for formats that the library does not know."""

    def change(part: dict[str, Any]) -> dict[str, Any]:
        name = part.get("format")
        node = strings.of_format(name) if isinstance(name, str) and name not in FORMATS else None
        if node is None or "pattern" in part:
            return part
        said = {key: value for key, value in part.items() if key != "format"}
        return said | {"pattern": f"^(?:{to_regex(node, 'json_schema', limits.GRAMMAR_CHARS)})$"}

    return documents.rewritten(schema, change)


def from_grammar(text: str) -> str:
    """EBNF in the style of GBNF (`root ::= ...`) or Lark (`start: ...`) -> llguidance's grammar."""
    import llguidance as library

    kind = "gbnf" if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE) else "lark"
    try:
        return library.grammar_from(kind, re.sub(_ESCAPE, _unescaped, text) if kind == "gbnf" else text)
    except (ValueError, RecursionError) as error:
        raise FieldError("ebnf", f"ebnf cannot be read: {error}") from None


# A pair of a backslash and what it hides, or a code point.
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)


def _unescaped(escape: re.Match[str]) -> str:
    """The library's converter knows no code points but ASCII's."""
    code = next((int(digits, 16) for digits in escape.groups() if digits), None)
    if code is None:
        return escape[0]
    return f"\\x{code:02x}" if code < 128 else chr(code)


def from_tags(tags: list[tuple[str, str, dict[str, Any] | bool, str]], strict: bool, spaced: bool) -> str:
    """(trigger, begin, schema, end) of each tag -> llguidance's grammar: free text, and instances inside the tags."""
    import llguidance as library

    options = _options(strict, spaced)
    built = [
        library.StructTag(
            trigger=trigger,
            begin=begin,
            grammar={**(_told(schema) if isinstance(schema, dict) else {}), "x-guidance": options},
            end=end,
        )
        for trigger, begin, schema, end in tags
    ]
    return library.LLMatcher.grammar_from_lark(library.StructTag.to_grammar(built, assume_special=False))


class ContextFreeCompiled:
    """Raises FieldError(field) for a grammar that llguidance refuses."""

    def __init__(self, engine: Engine, grammar: str, field: str):
        self.engine = engine
        self.vocabulary = engine.vocabulary
        import llguidance

        self._matcher = llguidance.LLMatcher(engine.tokenizer, grammar, log_level=0, limits=engine.limits)
        if self._matcher.is_error():
            raise FieldError(field, f"{field}: {_reason(str(self._matcher.get_error()))}")

    @property
    def nbytes(self) -> int:
        return 1 << 20  # a guess: the library does not tell

    def cursor(self) -> "ContextFreeCursor":
        return ContextFreeCursor(self.engine, self._matcher.deep_copy(), False)


def _reason(error: str) -> str:
    """What an error tells: its first line, and what comes behind a drawing of the place."""
    lines = error.strip().splitlines() or ["cannot be compiled"]
    return " ".join([lines[0], *(line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: "))])


class ContextFreeCursor:
    """RuntimeError where the grammar grows beyond the library's limits in the middle of a text: from `mask`, `advance`
    and `feed`."""

    __slots__ = ("_ended", "_engine", "_matcher")

    def __init__(self, engine: Engine, matcher: Any, ended: bool):
        self._engine = engine
        self._matcher = matcher
        self._ended = ended

    def mask(self, row: Words | None = None) -> Words:
        vocabulary = self._engine.vocabulary
        if self.finished:
            made = vocabulary.eos_words.copy()
        else:
            words = np.zeros(self._engine.words, np.uint32)
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            self._check()
            made = words[: vocabulary.words] & ~vocabulary.eos_words
            if self.accepting:
                made |= vocabulary.eos_words
        if row is None:
            return made
        row[: len(made)] = made
        return row

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).strip().splitlines()[0]  # a picture of its state comes behind
            known = {"NoExtensionBias": "no text may come next (does a rule or $ref lead back to itself alone?)"}
            raise RuntimeError(f"the grammar failed: {known.get(reason, reason)}")

    def advance(self, token: int) -> None:
        if token in self._engine.vocabulary.eos_ids and self.accepting:
            self._ended = True
        elif not self._take([token]):
            raise Illegal(f"token {token} is not allowed here")

    def feed(self, text: bytes) -> None:
        if not self._take(self._engine.tokenizer.tokenize_bytes(text)):
            raise Illegal(f"{text!r} is not allowed here")

    def _take(self, tokens: list[int]) -> bool:
        if self._ended:
            return not tokens
        taken = self._matcher.validate_tokens(tokens) == len(tokens) and self._matcher.consume_tokens(tokens)
        self._check()
        return taken

    def forced(self) -> bytes:
        return b"" if self._ended else self._matcher.compute_ff_bytes()

    def follows(self, text: bytes) -> bool:
        tokens = self._engine.tokenizer.tokenize_bytes(text)
        return not self._ended and self._matcher.validate_tokens(tokens) == len(tokens)

    def fork(self) -> "ContextFreeCursor":
        return ContextFreeCursor(self._engine, self._matcher.deep_copy(), self._ended)

    @property
    def place(self) -> None:
        return None

    @property
    def machine(self) -> None:
        return None

    @property
    def state(self) -> int:
        return -1

    @property
    def accepting(self) -> bool:
        return self._ended or self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())
