"""The spellings of a constraint that OpenAI and vLLM have -> those of `sampling_params`."""

from collections.abc import Iterator
from typing import Any

from sglang.base.errors import FieldError
from sglang.base.sampling import CONSTRAINTS
from sglang.server import openai_types as oai

ANY_OBJECT = {"type": "object"}
GUIDED = {"guided_json": "json_schema", "guided_regex": "regex", "guided_choice": "choices", "guided_grammar": "ebnf"}


def constraints(body: oai.SamplingFields) -> Iterator[tuple[str, dict[str, Any]]]:
    """(field of the body, what it says in sampling_params), for each that was sent. Raises FieldError."""
    if body.response_format is not None:
        yield "response_format", _of_format(body.response_format)
    if body.structured_outputs is not None:
        yield "structured_outputs", _of_vllm(body.structured_outputs)
    for name, ours in GUIDED.items():
        if (value := getattr(body, name)) is not None:
            yield name, {ours: value}


def _of_format(wanted: oai.ResponseFormat) -> dict[str, Any]:
    match wanted.type:
        case "text":
            return {}
        case "json_object":
            return {"json_schema": ANY_OBJECT if wanted.schema is None else wanted.schema}
        case "structural_tag":
            if wanted.structures is None or wanted.triggers is None:
                raise FieldError("response_format", "response_format.structures and .triggers must be lists")
            return {"structural_tag": {"structures": wanted.structures, "triggers": wanted.triggers}}
        case "json_schema":
            if wanted.json_schema is None or wanted.json_schema.schema is None:
                raise FieldError("response_format", "response_format.json_schema.schema must be an object")
            lax = {"strict": False} if wanted.json_schema.strict is False else {}
            return {"json_schema": wanted.json_schema.schema, **lax}


def _of_vllm(wanted: oai.StructuredOutputs) -> dict[str, Any]:
    said = {
        "json_schema": wanted.json if not wanted.json_object else ANY_OBJECT,
        "regex": wanted.regex,
        "choices": wanted.choice,
        "ebnf": wanted.grammar,
        "structural_tag": wanted.structural_tag,
        "compact_json": wanted.disable_any_whitespace or None,
    }
    # An object without `additionalProperties` has none but its own here, so `disable_additional_properties` is so.
    said = {name: value for name, value in said.items() if value is not None}
    if len(said.keys() & {*CONSTRAINTS}) != 1:
        raise FieldError(
            "structured_outputs",
            "structured_outputs must have one of json, json_object, regex, choice, grammar, structural_tag",
        )
    return said
