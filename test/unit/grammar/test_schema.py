import datetime
import decimal
import enum
import json
import random
import time
import uuid
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from grammar_walks import Walker
from pydantic import BaseModel, Field

from sglang.base.errors import FieldError
from sglang.grammar import automaton, regex, schema
from sglang.grammar.automaton import Automaton


def made(value: Any, **options: Any) -> Automaton:
    return automaton.compile(schema.parse(value, **options), "json_schema")


def written(value: Any, n: int = 40, **options: Any) -> list[str]:
    walker = Walker(made(value, **options))
    rng = random.Random(0)
    return [walker.draw(rng, rng.choice([0, 8, 30, 120, 300])) for _ in range(n)]


def obj(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


INT, STR, BOOL = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
POINT = {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False, "minItems": 2}

SCHEMAS: dict[str, Any] = {
    "null": {"type": "null"},
    "several types": {"type": ["string", "null", "boolean"]},
    "nullable": {"type": "integer", "nullable": True},
    "enum": {"enum": ["a", 'q"\\', 1, 2.5, None, True, {"k": [1, "x"]}, []]},
    "enum of a type": {"type": "string", "enum": ["a", 1, "bc"], "maxLength": 1},
    "const": {"const": {"a": 1}},
    "enum of arrays": {"enum": [[1, 1], [1, 2], ["a"], "a"], "type": "array", "uniqueItems": True, "items": INT},
    "enum of objects": {"enum": [{"a": 1}, {"b": 1}, {"a": "x"}], **obj(["a"], a=INT)},
    "integers": {"type": "integer", "minimum": -5, "exclusiveMaximum": 1000},
    "numbers": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.75},
    "draft 4 bound": {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
    "int32": {"type": "integer", "format": "int32", "minimum": 0},
    "uuid of a version": {"type": "string", "format": "uuid7"},
    "whole": {"type": "number", "multipleOf": 1, "minimum": 0},
    "string": STR,
    "counted": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": '^[a-c"]+\\d'},
    "pattern and count": {"type": "string", "pattern": "b", "minLength": 2, "maxLength": 3},
    "two patterns": {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}]},
    "date and length": {"type": "string", "format": "date", "pattern": "^2"},
    "url of pydantic": {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
    "short url": {"type": "string", "format": "uri", "maxLength": 60},
    "email and length": {"type": "string", "format": "email", "maxLength": 254},
    "long pattern": {"type": "string", "pattern": "^[A-Z].*[.]$", "maxLength": 5000},
    "looking ahead": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
    "array": {"type": "array", "items": INT},
    "array of some": {"type": "array", "items": BOOL, "minItems": 2, "maxItems": 4},
    "array of none": {"type": "array", "items": INT, "maxItems": 0},
    "closed tuple": POINT,
    "open tuple": {"type": "array", "prefixItems": [INT, STR], "items": BOOL, "minItems": 1, "maxItems": 4},
    "short tuple": {"type": "array", "prefixItems": [INT, STR, BOOL], "maxItems": 2},
    "old tuple": {"type": "array", "items": [INT, STR], "additionalItems": False},
    "all optional": obj(a=INT, b=STR, c={"type": "null"}),
    "some optional": obj(["b", "d"], a=INT, b=BOOL, c=BOOL, d=BOOL, e=INT),
    "last required": obj(["c"], a=INT, b=BOOL, c=BOOL),
    "empty": {"type": "object", "properties": {}, "additionalProperties": False},
    "typed others": {**obj(["b"], a=INT, b=BOOL), "additionalProperties": {"type": "null"}},
    "only others": {"type": "object", "additionalProperties": INT},
    "some others": {"type": "object", "additionalProperties": INT, "minProperties": 1, "maxProperties": 2},
    "undeclared but required": {"type": "object", "required": ["z"], "additionalProperties": INT},
    "impossible property": obj(a=INT, b=False),
    "key patterns": {
        "type": "object",
        "patternProperties": {"^x_": INT, "_y$": STR},
        "additionalProperties": False,
    },
    "key patterns beside names": {
        **obj(x_a={"minimum": 3}, q=STR),
        "patternProperties": {"^x_": INT},
        "additionalProperties": BOOL,
    },
    "key names": {"type": "object", "propertyNames": {"pattern": "^[A-Z]{2}$"}, "additionalProperties": INT},
    "key enum": {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INT},
    "anyOf": {"anyOf": [INT, {"type": "string", "maxLength": 2}, obj(["k"], k=INT)]},
    "anyOf with a neighbour": {"type": "integer", "anyOf": [{"minimum": 10}, {"maximum": -10}]},
    "anyOf within allOf": {"allOf": [{"anyOf": [INT, STR]}, {"anyOf": [STR, BOOL]}]},
    "oneOf by type": {"oneOf": [{"type": "string"}, INT, obj(["z"], z={"const": 1})]},
    "oneOf by tag": {"oneOf": [obj(["t"], t={"const": "a"}, x=INT), obj(["t"], t={"const": "b"}, x=STR)]},
    "oneOf by key": {"oneOf": [obj(["a"], a=INT), obj(["b"], b=INT)]},
    "oneOf by range": {"oneOf": [{"type": "integer", "maximum": 0}, {"type": "integer", "minimum": 1}]},
    "allOf": {"allOf": [obj(["a"], a={"minimum": 3}), obj(["b"], a=INT, b={"enum": [1, "x"]})]},
    "allOf closing": {"allOf": [{**obj(a=INT), "additionalProperties": False}, obj(a={"maximum": 5}, b=INT)]},
    "references": {
        **obj(["a", "b"], a={"$ref": "#/$defs/p"}, b={"type": "array", "items": {"$ref": "#/$defs/p"}}),
        "$defs": {"p": POINT},
    },
    "reference with neighbours": {"$ref": "#/definitions/n", "maximum": 9, "definitions": {"n": {**INT, "minimum": 7}}},
    "reference to a reference": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": BOOL}},
    "odd keys": obj(['a"b', "c\\d", "é~/x"], **{'a"b': INT, "c\\d": INT, "é~/x": INT}),
    "remarks": {"type": "integer", "title": "T", "description": "D", "default": 3, "examples": [1], "x-foo": 1},
    "untyped object": {"properties": {"a": INT}, "required": ["a"]},
    "untyped string": {"minLength": 1, "maxLength": 2},
}


