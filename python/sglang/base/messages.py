"""What travels between the front process and a worker. msgpack-encoded, typed, never pickled.

Front -> worker: Submit, Extend, Resume, Abort, Flush, Stop.   Worker -> front: Ready, Step, Flushed, Failed.

A sequence is a list of known tokens of which a prefix is computed. Everything that happens to it is the one primitive
*these tokens are now known, compute them next*: a prompt (Submit), a chained text after a generation, forced text, a
retokenised seam (all Extend), a resumed sequence after retraction.
"""

from array import array
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from sglang.base.sampling import SamplingParams


class Logprobs(Struct, array_like=True, frozen=True, gc=False):
    """Log-probabilities wanted. Natural logs of the model's own distribution, before temperature and constraints."""

    start: int = -1  # first prompt position to score; -1 = none of the prompt
    top: int = 0  # best alternatives per position
    ids: tuple[int, ...] = ()  # score these ids at every position


def pack(tokens: Iterable[int]) -> bytes:
    """Token ids as int32. Raises OverflowError where one is below 0 or does not fit."""
    return array("I", tokens).tobytes()


class Submit(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """A new sequence. `hold`: when its generation ends keep its place and KV and wait for Extend or Abort.

    `packed`: its tokens, as `pack` makes them: a long prompt as a list takes either end many times as long.
    `place`: the ids of what it continues, the oldest first. It stands in the queue behind those and before all that
    came after them.
    """

    id: int
    packed: bytes
    sampling: SamplingParams
    logprobs: Logprobs | None = None
    hold: bool = False
    namespace: str = ""  # cached prefixes are shared only inside one (cache salt, LoRA name, image hash)
    place: tuple[int, ...] = ()

    @property
    def tokens(self) -> "array[int]":
        """A copy, for the caller to keep."""
        return array("i", self.packed)


AT_END = -1


class Extend(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """Keep the first `keep` tokens of sequence `of` (prompt included), append `tokens`, generate on.

    The sequence goes by `id` from here on: what its last generation still sends carries `of`, and nobody mistakes it.
    `sampling` replaces the parameters for the next generation; its lengths count from here.
    keep AT_END: sent ahead, to be done in the step after the one in which the generation of `of` ends by itself; all of
    it is kept but a stop token that is no part of the text. `ahead`: the id of an Extend that was sent ahead and that
    this one takes the place of, whether or not it has been done.
    """

    id: int
    of: int
    keep: int
    tokens: list[int]
    sampling: SamplingParams
    logprobs: Logprobs | None = None
    hold: bool = False
    ahead: int = 0


class Resume(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """What a sequence paused at is no stop string after all."""

    id: int


class Abort(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """Forget a sequence: its client is gone, or the front found a stop string. No answer is sent."""

    id: int


class Flush(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """Empty the prefix cache. Answered by Flushed."""

    ticket: int


class Stop(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """End the worker after the current step."""


class Finish(Struct, array_like=True, frozen=True, gc=False):
    """Why a generation ended. `matched`: the token id (worker) or the stop string (front)."""

    type: Literal["length", "stop", "abort"]
    matched: int | str | None = None
    message: str = ""
    status: int = 0  # HTTP status where type is abort
    field: str = ""  # of the sampling parameters, where one is to blame


class Score(Struct, array_like=True, gc=False):
    """Log-probability of one known or drawn token, with what was asked for beside it."""

    token: int
    logprob: float | None  # None: the very first prompt token, which nothing predicts
    top: list[tuple[int, float]] = []  # (id, logprob), best first
    ids: list[tuple[int, float]] = []  # in the order asked


class Piece(Struct, array_like=True, gc=False):
    """What one sequence gained in a step.

    `replaced`: so many of the tokens sent before are taken back first. What `tokens` spell begins with what those
    spelled, so text that was sent stays. `jumped`: tokens that a constraint forced, which came without being drawn.
    """

    id: int
    tokens: list[int]
    finish: Finish | None = None
    scores: list[Score] = []  # of `tokens`, where asked for
    prompt_scores: list[Score] = []  # once, with the first piece
    cached_tokens: int = 0  # prompt tokens served from the prefix cache (first piece only)
    replaced: int = 0
    jumped: int = 0
    paused: bool = False  # these tokens seem to end with a stop string: nothing more comes before a Resume
    embedding: bytes = b""  # float32, of a server of embeddings: with its last piece


class Stats(Struct, array_like=True, gc=False):
    """The scheduler's state and its counters since start."""

    running: int = 0
    waiting: int = 0
    used_tokens: int = 0  # KV tokens of running sequences, cache not counted
    cached_tokens: int = 0  # KV tokens the prefix cache holds and nobody uses now
    total_tokens: int = 0  # size of the KV pool
    steps: int = 0
    prompt_tokens: int = 0  # prompt tokens of admitted sequences
    prompt_cached_tokens: int = 0  # of these, served from the cache
    generated_tokens: int = 0
    retractions: int = 0
    evicted_tokens: int = 0
    aborted: int = 0
    jumped_tokens: int = 0
    compiling: int = 0  # requests whose constraint is being compiled; they do not wait for the device yet


Side = Literal["right", "left"]


class Ready(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """The worker can serve. The facts the front tells users."""

    model_type: str
    architecture: str
    dtype: str
    device: str
    vocab_size: int
    context_length: int
    total_tokens: int  # KV pool
    page_size: int
    max_running: int
    parameters: int
    weight_bytes: int
    kv_bytes: int
    load_s: float
    eos_ids: tuple[int, ...]
    sampling: dict[str, float] = {}  # how the model's own generation_config.json wants it sampled
    embedding: int = 0  # numbers in a vector, where the server makes vectors and no text
    text_tokens: int = 0  # of a text of which a vector is made, at most: the rest is cut off; 0: nothing is
    text_side: Side = "right"  # where
    text_prompt: str = ""  # stands before every text
    lower_case: bool = False  # of texts, the prompt too


class Step(Struct, tag=True, array_like=True, gc=False):
    """`waited`: seconds in the queue, of each sequence that was admitted since the last Step."""

    pieces: list[Piece]
    stats: Stats
    waited: list[float] = []


class Flushed(Struct, tag=True, array_like=True, frozen=True, gc=False):
    ticket: int
    ok: bool  # False: requests are running or waiting


class Failed(Struct, tag=True, array_like=True, frozen=True, gc=False):
    """The worker's last words. `setting`: an impossible setting at start (exit code 2) rather than a fault."""

    reason: str
    setting: bool = False


ToWorker = Submit | Extend | Resume | Abort | Flush | Stop
FromWorker = Ready | Step | Flushed | Failed
