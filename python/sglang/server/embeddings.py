"""Vectors of texts: /v1/embeddings as OpenAI has it, and /encode, of a server that was started with --is-embedding."""

import base64
from collections.abc import Sequence
from contextlib import aclosing
from typing import Literal, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError
from sglang.base.sampling import SamplingParams
from sglang.server.expand import check_count, id_lists, names
from sglang.server.front import Front
from sglang.server.http import Operation
from sglang.server.native_types import FinishReason, Refused
from sglang.server.sequences import finish_reason
from sglang.server.streams import Output, Request

NOTHING = SamplingParams(max_new_tokens=0)
UNIT = 1e-3  # how far from 1 the length of a vector may be that was made to have it
Prompt = str | list[int]


class EmbeddingRequest(Struct, kw_only=True):
    input: str | list[str | int | list[int]]
    model: str = "default"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class Embedding(Struct, kw_only=True):
    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class EncodeRequest(Struct, kw_only=True):
    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    rid: str | list[str] | None = None
    dimensions: int | None = None
    image_data: Refused = None


class EncodedMeta(Struct, kw_only=True):
    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    cached_tokens: int
    e2e_latency: float


class Encoded(Struct, kw_only=True):
    embedding: list[float]
    meta_info: EncodedMeta


class Embeddings:
    def __init__(self, front: Front, config: ServerConfig):
        self._front = front
        self._config = config

    def operations(self) -> list[Operation]:
        post = ("POST",)
        return [
            Operation(
                ("/v1/embeddings",), self.embeddings, "Vectors of texts.", EmbeddingRequest, EmbeddingList, methods=post
            ),
            Operation(
                ("/encode",), self.encode, "Vectors of texts.", EncodeRequest, Encoded | list[Encoded], methods=post
            ),
        ]

    async def embeddings(self, body: EmbeddingRequest) -> EmbeddingList:
        prompts, _ = _inputs(body.input)
        outputs = await self._run("input", prompts, None)
        data = [
            Embedding(index=i, embedding=_encoded(self._vector(output, body.dimensions), body.encoding_format))
            for i, output in enumerate(outputs)
        ]
        tokens = sum(output.prompt_tokens for output in outputs)
        usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        return EmbeddingList(data=data, model=self._config.model_name, usage=usage)

    async def encode(self, body: EncodeRequest) -> Encoded | list[Encoded]:
        if body.image_data:
            raise FieldError("image_data", "image_data is not supported by this server")
        if (body.text is None) == (body.input_ids is None):
            raise FieldError("text", "Either text or input_ids should be provided.")
        if body.text is not None:
            source = "text"
            single = isinstance(body.text, str)
            prompts: Sequence[Prompt] = [body.text] if isinstance(body.text, str) else body.text
        else:
            source = "input_ids"
            prompts, single = id_lists(source, body.input_ids or [])
        outputs = await self._run(source, prompts, body.rid)
        answers = [
            Encoded(
                embedding=self._vector(output, body.dimensions).tolist(),
                meta_info=EncodedMeta(
                    id=output.rid,
                    finish_reason=finish_reason(output.finish, 0),
                    prompt_tokens=output.prompt_tokens,
                    cached_tokens=output.cached_tokens,
                    e2e_latency=output.latency_s,
                ),
            )
            for output in outputs
        ]
        return answers[0] if single else answers

    async def _run(self, source: str, prompts: Sequence[Prompt], rid: str | list[str] | None) -> list[Output]:
        check_count(source, len(prompts), len(prompts))
        rids = names(rid, [1] * len(prompts))
        group = rid if isinstance(rid, str) else ""
        requests = [
            Request(prompt=prompt, sampling=NOTHING, interval=0, source=source, rid=own, group=group, embeds=True)
            for prompt, (own,) in zip(prompts, rids, strict=True)
        ]
        outputs: dict[int, Output] = {}
        async with aclosing(self._front.run(requests)) as coming:
            async for i, output in coming:
                if not output.embedding:
                    raise FieldError("rid", f"request {output.rid} was aborted")
                outputs[i] = output
        return [outputs[i] for i in range(len(requests))]

    def _vector(self, output: Output, dimensions: int | None) -> NDArray[np.float32]:
        """The first `dimensions` numbers, of length 1 again where all of them had it (Matryoshka models)."""
        whole = np.frombuffer(output.embedding, np.float32)
        if dimensions is None:
            return whole
        if not 1 <= dimensions <= len(whole):
            raise FieldError("dimensions", f"dimensions must be in [1, {len(whole)}], got {dimensions}")
        first = whole[:dimensions]
        length = float(np.linalg.norm(first))
        return first / length if length > 0 and abs(float(np.linalg.norm(whole)) - 1) < UNIT else first


def _inputs(value: str | list[str | int | list[int]]) -> tuple[Sequence[Prompt], bool]:
    """Texts, or ids, of one input or of many."""
    if isinstance(value, str):
        return [value], True
    if all(isinstance(one, str) for one in value):
        return cast(list[str], value), False
    if any(isinstance(one, str) for one in value):
        raise FieldError("input", "input must hold texts or token ids, not a mixture")
    return id_lists("input", cast(list[int | list[int]], value))


def _encoded(vector: NDArray[np.float32], format: str) -> list[float] | str:
    return base64.b64encode(vector.tobytes()).decode() if format == "base64" else vector.tolist()