NO_PATTERN = ("typed others", "looking ahead", "undeclared but required", "key patterns", "key patterns beside names",
              "pattern and count", "two patterns", "date and length")  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_is_an_instance(name: str):
    value = SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(value, format_checker=jsonschema.FormatChecker())
    if name in ("draft 4 bound", "old tuple"):
        validator = jsonschema.Draft4Validator(value)
    for text in written(value):
        instance = json.loads(text)
        if name == "nullable" and instance is None:
            continue
        validator.validate(instance)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_pattern_says_the_same_as_the_automaton(name: str):
    try:
        pattern = schema.build_regex_from_object(SCHEMAS[name])
    except FieldError as error:
        assert "cannot be written as one regular expression" in str(error)
        assert name in NO_PATTERN
        return
    again = automaton.compile(regex.parse(pattern))
    mine = made(SCHEMAS[name])
    assert again.states == mine.states
    for text in written(SCHEMAS[name], 10):
        assert again.matches(text)


def test_json_dumps_writes_what_is_allowed():
    value = SCHEMAS["some optional"]
    instance = {"a": 1, "b": True, "d": False, "e": -20}
    assert made(value).matches(json.dumps(instance))
    compact = schema.Layout.plain(False)
    assert made(value, layout=compact).matches(json.dumps(instance, separators=(",", ":")))
    assert not made(value, layout=compact).matches(json.dumps(instance))
    free = schema.Layout.flexible(r"[ \n]{0,8}")
    assert made(value, layout=free).matches(json.dumps(instance, indent=2))


def test_properties_come_in_the_schemas_order():
    automaton = made(SCHEMAS["some optional"])
    assert automaton.matches('{"b": true, "d": false}')
    assert not automaton.matches('{"d": true, "b": false}')
    assert not automaton.matches('{"b": true}')


