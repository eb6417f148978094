"""Tools of a chat: what the model is told of them, what it is held to, and its calls in what it writes.

Models write calls in the way they were trained to; `STYLES` has three. Where a call is demanded (`tool_choice`), the
answer is constrained to JSON, `[{"name": ..., "parameters": {...}}]`, in every style: it cannot fail to be read.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from sglang.base.errors import FieldError
from sglang.server import openai_types as oai

TOOLS = 128
NAME_CHARS = 64
NO_PARAMETERS = {"type": "object", "additionalProperties": False}
ARGUMENTS = ("arguments", "parameters")
INSTRUCTIONS = (
    "You can call functions. Their signatures, as JSON schemas, are between these tags:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with a JSON object with its name and arguments between these tags:\n"
    '<tool_call>\n{{"name": "...", "arguments": {{...}}}}\n</tool_call>'
)


class Style(NamedTuple):
    """How calls are marked. begins: what comes before the first; a bare "{" is the call itself.

    anywhere: they may come behind other text. end: what comes behind. special: the marks are special tokens.
    """

    begins: tuple[str, ...]
    anywhere: bool
    end: str = ""
    special: bool = False


HERMES = Style(("<tool_call>",), True, "</tool_call>")
MISTRAL = Style(("[TOOL_CALLS]",), True, special=True)
LLAMA3 = Style(("<|python_tag|>", "{"), False, special=True)
DEMANDED = Style(("[", "{"), False)
STYLES = {"hermes": HERMES, "qwen": HERMES, "qwen25": HERMES, "mistral": MISTRAL, "llama3": LLAMA3}


def style(name: str | None, template: str) -> Style:
    """By its name (`--tool-call-parser`), else by the marks in the model's own chat template."""
    if name is not None:
        return STYLES[name]
    marks = (("<tool_call>", HERMES), ("[TOOL_CALLS]", MISTRAL), ("<|python_tag|>", LLAMA3), ('"parameters":', LLAMA3))
    return next((known for mark, known in marks if mark in template), HERMES)


@dataclass(frozen=True)
class Choice:
    """What a request says of tools. names: those that may be called; none: no calls are looked for."""

    tools: list[dict[str, Any]]  # as templates take them
    names: frozenset[str] = frozenset()
    style: Style = HERMES
    schema: str | None = None  # of the calls, where one must be made
    strict: bool = False


def choose(body: oai.ChatRequest, style: Style) -> Choice:
    """Raises FieldError for tools that cannot be."""
    tools = body.tools or []
    if len(tools) > TOOLS:
        raise FieldError("tools", f"tools may hold at most {TOOLS}, got {len(tools)}")
    for i, tool in enumerate(tools):
        name = tool.function.name
        if not 0 < len(name) <= NAME_CHARS:
            raise FieldError(f"tools[{i}].function.name", f"tools[{i}].function.name must have 1 to 64 characters")
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
        raise FieldError("tools", "tools must have different names")
    wanted = body.tool_choice if body.tool_choice is not None else "auto" if tools else "none"
    if wanted == "none":
        return Choice([])
    if isinstance(wanted, str) and wanted not in ("auto", "required"):
        raise FieldError("tool_choice", f"tool_choice must be auto, none, required or a function, got {wanted[:64]!r}")
    if not tools:
        if wanted == "auto":
            return Choice([])
        raise FieldError("tool_choice", "tool_choice needs tools")
    mode, asked = (wanted, names) if isinstance(wanted, str) else _asked(wanted)
    unknown = next((name for name in asked if name not in names), None)
    if unknown is not None:
        raise FieldError("tool_choice", f"tool_choice names {unknown[:NAME_CHARS]!r}, which is not in tools")
    allowed = [tool for tool in tools if tool.function.name in asked]
    if mode == "auto":  # a tool that is shown may be called: nothing holds the model back
        return Choice([msgspec.to_builtins(tool) for tool in allowed], frozenset(asked), style)
    most = 1 if mode == "one" or body.parallel_tool_calls is False else None
    strict = any(tool.function.strict for tool in allowed)
    shown = [msgspec.to_builtins(tool) for tool in tools]
    return Choice(shown, frozenset(names), DEMANDED, _calls_schema(allowed, most), strict)


