"""Constraints and tools as OpenAI's client sends them, through a real server."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

pytestmark = pytest.mark.e2e

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
        "required": ["city", "days"]}  # fmt: skip
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
LONG = {"type": "object", "properties": {"bits": {"type": "array", "items": {"type": "boolean"}, "minItems": 100,
        "maxItems": 100}}, "required": ["bits"]}  # fmt: skip
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="EMPTY", max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, **body: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "m", "messages": ASK, "max_tokens": 200, "temperature": 0, **body}
    )


def test_response_formats(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}}
    answer = chat(client, response_format=schema).choices[0]
    jsonschema.validate(json.loads(answer.message.content), CITY)
    assert answer.finish_reason == "stop"
    beside = chat(client, response_format={"type": "json_object", "schema": {"const": 5}}).choices[0]
    assert beside.message.content == "5"
    anything = chat(client, response_format={"type": "json_object"}, max_tokens=300).choices[0]
    if anything.finish_reason == "stop":
        assert isinstance(json.loads(anything.message.content), dict)
    tag = {
        "type": "structural_tag",
        "triggers": ["<f"],
        "structures": [{"begin": "<f>", "schema": CITY, "end": "</f>"}],
    }
    chat(client, response_format=tag)
    assert chat(client, response_format={"type": "text"}).choices[0].message.content


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"regex": "(yes|no)!"}, "(yes|no)!"),
        ({"choices": ["up", "down"]}, "up|down"),
        ({"dtype": "int"}, r"[-+]?\d+"),
        ({"ebnf": 'root ::= "a" | "b"'}, "a|b"),
        ({"json_schema": {"const": 5}}, "5"),
        ({"json_schema": '{"const": 5}'}, "5"),
        ({"structured_outputs": {"regex": "x[0-9]y"}}, "x[0-9]y"),
        ({"structured_outputs": {"choice": ["up", "down"]}}, "up|down"),
        ({"structured_outputs": {"json": {"enum": [[1, 2]]}, "disable_any_whitespace": True}}, r"\[1,2\]"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "a|b"),
        ({"guided_json": {"const": 5}}, "5"),
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_choice": ["up", "down"]}, "up|down"),
        ({"guided_grammar": 'root ::= "a" | "b"'}, "a|b"),
    ],
)
def test_extensions_and_other_servers_spellings(client: openai.OpenAI, body: Any, pattern: str) -> None:
    answer = chat(client, extra_body=body, max_tokens=30).choices[0]
    assert re.fullmatch(pattern, answer.message.content)
    completion = client.completions.create(model="m", prompt="So", max_tokens=30, temperature=1, extra_body=body)
    assert re.fullmatch(pattern, completion.choices[0].text)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"extra_body": {"regex": "("}}, "regex"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"rejex": "("}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["a"]}}}, "structured_outputs"),
        ({"extra_body": {"guided_regex": "a", "guided_json": {}}}, "guided_regex"),
        ({"extra_body": {"regex": "a", "guided_choice": ["a"]}}, "guided_choice"),
        ({"extra_body": {"choices": []}}, "choices"),
        ({"extra_body": {"guided_choice": []}}, "guided_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}},
         "response_format"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"json_schema": "{}"}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": "required", "extra_body": {"regex": "a"}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}],
          "tool_choice": "required"}, "tools"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
         "messages[1].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_mistakes_are_named_as_they_were_written(client: openai.OpenAI, body: Any, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **body)
    assert caught.value.param == field


def test_a_demanded_call_can_be_made(client: openai.OpenAI) -> None:
    choice = chat(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert re.fullmatch("call_[0-9a-f]{24}", call.id)
        if call.function.name == "weather":
            jsonschema.validate(json.loads(call.function.arguments), CITY)


def test_a_named_call_streams_as_it_is_answered_whole(client: openai.OpenAI) -> None:
    """Of arguments so long that they cannot all come together, however busy the machine."""
    tools = [*TOOLS, {"type": "function", "function": {"name": "draw", "parameters": LONG}}]
    body: Any = {"tools": tools, "tool_choice": {"type": "function", "function": {"name": "draw"}}, "seed": 1,
                 "max_tokens": 900}  # fmt: skip
    whole = chat(client, **body).choices[0].message
    [call] = whole.tool_calls
    assert (whole.content, call.function.name) == (None, "draw")
    name, arguments, pieces, reason, text = "", "", 0, None, ""
    for chunk in chat(client, **body, stream=True):
        [choice] = chunk.choices
        text += choice.delta.content or ""
        for part in choice.delta.tool_calls or []:
            assert part.index == 0
            name += part.function.name or ""
            arguments += part.function.arguments or ""
            pieces += 1
        reason = choice.finish_reason or reason
    assert (name, arguments, reason, text) == ("draw", call.function.arguments, "tool_calls", "")
    assert pieces >= 2
    jsonschema.validate(json.loads(arguments), LONG)


def test_a_call_that_was_cut_short_still_has_arguments(client: openai.OpenAI) -> None:
    """Clients add up `arguments` of pieces: none may lack them."""
    body: Any = {"tools": TOOLS[:1], "tool_choice": "required", "max_tokens": 12}
    [call] = chat(client, **body).choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", "")
    pieces = [p for c in chat(client, **body, stream=True) for p in c.choices[0].delta.tool_calls or []]
    assert "".join(piece.function.arguments for piece in pieces) == ""
    assert pieces[0].function.name == "weather"


def test_a_conversation_with_calls_goes_on(client: openai.OpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris", "days": 1}'}}
    messages = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "Rain."}]  # fmt: skip
    answer = chat(client, messages=messages, tools=TOOLS, max_tokens=20)
    assert answer.usage.prompt_tokens > 100  # the tools are in the prompt
    without = chat(client, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=20)
    assert without.usage.prompt_tokens < answer.usage.prompt_tokens
