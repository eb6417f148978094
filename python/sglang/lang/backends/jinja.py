"""A model's own Jinja chat template as prefixes and suffixes of roles, which is what programs write prompts with."""

import json
from pathlib import Path
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template, get_chat_template_by_model_path
from sglang.base.gguf import header

_USER, _ASSISTANT, _SYSTEM = "{user says}", "{assistant says}", "{system says}"


def template_of_model(source: str | None, folder: str) -> ChatTemplate | None:
    """From what a server says of its template (a built-in name, or Jinja), else from a tokenizer folder on this
    machine; None where neither is there or it cannot be told apart into roles."""
    config: dict[str, Any] = {}
    path = Path(folder)
    if path.suffix == ".gguf" and path.is_file():
        keys = header(path).keys
        tokens, end = keys.get("tokenizer.ggml.tokens") or [], keys.get("tokenizer.ggml.eos_token_id", -1)
        config = {"chat_template": keys.get("tokenizer.chat_template")}
        config |= {"eos_token": tokens[end]} if 0 <= end < len(tokens) else {}
    elif (path / "tokenizer_config.json").is_file():
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
    template = from_jinja(source, _token(config.get("eos_token")))
    if template is not None:  # its image token is known of the model only
        template.image_token = get_chat_template_by_model_path(folder).image_token
    return template


def from_jinja(source: str, eos: str = "") -> ChatTemplate | None:
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
        # The token that begins a text is the tokenizer's business.
        return template.render(messages=messages, add_generation_prompt=reply, bos_token="", eos_token=eos)

    try:
        template = environment.from_string(source)
        alone, asked, answered = render("user"), render("user", reply=True), render("user", "assistant")
        turns = render("user", "assistant", "user")
    except (TemplateError, TypeError):
        return None
    before, found, user_end = alone.partition(_USER)
    if not found or not asked.startswith(alone):
        return None
    assistant = asked[len(alone) :]
    start = alone + assistant + _ASSISTANT
    if not (answered.startswith(start) and turns.startswith(answered) and turns.endswith(_USER + user_end)):
        return None
    assistant_end = answered[len(start) :]
    user = turns[len(answered) : len(turns) - len(_USER + user_end)]
    if not before.endswith(user):
        return None
    default = before[: len(before) - len(user)]
    system = ("", "")
    try:
        head, found, tail = render("system", "user").partition(_SYSTEM)
    except (TemplateError, TypeError):  # a model without system messages
        found = ""
    else:
        if not found or not tail.endswith(user + _USER + user_end):
            return None
        system = (head, tail.removesuffix(user + _USER + user_end))
    if default and not (found and default.startswith(system[0]) and default.endswith(system[1])):
        return None
    stop = assistant_end.strip()
    return ChatTemplate(
        "tokenizer",
        default.removeprefix(system[0]).removesuffix(system[1]) or None,
        {"system": system, "user": (user, user_end), "assistant": (assistant, assistant_end)},
        (stop,) if stop else (),
    )


def _token(value: Any) -> str:
    return value["content"] if isinstance(value, dict) else value or ""
