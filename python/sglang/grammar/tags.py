"""Structural tags: free text until a trigger, an instance of a schema inside the tag, then free text again."""

from dataclasses import dataclass
from typing import Any

from sglang.base.errors import FieldError
from sglang.grammar import schema
from sglang.grammar.language import ANY, EMPTY, Node, Repeat, Text, Without, alt, cat
from sglang.grammar.reader import decode

NAME = "structural_tag"


@dataclass(frozen=True)
class Tag:
    trigger: str
    begin: str  # begins with the trigger
    schema: dict[str, Any] | bool
    end: str


def read(text: str) -> list[Tag]:
    """{"structures": [{"begin": ..., "schema": ..., "end": ...}], "triggers": [...]} as JSON. Raises FieldError."""
    value = decode(text, NAME)
    if not isinstance(value, dict) or not isinstance(value.get("structures"), list) or not value["structures"]:
        raise FieldError(NAME, f"{NAME} must have a list of structures")
    triggers = value.get("triggers")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(t, str) and t for t in triggers):
        raise FieldError(NAME, f"{NAME} must have a list of triggers, none of them empty")
    tags: list[Tag] = []
    for i, item in enumerate(value["structures"]):
        where = f"{NAME}.structures[{i}]"
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("begin"), str)
            or not isinstance(item.get("end", ""), str)
        ):
            raise FieldError(NAME, f"{where} must have begin and end, both strings")
        inner = item.get("schema", True)
        if not isinstance(inner, dict | bool | str):
            raise FieldError(NAME, f"{where}.schema must be an object")
        inner = schema.load(inner, NAME)
        if inner is False:
            raise FieldError(NAME, f"{where}.schema is false, which nothing matches: the tag could never end")
        fitting = [t for t in triggers if item["begin"].startswith(t)]
        if not fitting:
            raise FieldError(NAME, f"{where}.begin must start with one of the triggers")
        tags.append(Tag(max(fitting, key=len), item["begin"], inner, item.get("end", "")))
    return tags


def parse(tags: list[Tag], strict: bool, spaced: bool) -> Node:
    """Raises FieldError, and schema.NotRegular where a schema needs a stack."""
    layout = schema.Layout.plain(spaced)
    triggers = list(dict.fromkeys(tag.trigger for tag in tags))
    anything = Repeat(ANY, 0, None)
    met = cat(anything, alt(*triggers))  # texts that end in a trigger
    free = Without(anything, cat(met, anything))  # texts without any
    bodies: list[Node] = []
    for trigger in triggers:
        # Texts whose first trigger is at their end, and is this one.
        lead = Without(cat(anything, Text(trigger)), cat(met, Repeat(ANY, 1, None)))
        inside = [
            cat(
                tag.begin[len(trigger) :] or EMPTY,
                schema.parse(tag.schema, strict=strict, layout=layout, name=NAME),
                tag.end or EMPTY,
            )
            for tag in tags
            if tag.trigger == trigger
        ]
        bodies.append(cat(lead, alt(*inside)))
    return cat(Repeat(alt(*bodies), 0, None), free)
