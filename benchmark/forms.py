"""What constrained texts are measured with: a record's pattern and an example of it, a schema of many fields."""

from typing import Any

PATTERN = (
    r'\{\n    "name": "[\w\d\s]{1,16}",\n    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n    "occupation": "(student|teacher|auror|'
    r'ministry of magic|death eater|order of the phoenix)",\n    "wand": \{\n        "wood": "[\w\d\s]{1,16}",\n'
    r'        "core": "[\w\d\s]{1,16}",\n        "length": [0-9]{1,2}\.[0-9]{0,2}\n    \},\n'
    r'    "alive": "(Alive|Deceased)",\n    "patronus": "[\w\d\s]{1,16}",\n    "bogart": "[\w\d\s]{1,16}"\n\}'
)
RECORD = (
    '{\n    "name": "Hermione Granger",\n    "house": "Gryffindor",\n    "blood status": "Muggle-born",\n'
    '    "occupation": "student",\n    "wand": {\n        "wood": "Vine",\n        "core": "Dragon",\n'
    '        "length": 10.75\n    },\n    "alive": "Alive",\n    "patronus": "Otter",\n    "bogart": "Failure"\n}'
)
FIELDS = 60


def schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema of many fields of the usual kinds, and an instance."""
    kinds: list[tuple[dict[str, Any], Any]] = [
        ({"type": "string"}, "some words of free text"),
        ({"type": "integer", "minimum": 0, "maximum": 120}, 42),
        ({"type": "boolean"}, True),
        ({"enum": ["small", "medium", "large"]}, "medium"),
        ({"type": "array", "items": {"type": "number"}, "maxItems": 5}, [1.5, -2]),
        ({"type": "string", "format": "date"}, "2024-02-29"),
    ]
    fields = [(f"field_{i}_{kinds[i % 6][0].get('type', 'choice')}", *kinds[i % 6]) for i in range(FIELDS)]
    properties = {name: kind for name, kind, _ in fields}
    value = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return value, {name: instance for name, _, instance in fields}


def bounded() -> dict[str, Any]:
    """`schema()`'s, such that no answer is endless."""
    value, _ = schema()
    for kind in value["properties"].values():
        if kind.get("type") == "string" and "format" not in kind:
            kind["maxLength"] = 16
        if "items" in kind:
            kind["items"] = {"type": "integer", "minimum": 0, "maximum": 99}
    return value
