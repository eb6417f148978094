"""Messages -> the text a model was trained to answer.

From best to worst: `--chat-template` (a built-in name, a .jinja or a .json file), the tokenizer's own Jinja template,
the built-in table by model path. Jinja runs in a sandbox without attribute tricks, on templates that the server's
owner chose, never on a client's, and what it may write is bounded.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sglang.base import chat
from sglang.base.errors import ConfigError, FieldError

Messages = Sequence[dict[str, Any]]
OUTPUT_CHARS = 1 << 24  # a template that writes more is not one


class JinjaTemplate:
    """A Hugging Face chat template."""

    stop: tuple[str, ...] = ()

    def __init__(self, source: str, variables: dict[str, Any]):
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

        # Sandboxed: templates come with models, and a model is data.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._error = TemplateError
        self._variables = variables
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from None

    def render(self, messages: Messages, reply: bool, tools: Any, extra: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        known = {**extra, **self._variables, "messages": messages, "tools": tools, "add_generation_prompt": reply}
        try:
            for part in self._template.generate(known):
                parts.append(part)
                size += len(part)
                if size > OUTPUT_CHARS:
                    raise FieldError("messages", f"the rendered chat is longer than {OUTPUT_CHARS} characters")
        except (self._error, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, FieldError):
                raise
            raise FieldError("messages", f"the model's chat template refuses these messages: {error}") from None
        return "".join(parts)


class TableTemplate:
    """One of `base.chat`."""

    def __init__(self, template: chat.ChatTemplate):
        self._template = template
        self.stop = template.stop_str

    def render(self, messages: Messages, reply: bool, tools: Any, extra: dict[str, Any]) -> str:
        _no_tools(tools)
        turns = [{"role": _ROLES.get(m["role"], m["role"]), "content": m.get("content") or ""} for m in messages]
        for turn in turns:
            if turn["role"] not in self._template.role_prefix_and_suffix:
                raise FieldError("messages", f"the chat template {self._template.name} has no role {turn['role']!r}")
        if reply:
            return self._template.open_turn(turns)
        return self._template.open_turn(turns)[: -len(self._template.get_prefix_and_suffix("assistant", turns)[0])]


class FileTemplate:
    """The JSON form: name, system, user, assistant, sep_style, stop_str (required), system_message, sep, sep2."""

    REQUIRED = ("name", "system", "user", "assistant", "sep_style", "stop_str")

    def __init__(self, record: Any, source: Path):
        if not isinstance(record, dict) or (lacking := [k for k in self.REQUIRED if k not in record]):
            raise ConfigError(f"--chat-template {source}: missing {', '.join(lacking or self.REQUIRED)}")
        style = record["sep_style"]
        if style not in _LAYOUTS:
            raise ConfigError(
                f"--chat-template {source}: sep_style {style!r} is not supported; known: {', '.join(_LAYOUTS)}"
            )
        self._layout = _LAYOUTS[style]
        self._names = {role: record[role] for role in ("user", "assistant")}
        self._system = record["system"]
        self._system_message = record.get("system_message", "")
        self._sep = record.get("sep", "\n")
        self._sep2 = record.get("sep2") or self._sep
        stop = record["stop_str"]
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop or ())

    def render(self, messages: Messages, reply: bool, tools: Any, extra: dict[str, Any]) -> str:
        _no_tools(tools)
        system = self._system_message
        turns: list[tuple[str, str | None]] = []
        for message in messages:
            role, content = _ROLES.get(message["role"], message["role"]), message.get("content") or ""
            if role == "system":
                system = content
            elif role in self._names:
                turns.append((self._names[role], content))
            else:
                raise FieldError("messages", f"this chat template has no role {role!r}")
        if reply:
            turns.append((self._names["assistant"], None))
        head = f"{self._system}\n{system}" if self._system and system else self._system + system
        return self._layout(head, turns, self._sep, self._sep2)


Template = JinjaTemplate | TableTemplate | FileTemplate
Turns = list[tuple[str, str | None]]  # role name, content; None: the turn is left open
_ROLES = {"developer": "system"}


def _no_tools(tools: Any) -> None:
    if tools:
        raise FieldError("tools", "tools need a tokenizer with its own chat template; this one has none for them")


def _chatml(head: str, turns: Turns, sep: str, sep2: str) -> str:
    text = f"{head}{sep}\n" if head else ""
    for role, content in turns:
        text += f"{role}\n" if content is None else f"{role}\n{content}{sep}\n"
    return text


def _colon(space: str, open_space: str) -> Callable[[str, Turns, str, str], str]:
    def layout(head: str, turns: Turns, sep: str, sep2: str) -> str:
        text = f"{head}{sep}" if head else ""
        for i, (role, content) in enumerate(turns):
            end = sep2 if i % 2 else sep
            text += f"{role}:{open_space}" if content is None else f"{role}:{space}{content}{end}"
        return text

    return layout


def _single(layout: Callable[[str, Turns, str, str], str]) -> Callable[[str, Turns, str, str], str]:
    return lambda head, turns, sep, sep2: layout(head, turns, sep, sep)


def _joined(between: str) -> Callable[[str, Turns, str, str], str]:
    def layout(head: str, turns: Turns, sep: str, sep2: str) -> str:
        text = f"{head}{sep}" if head and between else head
        for i, (role, content) in enumerate(turns):
            end = sep2 if i % 2 else sep
            text += f"{role}{between}" if content is None else f"{role}{between}{content}{end}"
        return text

    return layout


def _llama2(head: str, turns: Turns, sep: str, sep2: str) -> str:
    text = "[INST] "
    for i, (role, content) in enumerate(turns):
        end = sep2 if i % 2 else sep
        if i == 0:
            text += f"{head}{content or ''} "
        else:
            text += role if content is None else f"{role} {content}{end}"
    return text


_LAYOUTS: dict[str, Callable[[str, Turns, str, str], str]] = {
    "CHATML": _chatml,
    "ADD_COLON_SINGLE": _single(_colon(" ", "")),
    "ADD_COLON_TWO": _colon(" ", ""),
    "ADD_COLON_SPACE_SINGLE": _single(_colon(" ", " ")),
    "ADD_NEW_LINE_SINGLE": _single(_joined("\n")),
    "NO_COLON_SINGLE": _single(_joined("")),
    "NO_COLON_TWO": _joined(""),
    "LLAMA2": _llama2,
}
ALIASES = {"llama-2": "llama-2-chat"}  # the name --chat-template has always had


def choose(
    flag: str | None, folder: Path, config: dict[str, Any], variables: dict[str, Any], model_path: str
) -> Template:
    """The template that serves this model. `config`: tokenizer_config.json. Raises ConfigError."""
    if flag is not None:
        name = ALIASES.get(flag, flag)
        if name in chat.chat_template_names():
            return TableTemplate(chat.get_chat_template(name))
        file = Path(flag)
        if not file.is_file():
            raise ConfigError(
                f"--chat-template {flag}: neither a file nor a built-in name; known: "
                f"{', '.join(chat.chat_template_names())}"
            )
        source = file.read_text("utf-8")
        if file.suffix != ".json":
            return JinjaTemplate(source, variables)
        try:
            return FileTemplate(json.loads(source), file)
        except ValueError as error:
            raise ConfigError(f"--chat-template {flag}: {error}") from None
    own = _own(folder, config)
    if own is not None:
        return JinjaTemplate(own, variables)
    return TableTemplate(chat.get_chat_template_by_model_path(model_path))


def _own(folder: Path, config: dict[str, Any]) -> str | None:
    """The tokenizer's own template: a file beside it, or in its config as one string or a list of named ones."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text("utf-8")
    own = config.get("chat_template")
    beside = folder / "chat_template.json"
    if own is None and beside.is_file():
        own = json.loads(beside.read_text("utf-8")).get("chat_template")
    if isinstance(own, list):
        named = {entry["name"]: entry["template"] for entry in own}
        own = named.get("default") or next(iter(named.values()), None)
    return own
