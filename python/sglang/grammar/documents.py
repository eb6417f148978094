"""Schema documents as they are sent -> the same without what is said for people and tools only."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

# Said for people and tools, not about the value.
REMARKS = frozenset(
    ("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
     "$vocabulary", "discriminator", "contentEncoding", "contentMediaType", "contentSchema", "xml", "externalDocs",
     "strict", "propertyOrdering")
)  # fmt: skip
# What holds schemas by names, and what holds values.
NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
VALUES = frozenset(("const", "enum"))


def simplified(root: Any) -> Any:
    """A copy without remarks, and whose unions with a `discriminator` demand it of each of their alternatives.

    pydantic does not put a tag that has a default among what is required, but cannot read an answer without it.
    """
    unions: list[tuple[Schema, str]] = []

    def change(schema: Schema) -> Schema:
        said = {key: value for key, value in schema.items() if key not in REMARKS and not key.startswith("x-")}
        if said.pop("nullable", None) is True and "type" in said:  # OpenAPI 3.0
            types = said["type"] if isinstance(said["type"], list) else [said["type"]]
            said["type"] = [*types, *(["null"] if "null" not in types else [])]
        match schema.get("discriminator"):
            case {"propertyName": str(tag)}:
                unions.append((said, tag))
        return said

    found = rewritten(root, change)
    seen: set[tuple[int, str]] = set()
    for union, tag in unions:
        for part in _parts(union):
            _demand(found, part, tag, seen)
    return found


def rewritten(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """A copy in which `change` was made to every object that is a schema, the inner ones first."""
    if isinstance(schema, list):
        return [rewritten(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy: Schema = {}
    for key, value in schema.items():
        if key in VALUES:
            copy[key] = value
        elif key in NAMED and isinstance(value, dict):
            copy[key] = {name: rewritten(item, change) for name, item in value.items()}
        else:
            copy[key] = rewritten(value, change)
    return change(copy)


def target(root: Any, ref: str) -> Any:
    """What "#/...", or "#name" of an `$anchor`, is about. Raises KeyError where it leads nowhere."""
    if not ref.startswith("#/") and ref != "#":
        return _anchored(root, ref[1:])
    found = root
    for part in ref[1:].split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise KeyError(ref)
    return found


def _anchored(root: Any, name: str) -> Any:
    todo = [root]
    while todo:
        match todo.pop():
            case dict() as found:
                if found.get("$anchor") == name:
                    return found
                todo += found.values()
            case list() as found:
                todo += found
            case _:
                pass
    raise KeyError(name)


def _parts(schema: Schema) -> list[Any]:
    lists = [schema.get(key) for key in ("oneOf", "anyOf", "allOf")]
    return [part for listed in lists if isinstance(listed, list) for part in listed]


def _demand(root: Any, schema: Any, name: str, seen: set[tuple[int, str]]) -> None:
    """Makes the property `name` required wherever `schema` has it."""
    if not isinstance(schema, dict) or (id(schema), name) in seen:
        return
    seen.add((id(schema), name))
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        with suppress(KeyError):  # whoever reads the schema will say so
            _demand(root, target(root, ref), name, seen)
    required = schema.get("required", [])
    if isinstance(required, list) and name not in required and name in _names(schema):
        schema["required"] = [*required, name]
    for part in _parts(schema):
        _demand(root, part, name, seen)


def _names(schema: Schema) -> Schema:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}
