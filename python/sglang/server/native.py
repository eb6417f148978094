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

from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError, Overloaded, WorkerDied
from sglang.base.sampling import SamplingParams
from sglang.server import segments
from sglang.server.expand import check_count, id_lists
from sglang.server.front import Front
from sglang.server.http import Feed, Operation, event
from sglang.server.native_types import (
    Aborted,
    AbortRequest,
    ChainAnswer,
    Detokenized,
    DetokenizeRequest,
    Generated,
    GenerateRequest,
    ModelInfo,
    Tokenized,
    TokenizeRequest,
)
from sglang.server.sequences import Result, parse
from sglang.server.streams import Output, Request

SECRETS = ("api_key", "admin_api_key", "ssl_keyfile_password")
PROBE_S = 30.0  # how long /health_generate waits for its token


class Native:
    def __init__(self, front: Front, config: ServerConfig, version: str):
        self._front = front
        self._config = config
        self._version = version

    def operations(self) -> list[Operation]:
        post, get_post = ("POST",), ("GET", "POST")
        generated = Generated | list[Generated] | ChainAnswer
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

    async def generate(
        self, body: GenerateRequest
    ) -> Generated | list[Generated] | ChainAnswer | Feed | AsyncGenerator[bytes, None]:
        if body.segments is not None:
            return await self._chain(segments.parse(body, self._config.stream_interval), bool(body.stream))
        requests, single = parse(body, self._config.stream_interval)
        deltas = bool(body.stream) and self._config.incremental_streaming_output
        results = [Result(r, self._front.tokenizer, bool(body.return_text_in_logprobs), deltas) for r in requests]
        if body.stream:
            return self._feed(requests, results, single)
        async with aclosing(self._front.run(requests)) as outputs:
            answers: list[Generated | None] = [None] * len(requests)
            async for i, output in outputs:
                answers[i] = results[i].add(output)
        done = [answer for answer in answers if answer is not None]
        return done[0] if single else done

    async def _chain(self, chain: segments.Chain, stream: bool) -> ChainAnswer | AsyncGenerator[bytes, None]:
        parts = segments.run(self._front, chain)
        if stream:
            return self._chain_events(parts)
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, ChainAnswer):
                    return part
        raise AssertionError("a chain ends with its answer")

    @staticmethod
    async def _chain_events(
        parts: AsyncGenerator[segments.ChainPart | ChainAnswer, None],
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(parts):
            async for part in parts:
                yield event(part)

    def _feed(self, requests: list[Request], results: list[Result], single: bool) -> Feed:
        def frame(i: int, output: Output) -> bytes:
            return results[i].event(output, None if single else i)

        return Feed(lambda sink: self._front.push(requests, frame, sink))

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
            is_generation=ready.embedding == 0,
            architectures=[ready.architecture],
            preferred_sampling_params=ready.sampling or None,
            max_model_len=ready.context_length,
            max_seq_length=ready.text_tokens or None,
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
