"""What is known of one JSON value, and of one that two schemas are about."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sglang.grammar import multiples

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


class CannotMeet(ValueError):
    """Two things are known of a value that we cannot say together."""


@dataclass(frozen=True)
class Facts:
    """What is known of one value. None and empty: nothing."""

    types: frozenset[str] = frozenset(TYPES)
    typed: bool = False  # `types` was said, not assumed
    values: tuple[Any, ...] | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    lengths: tuple[int, int | None] = (0, None)
    low: tuple[Decimal, bool] | None = None  # the bound, and whether it is left out
    high: tuple[Decimal, bool] | None = None
    multiple: Decimal | None = None  # multipleOf
    properties: dict[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    key_patterns: dict[str, Any] = field(default_factory=dict)
    key_schemas: tuple[Any, ...] = ()
    others: Any = None  # additionalProperties
    sizes: tuple[int, int | None] = (0, None)
    head: tuple[Any, ...] = ()  # prefixItems
    rest: Any = None  # items
    counts: tuple[int, int | None] = (0, None)
    unique: bool = False
    implied: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()  # references that led here


def meet(a: Facts, b: Facts) -> Facts | None:
    """What is known of a value that both are about; None where there is none. Raises CannotMeet."""
    types = a.types & b.types
    values = a.values if b.values is None else b.values
    if a.values is not None and b.values is not None:
        others = {key_of(v) for v in b.values}
        values = tuple(v for v in a.values if key_of(v) in others)
    if not types or values == ():
        return None
    a_known, b_known = _spread(a, b), _spread(b, a)
    properties = dict(a_known)
    for key, schema in b_known.items():
        properties[key] = all_of(properties[key], schema) if key in properties else schema
    heads = max(len(a.head), len(b.head))
    key_patterns = dict(a.key_patterns)
    for key, schema in b.key_patterns.items():
        key_patterns[key] = all_of(key_patterns[key], schema) if key in key_patterns else schema
    if (
        (a.key_patterns or b.key_patterns)
        and (a.others is not None or b.others is not None)
        and a.key_patterns != b.key_patterns
    ):
        raise CannotMeet("patternProperties and additionalProperties in different parts of allOf are unsupported")
    return Facts(
        types=types,
        typed=a.typed or b.typed,
        values=values,
        patterns=tuple(dict.fromkeys((*a.patterns, *b.patterns))),
        formats=tuple(dict.fromkeys((*a.formats, *b.formats))),
        lengths=narrower(a.lengths, b.lengths),
        low=tighter(a.low, b.low, max),
        high=tighter(a.high, b.high, min),
        multiple=_meet_multiples(a.multiple, b.multiple),
        properties=properties,
        required=tuple(dict.fromkeys((*a.required, *b.required))),
        key_patterns=key_patterns,
        key_schemas=(*a.key_schemas, *b.key_schemas),
        others=_meet_schemas(a.others, b.others),
        sizes=narrower(a.sizes, b.sizes),
        head=tuple(_meet_schemas(item_of(a, i), item_of(b, i)) for i in range(heads)),
        rest=_meet_schemas(a.rest, b.rest),
        counts=narrower(a.counts, b.counts),
        unique=a.unique or b.unique,
        implied=a.implied | b.implied,
        through=a.through | b.through,
    )


def _spread(mine: Facts, theirs: Facts) -> dict[str, Any]:
    """`mine`'s properties, with what `theirs` says of properties it does not name."""
    if theirs.others is None or theirs.key_patterns:
        return mine.properties
    return {k: s if k in theirs.properties else all_of(s, theirs.others) for k, s in mine.properties.items()}


def all_of(a: Any, b: Any) -> Any:
    if a is True or b is False:
        return b
    return a if b is True or a is False else {"allOf": [a, b]}


def _meet_schemas(a: Any, b: Any) -> Any:
    """Of two schemas that may be absent."""
    return b if a is None else a if b is None else all_of(a, b)


def _meet_multiples(a: Decimal | None, b: Decimal | None) -> Decimal | None:
    return b if a is None else a if b is None else multiples.common(a, b)


def item_of(facts: Facts, i: int) -> Any:
    """What is said of the item at `i`."""
    return facts.head[i] if i < len(facts.head) else facts.rest


def narrower(a: tuple[int, int | None], b: tuple[int, int | None]) -> tuple[int, int | None]:
    highs = [h for h in (a[1], b[1]) if h is not None]
    return max(a[0], b[0]), min(highs, default=None)


def tighter(a: tuple[Decimal, bool] | None, b: tuple[Decimal, bool] | None, tight: Any) -> tuple[Decimal, bool] | None:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        return a[0], a[1] or b[1]
    return a if tight(a[0], b[0]) == a[0] else b


def types_of(facts: Facts) -> frozenset[str]:
    """Where no type is said, the one that the other keywords are about."""
    if facts.typed or not facts.implied:
        return facts.types if facts.typed or not (facts.formats) else frozenset(("string",))
    implied = facts.implied | ({"integer"} if "number" in facts.implied else set())
    return frozenset(facts.types & implied) or facts.types


def type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def key_of(value: Any) -> Hashable:
    """Equal for values that are equal in JSON: 1 is 1.0, and true is not 1."""
    match value:
        case bool() | None | str():
            return (type(value), value)
        case int() | float():
            return (float, value)
        case list():
            return (list, *map(key_of, value))
        case _:
            return (dict, frozenset((k, key_of(v)) for k, v in value.items()))