def test_keys_of_others_are_not_the_named_ones():
    automaton = made(SCHEMAS["typed others"])
    assert automaton.matches('{"b": true, "c": null, "aa": null}')
    assert not automaton.matches('{"b": true, "a": null}')
    assert not automaton.matches('{"b": true, "\\u0061": null}')


class Colour(enum.Enum):
    red = "red"
    odd = 'o"dd'


class Address(BaseModel):
    street: str = Field(min_length=1, max_length=20)
    code: str = Field(pattern=r"^\d{5}$")
    number: int | None = None


class Dog(BaseModel):
    kind: Literal["dog"]
    loud: bool


class Fish(BaseModel):
    kind: Literal["fish"]
    depth: float


class Person(BaseModel):
    """Most of what pydantic has."""

    name: str
    age: int = Field(ge=0, le=150)
    height: float = Field(gt=0, lt=2.5)
    colour: Colour
    address: Address
    addresses: list[Address] = Field(max_length=2)
    born: datetime.date
    seen: datetime.datetime
    id: uuid.UUID
    scores: dict[str, int]
    by_colour: dict[Colour, bool] = {}
    either: int | str | None
    pair: tuple[int, str]
    letter: Literal["a", "b", 3]
    pet: Annotated[Dog | Fish, Field(discriminator="kind")]
    nick: str | None = None


def test_pydantic_reads_what_is_written_for_its_models():
    value = Person.model_json_schema()
    for text in written(value, 60):
        Person.model_validate_json(text)
    pattern = schema.build_regex_from_object(Person)
    assert automaton.compile(regex.parse(pattern)).states == made(value).states
    assert schema.build_regex_from_object(json.dumps(value)) == schema.build_regex_from_object(value) == pattern


class Node(BaseModel):
    value: int
    children: list["Node"] = []


