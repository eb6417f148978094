r"""Python's regular expressions -> language trees, through the standard library's own parser.

Matching is full matching: `^` and `$` may stand at the ends and change nothing. `\w \d \s` are ASCII; `\W \D \S` and
sets that exclude them leave out the Unicode classes as well, so that what we write matches with and without `re.ASCII`
(but for `(?i)` beyond ASCII).
Lazy repeats are the same language as greedy ones. A look-ahead is a condition on all that follows it up to the end of
the text, so it becomes an intersection (or a difference); a look-behind likewise on all before it. Where more text
surrounds the group that it stands in, or it is repeated, it is refused; what is not regular is refused by name.
"""

import re
from functools import cache
from re import _constants as op  # type: ignore[attr-defined]  # private, but the only parser that is exactly Python's
from re import _parser as parser  # type: ignore[attr-defined]
from re._casefix import _EXTRA_CASES as EXTRA_CASES  # type: ignore[import-not-found]
from typing import Any

import numpy as np

from sglang.base.errors import FieldError
from sglang.grammar.language import (
    ANY,
    EMPTY,
    LAST,
    NOTHING,
    Both,
    Chars,
    Node,
    Ranges,
    Repeat,
    Text,
    Without,
    alt,
    cat,
    inverse,
    meet,
    normal,
)

DEPTH = 200  # of groups in groups

_REFUSED = {
    op.GROUPREF: "back-references",
    op.GROUPREF_EXISTS: "conditional groups",
    op.ATOMIC_GROUP: "atomic groups",
    op.POSSESSIVE_REPEAT: "possessive repeats",
}
_WORD: Ranges = normal([(48, 57), (65, 90), (95, 95), (97, 122)])
_DIGIT: Ranges = ((48, 57),)
_SPACE: Ranges = ((9, 13), (32, 32))
_CLASSES = {op.CATEGORY_WORD: _WORD, op.CATEGORY_DIGIT: _DIGIT, op.CATEGORY_SPACE: _SPACE}
_OPPOSITE = {
    op.CATEGORY_NOT_WORD: op.CATEGORY_WORD,
    op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT,
    op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE,
}
_STARTS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
_ENDS = (op.AT_END, op.AT_END_STRING)
_SURROUNDINGS = (op.AT, op.ASSERT, op.ASSERT_NOT)
_EVERYTHING = Repeat(ANY, 0, None)


def parse(pattern: str, field: str = "regex", search: bool = False) -> Node:
    """The strings that `pattern` full-matches; with `search`, those in which it is found (as JSON schema has it).

    Raises FieldError(field) for what is not a pattern, or not a regular one.
    """
    rest = _EVERYTHING if search else EMPTY
    return _read(pattern, field, 0, _Reader(field), rest)


def parse_part(pattern: str, field: str) -> Node:
    """The strings that `pattern` matches wherever they stand in a text, as Python has it with `re.ASCII`.

    Raises FieldError(field) also for what looks at the text around them. ASCII: the tables of Unicode's classes and
    cases take long to make, and sets of them long to go through.
    """
    return _read(pattern, field, re.ASCII, _Reader(field, part=True), None)


def _read(pattern: str, field: str, flags: int, reader: "_Reader", rest: Node | None) -> Node:
    try:
        parsed = parser.parse(pattern, flags)
    except (re.error, OverflowError, ValueError) as error:  # ValueError: flags that exclude each other
        raise FieldError(field, f"{field} is not a regular expression: {error}") from None
    except RecursionError:
        raise FieldError(field, f"{field}: groups are nested too deeply") from None
    return reader.sequence(list(parsed), parsed.state.flags, rest, rest, 0)


