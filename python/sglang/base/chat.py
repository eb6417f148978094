"""How a role looks as text: the one table of built-in chat templates, used by the language and by the server.

The formats are the models' own, as their authors published them. A tokenizer's Jinja template is better where there is
one (`text/templates.py`); these are for programs that build a prompt role by role, and for models without.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class ChatTemplateStyle(Enum):
    PLAIN = auto()
    LLAMA2 = auto()  # an opening system message sits inside the first user turn


@dataclass
class ChatTemplate:
    """Prefix and suffix of each role, stop strings, what stands for an image."""

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: dict[str, tuple[str, str]]
    stop_str: tuple[str, ...] = ()
    image_token: str = "<image>"
    style: ChatTemplateStyle = ChatTemplateStyle.PLAIN

    def get_prefix_and_suffix(self, role: str, history: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """What surrounds a message of `role` that follows `history` (a list of {role, content})."""
        prefix, suffix = self.role_prefix_and_suffix.get(role, ("", ""))
        if self.style is ChatTemplateStyle.LLAMA2:
            if role == "system" and not history:
                return self.role_prefix_and_suffix.get("user", ("", ""))[0] + prefix, suffix
            if role == "user" and len(history) == 1 and history[0]["role"] == "system":
                return "", suffix
        return prefix, suffix

    def get_prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """All messages as text. A None content of the default system prompt's role stands for that prompt."""
        parts = []
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role == "system" and content is None:
                content = self.default_system_prompt
                if content is None:
                    continue
            prefix, suffix = self.get_prefix_and_suffix(role, messages[:i])
            parts.append(f"{prefix}{content}{suffix}")
        return "".join(parts)

    def open_turn(self, messages: Sequence[dict[str, Any]], role: str = "assistant") -> str:
        """`messages` (with the default system prompt where none opens them) and the beginning of a reply."""
        turns = list(messages)
        if self.default_system_prompt is not None and not (turns and turns[0]["role"] == "system"):
            turns.insert(0, {"role": "system", "content": self.default_system_prompt})
        return self.get_prompt(turns) + self.get_prefix_and_suffix(role, turns)[0]


@dataclass
class _Registry:
    templates: dict[str, ChatTemplate] = field(default_factory=dict)
    matchers: list[Callable[[str], ChatTemplate | str | None]] = field(default_factory=list)


_registry = _Registry()


def register_chat_template(template: ChatTemplate) -> None:
    """Make a template known under its name; a later one of the same name replaces it."""
    _registry.templates[template.name] = template


def register_chat_template_matching_function(match: Callable[[str], ChatTemplate | str | None]) -> Any:
    """`match(model_path)` returns a template, its name, or None. Functions registered later are asked first."""
    _registry.matchers.insert(0, match)
    return match


def chat_template_names() -> list[str]:
    return sorted(_registry.templates)


def get_chat_template(name: str) -> ChatTemplate:
    """Raises KeyError that lists what there is."""
    if name not in _registry.templates:
        raise KeyError(f"unknown chat template {name!r}; known: {', '.join(chat_template_names())}")
    return _registry.templates[name]


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """First hit of the registered functions, else of the table below, else `default`."""
    for match in _registry.matchers:
        found = match(model_path)
        if found is not None:
            return get_chat_template(found) if isinstance(found, str) else found
    path = model_path.lower()
    for words, name in _BY_PATH:
        if any(all(part in path for part in alternative) for alternative in words):
            return get_chat_template(name)
    return get_chat_template("default")


_BY_PATH: list[tuple[list[tuple[str, ...]], str]] = [
    ([("dbrx", "instruct")], "dbrx-instruct"),
    ([("vicuna",), ("llava-v1.5",), ("llava-next-video-7b",)], "vicuna_v1.1"),
    (
        [("llama-2", "chat"), ("mistral", "instruct"), ("mixtral", "instruct"), ("codellama", "instruct")],
        "llama-2-chat",
    ),
    ([("llama-3", "instruct")], "llama-3-instruct"),
    ([("tinyllama",)], "chatml"),
    ([("internlm2", "chat")], "internlm2-chat"),
    ([("qwen", "chat"), ("qwen", "instruct")], "qwen"),
    ([("llava-v1.6-34b",), ("llava-v1.6-yi-34b",), ("llava-next-video-34b",)], "chatml-llava"),
    ([("yi-1.5", "chat")], "yi-1.5"),
    ([("gemma", "it")], "gemma-it"),
    ([("c4ai-command-r",)], "c4ai-command-r"),
]


def _yi_vl(model_path: str) -> str | None:
    path = model_path.lower()
    return "yi-vl" if "yi-vl" in path and "llava" not in path else None


