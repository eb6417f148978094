"""Calls are found in what models write, however it is cut into pieces; the rest is text."""

import json
from typing import Any, Literal

import jsonschema
import pytest

from sglang.base.errors import FieldError
from sglang.server import openai_types as oai
from sglang.server import tools
from sglang.server.tools import DEMANDED, HERMES, LLAMA3, MISTRAL, Choice, Reader, Style

INT = {"type": "integer"}
NAMES = frozenset({"add", "now"})


def read(style: Style, parts: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """(text, [(name, arguments)]) as a client puts the pieces together."""
    reader = Reader(Choice([], NAMES, style))
    text, calls = "", []
    for i, part in enumerate(parts):
        for found in reader.push(part, i == len(parts) - 1):
            if found.call < 0:
                text += found.text
            elif found.name:
                assert found.call == len(calls)
                calls.append([found.name, found.text])
            else:
                calls[found.call][1] += found.text
    assert reader.calls == len(calls)
    return text, [(name, arguments) for name, arguments in calls]


ADD = '{"a": 1, "b": [2, {"c": "}\\""}]}'
CASES: list[tuple[Style, str, str, list[tuple[str, str]]]] = [
    (HERMES, "just <b>words</b>", "just <b>words</b>", []),
    (HERMES, '<tool_call>\n{"name": "add", "arguments": ' + ADD + "}\n</tool_call>", "", [("add", ADD)]),
    (
        HERMES,
        'See:\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "now"}</tool_call>',
        "See:",
        [("add", "{}"), ("now", "{}")],
    ),
    (HERMES, 'x <tool_call>{"name": "other", "arguments": {"a": 1}}</tool_call>', "x", []),
    (HERMES, "a <tool_c", "a <tool_c", []),
    (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]', "",
     [("add", '{"a": 1}'), ("now", "{}")]),
    (LLAMA3, '{"name": "add", "parameters": {"a": "x"}}; {"name": "now", "parameters": {}}', "",
     [("add", '{"a": "x"}'), ("now", "{}")]),
    (LLAMA3, '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}', "", [("add", '{"a": 1}')]),
    (LLAMA3, 'Say {"name": "add"}', 'Say {"name": "add"}', []),
    (LLAMA3, '{"colour": "red"}', '{"colour": "red"}', []),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [("add", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    (DEMANDED, '[{"name": "add", "parameters": {"a": 1}}, {"name": "add", "parameters": {"a": 2}}]', "",
     [("add", '{"a": 1}'), ("add", '{"a": 2}')]),
    (DEMANDED, '[{"name": "add", "parameters": {"a": 1}}, {"name": "ad', "", [("add", '{"a": 1}')]),
]  # fmt: skip


@pytest.mark.parametrize(("style", "answer", "text", "calls"), CASES)
def test_calls_are_found_wherever_the_answer_is_cut(
    style: Style, answer: str, text: str, calls: list[tuple[str, str]]
) -> None:
    whole = read(style, [answer])
    assert whole[1] == calls
    assert whole[0].strip() == text or (not calls and text in whole[0])
    assert read(style, list(answer)) == whole
    for i in range(len(answer)):
        assert read(style, [answer[:i], answer[i:]]) == whole


def test_the_style_is_the_templates_unless_named() -> None:
    assert tools.style(None, "{{ '[TOOL_CALLS]' }}") is MISTRAL
    assert tools.style(None, "<tool_call>") is HERMES
    assert tools.style(None, "") is HERMES
    assert tools.style("llama3", "<tool_call>") is LLAMA3


def asked(**body: Any) -> oai.ChatRequest:
    kinds = [oai.Tool(function=oai.Function(name=n, parameters={"type": "object"})) for n in ("add", "now")]
    return oai.ChatRequest(messages="x", **{"tools": kinds, **body})


def allowed(mode: Literal["auto", "required"], *names: str) -> oai.ToolChoice:
    listed = [oai.NamedTool(function=oai.FunctionName(name=name)) for name in names]
    return oai.ToolChoice(type="allowed_tools", allowed_tools=oai.AllowedTools(mode=mode, tools=listed))


def test_some_of_the_tools_may_be_called() -> None:
    auto = tools.choose(asked(tool_choice=allowed("auto", "now")), HERMES)
    assert (auto.names, auto.schema, auto.style) == ({"now"}, None, HERMES)
    assert [tool["function"]["name"] for tool in auto.tools] == ["now"]
    demanded = tools.choose(asked(tool_choice=allowed("required", "now")), HERMES)
    schema = json.loads(demanded.schema or "")
    assert [kind["properties"]["name"] for kind in schema["items"]["anyOf"]] == [{"const": "now"}]
    assert "maxItems" not in schema
    assert [tool["function"]["name"] for tool in demanded.tools] == ["add", "now"]
    both = tools.choose(asked(tool_choice=allowed("auto", "now", "add")), HERMES)
    assert both == tools.choose(asked(), HERMES)


def test_what_may_be_called() -> None:
    assert tools.choose(asked(), HERMES).names == NAMES
    assert tools.choose(asked(tool_choice="none"), HERMES).tools == []
    assert tools.choose(asked(tools=None), HERMES).names == frozenset()
    demanded = json.loads(tools.choose(asked(tool_choice="required"), HERMES).schema or "")
    assert demanded["minItems"] == 1
    assert "maxItems" not in demanded
    named = oai.ToolChoice(function=oai.FunctionName(name="now"))
    one = json.loads(tools.choose(asked(tool_choice=named), HERMES).schema or "")
    assert [kind["properties"]["name"] for kind in one["items"]["anyOf"]] == [{"const": "now"}]
    assert one["maxItems"] == 1
    single = tools.choose(asked(tool_choice="required", parallel_tool_calls=False), HERMES)
    assert json.loads(single.schema or "")["maxItems"] == 1


def test_definitions_of_two_tools_do_not_meet() -> None:
    kinds = [
        oai.Tool(function=oai.Function(name=n, parameters={"$defs": {"T": {"type": kind}}, "$ref": "#/$defs/T"}))
        for n, kind in (("add", "object"), ("now", "null"))
    ]
    schema = tools.choose(asked(tools=kinds, tool_choice="required"), HERMES).schema or ""
    validator = jsonschema.Draft202012Validator(json.loads(schema))
    assert validator.is_valid([{"name": "add", "parameters": {}}, {"name": "now", "parameters": None}])
    assert not validator.is_valid([{"name": "now", "parameters": {}}])


def test_a_tool_without_parameters_is_called_without_any() -> None:
    kinds = [oai.Tool(function=oai.Function(name="now"))]
    schema = tools.choose(asked(tools=kinds, tool_choice="required"), HERMES).schema or ""
    validator = jsonschema.Draft202012Validator(json.loads(schema))
    assert validator.is_valid([{"name": "now", "parameters": {}}])
    assert not validator.is_valid([{"name": "now", "parameters": {"a": 1}}])


def test_parameters_may_refer_to_themselves() -> None:
    node = {"type": "object", "properties": {"then": {"$ref": "#"}, "v": {"$ref": "#/$defs/v"}}, "$defs": {"v": INT}}
    kinds = [oai.Tool(function=oai.Function(name="add", parameters=node))]
    schema = tools.choose(asked(tools=kinds, tool_choice="required"), HERMES).schema or ""
    validator = jsonschema.Draft202012Validator(json.loads(schema))
    assert validator.is_valid([{"name": "add", "parameters": {"then": {"then": {"v": 1}}}}])
    assert not validator.is_valid([{"name": "add", "parameters": {"then": {"then": {"v": "1"}}}}])
    assert not validator.is_valid([{"name": "add", "parameters": {"then": []}}])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": oai.ToolChoice(function=oai.FunctionName(name="x"))}, "tool_choice"),
        ({"tool_choice": oai.ToolChoice()}, "tool_choice"),
        ({"tool_choice": oai.ToolChoice(type="allowed_tools")}, "tool_choice"),
        ({"tool_choice": allowed("auto")}, "tool_choice"),
        ({"tool_choice": allowed("required", "now", "x")}, "tool_choice"),
        ({"tools": [oai.Tool(function=oai.Function(name="a"))] * 2}, "tools"),
        ({"tools": [oai.Tool(function=oai.Function(name=""))]}, "tools[0].function.name"),
        ({"tools": [oai.Tool(function=oai.Function(name=f"f{i}")) for i in range(129)]}, "tools"),
    ],
)
def test_tools_that_cannot_be_are_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        tools.choose(asked(**body), HERMES)
    assert caught.value.field == field


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "x"},
    ]
    said = tools.described(turns, [{"type": "function", "function": {"name": "add"}}])
    assert said[0]["content"].startswith("Be kind.\n\n")
    assert '{"name": "add"}' in said[0]["content"]
    assert read(HERMES, [said[2]["content"]])[1] == [("add", '{"a": 1}')]
    assert said[3] == {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}
    assert tools.described(turns[1:2], [{"function": {}}])[0]["role"] == "system"
