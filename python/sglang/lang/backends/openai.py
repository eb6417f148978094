"""OpenAI's models, Azure's, and whatever else speaks their protocol (any `base_url`), chat and completion.

What each argument of `gen` becomes, and what these models cannot do, is in docs/api_backends.md.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from sglang.base.chat import ChatTemplate, get_chat_template, get_chat_template_by_model_path
from sglang.base.choices import ChoicesDecision, Method, token_length_normalized
from sglang.lang import loop
from sglang.lang.backends.api import LOCAL, TokenUsage, meta, refuse, refuse_video, turns
from sglang.lang.backends.base import AsyncBackend, Meta, StateView
from sglang.lang.ir import REGEX_INT, SglSamplingParams

if TYPE_CHECKING:
    import tiktoken

log = logging.getLogger("sglang")

COMPLETION_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")
REASONING = re.compile(r"o\d|gpt-5")  # they take max_completion_tokens and refuse max_tokens
SHARED = {
    "max_new_tokens", "n", "stop", "temperature", "top_p", "frequency_penalty", "presence_penalty", "return_logprob",
    "top_logprobs_num", "return_text_in_logprobs",
}  # fmt: skip
MOST_BIASES = 300  # entries of logit_bias that the API takes
ALWAYS = 100  # the largest logit_bias: tokens without it have no chance
TOP_COMPLETION, TOP_CHAT = 5, 20  # likeliest tokens that an answer can tell, at most
Picked = tuple[int, list[float]]  # which choice, and a score for each
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class OpenAI(AsyncBackend):
    plain_text = False  # whether a program without roles is a message to a chat model

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatTemplate | None = None,
        is_azure: bool = False,
        *args: Any,
        tokenizer: "tiktoken.Encoding | None" = None,
        **kwargs: Any,
    ):
        """args, kwargs: what openai.OpenAI (openai.AzureOpenAI) takes: api_key, base_url, timeout, max_retries, …

        is_chat_model: by the name where None. tokenizer: the model's vocabulary, for `select` and `dtype=int` on a
        completion model; tiktoken's of that name where None, which tiktoken downloads when it is first needed.
        Raises ImportError without the extra, openai.OpenAIError where there is no key.
        """
        try:
            import openai
        except ImportError as e:
            raise ImportError('the OpenAI backend needs: pip install "sglang[openai]"') from e
        self.model_name = model_name
        self.is_chat_model = model_name not in COMPLETION_MODELS if is_chat_model is None else is_chat_model
        self.spec = "chat" if self.is_chat_model else "completion"
        if chat_template is None:  # a chat model writes its roles itself
            chat_template = (
                get_chat_template("default") if self.is_chat_model else get_chat_template_by_model_path(model_name)
            )
        self.chat_template = chat_template
        self.token_usage = TokenUsage()
        kwargs.setdefault("max_retries", 3)  # connection, rate limit, server; waits as long as the answer says
        make = openai.AsyncAzureOpenAI if is_azure else openai.AsyncOpenAI
        self.client: Any = make(*args, **kwargs)  # Any: the two methods' overloads do not take a dict of arguments
        loop.close_with(self, self.client.close)
        self._official = is_azure or self.client.base_url.host == "api.openai.com"
        self._tokenizer = tokenizer
        self._loading: asyncio.Future[tiktoken.Encoding | None] | None = None
        self._who = f"OpenAI({model_name!r})"

    def get_model_name(self) -> str:
        return self.model_name

    def get_chat_template(self) -> ChatTemplate:
        return self.chat_template

    def shutdown(self) -> None:
        loop.run(self.client.close())

    async def async_generate(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> tuple[str | list[str], Meta | None]:
        if sampling_params.dtype is not None:
            return await self._typed(s, sampling_params)
        return await self._answer(self._request(s, sampling_params))

    async def async_generate_stream(
        self, s: StateView, sampling_params: SglSamplingParams
    ) -> AsyncIterator[tuple[str, Meta | None]]:
        if sampling_params.dtype is not None:  # short, and cut to its type at the end
            text, info = await self._typed(s, sampling_params)
            yield text, info
            return
        if sampling_params.n != 1:
            raise ValueError(f"a stream has one answer, got n={sampling_params.n}")
        request = self._request(s, sampling_params)
        stream = await self._create({**request, "stream": True, "stream_options": {"include_usage": True}})
        reason = usage = None
        scores: list[list[Any]] = []
        tops: list[list[list[Any]]] = []
        try:
            async for chunk in stream:
                usage = getattr(chunk, "usage", None) or usage  # LiteLLM leaves it out
                text = ""
                for choice in chunk.choices:
                    text = (choice.delta.content if self.is_chat_model else choice.text) or ""
                    reason = choice.finish_reason or reason
                    more = logprobs(choice)
                    scores += more.get("output_token_logprobs", [])
                    tops += more.get("output_top_logprobs", [])
                counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
                told = {"output_token_logprobs": scores, "output_top_logprobs": tops} if scores else {}
                yield text, meta(*counts, reason, **told)
        finally:  # also where the program stops reading: the provider then stops writing
            await self._close(stream)
        if reason is None:
            raise RuntimeError(f"{self._who}: the stream ended before the answer did")
        if usage:
            self.token_usage.add(usage.prompt_tokens, usage.completion_tokens)

    async def async_select(
        self,
        s: StateView,
        choices: list[str],
        temperature: float = 0.0,
        choices_method: Method = token_length_normalized,
    ) -> ChoicesDecision:
        if choices_method is not token_length_normalized:
            name = getattr(choices_method, "__name__", choices_method)
            raise ValueError(f"{self._who} cannot serve choices_method={name}: it tells too few scores; {LOCAL}")
        if temperature > 1e-5:
            raise ValueError(f"a select is greedy: temperature must be 0, got {temperature}")
        if self.is_chat_model:
            best, scores = await self._letters(s, choices)
        elif (vocabulary := await self._vocabulary()) is not None:
            best, scores = await self._grow(s, choices, vocabulary)
        else:
            best, scores = await self._follow(s, choices)
        return ChoicesDecision(choices[best], {"scores": scores, "normalized_prompt_logprobs": scores})

    def _request(self, s: StateView, p: SglSamplingParams) -> dict[str, Any]:
        """The arguments of a call, of which those are left out that are the API's own defaults."""
        can = SHARED | ({"json_schema"} if self.is_chat_model else set())
        refuse(p, can, self._who)
        request: dict[str, Any] = {"model": self.model_name}
        if self.is_chat_model:
            request["messages"] = turns(s, self._who, plain_text=self.plain_text)
            request["max_completion_tokens" if REASONING.match(self.model_name) else "max_tokens"] = p.max_new_tokens
        else:
            request["prompt"] = self._prompt(s)
            request["max_tokens"] = p.max_new_tokens
        if p.stop:
            request["stop"] = list(p.stop)
        defaults = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1}
        request |= {name: getattr(p, name) for name, value in defaults.items() if getattr(p, name) != value}
        if p.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": json.loads(p.json_schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if p.return_logprob and self.is_chat_model:
            request |= {"logprobs": True, "top_logprobs": p.top_logprobs_num or 0}
        elif p.return_logprob:
            request["logprobs"] = p.top_logprobs_num or 0
        return request

    def _prompt(self, s: StateView) -> str:
        if s.images_:
            raise ValueError(f"{self._who} is a completion model and sees no images; a chat model can")
        return s.text_

    async def _create(self, request: dict[str, Any]) -> Any:
        api = self.client.chat.completions if self.is_chat_model else self.client.completions
        return await api.create(**request)

    async def _close(self, stream: Any) -> None:
        await stream.close()

    async def _answer(self, request: dict[str, Any]) -> tuple[str | list[str], Meta]:
        result = await self._create(request)
        texts = [(c.message.content if self.is_chat_model else c.text) or "" for c in result.choices]
        first, usage = result.choices[0], result.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        self.token_usage.add(*counts)
        info = meta(*counts, first.finish_reason, **logprobs(first))
        return (texts if request.get("n", 1) > 1 else texts[0]), info

    async def _typed(self, s: StateView, p: SglSamplingParams) -> tuple[str, Meta]:
        """`dtype`: a number held to digits by logit_bias, a string between quotes."""
        if self.is_chat_model or p.dtype not in ("int", "str") or p.n != 1:
            raise ValueError(f"{self._who} cannot serve dtype={p.dtype!r}: completion models have int and str; {LOCAL}")
        request = self._request(s, p.but({"dtype": None}))
        if p.dtype == "str":
            request |= {"prompt": s.text_ + '"', "stop": [*p.stop, '"']}
            text, info = await self._answer(request)
            return f'"{text}"', info
        request["prompt"] = s.text_ if s.text_[-1:].isspace() else s.text_ + " "
        if (vocabulary := await self._vocabulary()) is not None:
            request |= {"logit_bias": digits(vocabulary), "stop": [*p.stop, " ", "\n"]}
        text, info = await self._answer(request)
        number = re.match(rf"\s*({REGEX_INT})", str(text))
        if number is None:
            raise RuntimeError(f"{self._who} was asked for an int and wrote {text!r}")
        return number[1], info

    async def _vocabulary(self) -> "tiktoken.Encoding | None":
        """The tokens of the model, None where nobody here knows them."""
        if self._tokenizer is not None:
            return self._tokenizer
        if self._loading is None:
            self._loading = asyncio.ensure_future(loop.in_thread(vocabulary_of, self.model_name, self._official))
        return await asyncio.shield(self._loading)

    async def _grow(self, s: StateView, choices: Sequence[str], vocabulary: "tiktoken.Encoding") -> Picked:
        """Token by token: the model may only take what goes on in a choice that is still possible.

        A choice's score is how many of its tokens were taken. Nothing is asked where there is one way on.
        """
        rows = [vocabulary.encode_ordinary(choice) for choice in choices]
        head = vocabulary.encode_ordinary(self._prompt(s))
        alive, at = list(range(len(rows))), 0
        scores = [0.0] * len(rows)
        while len(alive) > 1:
            ways = {rows[i][at] for i in alive if len(rows[i]) > at}
            ends = [i for i in alive if len(rows[i]) == at]
            if len(ways) > MOST_BIASES:
                raise ValueError(f"{self._who} cannot tell {len(ways)} choices apart, at most {MOST_BIASES}; {LOCAL}")
            if not ways:
                break
            taken = next(iter(ways))
            if ends or len(ways) > 1:
                request: dict[str, Any] = {"prompt": [*head, *rows[alive[0]][:at]], "max_tokens": 1, "logprobs": 1}
                if not ends:  # where a choice ends the model is left free: it may stop there
                    request["logit_bias"] = {str(way): ALWAYS for way in ways}
                says = await self._token(request)
                by_text = {shown(vocabulary, way): way for way in ways}
                if says not in by_text and not ends:
                    raise RuntimeError(f"{self._who} heeds no logit_bias: it wrote {says!r}, not one of {by_text}")
                if says not in by_text:
                    alive = ends
                    break
                taken = by_text[says]
            alive = [i for i in alive if rows[i][at : at + 1] == [taken]]
            at += 1
            for i in alive:
                scores[i] += 1
        return alive[0], scores

    async def _token(self, request: dict[str, Any]) -> str:
        """The one token that a completion model says, as logprobs write it (bytes:\\x.. where it is no text)."""
        result = await self._create({"model": self.model_name, "temperature": 0.0, **request})
        if result.usage:
            self.token_usage.add(result.usage.prompt_tokens, result.usage.completion_tokens)
        told = result.choices[0].logprobs
        return told.tokens[0] if told and told.tokens else result.choices[0].text

    async def _follow(self, s: StateView, choices: Sequence[str]) -> Picked:
        """Without a vocabulary: the likeliest of the tokens that the model tells which goes on in a choice."""
        alive, said = list(range(len(choices))), ""
        scores = [0.0] * len(choices)
        while len(alive) > 1:
            request = {"model": self.model_name, "temperature": 0.0, "max_tokens": 1, "logprobs": TOP_COMPLETION}
            result = await self._create({**request, "prompt": self._prompt(s) + said})
            if result.usage:
                self.token_usage.add(result.usage.prompt_tokens, result.usage.completion_tokens)
            told = result.choices[0].logprobs
            if not told or not told.top_logprobs:
                raise RuntimeError(f"{self._who} tells no logprobs, and select needs them, or OpenAI(tokenizer=...)")
            top = sorted(told.top_logprobs[0].items(), key=lambda item: -item[1])
            fits = [t for t, _ in top if t and any(choices[i].startswith(said + t) for i in alive)]
            ends = [i for i in alive if choices[i] == said]
            if ends and (not fits or fits[0] != top[0][0]):
                alive = ends
                break
            if not fits:
                raise RuntimeError(
                    f"{self._who}: none of {[choices[i] for i in alive]} goes on with one of the "
                    f"{TOP_COMPLETION} likeliest tokens {[t for t, _ in top]}; OpenAI(tokenizer=...) can ask for them"
                )
            said += fits[0]
            alive = [i for i in alive if choices[i].startswith(said)]
            for i in alive:
                scores[i] += 1
        return alive[0], scores

    async def _letters(self, s: StateView, choices: Sequence[str]) -> Picked:
        """A chat model is shown the choices with letters; a choice's score is the log-probability of its letter."""
        if not 1 <= len(choices) <= len(LETTERS):
            raise ValueError(f"{self._who} can select among 1 to {len(LETTERS)} choices, got {len(choices)}")
        refuse_video(s, self._who)
        messages = [dict(message) for message in s.messages_]
        begun = s.open_text
        if s.cur_role != "assistant":
            turns(s, self._who)
        ask = "Reply with one letter and nothing else. Your answer is the choice with that letter"
        ask += f"; it continues {begun!r}:" if begun else ":"
        ask += "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        messages.append({"role": "user", "content": ask})
        if len(messages) > 1 and messages[-2]["role"] == "user" and isinstance(messages[-2]["content"], str):
            messages[-2:] = [{"role": "user", "content": f"{messages[-2]['content']}\n\n{ask}"}]
        request: dict[str, Any] = {"model": self.model_name, "messages": messages}
        if REASONING.match(self.model_name):  # thinks before it answers, and tells no logprobs
            request["max_completion_tokens"] = 4096
        else:
            request |= {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_CHAT}
        result = await self._create(request)
        if result.usage:
            self.token_usage.add(result.usage.prompt_tokens, result.usage.completion_tokens)
        allowed = LETTERS[: len(choices)]
        scores = [float("-inf")] * len(choices)
        told = result.choices[0].logprobs
        for token in told.content[0].top_logprobs if told and told.content else []:
            letter = token.token.strip()
            if letter and letter in allowed and len(letter) == 1:
                at = allowed.index(letter)
                scores[at] = max(scores[at], token.logprob)
        if max(scores) == float("-inf"):
            says = result.choices[0].message.content or ""
            letter = re.match(rf"\W*([{allowed}])\b", says)
            if letter is None:
                raise RuntimeError(f"{self._who} was asked for a letter of {allowed} and wrote {says!r}")
            scores[allowed.index(letter[1])] = 0.0
        return scores.index(max(scores)), scores


