"""What a regular language is made of: sets of characters, sequences, alternatives, repeats; and two set operations.

`regex.py` and `schema.py` write such trees, `automaton.py` turns them into automata, `to_regex` into text.
A node may stand in many places of a tree; sharing is what keeps lists of optional properties small.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sglang.base.errors import FieldError

Ranges = tuple[tuple[int, int], ...]  # code points, both ends included, ascending, not touching

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)


# Nodes are compared by identity (eq=False): equal trees are found by whoever cares, cheaply, bottom up.
@dataclass(frozen=True, eq=False, slots=True)
class Chars:
    """One character out of `ranges`."""

    ranges: Ranges


@dataclass(frozen=True, eq=False, slots=True)
class Text:
    value: str


@dataclass(frozen=True, eq=False, slots=True)
class Cat:
    items: tuple["Node", ...]


@dataclass(frozen=True, eq=False, slots=True)
class Alt:
    items: tuple["Node", ...]


@dataclass(frozen=True, eq=False, slots=True)
class Repeat:
    item: "Node"
    low: int
    high: int | None  # None: without end


@dataclass(frozen=True, eq=False, slots=True)
class Both:
    """What is in `left` and in `right`."""

    left: "Node"
    right: "Node"


@dataclass(frozen=True, eq=False, slots=True)
class Without:
    """What is in `left` but not in `right`."""

    left: "Node"
    right: "Node"


Node = Chars | Text | Cat | Alt | Repeat | Both | Without

EMPTY = Text("")
NOTHING = Alt(())


def chars(*spans: tuple[int, int] | str) -> Chars:
    """chars("ab", (0x30, 0x39)): strings are taken character by character."""
    pairs = [(ord(c), ord(c)) for s in spans if isinstance(s, str) for c in s]
    return Chars(normal([*pairs, *(s for s in spans if not isinstance(s, str))]))


def cat(*items: Node | str) -> Node:
    nodes = [Text(i) if isinstance(i, str) else i for i in items]
    nodes = [n for n in nodes if not (isinstance(n, Text) and not n.value)]
    return nodes[0] if len(nodes) == 1 else Cat(tuple(nodes)) if nodes else EMPTY


def alt(*items: Node | str) -> Node:
    nodes = tuple(Text(i) if isinstance(i, str) else i for i in items)
    return nodes[0] if len(nodes) == 1 else Alt(nodes)


def optional(item: Node) -> Node:
    return Repeat(item, 0, 1)


def normal(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Any pairs -> ascending ranges that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(p for p in pairs if p[0] <= p[1]):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def inverse(ranges: Ranges) -> Ranges:
    """All other code points, surrogates (which UTF-8 cannot say) left out."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in normal([*ranges, SURROGATES]):
        gaps.append((start, low - 1))
        start = high + 1
    return normal([*gaps, (start, LAST)])


def meet(a: Ranges, b: Ranges) -> Ranges:
    """Code points in both."""
    return normal((max(p[0], q[0]), min(p[1], q[1])) for p in a for q in b)


ANY = Chars(inverse(()))


def lengths(node: Node) -> tuple[int, int | None]:
    """Bounds, perhaps not the tightest, of the number of characters; None: without end."""
    match node:
        case Text(value):
            return len(value), len(value)
        case Chars():
            return 1, 1
        case Cat(items):
            spans = [lengths(item) for item in items]
            return sum(low for low, _ in spans), _total(high for _, high in spans)
        case Alt(items):
            spans = [lengths(item) for item in items]
            highs = [high for _, high in spans]
            most = None if None in highs else max((h for h in highs if h is not None), default=0)
            return min((low for low, _ in spans), default=0), most
        case Repeat(item, low, high):
            least, most = lengths(item)
            return least * low, 0 if most == 0 or high == 0 else None if most is None or high is None else most * high
        case Both(left, right):
            (a, b), (c, d) = lengths(left), lengths(right)
            return max(a, c), min((h for h in (b, d) if h is not None), default=None)
        case Without(left, _):
            return lengths(left)


def _total(highs: Iterable[int | None]) -> int | None:
    total = 0
    for high in highs:
        if high is None:
            return None
        total += high
    return total


