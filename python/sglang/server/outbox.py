"""What the worker is told: sequences begin, go on and are forgotten. The one owner of what is open there.

A chain keeps its sequence in the worker from one generation to the next, and tells it ahead how to go on where that can
be guessed; half of this file is about that.
"""

import logging
import random
import uuid
from collections.abc import Collection

import msgspec
import numpy as np

from sglang.base.config import ServerConfig
from sglang.base.errors import FieldError
from sglang.base.link import Link
from sglang.base.messages import AT_END, Abort, Extend, FromWorker, Logprobs, Ready, Resume, Submit, ToWorker, pack
from sglang.base.sampling import SEED_BITS
from sglang.grammar.search import Search
from sglang.server.metrics import Metrics
from sglang.server.places import Places
from sglang.server.streams import Ahead, Group, Held, Output, Request, Stream
from sglang.text.detokenizer import Detokenizer
from sglang.text.tokenizer import Tokenizer

log = logging.getLogger("sglang.server")

INLINE_CHARS = 2048  # a longer text is tokenised in a thread: it would hold up the streams for about a millisecond
WRONG_KIND = {  # by whether a vector is wanted
    True: "this server generates text; vectors come from one started with --is-embedding",
    False: "this server makes vectors and generates no text: it answers /v1/embeddings and /encode",
}