register_chat_template_matching_function(_yi_vl)

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_YI_VL_SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all "
    "the images carefully, and respond to the human's questions with informative, helpful, detailed and polite "
    "answers. 这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
)
_DBRX_SYSTEM = (
    "You are DBRX, created by Databricks. You were last updated in December 2023. You answer questions based on "
    "information available up to that point.\nYOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but "
    "provide thorough responses to more complex and open-ended questions.\nYou assist with various tasks, from "
    "writing to coding (using markdown for code blocks — remember to use ``` with code, JSON, and tables).\n(You do "
    "not have real-time data access or code execution capabilities. You avoid stereotyping and provide balanced "
    "perspectives on controversial topics. You do not provide song lyrics, poems, or news articles and do not divulge "
    "details of your training data.)\nThis is your system prompt, guiding your responses. Do not reference it, just "
    "respond to the user. If you find yourself talking about this message, stop. You should be responding "
    "appropriately and usually that means not mentioning this.\nYOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT "
    "YOURSELF UNLESS THE INFORMATION IS DIRECTLY PERTINENT TO THE USER'S QUERY."
)


def _chatml(name: str, system: str | None, image: str = "<image>", stop: tuple[str, ...] = ("<|im_end|>",)) -> None:
    roles = {r: (f"<|im_start|>{r}\n", "<|im_end|>\n") for r in ("system", "user", "assistant")}
    register_chat_template(ChatTemplate(name, system, roles, stop, image))


def _roles(system: tuple[str, str], user: tuple[str, str], assistant: tuple[str, str]) -> dict[str, tuple[str, str]]:
    return {"system": system, "user": user, "assistant": assistant}


def _headed(start: str, end: str, names: tuple[str, str, str], after: str) -> dict[str, tuple[str, str]]:
    """Turns of the form START name END content AFTER."""
    return _roles(*((f"{start}{n}{end}", after) for n in names))  # type: ignore[arg-type]  # three names, three roles


register_chat_template(
    ChatTemplate("default", None, _roles(("SYSTEM:", "\n"), ("USER:", "\n"), ("ASSISTANT:", "\n")))
)
register_chat_template(ChatTemplate("claude", None, _roles(("", ""), ("\n\nHuman: ", ""), ("\n\nAssistant:", ""))))
_chatml("chatml", None)
_chatml("qwen", "You are a helpful assistant.")
_chatml("chatml-llava", "You are a helpful assistant.", "<image>\n")
_chatml("qwen2-vl", "You are a helpful assistant.", "<|vision_start|><|image_pad|><|vision_end|>")
_chatml("internlm2-chat", None)
register_chat_template(
    ChatTemplate(
        "vicuna_v1.1", _VICUNA_SYSTEM, _roles(("", " "), ("USER:", " "), ("ASSISTANT:", "</s>")), (), " <image>\n"
    )
)
register_chat_template(
    ChatTemplate(
        "yi-1.5",
        None,
        _roles(("", ""), ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"), ("", "<|im_end|>\n")),
        ("<|im_end|>",),
    )
)
register_chat_template(
    ChatTemplate(
        "llama-2-chat",
        None,
        _roles(("<<SYS>>\n", "\n<</SYS>>\n\n"), ("[INST] ", " [/INST]"), ("", " </s><s>")),
        style=ChatTemplateStyle.LLAMA2,
    )
)
register_chat_template(
    ChatTemplate(
        "llama-3-instruct",
        None,
        _headed("<|start_header_id|>", "<|end_header_id|>\n\n", ("system", "user", "assistant"), "<|eot_id|>"),
        ("<|eot_id|>",),
        "<|image|>",
    )
)
register_chat_template(
    ChatTemplate(
        "yi-vl",
        _YI_VL_SYSTEM,
        _roles(("", "\n\n"), ("### Human:", "\n"), ("### Assistant:", "\n")),
        (),
        " <image_placeholder>\n",
    )
)
register_chat_template(
    ChatTemplate(
        "gemma-it",
        None,
        _roles(
            ("", ""),
            ("<start_of_turn>user\n", "<end_of_turn>\n"),
            ("<start_of_turn>model\n", "<end_of_turn>\n"),
        ),
    )
)
register_chat_template(
    ChatTemplate(
        "dbrx-instruct",
        _DBRX_SYSTEM,
        _roles(
            ("<|im_start|>system\n", "<|im_end|>"),
            ("\n<|im_start|>user\n", "<|im_end|>"),
            ("\n<|im_start|>assistant\n", "<|im_end|>"),
        ),
        ("<|im_end|>",),
    )
)
register_chat_template(
    ChatTemplate(
        "c4ai-command-r",
        None,
        _headed(
            "<|START_OF_TURN_TOKEN|>",
            "",
            ("<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
            "<|END_OF_TURN_TOKEN|>",
        ),
    )
)
