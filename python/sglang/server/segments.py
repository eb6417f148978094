"""Chains: a `/generate` body of segments, text and gens and selects in a row, carried out without a client in between.

Between two gens the sequence keeps its place and its KV in the worker and is extended. Each gen continues the tokens of
the whole text so far, encoded anew: what the model reads is what it would have read had the client sent the gens one by
one, so a chain changes no output. The worker is told ahead which tokens these will most likely be, so that it goes on
in the very next step; here it is seen, while it computes, whether they are.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from sglang.base import limits
from sglang.base.choices import METHODS, choice_tokens, decide, needs_unconditional
from sglang.base.errors import FieldError
from sglang.base.messages import Logprobs
from sglang.base.sampling import SamplingParams, parse_sampling
from sglang.server.expand import names, parent_name
from sglang.server.front import Front
from sglang.server.native_types import (
    ChainAnswer,
    ChainMeta,
    ChainPart,
    FinishReason,
    GenerateRequest,
    Segment,
)
from sglang.server.sequences import Result, logprobs_of
from sglang.server.streams import Held, Output, Request

ELSEWHERE = (  # fields of a body that a chain's gens have each for themselves
    "text", "input_ids", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num",
    "token_ids_logprob", "return_text_in_logprobs",
)  # fmt: skip
GEN_FIELDS = (
    "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "token_ids_logprob",
    "return_text_in_logprobs",
)  # fmt: skip


class Gen(Struct):
    name: str | None
    sampling: SamplingParams
    logprobs: Logprobs | None
    with_text: bool
    field: str  # what the caller calls it


class Select(Struct):
    name: str | None
    choices: list[str]
    method: str
    field: str


Step = str | Gen | Select


class Chain(Struct):
    prompt: str
    steps: list[Step]
    rid: str
    parent: str
    namespace: str
    interval: int


def parse(body: GenerateRequest, interval: int) -> Chain:
    """Raises FieldError that names the segment and its field."""
    for name in ELSEWHERE:
        if getattr(body, name) is not None:
            raise FieldError(name, f"{name} must not be given beside segments: it belongs into a segment")
    raw = body.segments or []
    if not 2 <= len(raw) <= limits.SEGMENTS:
        raise FieldError("segments", f"segments must hold 2 to {limits.SEGMENTS} segments, got {len(raw)}")
    steps = [_step(segment, f"segments[{i}]") for i, segment in enumerate(raw)]
    prompt = steps[0]
    if not isinstance(prompt, str):
        raise FieldError("segments[0]", "segments[0] must be a text: the prompt")
    if all(isinstance(step, str) for step in steps):
        raise FieldError("segments", "segments must hold a gen or a select; text alone is a plain request")
    if isinstance(body.rid, list):
        raise FieldError("rid", "rid must be a string: a chain is one request")
    rid = names(body.rid, [1])[0][0] or uuid.uuid4().hex
    namespace = body.cache_salt or body.extra_key or ""
    return Chain(prompt, steps[1:], rid, parent_name(body.parent), namespace, interval if body.stream else 0)


def _step(segment: Segment, where: str) -> Step:
    kinds = [kind for kind in ("text", "gen", "select") if getattr(segment, kind) is not UNSET]
    if len(kinds) != 1:
        raise FieldError(where, f"{where} must have exactly one of text, gen and select, got {kinds or 'none'}")
    kind = kinds[0]
    foreign = {"text": (*GEN_FIELDS, "choices"), "gen": ("choices",), "select": GEN_FIELDS}[kind]
    for name in foreign:
        if getattr(segment, name) is not None:
            raise FieldError(f"{where}.{name}", f"{where}.{name} does not belong to a {kind}")
    if isinstance(segment.text, str):
        return segment.text
    if isinstance(segment.gen, str | None):
        sampling = parse_sampling(segment.sampling_params, f"{where}.sampling_params")
        if sampling.n != 1:
            raise FieldError(f"{where}.sampling_params.n", f"{where}.sampling_params.n must be 1: a chain is one text")
        start = -1 if segment.logprob_start_len is None else segment.logprob_start_len
        wanted = logprobs_of(
            bool(segment.return_logprob), start, segment.top_logprobs_num or 0, segment.token_ids_logprob or []
        )
        return Gen(segment.gen, sampling, wanted, bool(segment.return_text_in_logprobs), where)
    choices, field = segment.choices or [], f"{where}.choices"
    if not 1 <= len(choices) <= limits.CHOICES or not all(choices):
        raise FieldError(field, f"{field} must hold 1 to {limits.CHOICES} strings, none of them empty")
    if segment.method not in METHODS:
        raise FieldError(f"{where}.method", f"{where}.method must be one of {', '.join(METHODS)}")
    assert segment.select is None or isinstance(segment.select, str)
    return Select(segment.select, choices, segment.method, where)


async def run(front: Front, chain: Chain) -> AsyncGenerator[ChainPart | ChainAnswer, None]:
    """Every part as it grows (a gen at its outputs, a select once), then the whole answer.

    A gen that is aborted ends the chain. Raises FieldError, Overloaded, WorkerDied.
    """
    began = time.monotonic()
    text, parent = chain.prompt, chain.parent
    done: list[ChainPart] = []
    meta = ChainMeta(
        id=chain.rid, finish_reason=None, prompt_tokens=0, completion_tokens=0, completion_tokens_wo_jump_forward=0,
        cached_tokens=0, e2e_latency=0.0,
    )  # fmt: skip
    last = max(i for i, step in enumerate(chain.steps) if not isinstance(step, str))
    with front.chain() as held:
        requests = _requests(chain, held)
        await front.compile_stops(requests.values())  # a bad one is refused before anything is computed
        for i, step in enumerate(chain.steps[: last + 1]):
            if isinstance(step, str):
                text += step
                continue
            if isinstance(step, Select):
                front.release(held)  # its KV stays cached, where the choices find it
                part = await _select(front, chain, step, text, parent, meta)
                meta.finish_reason = FinishReason(type="stop")
                yield _numbered(part, len(done))
            else:
                requests[i].prompt, requests[i].parent = text, parent
                part = None
                async with aclosing(_gen(front, step, requests[i], held, meta)) as parts:
                    async for part in parts:
                        if chain.interval:
                            yield _numbered(part, len(done))
                assert part is not None, "a generation has an output"
            done.append(part)
            text, parent = text + part.text, chain.rid
            if meta.finish_reason is not None and meta.finish_reason.type == "abort":
                break
    text += "".join(step for step in chain.steps[last + 1 :] if isinstance(step, str))
    meta.e2e_latency = time.monotonic() - began
    yield ChainAnswer(text=text[len(chain.prompt) :], segments=done, meta_info=meta)


def _numbered(part: ChainPart, n: int) -> ChainPart:
    return msgspec.structs.replace(part, segment=n)


def _requests(chain: Chain, held: Held) -> dict[int, Request]:
    """Of each gen, by its place; each knows the next one if nothing but text lies between them."""
    requests: dict[int, Request] = {}
    text, next = "", None
    for i, step in reversed([*enumerate(chain.steps)]):
        match step:
            case str():
                text = step + text
            case Select():
                next = None
            case Gen():
                requests[i] = Request(
                    prompt="",  # not known yet
                    sampling=step.sampling,
                    logprobs=step.logprobs,
                    rid=chain.rid,
                    interval=chain.interval,
                    namespace=chain.namespace,
                    source="segments",
                    constraint=f"{step.field}.sampling_params.{step.sampling.constraint}",
                    stop_regex=f"{step.field}.sampling_params.stop_regex",
                    held=held,
                    last=not requests,
                    then=None if next is None else (text, next),
                )
                text, next = "", requests[i]
    return requests


async def _gen(
    front: Front, gen: Gen, request: Request, held: Held, meta: ChainMeta
) -> AsyncGenerator[ChainPart, None]:
    known = len(held.tokens) if held.id else 0
    result = Result(request, front.tokenizer, gen.with_text)
    output: Output | None = None
    async with aclosing(front.generate(request)) as outputs:
        async for output in outputs:
            answer = result.add(output)
            meta.finish_reason = answer.meta_info.finish_reason
            if answer.meta_info.finish_reason is not None:
                _count(meta, output, known)
            yield ChainPart(name=gen.name, text=answer.text, meta_info=answer.meta_info)


def _count(meta: ChainMeta, output: Output, known: int) -> None:
    """known: tokens of the prompt that this chain has computed itself."""
    meta.prompt_tokens += max(0, output.prompt_tokens - known)
    meta.cached_tokens += max(0, output.cached_tokens - known)
    meta.completion_tokens += len(output.tokens)
    meta.completion_tokens_wo_jump_forward += len(output.tokens) - output.jumped


async def _select(front: Front, chain: Chain, select: Select, text: str, parent: str, meta: ChainMeta) -> ChainPart:
    """Score every choice behind `text` in one batch, which shares the text's KV, and let the method pick."""
    began, before = time.monotonic(), (meta.prompt_tokens, meta.cached_tokens)
    prefix_tokens = len(await front.encode(text)) if text else 0
    prompts = [text + choice for choice in select.choices]
    rows = await _score(front, chain, prompts, max(prefix_tokens - 2, 0), parent, meta)
    given = [choice_tokens(text, prefix_tokens, triples, total) for triples, total in rows]
    method, alone = METHODS[select.method], None
    if needs_unconditional(method):
        # One by one and without a cache: what stands before these tokens elsewhere is not theirs.
        ids = [[token for _, token, _ in row] for row in given]
        alone = [triples for triples, _ in await _score(front, chain, ids, 0, parent, meta)]
    decision = decide(method, select.choices, given, alone=alone)
    cost = {
        "prompt_tokens": meta.prompt_tokens - before[0],
        "cached_tokens": meta.cached_tokens - before[1],
        "e2e_latency": time.monotonic() - began,
    }
    told = {**(decision.meta_info or {}), **cost}
    return ChainPart(name=select.name, text=decision.decision, decision=decision.decision, meta_info=told)


async def _score(
    front: Front, chain: Chain, prompts: list[Any], start: int, parent: str, meta: ChainMeta
) -> list[tuple[list[Any], int]]:
    """Per prompt (text or ids): triples of its tokens from `start` on, and how many tokens it has."""
    requests = [
        Request(
            prompt=prompt,
            sampling=SamplingParams(max_new_tokens=0, temperature=0.0),
            logprobs=Logprobs(start),
            rid=f"{chain.rid}_{i}",
            group=chain.rid,
            parent=parent,
            interval=0,
            namespace=chain.namespace,
            source="segments",
        )
        for i, prompt in enumerate(prompts)
    ]
    results = [Result(request, front.tokenizer, True) for request in requests]
    rows: list[tuple[list[Any], int]] = [([], 0)] * len(requests)
    async with aclosing(front.run(requests)) as outputs:
        async for i, output in outputs:
            if output.finish is not None and output.finish.type == "abort":
                raise FieldError("rid", "the request was aborted")
            info = results[i].add(output).meta_info
            rows[i] = (list(info.input_token_logprobs or []), output.prompt_tokens)
            meta.prompt_tokens += output.prompt_tokens
            meta.cached_tokens += output.cached_tokens
    return rows
