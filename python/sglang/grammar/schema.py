"""JSON schema -> the texts that are instances of it.

Draft 2020-12 (with `definitions`, tuple `items` and OpenAPI's `nullable` of older drafts), and what pydantic emits.
What is written is always an instance; not every instance is written: properties stand in the schema's order, objects
with `properties` get others only where `additionalProperties` says so, numbers are of bounded length.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.grammar import distinct, multiples, numbers, regex, strings
from sglang.grammar.facts import TYPES, Facts, all_of, types_of
from sglang.grammar.keywords import ASIDE
from sglang.grammar.language import (
    EMPTY,
    NOTHING,
    Both,
    Cat,
    Node,
    Repeat,
    Text,
    Without,
    alt,
    cat,
    lengths,
    optional,
    shortened,
    to_regex,
)
from sglang.grammar.reader import DEPTH, NotRegular, Reader, load

COUNTED = 256  # characters: where a pattern may have more, its one endless repeat is cut instead of counting them all
PAIRS = 5_000_000  # of optional properties of which any may be the first; more of them take seconds
_ANY_KEY = Repeat(strings.CANONICAL, 0, None)  # one way to write each, so that keys can be told apart


@dataclass(frozen=True)
class Layout:
    """What stands between the parts of JSON text."""

    comma: Node
    colon: Node
    pad: Node = EMPTY  # inside brackets that are not empty

    @staticmethod
    def plain(spaced: bool) -> "Layout":
        return Layout(Text(", " if spaced else ","), Text(": " if spaced else ":"))

    @staticmethod
    def flexible(blank: str) -> "Layout":
        """`blank`: the pattern of what may stand wherever JSON allows white space."""
        ws = regex.parse(blank, "whitespace_pattern")
        return Layout(cat(ws, ",", ws), cat(ws, ":", ws), ws)


def parse(
    schema: str | dict[str, Any] | bool,
    *,
    strict: bool = True,
    layout: Layout | None = None,
    name: str = "json_schema",
) -> Node:
    """The texts of all (written) instances. strict=False: keywords that are not supported are ignored.

    Raises FieldError(name) for what is no schema, or cannot be obeyed, and NotRegular for what needs a stack.
    """
    try:
        reader = Reader(load(schema, name), strict, name)
        return _Writer(reader, layout or Layout.plain(True)).node(reader.root, "$", 0)
    except RecursionError:
        raise FieldError(name, f"{name} is nested too deeply") from None


def check_one_of(schema: dict[str, Any] | bool, name: str = "json_schema") -> None:
    """Raises FieldError(name) where alternatives of a oneOf could hold together: then it cannot be written as anyOf."""
    Reader(schema, True, name).check_all(schema, "$", 0)


def build_regex_from_object(object: Any, whitespace_pattern: str | None = None) -> str:
    """A pydantic model class, a JSON schema (dict or text) -> the regular expression of its instances.

    whitespace_pattern: what may stand between the parts; None: as json.dumps writes them.
    Raises FieldError for schemas that are recursive or not supported.
    """
    if isinstance(object, type):
        describe: Any = getattr(object, "model_json_schema", None) or getattr(object, "schema", None)
        if describe is None:
            raise FieldError("json_schema", f"json_schema: {object.__name__} is not a pydantic model")
        object = describe()
    layout = None if whitespace_pattern is None else Layout.flexible(whitespace_pattern)
    try:
        return to_regex(parse(object, layout=layout), "json_schema", limits.GRAMMAR_CHARS)
    except NotRegular as error:
        raise FieldError("json_schema", f"json_schema has no regular expression: {error}") from None


class _Writer:
    def __init__(self, reader: Reader, layout: Layout):
        self.reader = reader
        self.layout = layout
        self._refs: dict[str, Node] = {}
        self._multiples: dict[tuple[Decimal | None, ...], Node] = {}
        self._room = multiples.ROOM
        self._pairs = 0

    def node(self, schema: Any, path: str, depth: int) -> Node:
        if depth > DEPTH:
            raise self.reader.error(path, f"schemas may be nested {DEPTH} deep at most")
        ref = schema.get("$ref") if isinstance(schema, dict) else None
        if isinstance(ref, str) and all(key == "$ref" or key in ASIDE for key in schema):
            return self.referred(ref, path, depth)
        for key in ("anyOf", "oneOf"):
            if isinstance(schema, dict) and key in schema and all(k == key or k in ASIDE for k in schema):
                # Nothing to multiply out: alternatives stay whole, and are shared where they are references.
                parts = self.reader.list_of(schema, key, path)
                if key == "oneOf" and self.reader.strict:
                    self.reader.check_one_of(schema, path, depth)
                return alt(*(self.node(part, f"{path}.{key}[{i}]", depth + 1) for i, part in enumerate(parts)))
        nodes: list[Node] = []
        for facts in self.reader.cases(schema, path, depth, ()):
            self.reader.open.append(facts.through)
            nodes.append(self.written(facts, path, depth))
            self.reader.open.pop()
        return alt(*nodes)

    def referred(self, ref: str, path: str, depth: int) -> Node:
        if ref not in self._refs:
            if self.reader.is_open(ref):
                raise NotRegular(f"{ref} is recursive")
            self.reader.open.append(frozenset((ref,)))
            self._refs[ref] = self.node(self.reader.resolve(ref, path), ref, depth + 1)
            self.reader.open.pop()
        return self._refs[ref]

    def written(self, facts: Facts, path: str, depth: int) -> Node:
        if facts.values is not None:
            return alt(*(self.literal(v) for v in facts.values if self.reader.admits(facts, v)))
        types = types_of(facts)
        if len(types) == len(TYPES):
            raise NotRegular(f"any JSON is allowed at {path}")
        parts: list[Node] = []
        if "number" in types:
            parts.append(self.number(facts))
        elif "integer" in types:
            parts.append(self.integer(facts))
        if "string" in types:
            parts.append(self.string(facts))
        if "boolean" in types:
            parts.append(alt("true", "false"))
        if "array" in types:
            parts.append(self.array(facts, path, depth))
        if "object" in types:
            parts.append(self.object(facts, path, depth))
        if "null" in types:
            parts.append(Text("null"))
        return alt(*parts)

    def literal(self, value: Any) -> Node:
        match value:
            case str():
                return Text(json.dumps(value, ensure_ascii=False))
            case dict():
                entries = [cat(self.literal(k), self.layout.colon, self.literal(v)) for k, v in value.items()]
                return self.wrapped("{", entries, "}")
            case list():
                return self.wrapped("[", [self.literal(v) for v in value], "]")
        return Text(json.dumps(value))

    def wrapped(self, start: str, parts: Iterable[Node], end: str) -> Node:
        joined = [part for item in parts for part in (self.layout.comma, item)][1:]
        return cat(start, self.layout.pad, *joined, self.layout.pad, end) if joined else Text(start + end)

    def number(self, facts: Facts) -> Node:
        if facts.multiple is not None and facts.multiple == facts.multiple.to_integral_value():
            return self.integer(facts)
        low, high = facts.low or (None, False), facts.high or (None, False)
        node = numbers.decimals(low[0], high[0], low[1], high[1])
        return node if facts.multiple is None else self.multiples(node, facts.multiple, low[0], high[0])

    def integer(self, facts: Facts) -> Node:
        low = high = None
        if facts.low is not None:
            low = int(facts.low[0].to_integral_value("ROUND_CEILING"))
            low += facts.low[1] and low == facts.low[0]
        if facts.high is not None:
            high = int(facts.high[0].to_integral_value("ROUND_FLOOR"))
            high -= facts.high[1] and high == facts.high[0]
        node = numbers.integers(low, high)
        if facts.multiple is None or facts.multiple == 1:
            return node
        bounds = [None if bound is None else Decimal(bound) for bound in (low, high)]
        return self.multiples(node, multiples.common(facts.multiple, Decimal(1)), *bounds)

    def multiples(self, node: Node, step: Decimal, low: Decimal | None, high: Decimal | None) -> Node:
        """The multiples of `step` in `node`, numbers from `low` to `high`."""
        key = step, low, high
        if key not in self._multiples:
            made = multiples.multiples(step, low, high, self._room)
            if made is None:
                raise NotRegular(f"multiples of {step} have too many remainders")
            self._multiples[key], taken = made
            self._room -= taken
        found = self._multiples[key]
        return found if low is None and high is None else Both(node, found)

    def string(self, facts: Facts) -> Node:
        return strings.quoted(self.characters(facts))

    def characters(self, facts: Facts, one_way: bool = False) -> Node:
        """What may stand between the quotes. one_way: each character is written in one way."""
        low, high = facts.lengths
        if high is not None and low > high:
            return NOTHING
        rules = [self.reader.searched(p) for p in facts.patterns]
        if high is not None and high > COUNTED and len(rules) == 1:
            rules = [shortened(rules[0], min(high, 4 * COUNTED), repeats=1) or rules[0]]
        for name in facts.formats:
            node = strings.of_format(name) if rules or high is None else strings.of_format_within(name, high)
            rules += [node] if node is not None else []
        if not rules:
            counted = (low, high) != (0, None)
            return Repeat(strings.CANONICAL if one_way else strings.COUNTED if counted else strings.FREE, low, high)
        # What a rule says of the length already need not be counted: counting multiplies states.
        spans = [lengths(rule) for rule in rules]
        low = 0 if any(least >= low for least, _ in spans) else low
        high = None if high is not None and any(m is not None and m <= high for _, m in spans) else high
        rules = [strings.escaped(rule) for rule in rules]
        if (low, high) != (0, None):
            rules.append(Repeat(strings.CANONICAL, low, high))
        return reduce(Both, rules)

    def array(self, facts: Facts, path: str, depth: int) -> Node:
        low, high = facts.counts
        if facts.rest is False:
            high = len(facts.head) if high is None else min(high, len(facts.head))
        if high is not None and low > high:
            return NOTHING
        if facts.unique and (high is None or high > 1):
            values = self.listed_items(facts, path, depth)
            if values is not None:
                return self.unique(values, low, len(values) if high is None else min(high, len(values)), path)
        head = facts.head if high is None else facts.head[:high]
        items = [self.node(s, f"{path}.prefixItems[{i}]", depth + 1) for i, s in enumerate(head)]
        more: Node | None = None  # what may follow the head, each with a comma before it
        if high is None or high > len(items):
            one = self.node(True if facts.rest is None else facts.rest, f"{path}.items", depth + 1)
            least = max(0, low - len(items))
            most = None if high is None else high - len(items)
            if not items:
                return self.listed(one, least, most)
            more = Repeat(cat(self.layout.comma, one), least, most)
        texts: Node = more or EMPTY
        for i in reversed(range(len(items))):
            texts = cat(self.layout.comma if i else EMPTY, items[i], texts)
            if i >= low:
                texts = optional(texts)
        if low == 0 and items:
            assert isinstance(texts, Repeat)
            return alt("[]", cat("[", self.layout.pad, texts.item, self.layout.pad, "]"))
        return cat("[", self.layout.pad, texts, self.layout.pad, "]") if items else Text("[]")

    def listed_items(self, facts: Facts, path: str, depth: int) -> list[Any] | None:
        """What the items of a list of different ones may be; None where `uniqueItems` is to be ignored."""
        rest = True if facts.rest is None else facts.rest
        values = None if facts.head else self.reader.choices(rest, f"{path}.items", depth + 1)
        if values is None and self.reader.strict:
            raise self.reader.error(
                path,
                "unsupported: 'uniqueItems' of items that are not of an enum (strict: false ignores it)",
            )
        return values

    def unique(self, values: Sequence[Any], low: int, high: int, path: str) -> Node:
        if low > high:
            return NOTHING
        self.reader.spend(len(values) * max(low, 1), path)
        if low == len(values) > distinct.ANY_ORDER:
            raise self.reader.error(path, f"uniqueItems: at most {distinct.ANY_ORDER} items can be ordered")
        pad, items = self.layout.pad, distinct.lists(list(map(self.literal, values)), self.layout.comma, low or 1, high)
        filled = cat("[", pad, items, pad, "]")
        return filled if low else alt("[]", filled)

    def listed(self, one: Node, least: int, most: int | None) -> Node:
        if most == 0:
            return Text("[]")
        more = Repeat(cat(self.layout.comma, one), max(0, least - 1), None if most is None else most - 1)
        filled = cat("[", self.layout.pad, one, more, self.layout.pad, "]")
        return filled if least else alt("[]", filled)

    def object(self, facts: Facts, path: str, depth: int) -> Node:
        known = dict(facts.properties)
        for key in facts.required:
            if key not in known:
                known[key] = True if facts.others is None else facts.others
        for key in known:
            for pattern, schema in facts.key_patterns.items():
                if self.reader.found(pattern, key):
                    known[key] = all_of(known[key], schema) if key in facts.properties else schema
        known = {k: s for k, s in known.items() if self.key_admitted(facts, k, path, depth)}
        if any(key not in known for key in facts.required):
            return NOTHING
        colon = self.layout.colon
        members = [
            (cat(self.literal(k), colon, self.node(s, f"{path}.properties.{k}", depth + 1)), k in facts.required)
            for k, s in known.items()
            if s is not False or k in facts.required
        ]
        other = self.other_member(facts, known, path, depth)
        low, high = facts.sizes
        certain = sum(required for _, required in members)
        if other is not None and not members:
            if low > 1:
                raise self.reader.error(path, "minProperties over 1 is unsupported beside free keys: keys may repeat")
            return self.members([], other, low, high)
        unsure = low > certain or (high is not None and (high < len(members) or other is not None))
        if unsure and self.reader.strict:
            raise self.reader.error(path, "unsupported: minProperties or maxProperties beside optional properties")
        return self.members(members, other, 0, None)

    def members(self, members: Sequence[tuple[Node, bool]], other: Node | None, low: int, high: int | None) -> Node:
        """members: (text, required), in order; other: one of the free members behind them, low to high of these."""
        comma, pad = self.layout.comma, self.layout.pad
        first = next((i for i, (_, required) in enumerate(members) if required), len(members))
        tail = [cat(comma, text) if required else optional(cat(comma, text)) for text, required in members]
        if other is not None:
            tail.append(Repeat(cat(comma, other), 0, None))
        if first < len(members):
            before = [optional(cat(text, comma)) for text, _ in members[:first]]
            return cat("{", pad, *before, members[first][0], *tail[first + 1 :], pad, "}")
        # None is required: any may come first, or none at all.
        self._pairs += len(members) ** 2
        if self._pairs > PAIRS:
            raise NotRegular("too many optional properties")
        ways = [Cat((text, *tail[i + 1 :])) for i, (text, _) in enumerate(members)]
        if other is not None and high != 0:
            ways.append(Cat((other, Repeat(cat(comma, other), max(0, low - 1), None if high is None else high - 1))))
        filled = [cat("{", pad, alt(*ways), pad, "}")] if ways else []
        return alt(*([Text("{}")] if not low else []), *filled)

    def other_member(self, facts: Facts, known: dict[str, Any], path: str, depth: int) -> Node | None:
        """One member that no property names; None where there may be none."""
        others = facts.others
        if others is None and not facts.properties and not facts.key_patterns:
            others = True
        ways: list[Node] = []
        taken: list[Node] = [strings.escaped(Text(k)) for k in known]
        keys = {p: strings.escaped(self.reader.searched(p)) for p in facts.key_patterns}
        for pattern, schema in facts.key_patterns.items():
            # Keys of two patterns would have to obey both; they are left out.
            rest = [*taken, *(node for p, node in keys.items() if p != pattern)]
            key = Without(keys[pattern], alt(*rest)) if rest else keys[pattern]
            ways.append(self.member(facts, key, schema, f"{path}.patternProperties", depth))
        if others not in (None, False):
            rest = [*taken, *keys.values()]
            free = Without(_ANY_KEY, alt(*rest)) if rest else _ANY_KEY
            ways.append(self.member(facts, free, others, path, depth))
        return alt(*ways) if ways else None

    def member(self, facts: Facts, key: Node, schema: Any, path: str, depth: int) -> Node:
        for names in facts.key_schemas:
            cases = self.reader.cases(names, f"{path}.propertyNames", depth + 1, ())
            texts = alt(*(self.key_texts(c) for c in cases if "string" in c.types))
            key = texts if key is _ANY_KEY else Both(key, texts)
        return cat(strings.quoted(key), self.layout.colon, self.node(schema, path, depth + 1))

    def key_texts(self, facts: Facts) -> Node:
        if facts.values is not None:
            fitting = [v for v in facts.values if isinstance(v, str) and self.reader.admits(facts, v)]
            return alt(*(strings.escaped(Text(v)) for v in fitting))
        return self.characters(facts, one_way=True)

    def key_admitted(self, facts: Facts, key: str, path: str, depth: int) -> bool:
        return all(
            any(
                (case.values is None or key in case.values) and self.reader.admits(case, key)
                for case in self.reader.cases(names, path, depth + 1, ())
            )
            for names in facts.key_schemas
        )
