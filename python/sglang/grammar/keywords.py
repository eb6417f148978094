"""What one schema object says by itself: its keywords -> `Facts`."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from sglang.base.errors import FieldError
from sglang.grammar import numbers, strings
from sglang.grammar.facts import TYPES, Facts, key_of, tighter

BOUNDED_FORMATS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1),
                   "uint64": (0, 2**64 - 1)}  # fmt: skip
NUMBER_FORMATS = frozenset((*BOUNDED_FORMATS, "float", "double", "decimal"))

# Of the document, not about the value.
ASIDE = frozenset(("$schema", "$id", "$anchor", "$defs", "definitions", "additionalItems", "nullable"))
KNOWN = ASIDE | frozenset(
    ("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "properties", "required",
     "additionalProperties", "propertyNames", "patternProperties", "minProperties", "maxProperties", "items",
     "prefixItems", "minItems", "maxItems", "pattern", "minLength", "maxLength", "format", "minimum", "maximum",
     "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems")
)  # fmt: skip
_IMPLIED = {
    "object": frozenset(("properties", "required", "additionalProperties", "propertyNames", "patternProperties",
                         "minProperties", "maxProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "string": frozenset(("pattern", "minLength", "maxLength")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
}  # fmt: skip


class Keywords:
    """strict: those that are not supported are errors. name: the field that errors are about."""

    def __init__(self, strict: bool, name: str):
        self.strict = strict
        self.name = name

    def error(self, path: str, text: str) -> FieldError:
        return FieldError(self.name, f"{self.name}: {text} (at {path})")

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
            multiple=self.multiple(schema, path),
            properties=self.mapping(schema, "properties", path),
            required=tuple(dict.fromkeys(self.names(schema, path))),
            key_patterns=self.mapping(schema, "patternProperties", path),
            key_schemas=(schema["propertyNames"],) if "propertyNames" in schema else (),
            others=schema.get("additionalProperties"),
            sizes=self.span(schema, "minProperties", "maxProperties", path),
            head=tuple(head),
            rest=rest,
            counts=self.span(schema, "minItems", "maxItems", path),
            unique=schema.get("uniqueItems") is True,
            implied=frozenset(t for t, keys in _IMPLIED.items() if not keys.isdisjoint(schema)),
        )
        for name in formats:
            if name in BOUNDED_FORMATS:
                low, high = (Decimal(b) for b in BOUNDED_FORMATS[name])
                facts = replace(
                    facts, low=tighter(facts.low, (low, False), max), high=tighter(facts.high, (high, False), min)
                )
        return facts

    def check_known(self, schema: dict[str, Any], path: str) -> None:
        if not self.strict:
            return
        unknown = [k for k in schema if k not in KNOWN]
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
        return frozenset((*listed, *(["integer"] if "number" in listed else []))), True

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

    def multiple(self, schema: dict[str, Any], path: str) -> Decimal | None:
        value = schema.get("multipleOf")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**numbers.LONGEST_BOUND:
            raise self.error(path, f"multipleOf must be a number > 0, got {value!r}")
        return Decimal(repr(value))

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
            result = tighter(result, (Decimal(repr(value)), name == open_key or exclusive is True), tight)
        return result
