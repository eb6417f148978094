"""from sglang.backend.openai import OpenAI, and so on: where programs found the backends before `sglang.OpenAI`."""

from sglang.lang.backends import known_as

known_as(__name__)
