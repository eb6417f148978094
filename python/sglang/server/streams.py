"""What a caller asks for and gets, and the stream between: pieces in, as the worker sends them, outputs out.

Pieces are filed first; a reader then gets all that has come as one Output per sequence, so a slow client, or a loop
that is behind, gets fewer and larger outputs and never a queue of stale ones.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from msgspec import Struct

from sglang.base.errors import FieldError, Overloaded
from sglang.base.messages import Finish, Logprobs, Piece, Score
from sglang.base.sampling import SamplingParams
from sglang.grammar.search import Patterns
from sglang.text.detokenizer import Detokenizer

NEVER = 1 << 62
NONE: list[Score] = []  # of outputs that have none; nobody writes to an output's lists


class Held(Struct):
    """A sequence that keeps its place and its KV in the worker from one generation of a chain to the next."""

    id: int = 0  # what the worker knows it by; 0: there is none
    tokens: list[int] = []
    ahead: "Ahead | None" = None
    guesses: bool = True  # no guess has been wrong


class Ahead(Struct):
    """How a held sequence goes on, told to the worker before its generation has ended: it loses no step over it.

    A guess: only the whole text, encoded anew, says which tokens its continuation has. `expected`: those that the guess
    is right for, once the generation has ended as the worker takes it; None: it has ended otherwise.
    """

    stream: "Stream"
    tokens: list[int]
    expected: list[int] | None = None


class Request(Struct, kw_only=True):
    """One sequence to generate.

    `held`: the sequence that this one goes on with where their tokens agree; it is held again unless `last`.
    `then`: the text that is to follow, and the request that continues it, where they are known already.
    `interval`: tokens between two outputs, the first and the last always come; 0: the last alone.
    `source`, `constraint`, `stop_regex`: what the caller calls the prompt, the constraint and the patterns to stop at,
    for error messages.
    `group`: a name that abort() knows it by as well. `parent`: the name of the request that it continues (`Places`).
    """

    prompt: str | list[int]
    sampling: SamplingParams = SamplingParams()
    logprobs: Logprobs | None = None
    rid: str = ""
    group: str = ""
    parent: str = ""
    interval: int = 1
    namespace: str = ""
    source: str = "prompt"
    constraint: str = "sampling_params"
    stop_regex: str = "stop_regex"
    held: Held | None = None
    last: bool = True
    then: "tuple[str, Request] | None" = None
    patterns: Patterns | None = None  # of sampling.stop_regex, compiled
    embeds: bool = False  # a vector is wanted, and no text


class Output(Struct, gc=False):
    """What a sequence has gained since its last Output (`delta`, `new`, `scores`), and all of it (`text`, `tokens`).

    `tokens` is shared with later outputs: read it before asking for the next one. It holds a matched stop token,
    `text` does not. `prompt_scores` comes once, with the first output. `first`: there was none before.
    Under a constraint the last tokens may have been replaced by others that spell the same and more (`new` has those);
    `text` only grows. `jumped`: how many of `tokens` were not drawn.
    """

    rid: str
    delta: str
    text: str
    new: list[int]
    tokens: list[int]
    scores: list[Score]
    prompt_scores: list[Score]
    finish: Finish | None
    prompt_tokens: int
    cached_tokens: int
    latency_s: float
    jumped: int = 0
    first: bool = False
    embedding: bytes = b""


class Sink(Protocol):
    """Where events are written to."""

    def write(self, data: bytes, on_room: Callable[[], None]) -> bool:
        """Never waits. False: `data` is taken, but no more before `on_room` is called."""
        ...


Frame = Callable[[int, Output], bytes]  # (index of the request, what it gained) -> an event


def _nothing() -> None: ...


class Group:
    """The streams of one reader. `sink`, `frame`: of a reader that is written to; `rest`: the bytes of its end."""

    __slots__ = ("due", "error", "frame", "left", "on_room", "ready", "rest", "sink", "waiter", "waits")

    def __init__(
        self, sink: Sink | None = None, frame: Frame | None = None, on_room: "Callable[[Group], None] | None" = None
    ) -> None:
        self.ready: list[Stream] = []
        self.waiter: asyncio.Future[None] | None = None
        self.error: Exception | None = None
        self.left = 0  # streams that have not ended
        self.sink = sink
        self.frame = frame
        self.on_room: Callable[[], None] = _nothing if on_room is None else partial(on_room, self)
        self.rest = b""
        self.due = False  # it has something to be written, and a turn
        self.waits = False  # for its client

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Stream:
    """A sequence: what has come and was not yet read, and the state of its text."""

    __slots__ = (
        "began", "cached", "delta", "detokenizer", "ended", "group", "id", "index", "interval", "jumped", "last",
        "new", "no_stop_trim", "paused", "pending", "pieces", "plain", "prompt_scores", "prompt_tokens", "queued",
        "request", "sampling", "scores", "sent", "text", "tokens", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        index: int,
        request: Request,
        sampling: SamplingParams,
        group: Group,
        detokenizer: Detokenizer,
    ):
        self.id = id
        self.index = index
        self.request = request
        self.sampling = sampling  # as the worker is told
        self.prompt_tokens = 0
        self.group = group
        self.detokenizer = detokenizer
        self.interval = request.interval
        self.no_stop_trim = request.sampling.no_stop_trim
        self.wanted = 1 if request.sampling.stops_by_text or request.interval else NEVER
        self.plain = False  # every token is an output, as it came
        self.began = self.last = 0.0
        self.pieces: list[Piece] = []
        self.pending = 0  # tokens in `pieces`
        self.queued = False  # in group.ready
        self.ended = False  # the worker has forgotten it
        self.paused = False  # the worker waits to hear whether it has ended
        self.sent = False  # an Output was made
        self.text = ""
        self.tokens: list[int] = []
        self.delta = ""  # this and the next three: not yet in an Output
        self.new: list[int] = []
        self.scores: list[Score] = []
        self.prompt_scores: list[Score] = []
        self.cached = 0
        self.jumped = 0

    def take(self, now: float) -> Output | None:
        """Everything that has come, as one Output; None while none is due. Raises what the worker refused with."""
        if not self.plain:
            return self._take_all(now)
        pieces, new = self.pieces, []
        for piece in pieces:
            if piece.finish is not None or piece.replaced or piece.jumped:
                return self._take_all(now)
            new = new + piece.tokens if new else piece.tokens
        if not new:
            return self._take_all(now)
        # What `_take_all` does in the case of nearly all tokens, at a fraction of its cost.
        pieces.clear()
        self.pending = 0
        self.queued = False
        delta = self.detokenizer.read(new, False)
        tokens = self.tokens
        tokens += new
        self.text = text = self.text + delta
        return Output(
            self.request.rid, delta, text, new, tokens, NONE, NONE, None, self.prompt_tokens, self.cached,
            now - self.began, self.jumped,
        )  # fmt: skip

    def _take_all(self, now: float) -> Output | None:
        new: list[int] = []
        scores: list[Score] = []
        finish: Finish | None = None
        embedding = b""
        pieces, self.pieces = self.pieces, []
        for piece in pieces:
            if piece.replaced:
                self._take_back(piece.replaced - len(new))
                del new[max(0, len(new) - piece.replaced) :]
            self.jumped += piece.jumped
            new += piece.tokens
            scores += piece.scores
            if piece.prompt_scores:
                self.prompt_scores = piece.prompt_scores
            if piece.cached_tokens:
                self.cached = piece.cached_tokens
            finish = piece.finish
            self.paused = piece.paused
            embedding = piece.embedding
        self.pending = 0
        self.queued = False
        ends = finish is not None and finish.type == "stop" and isinstance(finish.matched, int)
        stop_token = ends and not self.no_stop_trim
        got = self.detokenizer.push(new[:-1] if stop_token else new, finish is not None)
        if got.stop is not None:
            finish = Finish("stop", got.stop)
            self._forget_jumps(pieces, len(new) - got.tokens_used)
            del new[got.tokens_used :], scores[got.tokens_used :]
        elif finish is not None and finish.type == "abort" and finish.status:
            raise _refusal(finish, self.request)
        self.tokens += new
        self.text += got.delta
        self.delta += got.delta
        self.new += new
        self.scores += scores
        if not self.request.sampling.stops_by_text:
            self.wanted = self.interval or NEVER
        due = finish is not None or (self.interval and (not self.sent or len(self.new) >= self.interval))
        if not due:
            return None
        output = Output(
            rid=self.request.rid,
            delta=self.delta,
            text=self.text,
            new=self.new,
            tokens=self.tokens,
            scores=self.scores,
            prompt_scores=self.prompt_scores,
            finish=finish,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            latency_s=now - self.began,
            jumped=self.jumped,
            first=not self.sent,
            embedding=embedding,
        )
        if not self.sent:
            self.sent = True
            self.plain = (
                self.interval == 1 and not self.request.sampling.stops_by_text and self.request.logprobs is None
            )
        self.delta, self.new, self.scores, self.prompt_scores = "", [], [], []
        return output

    def _forget_jumps(self, pieces: list[Piece], unread: int) -> None:
        """The last `unread` tokens of `pieces` are no part of the text. A piece ends with what it jumped."""
        for piece in reversed(pieces):
            here = min(unread, len(piece.tokens))
            self.jumped -= min(here, piece.jumped)
            unread -= here

    def _take_back(self, n: int) -> None:
        """The last `n` tokens, already read, are replaced."""
        if n > 0:
            self.detokenizer.take_back(self.tokens[-n:])
            del self.tokens[-n:], self.new[max(0, len(self.new) - n) :]


def _refusal(finish: Finish, request: Request) -> Exception:
    if finish.status == 503:
        return Overloaded(finish.message)
    if finish.status < 500:
        blamed = request.constraint if finish.field == "constraint" else request.source
        return FieldError(blamed, finish.message, finish.status)
    return RuntimeError(finish.message)
