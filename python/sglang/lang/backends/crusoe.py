"""Models that Crusoe hosts, which speak OpenAI's protocol."""

import os
from typing import Any

from sglang.lang.backends.openai import OpenAI

URL = "https://api.inference.crusoecloud.com/v1"


class Crusoe(OpenAI):
    def __init__(self, model_name: str, *args: Any, **kwargs: Any):
        """As OpenAI; the key is CRUSOE_API_KEY's, the address CRUSOE_BASE_URL's or Crusoe's own.

        Raises ImportError without the extra `openai`, ValueError where there is no key.
        """
        key = kwargs.pop("api_key", None) or os.environ.get("CRUSOE_API_KEY")
        if not key:
            raise ValueError("Crusoe needs a key: set the environment variable CRUSOE_API_KEY, or give api_key=")
        url = kwargs.pop("base_url", None) or os.environ.get("CRUSOE_BASE_URL", URL)
        super().__init__(model_name, *args, api_key=key, base_url=url, **kwargs)
        self._who = f"Crusoe({model_name!r})"
