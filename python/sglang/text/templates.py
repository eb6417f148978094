"""Messages -> the text a model was trained to answer.

From best to worst: `--chat-template` (a built-in name, a .jinja or a .json file), the tokenizer's own Jinja template,
the built-in table by model path. docs/custom_chat_template.md has the JSON format.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sglang.base import chat
from sglang.base.errors import ConfigError, FieldError
from sglang.text.jinja import JinjaTemplate

Messages = Sequence[dict[str, Any]]


class Template(Protocol):
    stop: tuple[str, ...]  # what ends an answer, as text
    complete: bool  # it writes the special tokens that begin a prompt
    source: str  # of a Jinja template
    tools: bool  # it says what tools there are

    def render(self, messages: Messages, reply: bool, tools: list[Any] | None, extra: dict[str, Any]) -> str:
        """`reply`: with the beginning of an answer. Raises FieldError for what it cannot say."""
        ...


class TableTemplate:
    """One of `base.chat`."""

    complete = False
    source = ""
    tools = False

    def __init__(self, template: chat.ChatTemplate):
        self._template = template
        self.stop = template.stop_str

    def render(self, messages: Messages, reply: bool, tools: list[Any] | None, extra: dict[str, Any]) -> str:
        turns = _plain(messages, tools, extra, tuple(self._template.role_prefix_and_suffix))
        turns = self._template.with_system(turns)
        text = self._template.get_prompt(turns)
        return text + self._template.get_prefix_and_suffix("assistant", turns)[0] if reply else text


@dataclass(frozen=True)
class Layout:
    """How a `sep_style` puts turns together. A pair holds for even turns (the user's) and for odd ones.

    In all of them {sep}, {sep2} and {n} (the number of the round, from 0) stand for what they say.
    """

    head_end: str  # after the system part, where there is one
    before: str = ""  # before every even turn
    colon: tuple[str, str] = ("", "")  # between the role's name and its message
    end: tuple[str, str] = ("", "")  # after the message
    open: str | None = None  # after the name of a role whose message is to come; None: as colon
    replace: tuple[tuple[str, str], ...] = ()  # in messages


def _same(text: str) -> tuple[str, str]:
    return text, text


# Facts of the format, as FastChat's conversation styles have them.
LAYOUTS: dict[str, Layout] = {
    "CHATML": Layout("{sep}\n", colon=_same("\n"), end=_same("{sep}\n")),
    "ADD_COLON_SINGLE": Layout("{sep}", colon=_same(": "), end=_same("{sep}"), open=":"),
    "ADD_COLON_TWO": Layout("{sep}", colon=_same(": "), end=("{sep}", "{sep2}"), open=":"),
    "ADD_COLON_SPACE_SINGLE": Layout("{sep}", colon=_same(": "), end=_same("{sep}")),
    "ADD_NEW_LINE_SINGLE": Layout("{sep}", colon=_same("\n"), end=_same("{sep}")),
    "NO_COLON_SINGLE": Layout("", end=_same("{sep}")),
    "NO_COLON_TWO": Layout("", end=("{sep}", "{sep2}")),
    "LLAMA2": Layout("\n<</SYS>>\n\n", colon=_same(" "), end=(" ", " </s><s>"), open=""),
    "CHATGLM": Layout("{sep}", "[Round {n}]{sep}", _same("："), _same("{sep}")),
    "CHATGLM3": Layout("", colon=_same("\n"), open=""),
    "CHATINTERN": Layout("", "<s>", _same(":"), ("{sep}\n", "{sep2}\n")),
    "DEEPSEEK_CHAT": Layout("", colon=_same(": "), end=("{sep}", "{sep2}"), open=":"),
    "DOLLY": Layout("", colon=_same(":\n"), end=("{sep}", "{sep2}\n\n")),
    "FALCON_CHAT": Layout("{sep}", colon=_same(": "), end=_same("{sep}"), open=":"),
    "METAMATH": Layout("{sep}", colon=(":\n", ": {sep2}"), end=("{sep}", "")),
    "PHOENIX": Layout("", colon=_same(": <s>"), end=_same("</s>")),
    "ROBIN": Layout("{sep}", colon=_same(":\n"), end=_same("{sep}")),
    "RWKV": Layout("", colon=_same(": "), end=_same("\n\n"), open=":", replace=(("\r\n", "\n"), ("\n\n", "\n"))),
}


class FileTemplate:
    """The JSON form: name, system, user, assistant, sep_style, stop_str; may have system_message, sep, sep2."""

    REQUIRED = ("name", "system", "user", "assistant", "sep_style", "stop_str")
    complete = False
    source = ""
    tools = False

    def __init__(self, record: Any, source: str):
        def refuse(text: str) -> ConfigError:
            return ConfigError(f"--chat-template {source}: {text}")

        if not isinstance(record, dict):
            raise refuse("must be a JSON object")
        if missing := [key for key in self.REQUIRED if key not in record]:
            raise refuse(f"lacks {', '.join(missing)}")
        for key in ("name", "system", "user", "assistant", "system_message", "sep", "sep2", "sep_style"):
            if not isinstance(record.get(key, ""), str):
                raise refuse(f"{key} must be a string")
        stop = record["stop_str"] if isinstance(record["stop_str"], list) else [record["stop_str"] or ""]
        if not all(isinstance(s, str) for s in stop):
            raise refuse("stop_str must be a string or a list of strings")
        style = record["sep_style"]
        if style not in LAYOUTS:
            raise refuse(f"sep_style {style!r} is not known; known: {', '.join(LAYOUTS)}")
        self._layout = LAYOUTS[style]
        self._llama2 = style == "LLAMA2"
        self._system: str = record["system"]
        self._names: dict[str, str] = {role: record[role] for role in ("user", "assistant")}
        self._message: str = record.get("system_message", "")
        self._sep: str = record.get("sep", "\n")
        self._sep2: str = record.get("sep2", self._sep)
        self.stop = tuple(filter(None, stop))

    def render(self, messages: Messages, reply: bool, tools: list[Any] | None, extra: dict[str, Any]) -> str:
        turns = _plain(messages, tools, extra, ("system", "user", "assistant"))
        system = next((t["content"] for t in reversed(turns) if t["role"] == "system"), self._message)
        turns = [turn for turn in turns if turn["role"] != "system"]
        parts = [self._head(system)]
        for i, turn in enumerate(turns):
            content = turn["content"]
            for old, new in self._layout.replace:
                content = content.replace(old, new)
            name = (
                "" if self._llama2 and i == 0 else self._names[turn["role"]] + self._say(self._layout.colon[i % 2], i)
            )
            parts.append(self._before(i) + name + content + self._say(self._layout.end[i % 2], i))
        if reply:
            i, open = len(turns), self._layout.open
            colon = self._layout.colon[i % 2] if open is None else open
            parts.append(self._before(i) + self._names["assistant"] + self._say(colon, i))
        return "".join(parts)

    def _head(self, system: str) -> str:
        """The system part. LLAMA2 puts it into the first turn, whose name stands before it."""
        part = f"{self._system}\n{system}" if self._system else system
        if self._llama2:
            part = f"<<SYS>>\n{system}" if system else ""
        end = self._say(self._layout.head_end, 0) if part else ""
        return ("[INST] " if self._llama2 else "") + part + end

    def _before(self, i: int) -> str:
        return "" if i % 2 else self._say(self._layout.before, i)

    def _say(self, text: str, i: int) -> str:
        for name, value in (("{sep}", self._sep), ("{sep2}", self._sep2), ("{n}", str(i // 2))):
            text = text.replace(name, value)
        return text


# What `--chat-template` has always called so, in its own format. They win over `base.chat`'s of the same name, which
# are written for programs (no default system message, fewer stop strings).
BUILT_IN: dict[str, dict[str, Any]] = {
    "chatml": {
        "system": "<|im_start|>system",
        "system_message": "You are a helpful assistant.",
        "user": "<|im_start|>user",
        "assistant": "<|im_start|>assistant",
        "sep_style": "CHATML",
        "sep": "<|im_end|>",
        "stop_str": ["<|endoftext|>", "<|im_end|>"],
    },
    "llama-2": {
        "system": "",
        "user": "[INST]",
        "assistant": "[/INST]",
        "sep_style": "LLAMA2",
        "stop_str": ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"],
    },
    "vicuna_v1.1": {
        "system": "",
        "system_message": chat.VICUNA_SYSTEM,
        "user": "USER",
        "assistant": "ASSISTANT",
        "sep_style": "ADD_COLON_TWO",
        "sep": " ",
        "sep2": "</s>",
        "stop_str": [],
    },
}


def choose(
    flag: str | None, folder: Path, config: dict[str, Any], special: dict[str, str], model_path: str
) -> Template:
    """The template that serves this model. `config`: tokenizer_config.json. Raises ConfigError."""
    if flag is not None:
        return _asked_for(flag, special)
    own = _own(folder, config)
    if own is not None:
        return JinjaTemplate(own, special)
    return TableTemplate(chat.get_chat_template_by_model_path(model_path))


def _asked_for(flag: str, special: dict[str, str]) -> Template:
    if flag in BUILT_IN:
        return FileTemplate({"name": flag, **BUILT_IN[flag]}, flag)
    if flag in chat.chat_template_names():
        return TableTemplate(chat.get_chat_template(flag))
    file = Path(flag).expanduser()
    if not file.is_file():
        known = sorted({*BUILT_IN, *chat.chat_template_names()})
        raise ConfigError(f"--chat-template {flag}: neither a file nor a built-in name; known: {', '.join(known)}")
    if file.suffix not in (".json", ".jinja", ".jinja2"):
        raise ConfigError(f"--chat-template {flag}: the file's name must end in .jinja or .json")
    try:
        source = file.read_text("utf-8")
        return FileTemplate(json.loads(source), flag) if file.suffix == ".json" else JinjaTemplate(source, special)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"--chat-template {flag}: {error}") from None


def _own(folder: Path, config: dict[str, Any]) -> str | None:
    """The tokenizer's own template: a file beside it, or in its config as one string or a list of named ones."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text("utf-8")
    own = config.get("chat_template")
    beside = folder / "chat_template.json"
    if own is None and beside.is_file():
        try:
            own = json.loads(beside.read_text("utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{beside}: not a JSON object ({error})") from None
    if isinstance(own, list):
        named = {entry["name"]: entry["template"] for entry in own}
        own = named.get("default") or next(iter(named.values()), None)
    return own


def _plain(
    messages: Messages, tools: list[Any] | None, extra: dict[str, Any], roles: tuple[str, ...]
) -> list[dict[str, str]]:
    """Messages as role and text, for templates that know nothing else. Raises FieldError for what that would lose."""
    if tools:
        raise FieldError("tools", "tools need a tokenizer with its own chat template; this one has none for them")
    if extra:
        raise FieldError(
            "chat_template_kwargs", "chat_template_kwargs need a Jinja chat template; this server uses another"
        )
    turns: list[dict[str, str]] = []
    for i, message in enumerate(messages):
        role = "system" if message.get("role") == "developer" else message.get("role")
        if role not in roles:
            raise FieldError(
                f"messages[{i}].role", f"messages[{i}].role {role!r} is not known to this chat template; it has: "
                + ", ".join(roles)
            )  # fmt: skip
        if message.get("tool_calls"):
            raise FieldError(f"messages[{i}].tool_calls", f"messages[{i}].tool_calls: this chat template has none")
        turns.append({"role": role, "content": message.get("content") or ""})
    return turns
