"""Schemas -> the alternatives of what they say of one value.

Schemas are not trees: combinators (allOf, anyOf, oneOf, $ref with neighbours) are multiplied out into `Facts`, each a
conjunction about one value.
"""

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar import automaton, documents, regex, strings
from sglang.grammar.facts import CannotMeet, Facts, item_of, key_of, meet, narrower, tighter, type_of, types_of
from sglang.grammar.keywords import Keywords
from sglang.grammar.language import Node

DEPTH = 100  # of schemas in schemas
SHOWN_CHARS = 64  # of a pattern, in an error
CASES = 4096  # of multiplied-out alternatives


class NotRegular(Exception):
    """The schema is one that no regular expression can say: it is recursive, or allows any JSON somewhere."""


def load(schema: str | dict[str, Any] | bool, name: str = "json_schema") -> dict[str, Any] | bool:
    """The schema as Python has it, without remarks. Raises FieldError(name)."""
    try:
        return documents.simplified(decode(schema, name))
    except RecursionError:
        raise FieldError(name, f"{name} is nested too deeply") from None


def decode(schema: str | dict[str, Any] | bool, name: str) -> dict[str, Any] | bool:
    """A document as it was sent. Raises FieldError(name)."""
    if isinstance(schema, str):
        if len(schema) > limits.GRAMMAR_CHARS:
            raise FieldError(name, f"{name} may have at most {limits.GRAMMAR_CHARS} characters, got {len(schema)}")
        try:
            schema = json.loads(schema, parse_float=_finite, parse_constant=_finite)
        except RecursionError:
            raise FieldError(name, f"{name} is nested too deeply") from None
        except ValueError as error:
            raise FieldError(name, f"{name} is not valid JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise FieldError(name, f"{name} must be an object, got {type(schema).__name__}")
    return schema


def _finite(text: str) -> float:
    """NaN and Infinity, which Python reads and JSON has not, would be written as they are."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:SHOWN_CHARS]} is no finite number")
    return number


class Reader:
    """Of one schema document. open: references that led to what is being written now, so that recursion is seen."""

    def __init__(self, root: dict[str, Any] | bool, strict: bool, name: str):
        self.root = root
        self.strict = strict
        self.name = name
        self.keywords = Keywords(strict, name)
        self.error = self.keywords.error
        self.work = limits.GRAMMAR_WORK // 20  # a step here costs more than one of an automaton
        self.open: list[frozenset[str]] = []
        self._searches: dict[str, automaton.Automaton] = {}
        self._looking = 0  # only comparing: recursion does no harm there

    def spend(self, amount: int, path: str) -> None:
        self.work -= amount
        if self.work < 0:
            raise self.error(path, "the schema is too large")

    def is_open(self, ref: str) -> bool:
        return any(ref in refs for refs in self.open)

    def resolve(self, ref: str, path: str) -> Any:
        if not ref.startswith("#"):
            raise self.error(path, f"$ref {ref!r}: only references inside the schema (#/...) are followed")
        try:
            return documents.target(self.root, ref)
        except KeyError:
            raise self.error(path, f"$ref {ref!r} leads nowhere") from None

    def cases(self, schema: Any, path: str, depth: int, through: tuple[str, ...]) -> list[Facts]:
        """The alternatives of a schema. through: references followed on the way."""
        self.spend(1, path)
        if schema is True:
            return [Facts()]
        if schema is False:
            return []
        if not isinstance(schema, dict):
            raise self.error(path, f"a schema must be an object or a boolean, got {type(schema).__name__}")
        if depth > DEPTH:
            raise self.error(path, f"schemas may be nested {DEPTH} deep at most")
        result = [self.keywords.facts(schema, path)]
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
        try:
            return [both for a in left for b in right if (both := meet(a, b)) is not None]
        except CannotMeet as error:
            raise self.error(path, str(error)) from None

    def list_of(self, schema: dict[str, Any], key: str, path: str) -> list[Any]:
        value = schema.get(key, [])
        if not isinstance(value, list) or (key in schema and not value):
            raise self.error(path, f"{key} must be a list with at least one schema")
        return value

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
            low, high = tighter(a.low, b.low, max), tighter(a.high, b.high, min)
            return bool(low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))))
        if kind == "string":
            low, high = narrower(a.lengths, b.lengths)
            return high is not None and low > high
        if kind == "array":
            low, high = narrower(a.counts, b.counts)
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
        """Whether `value` obeys what `facts` say, `values` aside."""
        kind = type_of(value)
        if kind not in facts.types:
            return False
        if kind in ("integer", "number"):
            number = Decimal(repr(value))
            if facts.multiple is not None and Fraction(number) % Fraction(facts.multiple):
                return False
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
        if kind == "array":
            low, high = facts.counts
            if len(value) < low or (high is not None and len(value) > high):
                return False
            if facts.unique and len({key_of(item) for item in value}) < len(value):
                return False
            return all(self.holds(item_of(facts, i), item) for i, item in enumerate(value))
        if kind == "object":
            low, high = facts.sizes
            if len(value) < low or (high is not None and len(value) > high) or not {*facts.required} <= {*value}:
                return False
            return all(self.admits_member(facts, key, item) for key, item in value.items())
        return True

    def admits_member(self, facts: Facts, key: str, value: Any) -> bool:
        said = [schema for pattern, schema in facts.key_patterns.items() if self.found(pattern, key)]
        said += [facts.properties[key]] if key in facts.properties else []
        return all(self.holds(names, key) for names in facts.key_schemas) and all(
            self.holds(schema, value) for schema in said or [facts.others]
        )

    def holds(self, schema: Any, value: Any) -> bool:
        """Whether `value` is an instance; None is the schema of anything."""
        if schema is None:
            return True
        self._looking += 1
        cases = self.cases(schema, "$", 0, ())
        self._looking -= 1
        return any(
            self.admits(facts, value) and (facts.values is None or key_of(value) in map(key_of, facts.values))
            for facts in cases
        )

    def choices(self, schema: Any, path: str, depth: int) -> list[Any] | None:
        """All instances of `schema`, where they are listed or there are few."""
        found: dict[Hashable, Any] = {}
        for facts in self.cases(schema, path, depth, ()):
            values = facts.values
            if values is None and types_of(facts) <= {"boolean", "null"}:
                values = tuple(v for v in (False, True, None) if type_of(v) in facts.types)
            if values is None:
                return None
            found |= {key_of(value): value for value in values if self.admits(facts, value)}
        return list(found.values())

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