def _asked(wanted: oai.ToolChoice) -> tuple[str, list[str]]:
    """auto, required or one; and the names it is about."""
    if wanted.type == "function":
        if wanted.function is None:
            raise FieldError("tool_choice", "tool_choice.function must be an object with a name")
        return "one", [wanted.function.name]
    if wanted.allowed_tools is None or not wanted.allowed_tools.tools:
        raise FieldError("tool_choice", "tool_choice.allowed_tools.tools must be a list of functions, not empty")
    return wanted.allowed_tools.mode, [tool.function.name for tool in wanted.allowed_tools.tools]


def _calls_schema(tools: Sequence[oai.Tool], most: int | None) -> str:
    """The schema of a list of calls. Each tool's own is a definition, and so is what its references lead to."""
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        definitions[str(i)] = _moved(tool.function.parameters or NO_PARAMETERS, f"#/$defs/{i}")
        kinds = {"name": {"const": tool.function.name}, "parameters": {"$ref": f"#/$defs/{i}"}}
        calls.append({"type": "object", "properties": kinds, "required": [*kinds], "additionalProperties": False})
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "$defs": definitions}
    if most is not None:
        schema["maxItems"] = most
    return json.dumps(schema)


def _moved(schema: Any, place: str) -> Any:
    """References into a document -> the same when it stands at `place` of another."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _moved(value, place) for key, value in schema.items()}
    target = out.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        out["$ref"] = place + target[1:]
    return out


def described(turns: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns for a template that knows no tools: signatures in the system message, calls and results as text."""
    said: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool":
            said.append({"role": "user", "content": f"<tool_response>\n{_text(turn)}\n</tool_response>"})
        elif turn.get("tool_calls"):
            calls = [call["function"] for call in turn["tool_calls"]]
            parts = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
            said.append({"role": "assistant", "content": "\n".join(filter(None, [_text(turn), *parts]))})
        else:
            said.append(turn)
    if not tools:
        return said
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    rules = INSTRUCTIONS.format(tools=lines)
    if said and said[0]["role"] == "system":
        return [{**said[0], "content": f"{_text(said[0])}\n\n{rules}"}, *said[1:]]
    return [{"role": "system", "content": rules}, *said]


def _text(turn: dict[str, Any]) -> str:
    content = turn.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Found(NamedTuple):
    """A piece of an answer. call: which call it belongs to, -1: none. name: a call begins; text: what is said in it."""

    call: int
    name: str
    text: str


class Reader:
    """An answer as it comes -> its text and its calls. A call's arguments are passed on as they come."""

    def __init__(self, choice: Choice):
        self._style = choice.style
        self._names = choice.names
        self._inside = False
        self._rest = ""
        self._call: _Call | None = None
        self._begun = False  # something other than blanks was said
        self.calls = 0

    def push(self, text: str, final: bool) -> list[Found]:
        self._rest += text
        found: list[Found] = []
        while self._step(found, final):
            pass
        return _joined(found)

    def _step(self, found: list[Found], final: bool) -> bool:
        """Reads on; whether there may be more to read."""
        if self._call is not None:
            return self._read_call(self._call, found, final)
        return self._between_calls(found, final) if self._inside else self._outside(found, final)

    def _say(self, found: list[Found], text: str) -> None:
        if text:
            self._begun = self._begun or not text.isspace()
            found.append(Found(-1, "", text))

    def _outside(self, found: list[Found], final: bool) -> bool:
        text, marks = self._rest, self._style.begins
        if not self._style.anywhere:
            bare = text.lstrip()
            mark = next((m for m in marks if bare.startswith(m)), None) if not self._begun else None
            if mark is None and not self._begun and not final and any(m.startswith(bare) for m in marks):
                return False
            at = len(text) - len(bare) if mark is not None else -1
        else:
            at, mark = min(((i, m) for m in marks if (i := text.find(m)) >= 0), default=(-1, None))
        if mark is not None:
            self._say(found, text[:at].rstrip())
            self._rest = text[at if mark == "{" else at + len(mark) :]
            self._inside = True
            return True
        open_at = len(text)
        if not final and self._style.anywhere:
            open_at -= max(k for m in marks for k in range(len(m)) if text.endswith(m[:k]))
            open_at = len(text[:open_at].rstrip())  # blanks before a call are none of the text
        self._say(found, text[:open_at])
        self._rest = text[open_at:]
        return False

    def _between_calls(self, found: list[Found], final: bool) -> bool:
        text, end = self._rest.lstrip(" \n\r\t,;[]"), self._style.end
        if end and text.startswith(end):
            self._rest, self._inside = text[len(end) :].lstrip("\n"), False
            return True
        if text.startswith("{"):
            self._call = _Call(self.calls, self._names)
            self._rest = text
            return True
        if not text or (not final and end.startswith(text)):
            self._rest = text if not final else ""
            return False
        self._rest, self._inside, self._begun = text, False, True
        return True

    def _read_call(self, call: "_Call", found: list[Found], final: bool) -> bool:
        used, more = call.read(self._rest)
        self._rest = self._rest[used:]
        found += more
        if not call.closed and not final:
            return False
        self._call = None
        if call.name is None:
            if self._style is not DEMANDED:  # there it is a call all the same, cut before its name was said
                self._say(found, call.raw)
            self._inside = self._inside and call.closed
        else:
            self.calls += 1
            if call.closed and not call.argued:
                found.append(Found(self.calls - 1, "", "{}"))
        return bool(self._rest)


