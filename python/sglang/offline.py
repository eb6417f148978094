"""Engine: the runtime without HTTP, in a Python program.

    with sgl.Engine(model_path="...") as engine:
        print(engine.generate("The capital of France is", {"max_new_tokens": 8})["text"])

It takes the flags of the server as keywords and the fields of `/generate`, and gives the same dicts; it is the same
front over the same worker process. Methods may be called from any thread and, the `async_` ones, from any event loop.
"""

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError
from sglang.base.messages import Ready
from sglang.launch import Worker, WorkerHandle
from sglang.server import segments
from sglang.server.embeddings import Embeddings, EncodeRequest
from sglang.server.front import Front
from sglang.server.native import Native
from sglang.server.native_types import GenerateRequest
from sglang.server.sequences import Result, parse
from sglang.text import tokenizer as tokenizers

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)
Answer = dict[str, Any]


class Engine:
    """A running model. Ends with `shutdown`, at the end of a `with` block, or with the program."""

    def __init__(
        self,
        model_path: str = "",
        *,
        config: ServerConfig | None = None,
        worker: Callable[[ServerConfig], WorkerHandle] = Worker,
        **flags: Any,
    ):
        """flags: fields of ServerConfig (`--max-total-tokens 1000` is max_total_tokens=1000), or a ready `config`.

        Raises ConfigError for an impossible setting, WorkerDied where the worker could not start.
        """
        self.config = (config or ServerConfig.of(model_path=model_path, **flags)).resolve()
        self._worker = worker(self.config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="sglang-engine")
        self._thread.start()
        self._open = True
        atexit.register(self.shutdown)
        try:
            self.tokenizer = load_tokenizer(self.config)
            self._front = self._run(self._start())
        except BaseException:
            self.shutdown()
            raise

    async def _start(self) -> Front:
        front = Front(self._worker.link, self.tokenizer, self.config)
        self._worker.watch(front.fail_soon)
        await front.start()
        return front

    @property
    def ready(self) -> Ready:
        """Facts of the loaded model."""
        return self._front.ready

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """A dict, or a list of them for a list of prompts or n > 1; with `stream` an iterator of dicts whose `text` is
        cumulative (`index` says which prompt). fields: input_ids, segments, return_logprob, logprob_start_len,
        top_logprobs_num, token_ids_logprob, return_text_in_logprobs, rid, parent, cache_salt.

        Raises FieldError naming the bad field, Overloaded, WorkerDied.
        """
        body = _body(prompt, sampling_params, stream, fields)
        if not stream:
            return self._run(self._answers(body))
        return self._iterate(self._events(body))

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """As `generate`, for event loops; with `stream` an async generator."""
        body = _body(prompt, sampling_params, stream, fields)
        if not stream:
            return await asyncio.wrap_future(self._send(self._answers(body)))
        return self._forward(self._events(body))

    def encode(self, prompt: str | list[str] | None = None, **fields: Any) -> Any:
        """Vectors of texts, of an Engine with is_embedding=True: a dict as `/encode` gives it, or a list of them.

        fields: input_ids, dimensions, rid. Raises FieldError naming the bad field, Overloaded, WorkerDied.
        """
        return self._run(self._encoded(prompt, fields))

    async def async_encode(self, prompt: str | list[str] | None = None, **fields: Any) -> Any:
        """As `encode`, for event loops."""
        return await asyncio.wrap_future(self._send(self._encoded(prompt, fields)))

    async def _encoded(self, prompt: str | list[str] | None, fields: dict[str, Any]) -> Any:
        body = _converted({"text": prompt, **fields}, EncodeRequest)
        return msgspec.to_builtins(await Embeddings(self._front, self.config).encode(body))

    def flush_cache(self) -> bool:
        """Empty the prefix cache; False: requests are running."""
        return self._run(self._front.flush())

    def get_server_info(self) -> Answer:
        """Every setting, the worker's facts and its state."""
        return self._run(Native(self._front, self.config, "").server_info(None))  # type: ignore[arg-type]  # unread

    def get_tokenizer(self) -> tokenizers.Tokenizer:
        return self.tokenizer

    def shutdown(self) -> None:
        """End the worker. Safe to call twice."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.shutdown)
        front: Front | None = getattr(self, "_front", None)
        if front is not None:
            self._run(front.close())
        self._worker.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    async def _answers(self, body: GenerateRequest) -> Any:
        if body.segments is not None:
            async with aclosing(segments.run(self._front, segments.parse(body, 0))) as parts:
                return [msgspec.to_builtins(part) async for part in parts][-1]
        requests, single = parse(body, 0)
        results = [Result(r, self.tokenizer, bool(body.return_text_in_logprobs)) for r in requests]
        answers: list[Any] = [None] * len(requests)
        async with aclosing(self._front.run(requests)) as outputs:
            async for i, output in outputs:
                answers[i] = msgspec.to_builtins(results[i].add(output))
        return answers[0] if single else answers

    async def _events(self, body: GenerateRequest) -> AsyncGenerator[Answer, None]:
        if body.segments is not None:
            async with aclosing(segments.run(self._front, segments.parse(body, self.config.stream_interval))) as parts:
                async for part in parts:
                    yield msgspec.to_builtins(part)
            return
        requests, single = parse(body, self.config.stream_interval)
        deltas = self.config.incremental_streaming_output
        results = [Result(r, self.tokenizer, bool(body.return_text_in_logprobs), deltas) for r in requests]
        async with aclosing(self._front.run(requests)) as outputs:
            async for i, output in outputs:
                answer = results[i].add(output)
                if not single:
                    answer.index = i
                yield msgspec.to_builtins(answer)

    def _send(self, work: Coroutine[Any, Any, T]) -> Any:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this Engine has been shut down")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._send(work).result()

    def _iterate(self, events: AsyncGenerator[Answer, None]) -> Iterator[Answer]:
        try:
            while True:
                try:
                    yield self._run(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            self._run(events.aclose())

    async def _forward(self, events: AsyncGenerator[Answer, None]) -> AsyncGenerator[Answer, None]:
        try:
            while True:
                try:
                    yield await asyncio.wrap_future(self._send(_next(events)))
                except StopAsyncIteration:
                    return
        finally:
            await asyncio.wrap_future(self._send(events.aclose()))


async def _next(events: AsyncGenerator[T, None]) -> T:
    return await anext(events)


def _body(prompt: Any, sampling_params: Any, stream: bool, fields: dict[str, Any]) -> GenerateRequest:
    """The arguments as a checked `/generate` body."""
    given = {"text": prompt, "sampling_params": sampling_params, "stream": stream, **fields}
    return _converted(given, GenerateRequest)


def _converted(given: dict[str, Any], kind: type[B]) -> B:
    known = {f.name for f in msgspec.structs.fields(kind)}
    for name in given:
        if name not in known:
            raise FieldError(name, f"unknown argument {name}; known: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at ")
        field = where.strip("`").removeprefix("$.") or "body"
        raise FieldError(field, f"{field}: {text.replace('`', '')}") from None


def load_tokenizer(config: ServerConfig) -> tokenizers.Tokenizer:
    """The tokenizer that `config` (resolved) asks for. Raises ConfigError."""
    return tokenizers.load(
        config.tokenizer_path,
        mode=config.tokenizer_mode,
        trust_remote_code=config.trust_remote_code,
        revision=config.revision,
        download_dir=config.download_dir,
        chat_template=config.chat_template,
        model_path=config.model_path,
    )
