"""What the scheduler knows: sequences, who waits, who runs, and which pages are whose.

A sequence is a list of known tokens of which a prefix is computed. `computed` counts what has been *planned*: plans run
on the device in the order they are made, so a later plan may rely on an earlier one that has not landed yet. That is
also why a page may be handed on the moment its owner lets go: whatever still reads or writes it was planned before.
"""

import random
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from sglang.base.messages import Extend, Finish, Logprobs, Score, Stats
from sglang.base.sampling import SamplingParams
from sglang.grammar.rules import Cursor, Words
from sglang.schedule.radix import Node, Pages, RadixTree, Tokens
from sglang.schedule.residents import Resident, Residents

RATIO_BASE = 0.4  # share of its remaining tokens that a running sequence is expected to use
RATIO_FLOOR = 0.2  # of the base
RATIO_DECAY = 1e-4  # per step
RATIO_JUMP = 0.05  # added when sequences had to be retracted


@dataclass(frozen=True)
class Budget:
    """What there is to decide over. chunk_tokens: most tokens of prompts in a step, -1 for no limit.

    beside_tokens: most tokens of a step for which sequences wait, their own included: it bounds their pause, but for a
    burst's. Half of it is left to prompts. None: chunk_tokens beside any number of decodes.
    grain: long parts of prompts end at multiples of it where they can, and are at most half of it longer for that: the
    engine has fewer shapes to be ready for.
    embeds: sequences end in a vector, and nothing is generated. whole: they are computed in one step, uncut.
    """

    pages: int
    page_size: int
    slots: int
    context_length: int
    chunk_tokens: int
    max_prefill_tokens: int
    policy: str
    conservativeness: float
    radix: bool
    max_queued: int
    eos_ids: tuple[int, ...]
    seed: int
    embeds: bool = False
    whole: bool = False
    beside_tokens: int | None = None
    grain: int = 1

    @property
    def tokens(self) -> int:
        return self.pages * self.page_size


def ints(values: Tokens | Pages) -> "array[int]":
    """As an array that grows, in a tenth of the time that a list would take."""
    return array("i", values.tobytes())


class Status(Enum):
    WAITING = auto()  # in the queue, owns nothing
    RUNNING = auto()  # has a slot, is in plans
    HELD = auto()  # its generation ended; keeps slot and pages for an Extend
    PARKED = auto()  # held, but its pages went to the tree
    ENDED = auto()