class _Call:
    """One {"name": ..., "arguments": {...}}, read character by character."""

    def __init__(self, index: int, names: Iterable[str]):
        self._index = index
        self._names = names
        self._depth = 0
        self._quoted = self._escaped = False
        self._key: str | None = None  # whose value is being read
        self._string = ""  # the string at depth 1 being read, or read last
        self._value = ""
        self._held = ""  # arguments that came before the name
        self.raw = ""
        self.name: str | None = None
        self.argued = False
        self.closed = False

    def read(self, text: str) -> tuple[int, list[Found]]:
        found: list[Found] = []
        for i, c in enumerate(text):
            ended = self._take(c)
            self.argued = self.argued or self._key in ARGUMENTS
            if ended and self._key == "name":
                self._name(found)
            elif self._key in ARGUMENTS and not ended:
                self._argue(c, found)
            if ended:
                if self._key in ARGUMENTS and self._value.lstrip().startswith('"'):
                    self._unquote(found)
                self._key, self._value = None, ""
            if self.closed:
                self.raw += text[: i + 1]
                return i + 1, found
        self.raw += text
        return len(text), found

    def _take(self, c: str) -> bool:
        """Whether `c` ends the value of a key of the call itself."""
        depth = self._depth
        if self._quoted:
            self._quoted = self._escaped or c != '"'
            self._escaped = not self._escaped and c == "\\"
            self._string += c
        elif c == '"':
            self._quoted, self._string = True, c
        elif c in "{[":
            self._depth += 1
        elif c in "}]":
            self._depth -= 1
            self.closed = self._depth == 0
        elif c == ":" and depth == 1 and self._key is None:
            self._key = self._string[1:-1]
            return False
        ended = depth == 1 and not self._quoted and c in ",}" and self._key is not None
        if not ended and self._key is not None:
            self._value += c
        return ended

    def _name(self, found: list[Found]) -> None:
        try:
            name = json.loads(self._value)
        except ValueError:
            return
        if name in self._names:
            self.name = name
            found.append(Found(self._index, name, ""))
            if self._held:
                found.append(Found(self._index, "", self._held))

    def _argue(self, c: str, found: list[Found]) -> None:
        if c == ":" and not self._value:
            return
        if not self._value.strip() or self._value.lstrip().startswith('"'):
            return  # blanks before it, or arguments as a string, which are told when it ends
        if self.name is not None:
            found.append(Found(self._index, "", c))
        else:
            self._held += c

    def _unquote(self, found: list[Found]) -> None:
        try:
            text = json.loads(self._value)
        except ValueError:
            text = self._value.strip()
        if self.name is not None:
            found.append(Found(self._index, "", text))
        else:
            self._held += text


def _joined(found: list[Found]) -> list[Found]:
    """Neighbours that say more of the same become one."""
    out: list[Found] = []
    for piece in found:
        if out and not piece.name and piece.call == out[-1].call and not out[-1].name:
            out[-1] = out[-1]._replace(text=out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


def call_id() -> str:
    return "call_" + uuid.uuid4().hex[:24]