def shortened(node: Node, most: int, repeats: int | None = None) -> Node | None:
    """A part of `node` whose texts have at most `most` characters: repeats without end get one, all the same.

    repeats: how many of these there may be. None where there are none or more, where they stand in each other, or where
    all else may be as long.
    """
    endless: dict[int, int] = {}  # repeat -> the most characters of its item
    fixed = _bounded(node, endless)
    if fixed is None or not endless or (repeats is not None and len(endless) > repeats):
        return None
    share = (most - fixed) // len(endless)
    if any(share < item for item in endless.values()):
        return None
    return _with_ends(node, {key: share // item for key, item in endless.items()})


def _bounded(node: Node, endless: dict[int, int]) -> int | None:
    """The most characters of `node`, repeats without end aside, which are put into `endless`."""
    match node:
        case Cat(items):
            return _total(_bounded(item, endless) for item in items)
        case Alt(items):
            return _total(_bounded(item, endless) for item in items)  # more than needed, which does no harm
        case Repeat(item, low, None):
            inner = lengths(item)[1]
            if not inner or id(node) in endless:
                return None
            endless[id(node)] = inner
            return low * inner
        case Repeat(item, low, high) if lengths(node)[1] is None:
            return _bounded(item, endless) if (low, high) == (0, 1) else None
        case _:
            return lengths(node)[1]


def _with_ends(node: Node, ends: dict[int, int]) -> Node:
    match node:
        case Cat(items):
            return Cat(tuple(_with_ends(item, ends) for item in items))
        case Alt(items):
            return Alt(tuple(_with_ends(item, ends) for item in items))
        case Repeat(item, low, high):
            if id(node) in ends:
                return Repeat(item, low, low + ends[id(node)])
            return Repeat(_with_ends(item, ends), low, high)
        case _:
            return node


_SPECIAL = frozenset(r"\.^$*+?{}[]|()")


def to_regex(node: Node, field: str, limit: int) -> str:
    """`node` as a pattern for Python's `re`. Raises FieldError where that has none, or over `limit` characters."""
    parts: list[str] = []
    size = 0

    def put(text: str) -> None:
        nonlocal size
        size += len(text)
        if size > limit:
            raise FieldError(field, f"{field} makes a regular expression of more than {limit} characters")
        parts.append(text)

    def write(node: Node, tight: bool) -> None:
        """tight: the text must be one unit that a repeat may follow."""
        match node:
            case Text(value):
                put(f"(?:{_quote(value)})" if tight and len(value) != 1 else _quote(value))
            case Alt(()) | Chars(()):
                put("[^\\x00-\\U0010ffff]")
            case Chars(ranges):
                put(_char_class(ranges))
            case Repeat(item, 0, 0):
                put("(?:)")
            case Repeat(item, low, high):
                if tight:
                    put("(?:")
                write(item, True)
                put(_count(low, high))
                if tight:
                    put(")")
            case Cat(items):
                if tight:
                    put("(?:")
                for item in items:
                    write(item, isinstance(item, Alt))
                if tight:
                    put(")")
            case Alt(items):
                put("(?:" if tight else "(")
                for i, item in enumerate(items):
                    if i:
                        put("|")
                    write(item, False)
                put(")")
            case Both() | Without():
                raise FieldError(field, f"{field} cannot be written as one regular expression; send it as json_schema")

    write(node, False)
    return "".join(parts)


def _count(low: int, high: int | None) -> str:
    if (low, high) == (0, None):
        return "*"
    if (low, high) == (1, None):
        return "+"
    if (low, high) == (0, 1):
        return "?"
    if low == high:
        return f"{{{low}}}"
    return f"{{{low},{'' if high is None else high}}}"


def _quote(text: str) -> str:
    return "".join(_point(ord(c), "") if ord(c) < 32 else "\\" + c if c in _SPECIAL else c for c in text)


def _char_class(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _point(ranges[0][0], "".join(_SPECIAL))
    other = inverse(ranges)
    if len(other) < len(ranges) and not any(meet(ranges, (SURROGATES,))):
        return "[^" + _spans(other) + "]" if other else "[\\x00-\\U0010ffff]"
    return "[" + _spans(ranges) + "]"


def _spans(ranges: Ranges) -> str:
    def span(low: int, high: int) -> str:
        first, last = _point(low, "\\]^-["), _point(high, "\\]^-[")
        return first if low == high else first + last if high == low + 1 else f"{first}-{last}"

    return "".join(span(*r) for r in ranges)


def _point(code: int, special: str) -> str:
    if 32 <= code < 127:
        return ("\\" if chr(code) in special else "") + chr(code)
    names = {9: "\\t", 10: "\\n", 13: "\\r"}
    if code in names:
        return names[code]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
