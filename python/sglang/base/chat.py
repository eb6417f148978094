"""How a role looks as text: the one table of built-in chat templates, used by the language and by the server.

The formats are the models' own, as their authors published them. A model's Jinja template, where it has one, is the
better source (`text/templates.py`); these serve programs that write a prompt role by role, and models without one.
No template writes the token that begins a text: the tokenizer adds it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Affix = tuple[str, str]  # what stands before a message and after it
Messages = Sequence[Mapping[str, Any]]  # {"role", "content"}


@dataclass
class ChatTemplate:
    """What surrounds the messages of each role. A role without an entry stands bare.

    stop_str: texts that end an answer. image_token: what stands in the text for an image.
    style: in "llama2" a system message that opens the chat is a part of the first user turn.
    """

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: dict[str, Affix]
    stop_str: tuple[str, ...] = ()
    image_token: str = "<image>"
    style: Literal["plain", "llama2"] = "plain"

    def get_prefix_and_suffix(self, role: str, history_messages: Messages) -> Affix:
        """What surrounds a message of `role` that comes after `history_messages`."""
        before, after = self._affix(role)
        if self.style == "llama2" and len(history_messages) < 2:
            roles = [message["role"] for message in history_messages]
            if (role, roles) == ("system", []):
                before = self._affix("user")[0] + before
            elif (role, roles) == ("user", ["system"]):
                before = ""
        return before, after

    def get_prompt(self, messages: Messages) -> str:
        """All messages as text. A system message of None stands for the default one, if there is one."""
        text = ""
        for i, message in enumerate(messages):
            content = message["content"]
            if content is None and message["role"] == "system":
                if self.default_system_prompt is None:
                    continue
                content = self.default_system_prompt
            before, after = self.get_prefix_and_suffix(message["role"], messages[:i])
            text += before + (content or "") + after
        return text

    def with_system(self, messages: Messages) -> list[Mapping[str, Any]]:
        """`messages`, after the default system message where they begin with none of their own."""
        if self.default_system_prompt is None or (messages and messages[0]["role"] == "system"):
            return list(messages)
        return [{"role": "system", "content": self.default_system_prompt}, *messages]

    def _affix(self, role: str) -> Affix:
        return self.role_prefix_and_suffix.get(role, ("", ""))


Match = Callable[[str], ChatTemplate | str | None]

_templates: dict[str, ChatTemplate] = {}
_matches: list[Match] = []


def register_chat_template(template: ChatTemplate) -> None:
    """Make a template known by its name; it replaces one of the same name."""
    _templates[template.name] = template


def register_chat_template_matching_function(match: Match) -> Match:
    """`match(model_path)` says which template, or its name, or None. The latest is asked first, the table last."""
    _matches.insert(0, match)
    return match


def chat_template_names() -> list[str]:
    return sorted(_templates)


def get_chat_template(name: str) -> ChatTemplate:
    """Raises KeyError that says what there is."""
    if name not in _templates:
        raise KeyError(f"no chat template is called {name!r}; known: {', '.join(chat_template_names())}")
    return _templates[name]


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """The template of a model as its path suggests, else "default"."""
    found: ChatTemplate | str | None = None
    for match in (*_matches, _by_path):
        found = match(model_path)
        if found is not None:
            break
    return found if isinstance(found, ChatTemplate) else get_chat_template(found or "default")


# (template, words of which all must be in the lower-cased path, word that must not); the first hit wins.
BY_PATH: list[tuple[str, tuple[str, ...], str | None]] = [
    # Newer models whose paths also have the words of older ones.
    ("gemma-4-it", ("gemma-4", "it"), None),
    ("mistral", ("mistral-small", "instruct"), "2409"),
    ("mistral", ("pixtral",), None),
    ("qwen2-vl", ("qwen2-vl", "instruct"), None),
    ("qwen2-vl", ("qwen2.5-vl", "instruct"), None),
    ("llama-3-instruct-llava", ("llama3-llava",), None),
    ("dbrx-instruct", ("dbrx", "instruct"), None),
    ("vicuna_v1.1", ("vicuna",), None),
    ("vicuna_v1.1", ("llava-v1.5",), None),
    ("vicuna_v1.1", ("llava-next-video-7b",), None),
    ("llama-2-chat", ("llama-2", "chat"), None),
    ("llama-2-chat", ("mistral", "instruct"), None),
    ("llama-2-chat", ("mixtral", "instruct"), None),
    ("llama-2-chat", ("codellama", "instruct"), None),
    ("llama-3-instruct", ("llama-3", "instruct"), None),
    ("llama-4", ("llama-4", "instruct"), None),
    ("chatml", ("tinyllama",), None),
    ("internlm2-chat", ("internlm2", "chat"), None),
    ("qwen", ("qwen", "chat"), None),
    ("qwen", ("qwen", "instruct"), None),
    ("chatml-llava", ("llava-v1.6-34b",), None),
    ("chatml-llava", ("llava-v1.6-yi-34b",), None),
    ("chatml-llava", ("llava-next-video-34b",), None),
    ("yi-vl", ("yi-vl",), "llava"),
    ("yi-1.5", ("yi-1.5", "chat"), None),
    ("gemma-it", ("gemma", "it"), None),
    ("c4ai-command-r", ("c4ai-command-r",), None),
    ("granite-3-instruct", ("granite-3", "instruct"), None),
    ("deepseek-v3", ("deepseek-v3",), None),
    ("deepseek-v3", ("deepseek-r1",), None),
    ("minicpmv", ("minicpm-v",), None),
    ("minicpmo", ("minicpm-o",), None),
    ("janus-pro", ("janus-pro",), None),
    ("janus", ("janus",), None),
    ("internvl-2-5", ("internvl2_5",), None),
    ("interns1", ("intern-s1",), None),
    ("glm-4v", ("glm-4v",), None),
    ("glm-4v", ("glm-4.1v",), None),
    ("glm-4v", ("glm-4.5v",), None),
]

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_YI_VL_SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all "
    "the images carefully, and respond to the human's questions with informative, helpful, detailed and polite "
    "answers.这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
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


_JANUS_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


def _by_path(model_path: str) -> str | None:
    path = model_path.lower()
    for name, words, without in BY_PATH:
        if all(word in path for word in words) and (without is None or without not in path):
            return name
    return None


def _turns(form: str, system: str = "system", user: str = "user", assistant: str = "assistant") -> dict[str, Affix]:
    """Three roles that look alike: `form` with {role} for the role's name and {} for the message."""
    names = {"system": system, "user": user, "assistant": assistant}
    return {role: _affix(form.replace("{role}", name)) for role, name in names.items()}


