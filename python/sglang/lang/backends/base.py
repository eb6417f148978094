"""The interface between programs and whoever answers them.

A backend implements either the plain methods (`generate`, `generate_stream`, `select`), which block and are run in a
bounded pool of threads, or, better, derives from `AsyncBackend` and implements the `async_` ones, which are awaited on
one event loop that lives as long as the process: thousands of programs then wait without a thread each, and a client
object can be made once, on first use. What it leaves open stays open: close it in `shutdown`, or with
`loop.close_with` when the backend is dropped. The interpreter calls only the `async_` methods.

A method that fails raises; the error ends the program's state (`s.error()`), with the program's own line in its
traceback. An argument that a provider cannot serve is such an error, not a warning: say its name and who can.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal, Protocol

from sglang.base.chat import ChatTemplate, get_chat_template
from sglang.base.choices import ChoicesDecision, Method, token_length_normalized
from sglang.lang import loop
from sglang.lang.ir import Select, SglSamplingParams, Text

Meta = dict[str, Any]


class StateView(Protocol):
    """What a backend sees of a program's state while it answers. To be read only; it does not change meanwhile."""

    text_: str
    """The whole prompt so far, roles written by `chat_template`."""

    messages_: list[dict[str, Any]]
    """The messages that are closed: {"role", "content"}. content is a str, or with images a list of parts
    {"type": "text", "text"} and {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}}."""

    images_: list[str]
    """Base64 of each image or "video:" + base64 of its frames, in the order of their tokens in `text_`."""

    cur_role: str | None
    """The role of the open message, None outside of roles."""

    @property
    def open_text(self) -> str: ...

    """What the open message (without its role's prefix) says so far. A chat model can answer when `cur_role` is
    "assistant" and this is empty; else raise RuntimeError that names num_api_spec_tokens."""

    chat_template: ChatTemplate
    num_api_spec_tokens: int | None

    rid: str
    """A name for the request that answers; no other has it."""

    parent: str
    """That of the request whose text this one goes on with, its own last one or one of the state that it was forked
    from; forks of a text that nobody was asked for share a name. Empty at the beginning of a program."""


class ChainItem(Protocol):
    """A gen in a chain: its name, for messages, and how to sample it."""

    name: str | None
    params: SglSamplingParams


Segment = Text | ChainItem | Select


class BaseBackend:
    """Every hook does nothing, every answer is NotImplementedError. See the module for which to implement."""

    support_concate_and_append = False
    fuses = False
    """Answers `async_chain`: several gens and selects with the text between them as one request."""

    shares_prefixes = False
    """Computes what prompts that arrive together begin with once: forks and batches need not send it ahead."""

    spec: Literal["completion", "chat"] | None = None
    """How `@function(num_api_spec_tokens=N)` saves calls, which is the interpreter's work; the backend only says that
    it wants it. "completion": `generate` is asked for more tokens than a gen needs, without stop strings, and the
    surplus serves the gens after it. "chat": one `generate` with max_new_tokens=N for the whole assistant message,
    matched against its texts and gens afterwards. None: the argument has no effect."""

    def get_model_name(self) -> str:
        raise NotImplementedError

    def get_chat_template(self) -> ChatTemplate:
        """How roles look in `text_`; its stop strings are added to every gen's."""
        return get_chat_template("default")

    def generate(self, s: StateView, sampling_params: SglSamplingParams) -> tuple[str | list[str], Meta | None]:
        """The continuation of `s` and what the program finds under get_meta_info (a list of texts where n > 1)."""
        raise NotImplementedError

    def generate_stream(self, s: StateView, sampling_params: SglSamplingParams) -> Iterator[tuple[str, Meta | None]]:
        """The same in pieces: what is new in the text, and the latest meta info (as a whole, not what is new)."""
        raise NotImplementedError

    def select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        """Which of `choices` goes on from `s`. `base/choices.py` has `decide` for those who have log-probabilities."""
        raise NotImplementedError

    def concatenate_and_append(self, src_rids: list[str], dst_rid: str) -> None:
        raise NotImplementedError

    async def async_generate(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> tuple[str | list[str], Meta | None]:
        return await loop.in_thread(self.generate, s, sampling_params)

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Meta | None]]:
        pieces = self.generate_stream(s, sampling_params)
        while (piece := await loop.in_thread(next, pieces, None)) is not None:
            yield piece

    async def async_select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        return await loop.in_thread(self.select, s, choices, temperature, choices_method)

    def async_chain(
        self, s: StateView, segments: Sequence[Segment], stream: bool
    ) -> AsyncIterator[tuple[int, str, Meta | None, bool]]:
        """Only where `fuses`. segments: what follows `s`, beginning and ending with a gen or a select.

        Yields (which gen or select it is, counted from 0; its text so far, whole; its meta info; whether that is all
        of it). Raises NotFused where the answerer does not know chains after all; they are then sent one by one.
        """
        raise NotImplementedError

    async def async_cache_prefix(self, prefix_str: str) -> None:
        """Compute `prefix_str` now: prompts that begin with it are about to come."""
        if type(self).cache_prefix is not BaseBackend.cache_prefix:
            await loop.in_thread(self.cache_prefix, prefix_str)

    def cache_prefix(self, prefix_str: str) -> None: ...

    def uncache_prefix(self, rid: str) -> None: ...

    def end_request(self, rid: str | list[str]) -> None: ...

    def begin_program(self, s: StateView) -> None:
        """A program starts on `s`. Called in its thread: be quick."""

    def end_program(self, s: StateView | list[StateView]) -> None: ...

    def commit_lazy_operations(self, s: StateView) -> None: ...

    def fork_program(
        self, src: StateView, dst: list[StateView], position_ids_offset: Sequence[int] | None = None
    ) -> None: ...

    def fill_image(self, s: StateView) -> None: ...

    def shutdown(self) -> None: ...

    def flush_cache(self) -> bool | None: ...

    def get_server_info(self) -> dict[str, Any] | None:
        return self.get_server_args()

    def get_server_args(self) -> dict[str, Any] | None:
        return None


class NotFused(Exception):
    """The answerer does not know chains: each gen is to be asked for by itself."""


class AsyncBackend(BaseBackend):
    """Implement `async_generate`, `async_generate_stream`, `async_select`; the blocking methods follow from them."""

    def generate(self, s: StateView, sampling_params: SglSamplingParams) -> tuple[str | list[str], Meta | None]:
        return loop.run(self.async_generate(s, sampling_params))

    def generate_stream(self, s: StateView, sampling_params: SglSamplingParams) -> Iterator[tuple[str, Meta | None]]:
        return loop.iterate(self.async_generate_stream(s, sampling_params))

    def select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        return loop.run(self.async_select(s, choices, temperature, choices_method))

    async def async_generate(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> tuple[str | list[str], Meta | None]:
        raise NotImplementedError(f"{type(self).__name__} does not generate")

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Meta | None]]:
        raise NotImplementedError(f"{type(self).__name__} does not stream")
        yield

    async def async_select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        raise NotImplementedError(f"{type(self).__name__} does not select; use gen and compare its text")
