"""`uniqueItems`, where items are listed."""

import itertools
import json
from enum import Enum
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from sglang.base.errors import FieldError
from sglang.grammar import automaton, schema
from sglang.grammar.automaton import Automaton


def made(items: Any, **more: Any) -> Automaton:
    value = {"type": "array", "items": items, "uniqueItems": True, **more}
    return automaton.compile(schema.parse(value), "json_schema")


@pytest.mark.parametrize(
    "more", [{}, {"minItems": 1}, {"maxItems": 2}, {"minItems": 2, "maxItems": 3}, {"minItems": 4}, {"maxItems": 1}]
)
def test_few_items_come_in_any_order_but_once(more: dict[str, int]) -> None:
    items = {"enum": ["a", "bb", 1, None]}
    automaton = made(items, **more)
    validator = jsonschema.Draft202012Validator({"items": items, "uniqueItems": True, **more})
    for n in range(6):
        for value in itertools.product(items["enum"], repeat=n):
            assert automaton.matches(json.dumps(value)) == validator.is_valid(list(value)), value


@pytest.mark.parametrize("more", [{}, {"minItems": 2}, {"maxItems": 2}, {"minItems": 2, "maxItems": 3}])
def test_many_items_come_in_the_schemas_order(more: dict[str, int]) -> None:
    automaton = made({"enum": list(range(9))}, **more)
    validator = jsonschema.Draft202012Validator({"uniqueItems": True, **more})
    for n in range(5):
        for value in itertools.product(range(9), repeat=n):
            said = list(value) == sorted(value) and validator.is_valid(list(value))
            assert automaton.matches(json.dumps(value)) == said, value


def test_sets_of_pydantic() -> None:
    class Colour(Enum):
        red = "red"
        blue = "blue"

    for kind in (set[Colour], frozenset[bool], set[Colour | None]):
        value = TypeAdapter(kind).json_schema()
        assert value["uniqueItems"]
        assert automaton.compile(schema.parse(value)).states > 3


@pytest.mark.parametrize(
    ("items", "more", "words"),
    [
        ({"type": "integer"}, {}, "'uniqueItems' of items that are not of an enum"),
        ({"enum": ["a"]}, {"prefixItems": [{"enum": ["a"]}]}, "'uniqueItems'"),
        ({"enum": list(range(9))}, {"minItems": 9}, "at most 8 items can be ordered"),
        ({"enum": [1, 1.0]}, {"minItems": 2}, "matches no text"),
        ({"enum": list(range(5000))}, {"minItems": 2500}, "too large"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(items: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(FieldError, match=words):
        made(items, **more)


def test_where_it_says_nothing_it_is_not_refused() -> None:
    assert made({"type": "integer"}, maxItems=1).matches("[5]")
    lax = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert automaton.compile(schema.parse(lax, strict=False)).matches("[5, 5]")
    assert automaton.compile(schema.parse({**lax, "uniqueItems": False})).matches("[5, 5]")