@pytest.mark.parametrize(
    "value",
    [
        True,
        {},
        {"type": "object"},
        {"type": "array"},
        obj(a={}),
        {"type": "object", "additionalProperties": True},
        Node.model_json_schema(),
        {"$ref": "#/$defs/n", "$defs": {"n": obj(next={"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]})}},
        {"$defs": {"n": obj(n={"allOf": [{"$ref": "#/$defs/n"}]})}, "allOf": [{"$ref": "#/$defs/n"}]},
        {"$ref": "#"},
        obj(a={"$ref": "#"}),
        {"oneOf": [{"type": "null"}, obj(["n"], n={"$ref": "#"})]},
    ],
)
def test_what_needs_a_stack_is_told_apart(value: Any):
    with pytest.raises(schema.NotRegular):
        schema.parse(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"type": "string", "not": {"const": "a"}}, "'not'"),
        ({"type": "array", "items": INT, "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "items": INT, "contains": {"const": 1}}, "'contains'"),
        (obj(a={"if": {}, "then": {}, "type": "null"}), "'if', 'then'.*properties.a"),
        ({"type": "object", "dependentRequired": {}}, "'dependentRequired'"),
        ({"type": "string", "format": "colour"}, "format 'colour'"),
        ({"type": "float"}, "type must be one of"),
        ({"type": "string", "pattern": "("}, r"pattern '\(': is not a regular expression"),
        ({"type": "string", "pattern": "(a(?=b))c"}, "pattern '.*': look-ahead"),
        (obj(a={"type": "object", "patternProperties": {"[": {}}}), r"pattern '\[': is not"),
        ({"type": "string", "maxLength": -1}, "maxLength must be"),
        ({"type": "integer", "minimum": "3"}, "minimum must be"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "matches no text"),
        ({"enum": []}, "matches no text"),
        (False, "matches no text"),
        (obj(["a"], a=False), "matches no text"),
        ({"$ref": "#/nowhere"}, "leads nowhere"),
        ({"$ref": "other.json"}, "only references inside"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may both hold"),
        ({"oneOf": [obj(a=INT), obj(b=INT)]}, "may both hold"),
        ({"oneOf": [{"maximum": 3}, {"minimum": 2}], "type": "integer"}, "may both hold"),
        ({"anyOf": []}, "at least one"),
        ({"allOf": [{"anyOf": [{"minimum": i} for i in range(70)]}] * 3, "type": "integer"}, "multiply"),
        ({**obj(a=INT, b=INT), "minProperties": 1}, "minProperties"),
        ("[1]", "must be an object"),
        ('{"const": NaN}', "not valid JSON: NaN is no finite number"),
        ('{"enum": [1e999]}', "1e999 is no finite number"),
        ('{"type": "string", "maxLength": -Infinity}', "-Infinity is no finite number"),
        ("{", "not valid JSON"),
        ('{"a":' * 5000, "nested too deeply"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]},
            "itself",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(value: Any, words: str):
    with pytest.raises(FieldError, match=words) as error:
        made(value)
    assert error.value.field == "json_schema"


def test_without_strict_unsupported_words_are_ignored():
    for value in (
        {"type": "integer", "multipleOf": 7, "not": {"const": 1}},
        {"type": "string", "format": "colour", "maxLength": 3},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    ):
        assert made(value, strict=False).states > 1


@pytest.mark.parametrize(
    ("kind", "most"), [("uri", 2083), ("email", 255), ("hostname", 100), ("date", 10_000), ("byte", 10**6)]
)
def test_a_format_is_not_counted_where_it_ends_by_itself(kind: str, most: int):
    begun = time.process_time()
    assert made({"type": "string", "format": kind, "maxLength": most}).states < 2500
    assert time.process_time() - begun < 2


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = STR
    for _ in range(depth):
        value = obj(["a"], a=value)
    return value


def doubling(n: int) -> dict[str, Any]:
    """Each definition is an object of two of the one before."""
    names = {
        f"d{i}": obj(["l", "r"], l={"$ref": f"#/$defs/d{i - 1}"}, r={"$ref": f"#/$defs/d{i - 1}"}) for i in range(1, n)
    }
    return {"$defs": {"d0": INT, **names}, "$ref": f"#/$defs/d{n - 1}"}


@pytest.mark.parametrize(
    "value",
    [
        nested(2000),
        nested(90),
        doubling(40),
        {"type": "array", "items": {"type": "array", "items": STR, "maxItems": 1000}, "maxItems": 1000},
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "pattern": "(a|b)*a(a|b){30}"},
        obj(**{f"p{i}": {"type": "string", "maxLength": 200} for i in range(500)}),
        {"anyOf": [obj(["k"], k={"const": i}, **{f"p{j}": INT for j in range(20)}) for i in range(400)]},
        {"oneOf": [obj(["k"], k={"const": i}) for i in range(1500)]},
        {"enum": [f"value {i * 7919 % 100003}" for i in range(10_000)]},
        {"allOf": [{"anyOf": [{"pattern": f"{i}"} for i in range(9)]} for _ in range(9)]},
        obj(**{f"optional_{i}": INT for i in range(2000)}),
    ],
)
def test_large_schemas_end_soon(value: Any):
    start = time.process_time()
    try:
        made(value)
    except FieldError as error:
        assert error.status == 400
    except schema.NotRegular:
        raise AssertionError("not recursive") from None
    assert time.process_time() - start < 4  # one or two seconds where nothing else runs


@pytest.mark.parametrize(
    "value",
    [
        obj(**{f"optional_{i}": INT for i in range(6000)}),
        obj(**{f"p{i}": {"type": "integer", "multipleOf": 97, "minimum": i} for i in range(100)}),
        {"anyOf": [{"type": "integer", "multipleOf": 1900 + i, "maximum": 5000, "minimum": 0} for i in range(300)]},
    ],
)
def test_what_would_take_long_is_the_librarys_soon(value: Any):
    start = time.process_time()
    with pytest.raises(schema.NotRegular):
        schema.parse(value)
    assert time.process_time() - start < 4


def test_decimal_bounds_are_taken_as_written():
    a = made({"type": "number", "minimum": 0.1, "maximum": 0.3})
    assert a.matches("0.1")
    assert a.matches("0.3")
    assert not a.matches("0.09")
    assert not a.matches("0.30000000000001")
    assert decimal.Decimal("0.1") == decimal.Decimal(repr(0.1))
