"""What scheduler and engine say to each other: a Plan (one forward step) and its Result.

Words: a **page** is `page_size` consecutive KV cells; a **slot** is a running sequence's seat in the engine's
per-sequence tables (page table, last token, sampling state); a **row** is a sequence's part of one step.
A plan never holds a token that is not yet known to the host: a decode row says -1 and the engine takes the slot's last
drawn token, so the next step can be planned before this one's tokens have been read.
"""

from typing import NamedTuple

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from sglang.base.messages import Score
from sglang.base.sampling import SamplingParams

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Masks = NDArray[np.uint32]

DRAWN = -1  # in Plan.tokens: the slot's last drawn token
KEEP, FREE = -2, -1  # in Plan.places: the state that the slot's last token led to; under no automaton
DEAD = -1  # in Load.table: no way on
# In Load.flags: the text may end here; some text that tokens can spell leads to an end; nothing but the end may come.
ENDS, LIVES, STOPS = 1, 2, 4


class Seat(Struct, gc=False):
    """A sequence takes a slot (or its parameters change): what the sampler must know of it.

    `drawn`: tokens generated before (a resumed sequence); `prompt` and `drawn` are filled only where penalties need
    them. `first` is the position of the first generated token, so position - first = tokens generated so far: the
    sampler keys randomness by (seed, that number), which is what makes a resumed sequence go on as it would have.
    """

    slot: int
    sampling: SamplingParams
    first: int
    prompt: list[int] = []
    drawn: list[int] = []


class Ask(NamedTuple):
    """Row `row` wants log-probabilities of the token it draws."""

    row: int
    top: int
    ids: tuple[int, ...]


class PromptAsk(NamedTuple):
    """Row `row` wants known tokens scored: `targets[i]` given everything up to the row's token `offset + i`."""

    row: int
    offset: int
    targets: list[int]
    top: int
    ids: tuple[int, ...]


class Load(Struct, gc=False):
    """An automaton over bytes comes to the device: its states become rows of an arena there, from `base` on.

    A large one comes in parts, which make the masks of some states each; only the first brings table and flags.
    table: [states, 256], the state after a byte, or DEAD; flags: [states]; first, count: states of this part, 0: all.
    """

    base: int
    table: NDArray[np.int16]
    flags: NDArray[np.uint8]
    first: int = 0
    count: int = 0


class Plan(Struct, gc=False):
    """One step: R rows, T tokens in all, row after row.

    Row r computes tokens at positions starts[r] .. starts[r] + counts[r] - 1 of the sequence in slot slots[r]; its keys
    and values go to the pages the table holds for those positions, and it attends to positions 0 .. its own.
    Where samples[r], a token is drawn from the logits of the row's last position; it becomes the slot's last token.
    Bit t % 32 of word t // 32 of a mask says whether token t may be drawn. A mask follows from all tokens before it, so
    a masked row is planned only when those are known. A row whose automaton is on the device is not: its place there is
    given once, and then kept from token to token.
    """

    step: int
    slots: Ints  # [R]
    starts: Ints  # [R]
    counts: Ints  # [R]
    samples: Bools  # [R]
    tokens: Ints  # [T], DRAWN = the slot's last drawn token
    table_slots: Ints  # [K] page-table entries that are new: table[slot, index] = page
    table_index: Ints  # [K]
    table_pages: Ints  # [K]
    seats: list[Seat] = []  # applied before the step
    asks: list[Ask] = []
    prompt_asks: list[PromptAsk] = []
    embeds: list[int] = []  # rows whose sequences end in a vector
    masks: Masks = field(default_factory=lambda: np.empty((0, 0), np.uint32))  # [U, ceil(vocab / 32)]
    masked: Ints = field(default_factory=lambda: np.empty(0, np.int32))  # [M] rows that draw under a mask
    mask_of: Ints = field(default_factory=lambda: np.empty(0, np.int32))  # [M] the mask of each
    loads: list[Load] = []  # applied before the step
    places: Ints = field(default_factory=lambda: np.empty(0, np.int32))  # [R] a row of the arena, KEEP or FREE; or [0]


class Result(Struct, gc=False):
    """What a step produced. tokens[r] is the drawn token, -1 where the row does not sample."""

    tokens: Ints  # [R]
    scores: dict[int, Score] = {}  # row -> score of the drawn token
    prompt_scores: dict[int, list[Score]] = {}  # row -> one per target
    embeddings: dict[int, bytes] = {}  # row of `Plan.embeds` -> float32