class Seq:
    """One sequence. Lengths in tokens; `first` is the position of its (current) first generated token."""

    __slots__ = (
        "_array", "after", "cached", "certain", "computed", "cursor", "epoch", "first", "flying", "hint", "hold", "id",
        "kept", "last", "logprobs", "mask", "namespace", "node", "order", "pages", "paused", "placed", "prompt_scores",
        "resident", "sampling", "scored", "seated", "shared", "since", "slot", "status", "stop_texts", "stops",
        "tabled", "tail", "tokens",
    )  # fmt: skip

    def __init__(self, id: int, namespace: str, place: tuple[int, ...], now: float):
        self.id = id
        self.namespace = namespace
        self.order = (*place, id)  # of arrival, that of what it continues first: a program's calls stay together
        self.since = now
        self.status = Status.WAITING
        self.slot = -1
        self.epoch = 0  # plans made before a change of heart carry an older one; their tokens are ignored
        self.tokens = array("i")
        self.computed = 0
        self.flying = 0  # tokens drawn on the device that the host has not seen
        self.pages = array("i")
        self.shared = 0  # of these, the first so many are the tree's
        self.tabled = 0  # of these, the first so many stand in the engine's table
        self.node: Node | None = None  # held
        self.hint: tuple[int, int] = (-1, 0)  # of the tree's version: tokens it had of this sequence
        self._array = np.empty(0, np.int32)
        self.seated = False  # the engine knows slot and sampling parameters
        self.cursor: Cursor | None = None  # its constraint, behind the last known token
        self.mask: Words | None = None  # what the cursor allows next, where it has been asked
        self.resident: Resident | None = None  # its constraint on the device, held
        self.placed = False  # the device knows where in it the cursor is
        self.after: Extend | None = None  # how it goes on when its generation ends by itself
        self.paused = False  # held until it is known whether its generation has ended
        self.kept = 0  # of a generation that has ended: known tokens that are text

    def begin(self, sampling: SamplingParams, logprobs: Logprobs | None, hold: bool, budget: Budget) -> None:
        """Start a generation after the tokens known now."""
        self.first = len(self.tokens)
        self.certain = self.first  # tokens before it stay, whatever a constraint forces: the prompt, and forced ones
        self._array = np.array(self.tokens, np.int32)
        self.sampling = sampling
        self.logprobs = logprobs
        self.hold = hold
        # The last token drawn needs no page: nothing is computed from it.
        room = min(budget.context_length - self.first, budget.tokens - self.first + 1)
        self.last = self.first + max(0, min(sampling.max_new_tokens, room))  # length at which it must end
        eos = () if sampling.ignore_eos else budget.eos_ids
        self.stops = frozenset((*eos, *sampling.stop_token_ids))
        self.stop_texts = [text.encode() for text in sampling.stop]
        self.tail = b""  # what was generated last, as far as a stop string may begin in it
        self.paused = False
        self.prompt_scores: list[Score] = []
        self.scored = logprobs is None or logprobs.start < 0  # prompt scores delivered or not wanted
        self.cached: int | None = None  # tokens the cache gave when it was first admitted

    @property
    def length(self) -> int:
        """All tokens, drawn but unseen ones included."""
        return len(self.tokens) + self.flying

    @property
    def generated(self) -> int:
        return self.length - self.first

    @property
    def score_from(self) -> int:
        """First prompt position whose log-probability something predicts."""
        assert self.logprobs is not None
        return max(self.logprobs.start, 1)

    def array(self, n: int) -> Tokens:
        """The first `n` known tokens."""
        if n > len(self._array):
            self._array = np.array(self.tokens, np.int32)
        return self._array[:n]


@dataclass
class Counters:
    steps: int = 0
    prompt_tokens: int = 0
    prompt_cached_tokens: int = 0
    generated_tokens: int = 0
    retractions: int = 0
    evicted_tokens: int = 0
    aborted: int = 0
    jumped_tokens: int = 0


class Does(Enum):
    """What a row is for."""

    FILLS = auto()  # part of a prompt
    DRAWS = auto()  # a token
    ENDS = auto()  # the last part of a prompt after which nothing is generated


# (prompt, generated, forced bytes, the cursor behind them) -> (how many of `generated` to keep, tokens to append, bytes
# that they add to the text), or None where no token is certain.
Jump = Callable[[list[int], list[int], bytes, Cursor], tuple[int, list[int], bytes] | None]
Flown = list[tuple[Seq, int, Does]]  # what commit must remember of a plan: per row the sequence, its epoch, its aim


