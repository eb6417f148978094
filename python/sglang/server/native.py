"""The native API: /generate and the small endpoints that tell about the server and control it."""

import asyncio
import dataclasses
import math
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HTTPRequest
from starlette.responses import PlainTextResponse, Response

from sglang.base import limits
from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError, Overloaded, WorkerDied
from sglang.base.messages import Finish, Logprobs, Score
from sglang.base.sampling import SamplingParams, parse_sampling
from sglang.server.expand import check_count, id_lists, names, sample, spread
from sglang.server.front import Front, Output, Request
from sglang.server.http import Operation, event
from sglang.server.native_types import (
    Aborted,
    AbortRequest,
    Detokenized,
    DetokenizeRequest,
    FinishReason,
    Generated,
    GenerateRequest,
    MetaInfo,
    ModelInfo,
    Tokenized,
    TokenizeRequest,
    Triple,
)
from sglang.text.tokenizer import Tokenizer

SECRETS = ("api_key", "ssl_keyfile_password")
PROBE_S = 30.0  # how long /health_generate waits for its token
NOT_SUPPORTED = (
    "image_data",
    "video_data",
    "audio_data",
    "input_embeds",
    "lora_path",
    "session_params",
    "custom_logit_processor",
    "return_hidden_states",
)


class Native:
    def __init__(self, front: Front, config: ServerConfig, version: str):
        self._front = front
        self._config = config
        self._version = version

    def operations(self) -> list[Operation]:
        post, get_post = ("POST",), ("GET", "POST")
        generated = Generated | list[Generated]
        return [
            Operation(
                ("/generate",), self.generate, "Complete text or token ids.", GenerateRequest, generated, True,
                ("POST", "PUT"),
            ),
            Operation(("/health", "/ping"), self.health, "200 while the server lives.", answer=str),
            Operation(("/health_generate",), self.health_generate, "200 when a token can be generated.", answer=str),
            Operation(("/get_model_info", "/model_info"), self.model_info, "Facts of the model.", answer=ModelInfo),
            Operation(
                ("/get_server_args", "/get_server_info", "/server_info"), self.server_info,
                "Every setting, the worker's facts and its state.", answer=dict[str, Any],
            ),
            Operation(("/flush_cache",), self.flush_cache, "Empty the prefix cache.", answer=str, methods=get_post),
            Operation(
                ("/abort_request",), self.abort, "End requests by rid, or all.", AbortRequest, Aborted, methods=post
            ),
            Operation(
                ("/tokenize", "/v1/tokenize"), self.tokenize, "Text to token ids.", TokenizeRequest, Tokenized,
                methods=post,
            ),
            Operation(
                ("/detokenize", "/v1/detokenize"), self.detokenize, "Token ids to text.", DetokenizeRequest,
                Detokenized, methods=post,
            ),
            Operation(("/metrics",), self.metrics, "Prometheus metrics.", answer=str),
        ]  # fmt: skip

    async def generate(self, body: GenerateRequest) -> Generated | list[Generated] | AsyncGenerator[bytes, None]:
        requests, single = parse(body, self._config.stream_interval)
        results = [Result(r, self._front.tokenizer, bool(body.return_text_in_logprobs)) for r in requests]
        if body.stream:
            return self._events(requests, results, single)
        async with aclosing(self._front.run(requests)) as outputs:
            answers: list[Generated | None] = [None] * len(requests)
            async for i, output in outputs:
                answers[i] = results[i].add(output)
        done = [answer for answer in answers if answer is not None]
        return done[0] if single else done

    async def _events(
        self, requests: list[Request], results: list["Result"], single: bool
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._front.run(requests)) as outputs:
            async for i, output in outputs:
                answer = results[i].add(output)
                if not single:
                    answer.index = i
                yield event(answer)

    async def health(self, _: HTTPRequest) -> Response:
        """Alive: also while the last requests end after SIGTERM, when new ones are already refused."""
        if self._front.failed is not None:
            raise WorkerDied(self._front.failed)
        if not self._front.up:
            raise Overloaded("the server is starting")
        return Response()

    async def health_generate(self, request: HTTPRequest) -> Response:
        """Ready: a token can be generated now."""
        await self.health(request)
        sampling = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
        probe = Request(prompt=[0], sampling=sampling, rid=f"HEALTH_{uuid.uuid4().hex}", interval=0)
        try:
            async with asyncio.timeout(PROBE_S), aclosing(self._front.generate(probe)) as outputs:
                async for _ in outputs:
                    pass
        except TimeoutError:
            raise Overloaded(f"no token within {PROBE_S:g} s") from None
        return Response()

    async def model_info(self, _: HTTPRequest) -> ModelInfo:
        ready = self._front.ready
        return ModelInfo(
            model_path=self._config.model_path,
            tokenizer_path=self._config.tokenizer_path,
            model_type=ready.model_type,
            architectures=[ready.architecture],
            max_model_len=ready.context_length,
        )

    async def server_info(self, _: HTTPRequest) -> dict[str, Any]:
        settings = {k: v for k, v in dataclasses.asdict(self._config).items() if k not in SECRETS}
        facts = msgspec.structs.asdict(self._front.ready)
        state = msgspec.structs.asdict(self._front.metrics.stats) | self._front.metrics.gauges(time.monotonic())
        return {
            **settings,
            **{name: fact for name, fact in facts.items() if name not in settings},
            "max_total_num_tokens": self._front.ready.total_tokens,
            "version": self._version,
            "internal_states": [state],
        }

    async def flush_cache(self, request: HTTPRequest) -> Response:
        """`?timeout=S` waits so long for the server to be idle."""
        text = request.query_params.get("timeout", "0")
        try:
            timeout_s = float(text)
        except ValueError:
            timeout_s = math.nan
        if not 0 <= timeout_s <= 3600:
            raise FieldError("timeout", f"timeout must be in [0, 3600] seconds, got {text}")
        deadline = time.monotonic() + timeout_s
        while not await self._front.flush():
            if time.monotonic() >= deadline:
                raise FieldError("timeout", "the cache was not flushed: requests are running or waiting")
            await asyncio.sleep(0.05)
        return PlainTextResponse("Cache flushed.\n")

    async def abort(self, body: AbortRequest) -> Aborted:
        if body.abort_all:
            return Aborted(self._front.abort_all())
        if not body.rid:
            raise FieldError("rid", "rid must name a request, or abort_all be true")
        return Aborted(self._front.abort(body.rid))

    async def tokenize(self, body: TokenizeRequest) -> Tokenized:
        many = isinstance(body.prompt, list)
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        check_count("prompt", len(texts), len(texts))
        tokens = await asyncio.to_thread(
            lambda: [self._front.tokenizer.encode(text, add_special_tokens=body.add_special_tokens) for text in texts]
        )
        length = self._front.ready.context_length
        if many:
            return Tokenized(tokens, [len(t) for t in tokens], length)
        return Tokenized(tokens[0], len(tokens[0]), length)

    async def detokenize(self, body: DetokenizeRequest) -> Detokenized:
        lists, single = id_lists("tokens", body.tokens)
        size = self._front.ready.vocab_size
        for ids in lists:
            if ids and (min(ids) < 0 or max(ids) >= size):
                raise FieldError("tokens", f"tokens must hold token ids in [0, {size}), got {min(ids)} to {max(ids)}")
        texts = await asyncio.to_thread(
            lambda: [self._front.tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens) for ids in lists]
        )
        return Detokenized(texts[0] if single else texts)

    async def metrics(self, _: HTTPRequest) -> Response:
        return Response(self._front.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def parse(body: GenerateRequest, interval: int) -> tuple[list[Request], bool]:
    """The sequences of a body, prompt by prompt, the n samples of each together; and whether the answer is one object.

    Raises FieldError.
    """
    for name in NOT_SUPPORTED:
        if getattr(body, name):
            raise FieldError(name, f"{name} is not supported by this server")
    if (body.text is None) == (body.input_ids is None):
        raise FieldError("text", "Either text or input_ids should be provided.")
    prompts: list[str | list[int]]
    if body.text is not None:
        source, single = "text", isinstance(body.text, str)
        prompts = [body.text] if isinstance(body.text, str) else [*body.text]
    else:
        source = "input_ids"
        lists, single = id_lists(source, body.input_ids or [])
        prompts = [*lists]
    count = len(prompts)
    check_count(source, count, count)
    if isinstance(body.sampling_params, list):
        raw = spread("sampling_params", body.sampling_params, count, None)
        params = [parse_sampling(p, f"sampling_params[{i}]") for i, p in enumerate(raw)]
        constraints = [f"sampling_params[{i}].{p.constraint}" for i, p in enumerate(params)]
    else:
        params = [parse_sampling(body.sampling_params)] * count
        constraints = [f"sampling_params.{params[0].constraint}"] * count
    total = sum(p.n for p in params)
    check_count(source, count, total)
    wanted = [
        _logprobs(*fields)
        for fields in zip(
            spread("return_logprob", body.return_logprob, count, False),
            spread("logprob_start_len", body.logprob_start_len, count, -1),
            spread("top_logprobs_num", body.top_logprobs_num, count, 0),
            _id_choices(body.token_ids_logprob, count),
            strict=True,
        )
    ]
    rids = names(body.rid, [p.n for p in params])
    requests = [
        Request(
            prompt=prompts[i],
            sampling=sample(params[i], k),
            logprobs=wanted[i],
            rid=rids[i][k],
            group=body.rid if isinstance(body.rid, str) else (body.rid[i] if body.rid else ""),
            interval=interval if body.stream else 0,
            namespace=body.cache_salt or body.extra_key or "",
            source=source,
            constraint=constraints[i],
        )
        for i in range(count)
        for k in range(params[i].n)
    ]
    return requests, single and total == 1


def _id_choices(value: list[int | list[int] | None] | None, count: int) -> list[list[int]]:
    if not value or all(isinstance(i, int) for i in value):
        return [value or []] * count  # pyright: ignore[reportReturnType]
    if any(isinstance(i, int) for i in value):
        raise FieldError("token_ids_logprob", "token_ids_logprob must be a list of ids or of lists, not a mixture")
    return [ids or [] for ids in spread("token_ids_logprob", value, count, None)]  # pyright: ignore[reportReturnType]


def _logprobs(on: bool, start: int, top: int, ids: list[int]) -> Logprobs | None:
    if start < -1:
        raise FieldError("logprob_start_len", f"logprob_start_len must be -1 (none of the prompt) or more, got {start}")
    if not 0 <= top <= limits.TOP_LOGPROBS:
        raise FieldError("top_logprobs_num", f"top_logprobs_num must be in [0, {limits.TOP_LOGPROBS}], got {top}")
    if len(ids) > limits.TOKEN_IDS_LOGPROB:
        raise FieldError("token_ids_logprob", f"token_ids_logprob may hold at most {limits.TOKEN_IDS_LOGPROB} ids")
    return Logprobs(start, top, tuple(ids)) if on else None


class Result:
    """The answer of one sequence so far: outputs in, the whole object out (its text and lists are cumulative)."""

    def __init__(self, request: Request, tokenizer: Tokenizer, with_text: bool):
        self._wanted = request.logprobs
        self._text = tokenizer.token_text if with_text else None
        self._before = _Scores()
        self._after = _Scores()

    def add(self, output: Output) -> Generated:
        meta = MetaInfo(
            id=output.rid,
            finish_reason=finish_reason(output.finish, len(output.tokens)),
            prompt_tokens=output.prompt_tokens,
            completion_tokens=len(output.tokens),
            completion_tokens_wo_jump_forward=len(output.tokens) - output.jumped,
            cached_tokens=output.cached_tokens,
            e2e_latency=output.latency_s,
        )
        if self._wanted is not None:
            self._score(meta, self._wanted, output)
        return Generated(text=output.text, output_ids=output.tokens, meta_info=meta)

    def _score(self, meta: MetaInfo, wanted: Logprobs, output: Output) -> None:
        before, after = self._before, self._after
        self._file(before, output.prompt_scores)
        self._file(after, output.scores)
        known = [logprob for logprob, _, _ in before.tokens if logprob is not None]
        meta.normalized_prompt_logprob = sum(known) / len(known) if known else None
        meta.input_token_logprobs, meta.output_token_logprobs = before.tokens, after.tokens
        if wanted.top:
            meta.input_top_logprobs, meta.output_top_logprobs = before.top, after.top
        if wanted.ids:
            meta.input_token_ids_logprobs, meta.output_token_ids_logprobs = before.ids, after.ids

    def _file(self, into: "_Scores", scores: list[Score]) -> None:
        for score in scores:
            into.tokens.append(self._triple(score.token, score.logprob))
            into.top.append([self._triple(*pair) for pair in score.top] or None)
            into.ids.append([self._triple(*pair) for pair in score.ids] or None)

    def _triple(self, token: int, logprob: float | None) -> Triple:
        return (logprob, token, None if self._text is None else self._text(token))


class _Scores:
    """Triples in the shape of the answer, one per position."""

    def __init__(self) -> None:
        self.tokens: list[Triple] = []
        self.top: list[list[Triple] | None] = []
        self.ids: list[list[Triple] | None] = []


def finish_reason(finish: Finish | None, length: int) -> FinishReason | None:
    match finish:
        case None:
            return None
        case Finish(type="length"):
            return FinishReason(type="length", length=length)
        case Finish(type="stop"):
            return FinishReason(type="stop", matched=finish.matched)
        case _:
            return FinishReason(type="abort", message=finish.message, status_code=finish.status or None)
