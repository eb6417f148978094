"""Whatever LiteLLM reaches, chat only: it answers every provider's models in OpenAI's shapes."""

from typing import Any

from sglang.base.chat import ChatTemplate, get_chat_template
from sglang.base.choices import ChoicesDecision, Method, token_length_normalized
from sglang.lang.backends.api import LOCAL, TokenUsage
from sglang.lang.backends.base import StateView
from sglang.lang.backends.openai import OpenAI


class LiteLLM(OpenAI):
    plain_text = True

    def __init__(
        self,
        model_name: str,
        chat_template: ChatTemplate | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        base_url: str | None = None,
        timeout: float | None = 600,
        max_retries: int | None = 3,
        default_headers: dict[str, str] | None = None,
    ):
        """model_name: as LiteLLM spells it, "provider/model". What is None, LiteLLM takes from the environment.

        Raises ImportError without the extra.
        """
        try:
            import litellm
        except ImportError as e:
            raise ImportError('the LiteLLM backend needs: pip install "sglang[litellm]"') from e
        self.model_name = model_name
        self.is_chat_model = True
        self.spec = None
        self.chat_template = chat_template or get_chat_template("default")
        self.token_usage = TokenUsage()
        self._complete: Any = litellm.acompletion
        given = {
            "api_key": api_key,
            "organization": organization,
            "base_url": base_url,
            "timeout": timeout,
            "max_retries": max_retries,
            "extra_headers": default_headers,
        }
        self._given = {name: value for name, value in given.items() if value is not None}
        self._who = f"LiteLLM({model_name!r})"

    def shutdown(self) -> None:
        """LiteLLM's clients are its own."""

    async def async_select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        raise NotImplementedError(f"{self._who} cannot select; use gen and compare its text, or OpenAI; {LOCAL}")

    async def _create(self, request: dict[str, Any]) -> Any:
        return await self._complete(**request, **self._given)

    async def _close(self, stream: Any) -> None:
        await stream.aclose()