@dataclass
class State:
    """All of it. Made by the worker, changed by apply / plan / commit / flush only."""

    budget: Budget
    seqs: dict[int, Seq] = field(default_factory=dict)
    waiting: list[Seq] = field(default_factory=list)
    running: list[Seq] = field(default_factory=list)  # in order of admission
    held: dict[int, Seq] = field(default_factory=dict)  # status HELD, oldest first
    flights: deque[Flown] = field(default_factory=deque)
    count: Counters = field(default_factory=Counters)
    waited: list[float] = field(default_factory=list)  # seconds in the queue, of those admitted; whoever tells, clears
    jump: Jump | None = None  # how text that a constraint forces becomes tokens; None: token by token
    words: Sequence[bytes] | None = None  # what each token says; None: only the front sees stop strings
    residents: Residents | None = None  # constraints that the device follows; None: masks are made here

    def __post_init__(self) -> None:
        b = self.budget
        self.tree = RadixTree(b.page_size)
        self.free = array("i", range(b.pages - 1, -1, -1))
        self.slots = list(range(b.slots - 1, -1, -1))
        self.random = random.Random(b.seed)
        self.ratio_base = min(RATIO_BASE * b.conservativeness, 1.0)
        self.new_token_ratio = self.ratio_base

    @property
    def idle(self) -> bool:
        """Nothing to plan and nothing to commit."""
        return not self.waiting and not self.running and not self.flights

    def stats(self) -> Stats:
        b, c = self.budget, self.count
        return Stats(
            running=len(self.running),
            waiting=len(self.waiting),
            used_tokens=(b.pages - len(self.free) - self.tree.evictable) * b.page_size,
            cached_tokens=self.tree.evictable * b.page_size,
            total_tokens=b.tokens,
            steps=c.steps,
            prompt_tokens=c.prompt_tokens,
            prompt_cached_tokens=c.prompt_cached_tokens,
            generated_tokens=c.generated_tokens,
            retractions=c.retractions,
            evicted_tokens=c.evicted_tokens,
            aborted=c.aborted,
            jumped_tokens=c.jumped_tokens,
        )

    # Pages. Every page is in exactly one place: free, in the tree, or owned by one sequence.

    def take_pages(self, n: int) -> "array[int] | None":
        """n pages, evicting from the tree where needed; None (and nothing taken) where there are not as many."""
        if n > len(self.free):
            evicted = self.tree.evict(n - len(self.free))
            self.count.evicted_tokens += len(evicted) * self.budget.page_size
            self.free.extend(evicted)
            if n > len(self.free):
                return None
        if n == 0:
            return array("i")
        taken = self.free[: -n - 1 : -1]  # ascending where nothing was freed: neighbours in memory
        del self.free[-n:]
        return taken

    @property
    def available(self) -> int:
        """Pages that take_pages could give."""
        return len(self.free) + self.tree.evictable

    def share(self, seq: Seq, upto: int) -> None:
        """File the first `upto` tokens of `seq` in the tree, so that others can use their pages.

        Where the tree had these tokens already, its pages replace the sequence's own.
        """
        whole = upto // self.budget.page_size
        if not self.budget.radix or whole <= seq.shared:
            return
        size, begin = self.budget.page_size, seq.shared
        own = np.array(seq.pages[begin:whole], np.int32)
        after = self.tree.root(seq.namespace) if seq.node is None else seq.node
        node, path = self.tree.insert(after, seq.array(whole * size)[begin * size :], own)
        self.tree.hold(node)
        if seq.node is not None:
            self.tree.release(seq.node)
        seq.node = node
        differ = np.flatnonzero(own != path)
        if len(differ):
            self.free += ints(own[differ])
            seq.pages[begin:whole] = ints(path)
            seq.tabled = min(seq.tabled, begin)
        seq.shared = whole

    def adopt(self, seq: Seq) -> None:
        """Take over what the tree has of a sequence's tokens beyond what it computed itself.

        At least one token is left to compute (its logits are wanted), and whatever must be scored.
        """
        if not self.budget.radix:
            return
        limit = len(seq.tokens) - 1 if seq.scored else min(len(seq.tokens), seq.score_from) - 1
        if limit <= seq.computed:
            return
        node, pages = self.tree.match(seq.namespace, seq.array(limit))
        if len(pages) * self.budget.page_size <= seq.computed:
            return
        self.tree.hold(node)
        if seq.node is not None:
            self.tree.release(seq.node)
        self.free += seq.pages[seq.shared :]
        seq.tabled = min(seq.tabled, seq.shared)
        seq.node, seq.pages, seq.shared = node, ints(pages), len(pages)
        seq.computed = len(pages) * self.budget.page_size

    def rewind(self, seq: Seq, valid: int) -> None:
        """Forget what was computed, or is being computed, beyond the first `valid` tokens."""
        seq.epoch += 1  # what is flying was drawn for the old continuation
        seq.flying = 0
        seq.placed = False
        seq._array = seq._array[:valid]
        if seq.computed <= valid:
            return
        size = self.budget.page_size
        pages = -(-valid // size)
        if pages <= seq.shared and valid % size:  # the last page is the tree's: nothing may be written into it
            pages = valid // size
            valid = pages * size
        self.free += seq.pages[max(pages, seq.shared) :]
        del seq.pages[pages:]
        if pages < seq.shared:
            assert seq.node is not None
            node, _ = self.tree.match(seq.namespace, seq.array(pages * size))
            self.tree.hold(node)
            self.tree.release(seq.node)
            seq.node = node
            seq.shared = pages
        seq.tabled = min(seq.tabled, pages)
        seq.computed = valid

    def let_go(self, seq: Seq) -> None:
        """Give up slot and pages; what was computed stays in the tree for as long as it can."""
        self.share(seq, min(seq.computed, len(seq.tokens)))
        self.free += seq.pages[seq.shared :]
        if seq.node is not None:
            self.tree.release(seq.node)
            seq.node = None
        seq.pages = array("i")
        seq.shared = seq.tabled = seq.computed = 0
        seq.seated = False
        self.unfollow(seq)
        if not seq.scored:
            seq.prompt_scores = []  # computed again from the start
        seq.flying = 0
        seq.epoch += 1
        if seq.slot >= 0:
            self.slots.append(seq.slot)
            seq.slot = -1

    def unfollow(self, seq: Seq) -> None:
        """The device no longer follows its constraint."""
        if seq.resident is not None:
            assert self.residents is not None
            self.residents.release(seq.resident)
        seq.resident, seq.placed = None, False

    def rename(self, seq: Seq, id: int) -> None:
        del self.seqs[seq.id]
        if self.held.pop(seq.id, None) is not None:
            self.held[id] = seq
        seq.id = id
        self.seqs[id] = seq

    def remove(self, seq: Seq) -> None:
        """Forget a sequence; what it computed stays cached."""
        self._unlist(seq)
        self.let_go(seq)
        seq.status = Status.ENDED
        del self.seqs[seq.id]

    def conclude(self, seq: Seq, finish: Finish) -> None:
        """A generation is over: hold the sequence where it is to be held, else forget it."""
        if not seq.hold or finish.type == "abort":
            self.remove(seq)
            return
        stop_token = isinstance(finish.matched, int) and not seq.sampling.no_stop_trim
        seq.kept = len(seq.tokens) - stop_token
        self._hold(seq)

    def pause(self, seq: Seq) -> None:
        """Have a sequence wait for a Resume, or for what ends or extends it."""
        seq.paused = True
        self._hold(seq)

    def _hold(self, seq: Seq) -> None:
        self._unlist(seq)
        self.unfollow(seq)
        seq.epoch += 1
        seq.flying = 0
        if seq.slot < 0:
            seq.status = Status.PARKED
            return
        self.share(seq, min(seq.computed, len(seq.tokens)))
        seq.status = Status.HELD
        self.held[seq.id] = seq

    def _unlist(self, seq: Seq) -> None:
        match seq.status:
            case Status.WAITING:
                self.waiting.remove(seq)
            case Status.RUNNING:
                self.running.remove(seq)
            case Status.HELD:
                del self.held[seq.id]
            case _:
                pass

    def check(self) -> None:
        """The invariants, for tests: raises AssertionError."""
        owned: list[int] = []
        for seq in self.seqs.values():
            owned += seq.pages[seq.shared :]
            placed = seq.status in (Status.RUNNING, Status.HELD)
            assert placed == (seq.slot >= 0), f"sequence {seq.id} is {seq.status} with slot {seq.slot}"
            assert placed or not seq.pages
            assert len(seq.pages) * self.budget.page_size >= seq.computed
        in_tree: list[int] = []
        held = 0
        holders: dict[int, int] = {}
        for seq in self.seqs.values():
            node = seq.node
            while node is not None and node.parent is not None:
                holders[id(node)] = holders.get(id(node), 0) + 1
                node = node.parent
        stack = list(self.tree._roots.values())
        while stack:
            node = stack.pop()
            in_tree += node.pages.tolist()
            stack += node.children.values()
            if node.parent is not None:
                assert node.holders == holders.get(id(node), 0), "a node's count is not its holders"
                held += len(node.pages) if node.holders else 0
        owned += self.free
        assert sorted(owned + in_tree) == list(range(self.budget.pages)), "a page is lost or in two places"
        assert len(in_tree) == self.tree.pages and held == self.tree.held_pages
        assert len(self.slots) + len(self.running) + len(self.held) == self.budget.slots
        if self.residents is not None:
            self.residents.check([seq.resident for seq in self.seqs.values() if seq.resident is not None])
