"""A model's own Jinja chat template as prefixes and suffixes of roles, which is what programs write prompts with."""

import json
from pathlib import Path
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template

_USER, _ASSISTANT, _SYSTEM = "{user says}", "{assistant says}", "{system says}"


def template_of_model(source: str | None, folder: str) -> ChatTemplate | None:
    """From what a server says of its template (a built-in name, or Jinja), else from a tokenizer folder on this
    machine; None where neither is there or it cannot be told apart into roles."""
    config: dict[str, Any] = {}
    path = Path(folder)
    if (path / "tokenizer_config.json").is_file():
        config = json.loads((path / "tokenizer_config.json").read_text())
    if source is None and (path / "chat_template.jinja").is_file():
        source = (path / "chat_template.jinja").read_text()
    named = config.get("chat_template")
    if isinstance(named, list):
        named = next((item["template"] for item in named if item.get("name") == "default"), None)
    source = source or named
    if not source:
        return None
    if "{" not in source:
        try:
            return get_chat_template(source)
        except KeyError:
            return None
    return from_jinja(source, _token(config.get("bos_token")), _token(config.get("eos_token")))


def from_jinja(source: str, bos: str = "", eos: str = "") -> ChatTemplate | None:
    """The template's roles, found by rendering messages that can be recognised; None where it does not write each
    message once, between a fixed prefix and a fixed suffix."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:  # an install that only talks to APIs
        return None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: ""

    def render(*roles: str, reply: bool = False) -> str:
        says = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM}
        messages = [{"role": role, "content": says[role]} for role in roles]
        return template.render(messages=messages, add_generation_prompt=reply, bos_token=bos, eos_token=eos)

    try:
        template = environment.from_string(source)
        alone, asked = render("user"), render("user", reply=True)
        turns = render("user", "assistant", "user")
    except (TemplateError, TypeError):
        return None
    before, found, user_end = alone.partition(_USER)
    if not found or not asked.startswith(alone):
        return None
    assistant = asked[len(alone) :]
    start = before + _USER + user_end + assistant + _ASSISTANT
    if not turns.startswith(start) or not turns.endswith(_USER + user_end):
        return None
    between = turns[len(start) : len(turns) - len(_USER + user_end)]  # the answer's end, and the user's beginning
    default, user = _split_default(before, between)
    assistant_end = between.removesuffix(user)
    system = ("", "")
    try:
        with_system = render("system", "user")
    except (TemplateError, TypeError):  # a model without system messages
        with_system = ""
    head, found, tail = with_system.partition(_SYSTEM)
    if found and tail.endswith(user + _USER + user_end):
        system = (head.removeprefix(bos) if bos else head, tail.removesuffix(user + _USER + user_end))
    elif found:
        return None
    prompt: str | None = None
    if default:
        default = default.removeprefix(bos) if bos else default
        if not default.startswith(system[0]) or not default.endswith(system[1]):
            return None
        prompt = default[len(system[0]) : len(default) - len(system[1])] or None
    stop = assistant_end.strip()
    return ChatTemplate(
        "tokenizer",
        prompt,
        {"system": system, "user": (user, user_end), "assistant": (assistant, assistant_end)},
        (stop,) if stop else (),
    )


def _split_default(before: str, between: str) -> tuple[str, str]:
    """What stands before the first user message: what comes once (bos, a default system message), and the prefix that
    every user message has, which is how `between` ends."""
    size = 0
    while size < min(len(before), len(between)) and before[-size - 1] == between[-size - 1]:
        size += 1
    user = before[len(before) - size :]
    # What both have in common may reach into the end of a message before (a system's and an assistant's end alike).
    for mark in ("<|im_end|>\n", "<|eot_id|>", "<end_of_turn>\n", "<|END_OF_TURN_TOKEN|>"):
        if mark in user:
            user = user.rpartition(mark)[2]
    return before[: len(before) - len(user)], user


def _token(value: Any) -> str:
    return value["content"] if isinstance(value, dict) else value or ""
