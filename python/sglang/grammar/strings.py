"""JSON strings: how characters are written between quotes, and the formats that JSON schema names."""

from collections.abc import Callable
from functools import cache

from sglang.grammar import regex
from sglang.grammar.language import (
    ANY,
    Alt,
    Both,
    Cat,
    Chars,
    Node,
    Repeat,
    Text,
    Without,
    alt,
    cat,
    chars,
    inverse,
    lengths,
    meet,
    normal,
    shortened,
)

_SHORT = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_RAW = inverse(((0, 31), (0x22, 0x22), (0x5C, 0x5C)))
_HEX = chars("abcdef", "ABCDEF", (48, 57))
_HEX4 = cat(
    "u",
    alt(
        cat(chars("abcefABCEF", (48, 57)), Repeat(_HEX, 3, 3)),
        cat(chars("dD"), chars((48, 55)), Repeat(_HEX, 2, 2)),  # d800 to dfff are no characters
    ),
)
_PAIR = cat("u", chars("dD"), chars("89abAB"), Repeat(_HEX, 2, 2), "\\u", chars("dD"), chars("cdefCDEF"), _HEX, _HEX)

# Any character of a string that nothing is known of, in every way JSON has.
FREE = alt(Chars(_RAW), cat("\\", alt(chars('"\\/bfnrt'), _HEX4, _PAIR)))
# The same for strings that are counted, without pairs of \u escapes: they would double the automaton.
COUNTED = alt(Chars(_RAW), cat("\\", alt(chars('"\\/bfnrt'), _HEX4)))


def quoted(inner: Node) -> Node:
    return cat('"', inner, '"')


def escaped(node: Node) -> Node:
    """The texts of `node` as they stand in a JSON string, each written in one way only."""
    return _Escaper().write(node)


class _Escaper:
    def __init__(self) -> None:
        self._done: dict[int, Node] = {}

    def write(self, node: Node) -> Node:
        known = self._done.get(id(node))
        if known is None:
            known = self._done[id(node)] = self._write(node)
        return known

    def _write(self, node: Node) -> Node:
        match node:
            case Text(value):
                return Text("".join(_escape(ord(c)) for c in value))
            case Chars(ranges):
                plain = meet(ranges, _RAW)
                rest = meet(ranges, normal([(0, 31), (0x22, 0x22), (0x5C, 0x5C)]))
                escapes = [_escape(code) for low, high in rest for code in range(low, high + 1)]
                return alt(*([Chars(plain)] if plain else []), *escapes)
            case Cat(items):
                return Cat(tuple(self.write(i) for i in items))
            case Alt(items):
                return Alt(tuple(self.write(i) for i in items))
            case Repeat(item, low, high):
                return Repeat(self.write(item), low, high)
            case Both(left, right):
                return Both(self.write(left), self.write(right))
            case Without(left, right):
                return Without(self.write(left), self.write(right))


def _escape(code: int) -> str:
    if code in _SHORT:
        return "\\" + _SHORT[code]
    return f"\\u{code:04x}" if code < 32 else chr(code)


CANONICAL = escaped(ANY)  # one character, written in one way


_YEAR = r"([1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"  # there is no year 0
_DAY = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    r"|(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?"
_ZONE = r"(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_LABELS = (30, 8, 2)  # characters inside of a label: five of the longest stay under the 253 of a host
_LONG = 2048  # characters of a text whose format has no end, where it must have one


def _label(inner: int) -> str:
    return rf"[a-zA-Z0-9]([a-zA-Z0-9-]{{0,{inner}}}[a-zA-Z0-9])?"


def _host(inner: int) -> str:
    return rf"{_label(inner)}(\.{_label(inner)}){{0,4}}"


_H16 = r"[0-9a-fA-F]{1,4}"
_IPV6 = "(" + "|".join(
    [
        rf"({_H16}:){{7}}{_H16}",
        *(rf"({_H16}:){{{n}}}(:{_H16}){{1,{7 - n}}}" for n in range(1, 7)),
        rf"({_H16}:){{1,7}}:",
        rf":((:{_H16}){{1,7}}|:)",
    ]
) + ")"  # fmt: skip
_PATH = r"([a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2})*"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]"

# Each is a part of what the format's specification allows: whoever checks the format accepts it. Those with hosts take
# the length of labels.
_FORMATS: dict[str, str | Callable[[int], str]] = {
    "date": _DAY,
    "time": _CLOCK + _ZONE,
    "date-time": f"{_DAY}T{_CLOCK}{_ZONE}",
    "duration": r"P(\d{1,6}W|(\d{1,6}Y(\d{1,6}M(\d{1,6}D)?)?|\d{1,6}M(\d{1,6}D)?|\d{1,6}D)"
    r"(T(\d{1,6}H(\d{1,6}M(\d{1,6}S)?)?|\d{1,6}M(\d{1,6}S)?|\d{1,6}S))?"
    r"|T(\d{1,6}H(\d{1,6}M(\d{1,6}S)?)?|\d{1,6}M(\d{1,6}S)?|\d{1,6}S))",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    **{
        f"uuid{n}": f"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{n}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}"
        for n in range(1, 9)
    },
    # Up to three of twenty stay under the 64 characters before an @.
    "email": lambda n: (
        rf"{_ATOM}{{1,{min(n, 20)}}}(\.{_ATOM}{{1,{min(n, 20)}}}){{0,2}}@"
        rf"{_label(n)}(\.{_label(n)}){{0,3}}\.[a-zA-Z]{{2,12}}"
    ),
    "hostname": _host,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": lambda n: (
        rf"[a-zA-Z][a-zA-Z0-9+.-]*://{_host(n)}"
        rf"(:\d{{1,4}})?(/{_PATH})?(\?{_PATH})?(#[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?"
    ),
    "byte": r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "json-pointer": r"(/([^~/]|~[01])*)*",
}
_ALIASES = {"uri-reference": "uri", "iri": "uri", "iri-reference": "uri", "url": "uri", "idn-email": "email",
            "idn-hostname": "hostname", "base64": "byte", "ipvanyaddress": "ipv4"}  # fmt: skip
# Said for people, or true of every text.
REMARKS = frozenset(("password", "path", "file-path", "directory-path", "binary", "text", "string", "char", "markdown"))


def known_formats() -> list[str]:
    return sorted({*_FORMATS, *_ALIASES})


@cache
def of_format(name: str, label: int = _LABELS[0]) -> Node | None:
    """The texts of a format, before they are escaped; None where it is not known."""
    pattern = _FORMATS.get(_ALIASES.get(name, name))
    return None if pattern is None else regex.parse(pattern if isinstance(pattern, str) else pattern(label), "format")


def of_format_within(name: str, most: int) -> Node | None:
    """As `of_format`, and where that is possible a part of it whose texts have at most `most` characters."""
    for label in _LABELS:
        node = of_format(name, label)
        if node is None:
            return None
        longest = lengths(node)[1]
        if longest is not None and longest <= most:
            return node
        if (part := shortened(node, min(most, _LONG))) is not None:
            return part
    return of_format(name)
