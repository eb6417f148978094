"""Patterns -> where their first match is, in text that comes piece by piece.

Of several matches the one that begins first counts, then the shortest. Nothing is read twice: a text costs at most its
characters times the automaton's states, whatever the patterns are.
"""

from bisect import bisect_right
from functools import lru_cache

import numpy as np

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar.characters import determine
from sglang.grammar.language import alt
from sglang.grammar.minimal import DEAD, Dfa, minimal
from sglang.grammar.regex import parse_part
from sglang.grammar.work import Work

FIELD = "stop_regex"
LOST = 255  # the state of what cannot become a match: no other has this number


class Patterns:
    """What several patterns match, as one automaton that ends with its shortest matches. Shared and never changed.

    A character has a row: by state, the next state, or LOST.
    """

    def __init__(self, dfa: Dfa):
        table = [column.tobytes() for column in np.where(dfa.table == DEAD, LOST, dfa.table).astype(np.uint8).T]
        table.append(bytes([LOST]) * len(dfa.accepts))  # the last, class -1: characters that are in no match
        self._starts: list[int] = dfa.starts.tolist()
        self._rows = [table[kind] for kind in dfa.kinds.tolist()]
        self.ascii = [self.row(code) for code in range(128)]
        self.end = int(dfa.accepts.argmax())

    def row(self, code: int) -> bytes:
        return self._rows[bisect_right(self._starts, code) - 1]


@lru_cache(maxsize=64)  # of at most 128 KiB each
def patterns_of(sources: tuple[str, ...]) -> Patterns:
    """Takes some milliseconds at most: the limits are small, as this is done where all streams wait for it.

    Raises FieldError for a pattern that is malformed or not regular, that matches the empty text or none at all, or
    for all of them together being too large.
    """
    names = [f"{FIELD}[{i}]" for i in range(len(sources))] if len(sources) > 1 else [FIELD]
    work = Work(FIELD, limits.STOP_REGEX_STATES, limits.STOP_REGEX_WORK)
    nodes = [parse_part(source, name) for source, name in zip(sources, names, strict=True)]
    try:
        dfa = determine(alt(*nodes), work)
        if dfa.accepts[0]:
            raise FieldError(FIELD, f"{FIELD} must not match the empty text: nothing would be generated")
        dfa.table[dfa.accepts] = DEAD
        dfa = minimal(dfa, work)
    except RecursionError:
        raise FieldError(FIELD, f"{FIELD} is nested too deeply") from None
    if len(dfa.accepts) > work.states:
        raise work.too_large()
    if not len(dfa.accepts):
        raise FieldError(FIELD, f"{FIELD} matches no text at all")
    return Patterns(dfa)


class Search:
    """For the first match in one text. Characters are counted from the text's beginning.

    found: the first match so far, where it begins and its length. It is the first one if `open` is not before it.
    """

    __slots__ = ("_patterns", "_read", "_states", "found")

    def __init__(self, patterns: Patterns):
        self.found: tuple[int, int] | None = None
        self._patterns = patterns
        self._read = 0
        # State -> where the earliest of the unfinished matches that are there began, in the order of these. A later one
        # in the same state would have the same ends.
        self._states: dict[int, int] = {}

    @property
    def open(self) -> int:
        """Where the earliest match begins that may still come."""
        return next(iter(self._states.values()), self._read)

    def read(self, text: str) -> None:
        patterns, states = self._patterns, self._states
        ascii, end = patterns.ascii, patterns.end
        for at, character in enumerate(text, self._read):
            code = ord(character)
            row = ascii[code] if code < 128 else patterns.row(code)
            before, states = states, {}
            for state, start in before.items():
                if (state := row[state]) != LOST:
                    states.setdefault(state, start)
            if self.found is None and (state := row[0]) != LOST:
                states.setdefault(state, at)
            if end in states:
                first = states[end]
                self.found = first, at + 1 - first
                states = {state: start for state, start in states.items() if start < first}
        self._states = states
        self._read += len(text)