def logprobs(choice: Any) -> Meta:
    """What a choice tells of its tokens, in the words of the local server: [log-probability, token id, text]."""
    told = getattr(choice, "logprobs", None)  # LiteLLM leaves it out
    if told is None:
        return {}
    content = getattr(told, "content", None)
    if content is not None:  # chat
        rows = [(t.token, t.logprob, [(x.token, x.logprob) for x in t.top_logprobs or []]) for t in content]
    else:
        tops = told.top_logprobs or [{}] * len(told.tokens or [])
        rows = [
            (token, score, list((top or {}).items()))
            for token, score, top in zip(told.tokens or [], told.token_logprobs or [], tops, strict=True)
        ]
    info: Meta = {"output_token_logprobs": [[score, None, token] for token, score, _ in rows]}
    if any(top for *_, top in rows):
        info["output_top_logprobs"] = [[[score, None, token] for token, score in top] for *_, top in rows]
    return info


def vocabulary_of(model_name: str, official: bool) -> "tiktoken.Encoding | None":
    """tiktoken's vocabulary of that model. Of a name it does not know: cl100k_base for a deployment at OpenAI or
    Azure, None for another host, whose tokens are not OpenAI's. None, with a log line, where it cannot be downloaded.
    """
    try:
        import tiktoken
    except ImportError:
        return None
    try:
        name = tiktoken.encoding_name_for_model(model_name)
    except KeyError:
        if not official:
            return None
        name = "cl100k_base"
    try:
        return tiktoken.get_encoding(name)
    except OSError as e:  # requests' errors are OSErrors
        log.warning(
            "no vocabulary for %s (%s): select reads the %d likeliest tokens instead, ints are not held to digits. "
            "TIKTOKEN_CACHE_DIR may name a folder that has %s. %s",
            model_name, name, TOP_COMPLETION, name, e,
        )  # fmt: skip
        return None


def digits(vocabulary: "tiktoken.Encoding") -> dict[str, int]:
    """logit_bias for a whole number: one and two digits, a minus, and what ends it."""
    texts = [str(i) for i in range(10)] + [f"{i:02d}" for i in range(100)] + ["-", " ", "\n"]
    rows = [vocabulary.encode_ordinary(text) for text in texts]
    return {str(i): ALWAYS for i in [*(row[0] for row in rows if len(row) == 1), vocabulary.eot_token]}


def shown(vocabulary: "tiktoken.Encoding", token: int) -> str:
    """A token as the completions API writes it in logprobs."""
    raw = vocabulary.decode_single_token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
