"""`multipleOf`, against exact arithmetic."""

import json
import random
import time
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from grammar_walks import Walker

from sglang.grammar import automaton, schema
from sglang.grammar.multiples import common

STEPS = (1, 5, 7, 60, 1000, 0.5, 0.25, 0.01, 0.1, 2.5, 0.07, 1e-8)
RANGES: tuple[dict[str, Any], ...] = ({}, {"minimum": -30, "exclusiveMaximum": 4000}, {"exclusiveMinimum": 0})


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("bounds", RANGES, ids=str)
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_multiples_and_nothing_else_are_written(step: float, bounds: dict[str, Any], kind: str) -> None:
    value = {"type": kind, "multipleOf": step, **bounds}
    made = automaton.compile(schema.parse(value), "json_schema")
    # Floats would find that 0.07 / 0.01 is no whole number.
    exact: Any = jsonschema.Draft202012Validator(json.loads(json.dumps(value), parse_float=Decimal))
    walker, rng = Walker(made), random.Random(0)
    for _ in range(40):
        exact.validate(json.loads(walker.draw(rng, rng.choice([0, 3, 8, 30])), parse_float=Decimal))
    for i in range(-200, 200):
        number = Decimal(repr(step)) * i / 2
        text = f"{number:f}" if number % 1 else str(int(number))
        assert made.matches(text) == exact.is_valid(int(number) if number % 1 == 0 else number), text


@pytest.mark.parametrize("step", [997, 9973, 86400, 10**30, 1.2345678, 1e-300])
def test_steps_with_many_remainders_are_the_librarys(step: float) -> None:
    begun = time.process_time()
    with pytest.raises(schema.NotRegular, match="too many remainders"):
        schema.parse({"type": "number", "multipleOf": step})
    assert time.process_time() - begun < 1


def test_two_steps_are_one() -> None:
    assert common(Decimal("0.4"), Decimal(3)) == 6
    made = automaton.compile(schema.parse({"allOf": [{"type": "integer", "multipleOf": 4}, {"multipleOf": 6}]}))
    assert made.matches("36")
    assert not made.matches("8")
    assert not made.matches("6")


def test_listed_numbers_are_multiples_too() -> None:
    made = automaton.compile(schema.parse({"enum": [1, 2, 10**300, 0.3, 0.35], "multipleOf": 0.1}))
    assert [t for t in ("1", "2", str(10**300), "0.3", "0.35") if made.matches(t)] == ["1", "2", str(10**300), "0.3"]
