import json
from typing import Annotated, Any, Literal

import jsonschema
import numpy as np
import pytest
from grammar_tokenizers import kind
from grammar_walks import sample
from pydantic import UUID4, BaseModel, Field, TypeAdapter

from sglang.grammar import documents, schema
from sglang.grammar.contextfree import ContextFreeCompiled, Engine
from sglang.grammar.prepare import prepare
from sglang.grammar.rules import Illegal, Rules


class Number(BaseModel):
    kind: Literal["number"] = "number"
    value: int


class Sum(BaseModel):
    kind: Literal["sum"] = "sum"
    left: "Term" = Field(description="what stands left", deprecated=True)
    right: "Term"


Term = Annotated[Number | Sum, Field(discriminator="kind")]
Sum.model_rebuild()
TERM = TypeAdapter(Term)


class Step(BaseModel):
    id: UUID4
    then: "Step | None" = None


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(kind("gpt4").vocabulary)


def compiled(engine: Engine, rules: Rules) -> ContextFreeCompiled:
    grammar = prepare(rules)
    assert isinstance(grammar, str)
    return ContextFreeCompiled(engine, grammar, rules.kind)


def test_remarks_are_no_part_of_a_schema_but_may_be_names() -> None:
    value = {
        "title": "T",
        "x-of": 1,
        "type": "object",
        "properties": {"title": {"type": "string", "default": ""}, "x-of": {"const": {"title": 1}}},
        "nullable": True,
    }
    assert documents.simplified(value) == {
        "type": ["object", "null"],
        "properties": {"title": {"type": "string"}, "x-of": {"const": {"title": 1}}},
    }
    assert "title" in value


def test_a_union_demands_the_tag_of_each_alternative(engine: Engine) -> None:
    text = json.dumps(TERM.json_schema())
    at = compiled(engine, Rules("json_schema", text)).cursor()
    assert at.forced() == b'{"kind": "'
    at.feed(b'{"kind": "sum", "left": {"kind": "number", "value": 1}, "right": {"kind": "number", "value": 2}}')
    assert at.finished
    tags = {"structures": [{"begin": "<t>", "schema": json.loads(text), "end": "</t>"}], "triggers": ["<t>"]}
    at = compiled(engine, Rules("structural_tag", json.dumps(tags))).cursor()
    at.feed(b"so <t>")
    assert at.forced() == b'{"kind": "'


def test_alternatives_with_tags_that_have_defaults_are_apart() -> None:
    class Cat(BaseModel):
        kind: Literal["cat"] = "cat"

    class Dog(BaseModel):
        kind: Literal["dog", "wolf"] = "dog"

    union: TypeAdapter[Any] = TypeAdapter(Annotated[Cat | Dog, Field(discriminator="kind")])
    pattern = schema.build_regex_from_object(union.json_schema())
    assert pattern == r'(\{"kind": "cat"\}|\{"kind": (?:"dog"|"wolf")\})'


def test_recursive_models_with_formats_that_the_library_does_not_know(engine: Engine) -> None:
    made = compiled(engine, Rules("json_schema", json.dumps(Step.model_json_schema())))
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(8):
        text, done = sample(made.cursor(), engine.vocabulary, rng, 300)
        if done:
            ended += 1
            Step.model_validate_json(text)
    assert ended
    with pytest.raises(Illegal):
        made.cursor().feed(b'{"id": "18fc9fb6-9438-932a-3bda-fe8102c0fa7a"')


def test_references_may_be_anchors_and_percent_encoded() -> None:
    value = {
        "type": "object",
        "properties": {"a": {"$ref": "#whole"}, "b": {"$ref": "#/$defs/a%20b"}},
        "required": ["a", "b"],
        "$defs": {"n": {"$anchor": "whole", "type": "boolean"}, "a b": {"type": "null"}},
    }
    assert schema.build_regex_from_object(value) == r'\{"a": (?:true|false), "b": null\}'
    jsonschema.validate({"a": True, "b": None}, value)
