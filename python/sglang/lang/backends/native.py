"""A backend over the runtime's own `/generate`: what is said is the same over HTTP and to an Engine in this process."""

import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from sglang.base.choices import METHODS, ChoicesDecision, Method, choice_tokens, decide, needs_unconditional
from sglang.base.choices import token_length_normalized as by_default
from sglang.lang import loop
from sglang.lang.backends.base import AsyncBackend, Meta, NotFused, Segment, StateView
from sglang.lang.config import global_config
from sglang.lang.ir import DTYPES, Select, SglSamplingParams, Text

log = logging.getLogger("sglang.lang")

Body = dict[str, Any]
_NAMES = {method: name for name, method in METHODS.items()}
_ALWAYS = ("max_new_tokens", "stop", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
_IF_SET = ("min_new_tokens", "n", "stop_token_ids", "stop_regex", "min_p", "ignore_eos", "regex", "json_schema", "ebnf")
_LOGPROBS = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")
_DEFAULTS = SglSamplingParams()
_NUMBERS = ("int", "float", "bool")


def sampling_body(params: SglSamplingParams) -> Body:
    """`sampling_params` of a request. A dtype becomes the pattern of its values."""
    if params.dtype is not None:
        regex, stop = DTYPES[params.dtype], params.stop
        if params.dtype in _NUMBERS:
            regex, stop = f"({regex})[ \\n]*", (*stop, " ", "\n")
        params = params.but({"regex": regex, "stop": stop})
    body: Body = {name: getattr(params, name) for name in _ALWAYS}
    for name in _IF_SET:
        if (value := getattr(params, name)) != getattr(_DEFAULTS, name):
            body[name] = value
    if not global_config.skip_special_tokens_in_output:
        body["skip_special_tokens"] = False
    if not global_config.spaces_between_special_tokens_in_out:
        body["spaces_between_special_tokens"] = False
    return body


def _logprob_body(params: SglSamplingParams) -> Body:
    return {name: value for name in _LOGPROBS if (value := getattr(params, name)) is not None}


class NativeBackend(AsyncBackend):
    """Derived classes say how a body gets to `/generate`, and set `segments` where the answerer knows chains."""

    fusion = True  # the switch of the user
    segments = False

    @abstractmethod
    async def _post(self, body: Body) -> Any:
        """The answer to a `/generate` body. Raises RuntimeError, or NotFused for segments that are not known."""

    @abstractmethod
    def _events(self, body: Body) -> AsyncIterator[Body]:
        """The events of a streamed one."""

    @property
    def shares_prefixes(self) -> bool:  # type: ignore[override]  # as `segments`: servers that know them share
        return self.segments

    @property
    def fuses(self) -> bool:  # type: ignore[override]  # known after the first answer
        return self.fusion and self.segments

    async def async_generate(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> tuple[str | list[str], Meta | None]:
        answer = await self._post(self._body(s, sampling_params))
        if isinstance(answer, list):
            return [item["text"] for item in answer], answer[0]["meta_info"]
        return answer["text"], answer["meta_info"]

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Meta | None]]:
        said = 0
        async with aclosing(self._events({**self._body(s, sampling_params), "stream": True})) as events:  # type: ignore[type-var]  # a generator
            async for event in events:
                text = event["text"]
                yield text[said:], event["meta_info"]
                said = len(text)

    async def async_chain(
        self, s: StateView, segments: Sequence[Segment], stream: bool
    ) -> AsyncIterator[tuple[int, str, Meta | None, bool]]:
        items = [_segment(segment) for segment in segments]
        if isinstance(segments[0], Text):
            items[0] = {"text": s.text_ + segments[0].value}
        else:
            items.insert(0, {"text": s.text_})
        body: Body = {"segments": items, **self._kin(s)}
        kinds = ["select" in item for item in items if "text" not in item]
        if stream:
            async with aclosing(self._events({**body, "stream": True})) as events:  # type: ignore[type-var]
                async for event in events:
                    if "segment" not in event:  # the whole answer, at the end
                        continue
                    index, meta = event["segment"], event["meta_info"]
                    yield index, event["text"], meta, kinds[index] or meta.get("finish_reason") is not None
            return
        answer = await self._post(body)
        for i, part in enumerate(answer["segments"]):
            yield i, part["text"], part["meta_info"], True

    async def async_select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = by_default,
    ) -> ChoicesDecision:
        """One zero-token request for the length of the prompt (and to cache it), one for all choices, and where the
        method asks for it one for all choices with nothing before them."""
        if self.fuses and choices_method in _NAMES and all(choices) and not s.images_:
            with suppress(NotFused):
                async for _, text, meta, _ in self.async_chain(s, [Select(None, choices, 0.0, choices_method)], False):
                    return ChoicesDecision(text, meta)
        nothing: Body = {"max_new_tokens": 0, "temperature": 0}
        kin = self._kin(s)
        first = await self._post({**self._prompt(s), **kin, "sampling_params": nothing})
        length: int = first["meta_info"]["prompt_tokens"]
        wanted = {
            **({"parent": s.rid} if kin else {}),
            "sampling_params": nothing,
            "return_logprob": True,
            "return_text_in_logprobs": True,
            "logprob_start_len": max(length - 2, 0),
        }
        prompts = [s.text_ + choice for choice in choices]
        images = {"image_data": [s.images_[0]] * len(choices)} if s.images_ else {}
        metas = [answer["meta_info"] for answer in await self._post({"text": prompts, **images, **wanted})]
        given = [
            choice_tokens(s.text_, length, list(map(_triple, meta["input_token_logprobs"])), meta["prompt_tokens"])
            for meta in metas
        ]
        after = [list(map(_triple, meta["output_token_logprobs"])) for meta in metas]
        alone = None
        if needs_unconditional(choices_method):
            ids = [[token for _, token, _ in row] for row in given]
            answers = await self._post({"input_ids": ids, **wanted, "logprob_start_len": 0})
            alone = [list(map(_triple, answer["meta_info"]["input_token_logprobs"])) for answer in answers]
        return decide(choices_method, choices, given, after, alone)

    async def async_cache_prefix(self, prefix_str: str) -> None:
        await self._post({"text": prefix_str, "sampling_params": {"max_new_tokens": 0}})

    def cache_prefix(self, prefix_str: str) -> None:
        loop.run(self.async_cache_prefix(prefix_str))

    def _body(self, s: StateView, params: SglSamplingParams) -> Body:
        return {**self._prompt(s), **self._kin(s), "sampling_params": sampling_body(params), **_logprob_body(params)}

    def _kin(self, s: StateView) -> Body:
        """Requests that continue others have their place in the server's queue: see `Places`, which is there."""
        if not self.segments:
            return {}
        return {"rid": s.rid, "parent": s.parent} if s.parent else {"rid": s.rid}

    def _prompt(self, s: StateView) -> Body:
        assert len(s.images_) <= 1, "Only support one image."
        return {"text": s.text_, "image_data": s.images_[0]} if s.images_ else {"text": s.text_}


def _segment(segment: Segment) -> Body:
    match segment:
        case Text(value):
            return {"text": value}
        case Select(name, choices, _, method):
            return {"select": name, "choices": choices, "method": _NAMES[method]}
        case _:
            params = segment.params
            return {"gen": segment.name, "sampling_params": sampling_body(params), **_logprob_body(params)}


def _triple(item: Sequence[Any]) -> tuple[float | None, int, str | None]:
    logprob, token, text = item
    return logprob, token, text
