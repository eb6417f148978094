"""Chat templates, under the name by which programs import them; they live in `base/chat.py`."""

from sglang.base.chat import (
    ChatTemplate,
    get_chat_template,
    get_chat_template_by_model_path,
    register_chat_template,
    register_chat_template_matching_function,
)

__all__ = [
    "ChatTemplate",
    "get_chat_template",
    "get_chat_template_by_model_path",
    "register_chat_template",
    "register_chat_template_matching_function",
]
