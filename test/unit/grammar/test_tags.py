import json
import random
from typing import Any

import pytest
from grammar_walks import Walker

from sglang.base.errors import FieldError
from sglang.grammar import automaton, schema, tags

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def text(*structures: tuple[str, Any, str], triggers: list[str]) -> str:
    return json.dumps(
        {"structures": [{"begin": b, "schema": s, "end": e} for b, s, e in structures], "triggers": triggers}
    )


TWO = text(
    ("<f=a>", NUMBER, "</f>"), ("<f=b>", {"enum": [True]}, "</f>"), ("[[", {"type": "null"}, ""), triggers=["<f=", "[["]
)


def test_text_is_free_until_a_trigger_and_after_the_tag():
    made = automaton.compile(tags.parse(tags.read(TWO), True, True), "structural_tag")
    for good in (
        "",
        "anything < at [all] <f \n é",
        'so: <f=a>{"n": 12}</f>',
        '<f=a>{"n": 1}</f> and <f=b>true</f>.',
        "<<f=b>true</f>[[null[null",
        "<f<f=b>true</f>",
    ):
        assert made.matches(good), good
    for bad in ("<f=", "<f=c>", "<f=a>{}</f>", '<f=a>{"n": 1}', '<f=a>{"n": 1}</f>[[', "x[[x"):
        assert not made.matches(bad), bad


def test_a_tag_is_forced_where_it_is_known():
    made = automaton.compile(tags.parse(tags.read(TWO), True, True), "structural_tag")
    assert made.forced(made.walk(0, b"text <f=a")) == b'>{"n": '
    assert made.forced(made.walk(0, b"text <f")) == b""


def test_every_tag_holds_an_instance():
    made = automaton.compile(tags.parse(tags.read(TWO), True, True), "structural_tag")
    walker = Walker(made)
    rng = random.Random(0)
    met = 0
    for _ in range(300):
        drawn = walker.draw(rng, 60)
        for piece in drawn.split("<f=a>")[1:]:
            met += 1
            assert isinstance(json.loads(piece.split("</f>")[0])["n"], int)
    begun = made.walk(0, b"<f=")
    assert begun > 0
    assert met >= 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{}", "structures"),
        (text(("<a>", True, ""), triggers=[]), "triggers"),
        (text(("<a>", True, ""), triggers=["<b>"]), "must start with one of the triggers"),
        (text(("<a>", 3, ""), triggers=["<a>"]), "must be an object"),
        (text(("<a>", False, ""), triggers=["<a>"]), r"structures\[0\]\.schema is false"),
        (text(("<a>", "false", ""), triggers=["<a>"]), r"structures\[0\]\.schema is false"),
        (text(("<a>", "", ""), triggers=["<a>"]), "not valid JSON"),
        (json.dumps({"structures": [{"end": ""}], "triggers": ["x"]}), "begin and end"),
        ("[", "not valid JSON"),
    ],
)
def test_a_bad_description_is_refused(value: str, words: str):
    with pytest.raises(FieldError, match=words):
        tags.read(value)


def test_a_tag_of_free_json_needs_a_stack():
    with pytest.raises(schema.NotRegular):
        tags.parse(tags.read(text(("<a>", {"type": "object"}, "</a>"), triggers=["<a>"])), True, True)
