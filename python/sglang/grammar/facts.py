"""What a JSON schema says of one value.

Schemas are not trees: combinators (allOf, anyOf, oneOf, $ref with neighbours) are multiplied out into `Facts`, each a
conjunction about one value.
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar import automaton, numbers, regex, strings
from sglang.grammar.language import Node

DEPTH = 100  # of schemas in schemas
SHOWN_CHARS = 64  # of a pattern, in an error
CASES = 4096  # of multiplied-out alternatives
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
BOUNDED_FORMATS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1),
                   "uint64": (0, 2**64 - 1)}  # fmt: skip
NUMBER_FORMATS = frozenset((*BOUNDED_FORMATS, "float", "double", "decimal"))

# Said for people and tools, not about the value.
REMARKS = frozenset(
    ("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
     "$schema", "$id", "$anchor", "$defs", "definitions", "$vocabulary", "discriminator", "contentEncoding",
     "contentMediaType", "contentSchema", "xml", "externalDocs", "strict", "propertyOrdering", "additionalItems")
)  # fmt: skip
KNOWN = frozenset(
    ("type", "enum", "const", "nullable", "$ref", "allOf", "anyOf", "oneOf", "properties", "required",
     "additionalProperties", "propertyNames", "patternProperties", "minProperties", "maxProperties", "items",
     "prefixItems", "minItems", "maxItems", "pattern", "minLength", "maxLength", "format", "minimum", "maximum",
     "exclusiveMinimum", "exclusiveMaximum")
)  # fmt: skip
_IMPLIED = {
    "object": frozenset(("properties", "required", "additionalProperties", "propertyNames", "patternProperties",
                         "minProperties", "maxProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "string": frozenset(("pattern", "minLength", "maxLength")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
}  # fmt: skip


class NotRegular(Exception):
    """The schema is one that no regular expression can say: it is recursive, or allows any JSON somewhere."""


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
    properties: dict[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    key_patterns: dict[str, Any] = field(default_factory=dict)
    key_schemas: tuple[Any, ...] = ()
    others: Any = None  # additionalProperties
    sizes: tuple[int, int | None] = (0, None)
    head: tuple[Any, ...] = ()  # prefixItems
    rest: Any = None  # items
    counts: tuple[int, int | None] = (0, None)
    implied: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()  # references that led here


def load(schema: str | dict[str, Any] | bool, name: str = "json_schema") -> dict[str, Any] | bool:
    """The schema as Python has it. Raises FieldError(name)."""
    if isinstance(schema, str):
        if len(schema) > limits.GRAMMAR_CHARS:
            raise FieldError(name, f"{name} may have at most {limits.GRAMMAR_CHARS} characters, got {len(schema)}")
        try:
            schema = json.loads(schema)
        except RecursionError:
            raise FieldError(name, f"{name} is nested too deeply") from None
        except ValueError as error:
            raise FieldError(name, f"{name} is not valid JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise FieldError(name, f"{name} must be an object, got {type(schema).__name__}")
    return schema


class Reader:
    """Of one schema document. open: references that led to what is being written now, so that recursion is seen."""

    def __init__(self, root: dict[str, Any] | bool, strict: bool, name: str):
        self.root = root
        self.strict = strict
        self.name = name
        self.work = limits.GRAMMAR_WORK // 20  # a step here costs more than one of an automaton
        self.open: list[frozenset[str]] = []
        self._searches: dict[str, automaton.Automaton] = {}
        self._looking = 0  # only comparing: recursion does no harm there

    def error(self, path: str, text: str) -> FieldError:
        return FieldError(self.name, f"{self.name}: {text} (at {path})")

    def is_open(self, ref: str) -> bool:
        return any(ref in refs for refs in self.open)

    def resolve(self, ref: str, path: str) -> Any:
        if not ref.startswith("#"):
            raise self.error(path, f"$ref {ref!r}: only references inside the schema (#/...) are followed")
        found: Any = self.root
        for part in ref[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise self.error(path, f"$ref {ref!r} leads nowhere")
        return found

    def cases(self, schema: Any, path: str, depth: int, through: tuple[str, ...]) -> list[Facts]:
        """The alternatives of a schema. through: references followed on the way."""
        self.work -= 1
        if self.work < 0:
            raise self.error(path, "the schema is too large")
        if schema is True:
            return [Facts()]
        if schema is False:
            return []
        if not isinstance(schema, dict):
            raise self.error(path, f"a schema must be an object or a boolean, got {type(schema).__name__}")
        if depth > DEPTH:
            raise self.error(path, f"schemas may be nested {DEPTH} deep at most")
        result = [self.facts(schema, path)]
        if "$ref" in schema:
            ref = schema["$ref"]
            if not isinstance(ref, str):
                raise self.error(path, "$ref must be a string")
            if ref in through:
                raise self.error(path, f"$ref {ref!r} says nothing but itself")
            if not self._looking and self.is_open(ref):
                raise NotRegular(f"{ref} is recursive")
            target = self.cases(self.resolve(ref, path), ref, depth + 1, (*through, ref))
            target = [replace(facts, through=facts.through | {ref}) for facts in target]
            result = self.combined(result, target, path)
        for i, part in enumerate(self.list_of(schema, "allOf", path)):
            result = self.combined(result, self.cases(part, f"{path}.allOf[{i}]", depth + 1, through), path)
        for key in ("anyOf", "oneOf"):
            if key not in schema:
                continue
            groups = [
                self.cases(part, f"{path}.{key}[{i}]", depth + 1, through)
                for i, part in enumerate(self.list_of(schema, key, path))
            ]
            if key == "oneOf" and self.strict:
                self.check_apart(groups, path, depth)
            result = self.combined(result, [facts for group in groups for facts in group], path)
        return result

    def combined(self, left: Sequence[Facts], right: Sequence[Facts], path: str) -> list[Facts]:
        if len(left) * len(right) > CASES:
            raise self.error(path, f"allOf, anyOf and oneOf multiply to more than {CASES} alternatives")
        return [both for a in left for b in right if (both := self.meet(a, b, path)) is not None]

    def list_of(self, schema: dict[str, Any], key: str, path: str) -> list[Any]:
        value = schema.get(key, [])
        if not isinstance(value, list) or (key in schema and not value):
            raise self.error(path, f"{key} must be a list with at least one schema")
        return value

    def facts(self, schema: dict[str, Any], path: str) -> Facts:
        """What one schema object says by itself."""
        self.check_known(schema, path)
        types, typed = self.types(schema, path)
        values: tuple[Any, ...] | None = None
        if "const" in schema:
            values = (schema["const"],)
        if "enum" in schema:
            if not isinstance(schema["enum"], list):
                raise self.error(path, "enum must be a list")
            values = tuple(v for v in schema["enum"] if values is None or key_of(v) == key_of(values[0]))
        head = schema.get("prefixItems", ())
        rest = schema.get("items")
        if isinstance(rest, list):  # how drafts before 2020-12 wrote prefixItems
            head, rest = rest, schema.get("additionalItems")
        formats = [schema["format"]] if "format" in schema else []
        facts = Facts(
            types=types,
            typed=typed,
            values=values,
            patterns=tuple(self.strings(schema, "pattern", path)),
            formats=tuple(self.format_of(f, types, path) for f in formats if self.format_of(f, types, path)),
            lengths=self.span(schema, "minLength", "maxLength", path),
            low=self.bound(schema, "minimum", "exclusiveMinimum", path, max),
            high=self.bound(schema, "maximum", "exclusiveMaximum", path, min),
            properties=self.mapping(schema, "properties", path),
            required=tuple(dict.fromkeys(self.names(schema, path))),
            key_patterns=self.mapping(schema, "patternProperties", path),
            key_schemas=(schema["propertyNames"],) if "propertyNames" in schema else (),
            others=schema.get("additionalProperties"),
            sizes=self.span(schema, "minProperties", "maxProperties", path),
            head=tuple(head),
            rest=rest,
            counts=self.span(schema, "minItems", "maxItems", path),
            implied=frozenset(t for t, keys in _IMPLIED.items() if not keys.isdisjoint(schema)),
        )
        for name in formats:
            if name in BOUNDED_FORMATS:
                low, high = (Decimal(b) for b in BOUNDED_FORMATS[name])
                facts = replace(
                    facts, low=_tighter(facts.low, (low, False), max), high=_tighter(facts.high, (high, False), min)
                )
        return facts

    def check_known(self, schema: dict[str, Any], path: str) -> None:
        if not self.strict:
            return
        unknown = [k for k in schema if k not in KNOWN and k not in REMARKS and not k.startswith("x-")]
        harmless = {"uniqueItems": False, "multipleOf": 1}
        unknown = [k for k in unknown if k not in harmless or schema[k] != harmless[k]]
        if unknown:
            raise self.error(
                path, f"unsupported: {', '.join(map(repr, unknown))} (strict: false ignores what is unsupported)"
            )

    def types(self, schema: dict[str, Any], path: str) -> tuple[frozenset[str], bool]:
        said = schema.get("type")
        if said is None:
            return frozenset(TYPES), False
        listed = said if isinstance(said, list) else [said]
        for name in listed:
            if name not in TYPES:
                raise self.error(path, f"type must be one of {', '.join(TYPES)}, got {name!r}")
        types = {
            *listed,
            *(["integer"] if "number" in listed else []),
            *(["null"] if schema.get("nullable") is True else []),
        }
        if schema.get("multipleOf") == 1:
            types.discard("number")
        return frozenset(types), True

    def format_of(self, name: Any, types: frozenset[str], path: str) -> str:
        """The format where it says something of strings, else nothing."""
        if "string" not in types or name in strings.REMARKS or name in NUMBER_FORMATS:
            return ""
        if not isinstance(name, str) or strings.of_format(name) is None:
            if self.strict:
                raise self.error(path, f"unsupported format {name!r}; known: {', '.join(strings.known_formats())}")
            return ""
        return name

    def strings(self, schema: dict[str, Any], key: str, path: str) -> list[str]:
        if key not in schema:
            return []
        if not isinstance(schema[key], str):
            raise self.error(path, f"{key} must be a string")
        return [schema[key]]

    def names(self, schema: dict[str, Any], path: str) -> list[str]:
        names = schema.get("required", [])
        if isinstance(names, bool):  # draft 3, still met in the wild; says nothing here
            return []
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise self.error(path, "required must be a list of strings")
        return names

    def mapping(self, schema: dict[str, Any], key: str, path: str) -> dict[str, Any]:
        value = schema.get(key, {})
        if not isinstance(value, dict):
            raise self.error(path, f"{key} must be an object")
        return value

    def span(self, schema: dict[str, Any], low_key: str, high_key: str, path: str) -> tuple[int, int | None]:
        low, high = (self.count(schema, key, path) for key in (low_key, high_key))
        return low or 0, high

    def count(self, schema: dict[str, Any], key: str, path: str) -> int | None:
        value = schema.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise self.error(path, f"{key} must be a whole number >= 0, got {value!r}")
        return int(value)

    def bound(
        self, schema: dict[str, Any], key: str, open_key: str, path: str, tight: Any
    ) -> tuple[Decimal, bool] | None:
        result: tuple[Decimal, bool] | None = None
        exclusive = schema.get(open_key)
        for name, value in ((key, schema.get(key)), (open_key, exclusive)):
            if value is None or (isinstance(value, bool) and name == open_key):
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or value != value
                or abs(value) == float("inf")
            ):
                raise self.error(path, f"{name} must be a number, got {value!r}")
            if abs(value) >= 10**numbers.LONGEST_BOUND:
                raise self.error(path, f"{name} may have at most {numbers.LONGEST_BOUND} digits")
            # draft 4: exclusiveMinimum: true beside minimum
            result = _tighter(result, (Decimal(repr(value)), name == open_key or exclusive is True), tight)
        return result

    def meet(self, a: Facts, b: Facts, path: str) -> Facts | None:
        types = a.types & b.types
        values = a.values if b.values is None else b.values
        if a.values is not None and b.values is not None:
            others = {key_of(v) for v in b.values}
            values = tuple(v for v in a.values if key_of(v) in others)
        if not types or values == ():
            return None
        a_known, b_known = self.spread(a, b), self.spread(b, a)
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
            raise self.error(
                path, "patternProperties and additionalProperties in different parts of allOf are unsupported"
            )
        return Facts(
            types=types,
            typed=a.typed or b.typed,
            values=values,
            patterns=tuple(dict.fromkeys((*a.patterns, *b.patterns))),
            formats=tuple(dict.fromkeys((*a.formats, *b.formats))),
            lengths=_narrower(a.lengths, b.lengths),
            low=_tighter(a.low, b.low, max),
            high=_tighter(a.high, b.high, min),
            properties=properties,
            required=tuple(dict.fromkeys((*a.required, *b.required))),
            key_patterns=key_patterns,
            key_schemas=(*a.key_schemas, *b.key_schemas),
            others=_meet_schemas(a.others, b.others),
            sizes=_narrower(a.sizes, b.sizes),
            head=tuple(_meet_schemas(_item(a, i), _item(b, i)) for i in range(heads)),
            rest=_meet_schemas(a.rest, b.rest),
            counts=_narrower(a.counts, b.counts),
            implied=a.implied | b.implied,
            through=a.through | b.through,
        )

    def spread(self, mine: Facts, theirs: Facts) -> dict[str, Any]:
        """`mine`'s properties, with what `theirs` says of properties it does not name."""
        if theirs.others is None or theirs.key_patterns:
            return mine.properties
        return {k: s if k in theirs.properties else all_of(s, theirs.others) for k, s in mine.properties.items()}

    def check_one_of(self, schema: dict[str, Any], path: str, depth: int) -> None:
        self._looking += 1
        parts = self.list_of(schema, "oneOf", path)
        groups = [self.cases(part, f"{path}.oneOf[{i}]", depth + 1, ()) for i, part in enumerate(parts)]
        self.check_apart(groups, path, depth)
        self._looking -= 1

    def check_all(self, schema: Any, path: str, depth: int) -> None:
        """Every oneOf inside `schema`, wherever it stands."""
        self.work -= 1
        if self.work < 0 or depth > DEPTH:
            raise self.error(path, "the schema is too large")
        if isinstance(schema, dict):
            if isinstance(schema.get("oneOf"), list):
                self.check_one_of(schema, path, depth)
            for key, part in schema.items():
                if key not in ("const", "enum", "default", "examples", "example"):
                    self.check_all(part, f"{path}.{key}", depth + 1)
        elif isinstance(schema, list):
            for i, part in enumerate(schema):
                self.check_all(part, f"{path}[{i}]", depth + 1)

    def check_apart(self, groups: Sequence[Sequence[Facts]], path: str, depth: int) -> None:
        """oneOf: no text that we write for one alternative may be an instance of another."""
        for i, mine in enumerate(groups):
            for j, theirs in enumerate(groups):
                if i != j and not all(self.apart(a, b, depth) for a in mine for b in theirs):
                    raise self.error(
                        path,
                        f"oneOf: alternatives {min(i, j)} and {max(i, j)} may both hold; write anyOf if that is meant",
                    )

    def apart(self, a: Facts, b: Facts, depth: int) -> bool:
        """Whether nothing written for `a` is an instance of `b`."""
        self.work -= 1
        if self.work < 0 or depth > DEPTH:
            return False
        types = types_of(a) & b.types
        if not types:
            return True
        if a.values is not None:
            self.work -= len(a.values)
            theirs = None if b.values is None else {key_of(v) for v in b.values}
            return not any((theirs is None or key_of(v) in theirs) and self.admits(b, v) for v in a.values)
        if b.values is not None:
            self.work -= len(b.values)
            return not any(self.admits(a, v) for v in b.values)
        return all(self.apart_as(kind, a, b, depth) for kind in types)

    def apart_as(self, kind: str, a: Facts, b: Facts, depth: int) -> bool:
        if kind in ("integer", "number"):
            low, high = _tighter(a.low, b.low, max), _tighter(a.high, b.high, min)
            return bool(low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))))
        if kind == "string":
            low, high = _narrower(a.lengths, b.lengths)
            return high is not None and low > high
        if kind == "array":
            low, high = _narrower(a.counts, b.counts)
            return high is not None and low > high
        if kind == "object":
            closed = a.others in (None, False) and not a.key_patterns
            for key in b.required:
                if key not in a.properties and key not in a.required:
                    if closed:
                        return True
                elif key in a.required and key in a.properties and key in b.properties:
                    self._looking += 1
                    mine = self.cases(a.properties[key], key, depth + 1, ())
                    theirs = self.cases(b.properties[key], key, depth + 1, ())
                    self._looking -= 1
                    if all(self.apart(x, y, depth + 10) for x in mine for y in theirs):
                        return True
            return b.others is False and not b.key_patterns and any(key not in b.properties for key in a.required)
        return False

    def admits(self, facts: Facts, value: Any) -> bool:
        """Whether `value` obeys what `facts` say of scalars (`values` aside); objects and arrays are taken to."""
        kind = _type_of(value)
        if kind not in facts.types:
            return False
        if kind in ("integer", "number"):
            number = Decimal(repr(value))
            above = facts.low is None or number > facts.low[0] or (number == facts.low[0] and not facts.low[1])
            return above and (
                facts.high is None or number < facts.high[0] or (number == facts.high[0] and not facts.high[1])
            )
        if kind == "string":
            low, high = facts.lengths
            if len(value) < low or (high is not None and len(value) > high):
                return False
            formats = [node for f in facts.formats if (node := strings.of_format(f)) is not None]
            return all(self.found(p, value) for p in facts.patterns) and all(
                automaton.compile(node, self.name).matches(value) for node in formats
            )
        return True

    def found(self, pattern: str, text: str) -> bool:
        known = self._searches.get(pattern)
        if known is None:
            known = self._searches[pattern] = automaton.compile(self.searched(pattern), self.name)
        return known.matches(text)

    def searched(self, pattern: str) -> Node:
        """The texts in which `pattern` is found."""
        try:
            return regex.parse(pattern, self.name, search=True)
        except FieldError as error:
            reason = str(error).removeprefix(self.name).lstrip(": ")
            raise FieldError(self.name, f"{self.name}: pattern {pattern[:SHOWN_CHARS]!r}: {reason}") from None


def all_of(a: Any, b: Any) -> Any:
    if a is True or b is False:
        return b
    return a if b is True or a is False else {"allOf": [a, b]}


def _meet_schemas(a: Any, b: Any) -> Any:
    """Of two schemas that may be absent."""
    return b if a is None else a if b is None else all_of(a, b)


def _item(facts: Facts, i: int) -> Any:
    return facts.head[i] if i < len(facts.head) else facts.rest


def _narrower(a: tuple[int, int | None], b: tuple[int, int | None]) -> tuple[int, int | None]:
    highs = [h for h in (a[1], b[1]) if h is not None]
    return max(a[0], b[0]), min(highs, default=None)


def _tighter(a: tuple[Decimal, bool] | None, b: tuple[Decimal, bool] | None, tight: Any) -> tuple[Decimal, bool] | None:
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


def _type_of(value: Any) -> str:
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