class _Reader:
    """part: of what stands in the middle of a text."""

    def __init__(self, field: str, part: bool = False):
        self.field = field
        self.part = part
        # Inside of a negative look-around too much may be read, never too little: what is read is taken away.
        self.negative = False

    def refuse(self, what: str) -> FieldError:
        return FieldError(self.field, f"{self.field}: {what} cannot be used")

    def sequence(self, items: list[Any], flags: int, left: Node | None, right: Node | None, depth: int) -> Node:
        """left, right: what an open end may be surrounded by; None: not an end, anchors are refused there."""
        if depth > DEPTH:
            raise FieldError(self.field, f"{self.field}: groups may be nested {DEPTH} deep at most")
        if self.part and any(item[0] in _SURROUNDINGS for item in items):
            raise self.refuse("^, $, \\b, \\B and look-arounds")
        while items and left is not None and items[0][0] is op.AT and items[0][1] in _STARTS:
            start = self.start(items[0][1], flags)
            items, left = items[1:], (left if len(items) > 1 and _is_start(items[1]) else start)
        while items and right is not None and items[-1][0] is op.AT and items[-1][1] in _ENDS:
            items, right = items[:-1], self.end(items[-1][1], flags)
        if not items:
            return cat(left or EMPTY, right or EMPTY)
        for i, item in enumerate(items):
            if item[0] in (op.ASSERT, op.ASSERT_NOT) and item[1][1]:
                return self.around(items, i, flags, left, right, depth)
        parts: list[Node] = []
        for i, item in enumerate(items):
            at_left = left if i == 0 else None
            at_right = right if i == len(items) - 1 else None
            inner = item[0] in (op.BRANCH, op.SUBPATTERN)
            if not inner and at_left is not None:
                parts.append(at_left)
            parts.append(self.item(item, flags, at_left, at_right, depth))
            if not inner and at_right is not None:
                parts.append(at_right)
        return _joined(parts)

    def around(self, items: list[Any], i: int, flags: int, left: Node | None, right: Node | None, depth: int) -> Node:
        """A sequence whose first look-around is item `i`."""
        kind, (direction, inner) = items[i]
        before, after = items[:i], items[i + 1 :]
        set_operation = Both if kind is op.ASSERT else Without
        if direction > 0:
            if right is None:
                raise self.refuse("look-ahead in a repeat, or with more behind its group,")
            at_start = EMPTY if not before and left is EMPTY else None
            seen = self.seen(kind, list(inner), flags, at_start, _EVERYTHING, depth)
            tail = set_operation(self.sequence(after, flags, at_start, right, depth + 1), seen)
            return cat(self.sequence(before, flags, left, None, depth + 1) if before else left or EMPTY, tail)
        if left is None:
            raise self.refuse("look-behind in a repeat, or with more before its group,")
        seen = self.seen(kind, list(inner), flags, _EVERYTHING, None, depth)
        head = self.sequence(before, flags, left, None, depth + 1) if before else left
        return cat(set_operation(head, seen), self.sequence(after, flags, None, right, depth + 1))

    def seen(self, kind: Any, items: list[Any], flags: int, left: Node | None, right: Node | None, depth: int) -> Node:
        """What a look-around looks for, and all that may be beyond it."""
        before = self.negative
        self.negative = before != (kind is op.ASSERT_NOT)
        try:
            return self.sequence(items, flags, left, right, depth + 1)
        finally:
            self.negative = before

    def start(self, kind: Any, flags: int) -> Node:
        """What may stand before `^`."""
        if self.negative and flags & re.MULTILINE and kind is op.AT_BEGINNING:
            return alt(EMPTY, cat(_EVERYTHING, "\n"))
        return EMPTY

    def end(self, kind: Any, flags: int) -> Node:
        """What may stand behind `$`. To Python that is a last line end too, to JSON schema it is not."""
        if self.negative and kind is op.AT_END:
            return alt(EMPTY, cat("\n", _EVERYTHING if flags & re.MULTILINE else EMPTY))
        return EMPTY

    def item(self, item: Any, flags: int, left: Node | None, right: Node | None, depth: int) -> Node:
        kind, value = item
        if kind is op.LITERAL:
            return self.literal(value, flags)
        if kind is op.NOT_LITERAL:
            return Chars(inverse(_folded(((value, value),), flags, wide=not self.negative)))
        if kind is op.ANY:
            return ANY if flags & re.DOTALL else Chars(inverse(((10, 10),)))
        if kind is op.IN:
            return self.set(value, flags)
        if kind is op.BRANCH:
            return alt(*(self.sequence(list(b), flags, left, right, depth + 1) for b in value[1]))
        if kind is op.SUBPATTERN:
            _, add, remove, inner = value
            return self.sequence(list(inner), (flags | add) & ~remove, left, right, depth + 1)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            low, high, inner = value
            body = self.sequence(list(inner), flags, None, None, depth + 1)
            return Repeat(body, low, None if high is op.MAXREPEAT else high)
        if kind is op.AT:
            if value in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
                raise self.refuse("word boundaries (\\b, \\B)")
            raise self.refuse("^ and $ other than at the ends")
        if kind in (op.ASSERT, op.ASSERT_NOT):  # an empty one: the others never come here
            return EMPTY if kind is op.ASSERT else NOTHING
        if kind is op.FAILURE:
            return NOTHING
        raise self.refuse(_REFUSED.get(kind, str(kind)))

    def set(self, items: list[Any], flags: int) -> Chars:
        negated = bool(items) and items[0][0] is op.NEGATE
        pairs: list[tuple[int, int]] = []
        for kind, value in items[negated:]:
            if kind is op.LITERAL:
                pairs.append((value, value))
            elif kind is op.RANGE:
                pairs.append(value)
        folded = _folded(normal(pairs), flags, wide=negated != self.negative)
        names = {v for k, v in items[negated:] if k is op.CATEGORY}
        categories = [_category(name, negated != self.negative, flags) for name in names]
        if any(_OPPOSITE.get(name) in names for name in names):
            categories.append(ANY.ranges)  # [\s\S]: everything, whatever the two mean
        ranges = normal([*folded, *(r for c in categories for r in c)])
        return Chars(inverse(ranges) if negated else meet(ranges, inverse(())))

    def literal(self, code: int, flags: int) -> Node:
        if 0xD800 <= code <= 0xDFFF:
            return NOTHING
        if flags & re.IGNORECASE:
            ranges = _folded(((code, code),), flags, wide=self.negative)
            if ranges != ((code, code),):
                return Chars(ranges)
        return Text(chr(code))