def _affix(form: str) -> Affix:
    before, _, after = form.partition("{}")
    return before, after


def _roles(system: str, user: str, assistant: str) -> dict[str, Affix]:
    return {"system": _affix(system), "user": _affix(user), "assistant": _affix(assistant)}


_CHATML = _turns("<|im_start|>{role}\n{}<|im_end|>\n")
_LLAMA_3 = _turns("<|start_header_id|>{role}<|end_header_id|>\n\n{}<|eot_id|>")
_IM_END = ("<|im_end|>",)
_HELPFUL = "You are a helpful assistant."

for _template in (
    ChatTemplate("default", None, _roles("SYSTEM:{}\n", "USER:{}\n", "ASSISTANT:{}\n")),
    ChatTemplate("claude", None, _roles("{}", "\n\nHuman: {}", "\n\nAssistant:{}")),
    ChatTemplate("chatml", None, _CHATML, _IM_END),
    ChatTemplate("qwen", _HELPFUL, _CHATML, _IM_END),
    ChatTemplate("qwen2-vl", _HELPFUL, _CHATML, _IM_END, "<|vision_start|><|image_pad|><|vision_end|>"),
    ChatTemplate("chatml-llava", _HELPFUL, _CHATML, _IM_END, "<image>\n"),
    ChatTemplate("internlm2-chat", None, _CHATML, _IM_END),
    ChatTemplate("internvl-2-5", _INTERNVL_SYSTEM, _CHATML, _IM_END, "<image>\n"),
    ChatTemplate("interns1", None, _CHATML, _IM_END, "<IMG_CONTEXT>\n"),
    ChatTemplate("minicpmv", _HELPFUL, _CHATML, _IM_END, "(<image>./</image>)"),
    ChatTemplate("minicpmo", _HELPFUL, _CHATML, _IM_END, "(<image>./</image>)"),
    ChatTemplate("vicuna_v1.1", VICUNA_SYSTEM, _roles("{} ", "USER:{} ", "ASSISTANT:{}</s>"), (), " <image>\n"),
    ChatTemplate(
        "yi-1.5",
        None,
        _roles("{}", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>\n"),
        _IM_END,
    ),
    ChatTemplate(
        "llama-2-chat",
        None,
        _roles("<<SYS>>\n{}\n<</SYS>>\n\n", "[INST] {} [/INST]", "{} </s><s>"),
        style="llama2",
    ),
    ChatTemplate("llama-3-instruct", None, _LLAMA_3, ("<|eot_id|>",), "<|image|>"),
    ChatTemplate("llama-3-instruct-llava", None, _LLAMA_3, ("<|eot_id|>",), "<image>\n"),
    ChatTemplate(
        "mistral",
        None,
        _roles("[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", "[INST]{}[/INST]", "{}</s>"),
        ("</s>",),
        "[IMG]",
    ),
    ChatTemplate(
        "llama-4", None, _turns("<|header_start|>{role}<|header_end|>\n\n{}<|eot|>"), ("<|eot|>",), "<|image|>"
    ),
    ChatTemplate(
        "yi-vl", _YI_VL_SYSTEM, _roles("{}\n\n", "### Human:{}\n", "### Assistant:{}\n"), (), " <image_placeholder>\n"
    ),
    ChatTemplate(
        "gemma-it",
        None,
        _roles("{}", "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n{}<end_of_turn>\n"),
    ),
    ChatTemplate("gemma-4-it", None, _turns("<|turn>{role}\n{}<turn|>\n", assistant="model"), ("<turn|>",)),
    ChatTemplate(
        "dbrx-instruct",
        _DBRX_SYSTEM,
        _turns("\n<|im_start|>{role}\n{}<|im_end|>") | {"system": ("<|im_start|>system\n", "<|im_end|>")},
        _IM_END,
    ),
    ChatTemplate(
        "c4ai-command-r",
        None,
        _turns("<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{}<|END_OF_TURN_TOKEN|>", "SYSTEM", "USER", "CHATBOT"),
    ),
    ChatTemplate(
        "granite-3-instruct",
        None,
        _turns("<|start_of_role|>{role}<|end_of_role|>{}<|end_of_text|>\n"),
        ("<|end_of_text|>",),
    ),
    ChatTemplate(
        "janus",
        _JANUS_SYSTEM,
        _roles("{}\n\n", "User: {}\n\n", "Assistant:{}<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>",),
        "<image_placeholder>\n",
    ),
    ChatTemplate(
        "janus-pro",
        _JANUS_SYSTEM,
        _roles("{}\n\n", "<|User|>: {}\n\n", "<|Assistant|>:{}<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>",),
        "<image_placeholder>\n",
    ),
    ChatTemplate(
        "glm-4v",
        None,
        _roles("<|system|>\n{}", "<|user|>\n{}", "<|assistant|>\n{}"),
        ("<|user|>", "<|observation|>", "<|endoftext|>"),
        "<|begin_of_image|><|image|><|end_of_image|>",
    ),
    ChatTemplate(
        "deepseek-v3",
        None,
        _roles("{}", "<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>",),
    ),
):
    register_chat_template(_template)
