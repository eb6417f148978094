"""from sglang.lang.backend.openai import OpenAI, and so on: another name of `lang/backends/`."""

from sglang.lang.backends import known_as

known_as(__name__)
