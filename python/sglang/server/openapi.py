"""/openapi.json, made of the Structs that parse the requests: it cannot say anything else than the code does."""

import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args

import msgspec

from sglang.base.sampling import ALIASES, RANGES, SamplingParams
from sglang.server.http import ErrorAnswer, Operation

REF = "#/components/schemas/{name}"
STRING_LISTS = ("stop", "choices")


def document(operations: Sequence[Operation], title: str, version: str) -> dict[str, Any]:
    """An OpenAPI 3.1 description of `operations`."""
    kinds = [kind for o in operations for kind in (o.body, *_alternatives(o.answer)) if kind not in (None, str)]
    schemas, components = msgspec.json.schema_components([*kinds, ErrorAnswer, SamplingParams], ref_template=REF)
    by_kind = dict(zip(map(str, kinds), schemas, strict=False))
    _describe_sampling(components)
    paths: dict[str, Any] = {}
    for operation in operations:
        for path in operation.paths:
            plain = re.sub(r"{(\w+):\w+}", r"{\1}", path)
            paths[plain] = {m.lower(): _operation(operation, plain, m, by_kind) for m in operation.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _alternatives(answer: Any) -> tuple[Any, ...]:
    return get_args(answer) if isinstance(answer, UnionType) else (answer,)


def _operation(operation: Operation, path: str, method: str, by_kind: dict[str, Any]) -> dict[str, Any]:
    if operation.answer is str:
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        schemas = [by_kind[str(kind)] for kind in _alternatives(operation.answer)]
        content = {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": REF.format(name="ErrorAnswer")}}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', path)}",
        "responses": {
            "200": {"description": "Done.", "content": content},
            "4XX": {"description": "The request cannot be served; `param` names the field.", "content": error},
            "5XX": {
                "description": "The server cannot serve now; `retryable` says whether to try again.",
                "content": error,
            },
        },
    }
    if operation.body is not None:
        body = {"application/json": {"schema": by_kind[str(operation.body)]}}
        described["requestBody"] = {"required": True, "content": body}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if parameters:
        described["parameters"] = parameters
    return described


def _describe_sampling(components: dict[str, Any]) -> None:
    """parse_sampling knows more of `sampling_params` than its Struct says: ranges, aliases, short forms."""
    sampling = components["SamplingParams"]
    fields: dict[str, Any] = sampling["properties"]
    for name, (low, high, open_low) in RANGES.items():
        limits = {"exclusiveMinimum" if open_low else "minimum": low, "maximum": high}
        target = fields[name]["anyOf"][0] if "anyOf" in fields[name] else fields[name]
        target.update({key: value for key, value in limits.items() if value is not None})
    for name in STRING_LISTS:
        fields[name] = {"anyOf": [{"type": "string"}, fields[name]]}
    for name in fields:
        fields[name] = {"anyOf": [fields[name], {"type": "null"}]}
    fields.update({alias: fields[name] for alias, name in ALIASES.items()})
    sampling["additionalProperties"] = False
    if "GenerateRequest" in components:
        texts = {"properties": {"text": {"type": ["string", "array"]}}, "required": ["text"]}
        ids = {"properties": {"input_ids": {"type": "array"}}, "required": ["input_ids"]}
        chain = {"properties": {"segments": {"type": "array"}}, "required": ["segments"]}
        components["GenerateRequest"]["oneOf"] = [texts, ids, chain]
        one: dict[str, Any] = {"$ref": REF.format(name="SamplingParams")}
        several = {"type": "array", "items": {"anyOf": [one, {"type": "null"}]}}
        components["GenerateRequest"]["properties"]["sampling_params"] = {"anyOf": [one, several, {"type": "null"}]}