class Outbox:
    """`streams`: by id, those that the worker knows. `facts`: the worker's own, once it is ready."""

    def __init__(
        self, link: Link[FromWorker, ToWorker], tokenizer: Tokenizer, metrics: Metrics, config: ServerConfig
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.facts: Ready | None = None
        self._link = link
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._log_requests = config.log_requests
        self._seeds = random.Random(config.random_seed)
        self._places = Places()
        self._next_id = 0

    def check(self, request: Request, tokens: list[int]) -> bytes:
        """What the model's vocabulary refuses; lengths are the scheduler's to judge, which knows its memory too.

        The tokens, packed. Raises FieldError.
        """
        assert self.facts is not None, "the worker is not ready"
        facts, name = self.facts, request.source
        if request.embeds != (facts.embedding > 0):
            raise FieldError("model", WRONG_KIND[request.embeds])
        if not tokens:
            raise FieldError(name, f"{name} must have at least one token")
        wanted = request.logprobs or Logprobs()
        packed = _packed(name, tokens, facts.vocab_size)
        for field, ids in (
            ("stop_token_ids", request.sampling.stop_token_ids),
            ("logit_bias", request.sampling.logit_bias),
            ("token_ids_logprob", wanted.ids),
        ):
            if ids:
                _packed(field, ids, facts.vocab_size)
        if wanted.start > len(tokens):
            raise FieldError(
                "logprob_start_len",
                f"logprob_start_len must be in [-1, {len(tokens)}] (prompt length), got {wanted.start}",
            )
        return packed

    def take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def submit(
        self, index: int, request: Request, tokens: list[int], packed: bytes, group: Group, began: float
    ) -> Stream:
        """Sends a sequence to the worker, unless it was told ahead; what comes of it is for `group`.

        packed: what `check` returned.
        """
        if not request.rid:
            request.rid = uuid.uuid4().hex
        held = request.held
        ahead = held.ahead if held is not None else None
        if held is not None and ahead is not None and ahead.expected == tokens:
            stream = self._adopt(held, ahead, group)
        else:
            stream = self._open_stream(index, request, group)
            stream.began = began
            self._send(stream, tokens, packed)
        stream.prompt_tokens = len(tokens)
        self._metrics.requests += 1
        if self._log_requests:
            prompt = self._tokenizer.decode(tokens, skip_special_tokens=False)
            log.info("request rid=%s prompt=%r sampling=%s", request.rid, prompt, request.sampling)
        if held is not None:
            held.tokens = list(tokens)
            if request.then is not None and held.guesses:
                self._send_ahead(held, stream, *request.then)
        return stream

    def _open_stream(self, index: int, request: Request, group: Group) -> Stream:
        sampling = request.sampling
        if sampling.seed is None or sampling.n != 1:
            # A sequence that is retracted and resumed must go on as it would have: it needs a seed of its own.
            seed = self._seeds.getrandbits(SEED_BITS) if sampling.seed is None else sampling.seed
            sampling = msgspec.structs.replace(sampling, seed=seed, n=1)
        detokenizer = Detokenizer(
            self._tokenizer,
            skip_special_tokens=sampling.skip_special_tokens,
            spaces_between_special_tokens=sampling.spaces_between_special_tokens,
            stop=sampling.stop,
            search=Search(request.patterns) if request.patterns is not None else None,
            no_stop_trim=sampling.no_stop_trim,
        )
        stream = Stream(self.take_id(), index, request, sampling, group, detokenizer)
        self.streams[stream.id] = stream
        return stream

    def _send(self, stream: Stream, tokens: list[int], packed: bytes) -> None:
        request, sampling = stream.request, stream.sampling
        held, hold = request.held, request.held is not None and not request.last
        if held is None or not held.id:
            place = self._places.enter(stream.id, request.group or request.rid, request.parent)
            self._link.send(Submit(stream.id, packed, sampling, request.logprobs, hold, request.namespace, place))
            return
        stream.cached = keep = _common(held.tokens, tokens)
        instead_of = 0
        if held.ahead is not None:
            instead_of = held.ahead.stream.id
            self.streams.pop(instead_of, None)
            held.ahead, held.guesses = None, False
        self._link.send(
            Extend(stream.id, held.id, keep, tokens[keep:], sampling, request.logprobs, hold, ahead=instead_of)
        )

    def _send_ahead(self, held: Held, stream: Stream, text: str, request: Request) -> None:
        """Tell the worker how `stream` goes on, if that can be guessed: by `text`, which `request` continues."""
        free = not (stream.sampling.constraint or request.sampling.constraint)  # else it waits to be compiled
        tokens = self._behind(text) if free and request.logprobs is None else None
        if tokens is None:
            return
        try:
            self.check(request, [*held.tokens, *tokens])
        except FieldError:
            return  # as it will be told when its turn comes
        then = self._open_stream(0, request, Group())
        self._link.send(Extend(then.id, stream.id, AT_END, tokens, then.sampling, hold=not request.last))
        held.ahead = Ahead(then, tokens)

    def _behind(self, text: str) -> list[int] | None:
        """The tokens of `text` as it stands behind other text, None where that depends on it or takes long."""
        if len(text) > INLINE_CHARS:
            return None
        alone = self._tokenizer.encode("a")
        both = self._tokenizer.encode("a" + text)
        return both[len(alone) :] if both[: len(alone)] == alone else None

    def _adopt(self, held: Held, ahead: Ahead, group: Group) -> Stream:
        """The guess was right: `group` reads what is being generated already."""
        stream = ahead.stream
        held.id, held.ahead = stream.id, None
        stream.cached = len(ahead.expected or []) - len(ahead.tokens)
        group.error = stream.group.error
        stream.group = group
        if stream.queued:
            group.ready.append(stream)
        return stream

    def resume(self, stream: Stream) -> None:
        """What it paused at is no stop string."""
        stream.paused = False
        self._link.send(Resume(stream.id))

    def end(self, stream: Stream, output: Output, now: float) -> None:
        """`output` is its last."""
        self._metrics.request.observe(now - stream.began)
        held = stream.request.held
        if held is not None and not stream.request.last:
            held.id = stream.id
            held.tokens += output.tokens
            finish = output.finish
            if finish is not None and isinstance(finish.matched, int) and not stream.no_stop_trim:
                held.tokens.pop()  # the stop token is no text
            if held.ahead is not None and stream.ended and not (finish and isinstance(finish.matched, str)):
                held.ahead.expected = held.tokens + held.ahead.tokens
            stream.ended = True  # after a stop string the worker goes on until it is told how
            self.streams.pop(stream.id, None)
        elif held is not None:
            held.id = 0
        if not stream.ended:  # a stop string: the worker does not know
            self.forget(stream)
        if self._log_requests:
            log.info("finished rid=%s finish=%s text=%r", output.rid, output.finish, output.text)

    def forget(self, stream: Stream) -> None:
        stream.ended = True
        if self.streams.pop(stream.id, None) is not None:
            self._link.send(Abort(stream.id))

    def release(self, held: Held) -> None:
        """Its KV goes to the prefix cache, its place to somebody else."""
        ahead, held.ahead = held.ahead, None
        ids = [held.id] if ahead is None else [held.id, ahead.stream.id]
        held.id = 0
        if ahead is not None:
            self.streams.pop(ahead.stream.id, None)
        for id in filter(None, ids):
            self._link.send(Abort(id))


def _packed(field: str, ids: Collection[int], size: int) -> bytes:
    """Some ids, which `field` holds, packed. Raises FieldError where one is not in [0, size)."""
    try:
        packed = pack(ids)
        fits = int(np.frombuffer(packed, np.uint32).max()) < size  # in a fifth of the time that `max` takes
    except OverflowError:
        packed, fits = b"", False
    if not fits:
        bad = min(ids) if min(ids) < 0 else max(ids)
        raise FieldError(field, f"{field} must hold token ids in [0, {size}), got {bad}")
    return packed


def is_ahead(stream: Stream) -> bool:
    held = stream.request.held
    return held is not None and held.ahead is not None and held.ahead.stream is stream


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