def _is_start(item: Any) -> bool:
    return item[0] is op.AT and item[1] in _STARTS


def _joined(parts: list[Node]) -> Node:
    """Neighbouring texts become one."""
    merged: list[Node] = []
    for part in parts:
        if isinstance(part, Text) and merged and isinstance(merged[-1], Text):
            merged[-1] = Text(merged[-1].value + part.value)
        else:
            merged.append(part)
    return cat(*merged)


def _category(name: Any, negated: bool, flags: int) -> Ranges:
    """Wide classes where the result is what is left without them, narrow ones where it is what is in them.

    negated: the set is one that leaves out what it names, or is itself taken away.
    """
    inverted = name in _OPPOSITE
    base = _OPPOSITE.get(name, name)
    wide = negated != inverted and not flags & re.ASCII
    ranges = _wide(base) if wide else _CLASSES[base]
    return inverse(ranges) if inverted else ranges


@cache
def _wide(name: Any) -> Ranges:
    """The Unicode class, as `re` without re.ASCII has it."""
    source = {op.CATEGORY_WORD: r"\w+", op.CATEGORY_DIGIT: r"\d+", op.CATEGORY_SPACE: r"\s+"}[name]
    everything = np.arange(LAST + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return tuple((m.start(), m.end() - 1) for m in re.finditer(source, everything))


def _folded(ranges: Ranges, flags: int, wide: bool) -> Ranges:
    """With (?i), the characters of `ranges` in either case.

    For ASCII letters that is the other ASCII letter; with `wide` also what Unicode folds to it (Kelvin's sign is a k).
    """
    if not flags & re.IGNORECASE:
        return ranges
    found = list(ranges)
    for shift, letters in ((32, ((65, 90),)), (-32, ((97, 122),))):
        found += [(low + shift, high + shift) for low, high in meet(ranges, letters)]
    if not flags & re.ASCII and (wide or (ranges and ranges[-1][1] > 127)):
        lower = {chr(c).lower() for low, high in ranges for c in range(low, high + 1) if wide or c > 127}
        for small, group in _cases().items():
            if small in lower:
                found += [(ord(c), ord(c)) for c in group]
    return normal(found)


@cache
def _cases() -> dict[str, list[str]]:
    """Lower case -> the characters that (?i) takes for it."""
    groups: dict[str, list[str]] = {}
    for code in range(0x20000):
        lower = chr(code).lower()
        if len(lower) > 1:
            lower = lower[0] if code == 0x130 else chr(code)
        if lower != chr(code):
            groups.setdefault(lower, [lower]).append(chr(code))
    for code, others in EXTRA_CASES.items():
        for other in others:
            members = groups.setdefault(chr(code), [chr(code)])
            members += groups.get(chr(other), [chr(other)])
    return groups
