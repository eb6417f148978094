"""What a backend sees of a program, without a program: chats and texts as the interpreter shows them."""

from dataclasses import dataclass, field
from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template


@dataclass
class State:
    text_: str = ""
    messages_: list[dict[str, Any]] = field(default_factory=list)
    images_: list[str] = field(default_factory=list)
    cur_role: str | None = None
    open_text: str = ""
    chat_template: ChatTemplate = field(default_factory=lambda: get_chat_template("default"))
    num_api_spec_tokens: int | None = None


def chat(*turns: str, system: str | None = None, begun: str = "") -> State:
    """Turns alternate, the user's first; then the assistant's message is open and says `begun`."""
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    text = get_chat_template("default").get_prompt(messages) + "ASSISTANT:" + begun
    return State(text, messages, cur_role="assistant", open_text=begun)


def text(prompt: str) -> State:
    return State(prompt)
