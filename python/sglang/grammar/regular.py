"""Automata meet vocabularies: masks by state, made when a state is first visited."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from sglang.base.errors import FieldError
from sglang.base.plan import ENDS, LIVES, STOPS
from sglang.grammar.automaton import Automaton
from sglang.grammar.minimal import DEAD
from sglang.grammar.rules import Illegal, Machine, Words
from sglang.grammar.vocab import Vocabulary

MASK_BYTES = 64 << 20  # of one constraint's masks kept; the oldest go first
STEPS = 1 << 16  # of one constraint's tokens taken that are remembered
GAP_STEPS = 20_000_000  # states x tokens looked at for gaps of a vocabulary that lacks single bytes

_numbers = itertools.count()


class RegularCompiled:
    """A regular language over a vocabulary. `machine` is all that a device needs to follow it.

    `alive`: states from which the vocabulary can spell an accepted text; None where that is all of them, which every
    vocabulary with a token for each byte has.
    Raises FieldError(field) where it can spell none at all.
    """

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary, field: str = "regex"):
        self.automaton = automaton
        self.vocabulary = vocabulary
        self.number = next(_numbers)
        self._steps: dict[tuple[int, int], int] = {}  # (state, token) -> the state after it
        self.alive, ends = _alive(automaton, vocabulary, field)
        # As lists: a cursor looks at one state at a time.
        self.accepts: list[bool] = automaton.accepts.tolist()
        self.ends: list[bool] = ends.tolist()
        lives = np.ones(automaton.states, bool) if self.alive is None else self.alive
        flags = sum(
            np.where(states, flag, 0) for states, flag in ((automaton.accepts, ENDS), (lives, LIVES), (ends, STOPS))
        )
        self._forced: dict[int, bytes] = {}
        self.machine = Machine(self.number, automaton.table, np.asarray(flags, np.uint8))
        self._masks: OrderedDict[int, Words] = OrderedDict()
        self._kept = max(16, MASK_BYTES // (4 * vocabulary.words))
        self._lock = threading.Lock()

    def cursor(self) -> "RegularCursor":
        return RegularCursor(self, 0)

    @property
    def nbytes(self) -> int:
        return self.automaton.table.nbytes + 4 * self.vocabulary.words * len(self._masks)

    def step(self, state: int, token: int) -> int:
        """The state after `token`, DEAD where it is not allowed."""
        known = self._steps.get((state, token))
        if known is not None:
            return known
        vocabulary = self.vocabulary
        data = vocabulary.bytes[token] if 0 <= token < len(vocabulary.bytes) else b""
        after = self.automaton.walk(state, data) if data else DEAD
        if after >= 0 and self.alive is not None and not self.alive[after]:
            after = DEAD
        if len(self._steps) >= STEPS:
            self._steps.clear()
        self._steps[state, token] = after
        return after

    def forced(self, state: int) -> bytes:
        known = self._forced.get(state)
        if known is None:
            known = self._forced[state] = self.automaton.forced(state)
        return known

    def mask(self, state: int) -> Words:
        """The mask of a state, shared and read-only."""
        with self._lock:
            known = self._masks.get(state)
            if known is not None:
                self._masks.move_to_end(state)
                return known
        vocabulary = self.vocabulary
        if self.alive is None:
            allowed = vocabulary.allowed(self.automaton.table, state)
        else:
            allowed = np.zeros(vocabulary.size, bool)
            tokens, targets = vocabulary.reached(self.automaton.table, state)
            allowed[tokens[self.alive[targets]]] = True
        made = vocabulary.pack(allowed)
        if self.automaton.accepts[state]:
            made |= vocabulary.eos_words
        made.flags.writeable = False
        with self._lock:
            self._masks[state] = made
            if len(self._masks) > self._kept:
                self._masks.popitem(last=False)
        return made


def _alive(
    automaton: Automaton, vocabulary: Vocabulary, field: str
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_]]:
    """`RegularCompiled.alive`, and the states behind which nothing but the end may come."""
    ways = automaton.table >= 0
    if not (ways.any(0) & ~vocabulary.single).any():
        return None, automaton.accepts & ~ways.any(1)
    if automaton.states * len(vocabulary.bytes) > GAP_STEPS:
        raise FieldError(field, f"{field} is too large for a vocabulary that has no token for some of its bytes")
    targets = []
    for state in range(automaton.states):
        targets.append(np.unique(vocabulary.reached(automaton.table, state)[1]))
    alive = automaton.accepts.copy()
    while True:
        more = np.array([a or bool(alive[t].any()) for a, t in zip(alive, targets, strict=True)])
        if (more == alive).all():
            break
        alive = more
    if not alive[0]:
        raise FieldError(field, f"{field}: the model's vocabulary cannot spell any text that matches")
    goes_on = np.array([bool(alive[t].any()) for t in targets])
    return alive, automaton.accepts & ~goes_on


class RegularCursor:
    """`state` is all there is to it: a device may hold it instead. ENDED after an end-of-sequence token."""

    ENDED = -2
    __slots__ = ("compiled", "state")

    def __init__(self, compiled: RegularCompiled, state: int):
        self.compiled = compiled
        self.state: int = state

    def mask(self, row: Words | None = None) -> Words:
        made = self.compiled.mask(self.state) if self.state >= 0 else self.compiled.vocabulary.eos_words
        if row is None:
            return made
        row[: len(made)] = made
        return row

    def advance(self, token: int) -> None:
        vocabulary = self.compiled.vocabulary
        if token in vocabulary.eos_ids and (self.state < 0 or self.accepting):
            self.state = self.ENDED
            return
        state = self.compiled.step(self.state, token) if self.state >= 0 else DEAD
        if state < 0:
            raise Illegal(f"token {token} is not allowed in state {self.state}")
        self.state = state

    def feed(self, text: bytes) -> None:
        state = self.compiled.automaton.walk(self.state, text)
        if state < 0:
            raise Illegal(f"{text!r} is not allowed in state {self.state}")
        self.state = state

    def forced(self) -> bytes:
        return self.compiled.forced(self.state) if self.state >= 0 else b""

    def follows(self, text: bytes) -> bool:
        return self.compiled.automaton.walk(self.state, text) >= 0

    def fork(self) -> "RegularCursor":
        return RegularCursor(self.compiled, self.state)

    @property
    def place(self) -> Hashable:
        return self.compiled.number, self.state

    @property
    def machine(self) -> Machine:
        return self.compiled.machine

    @property
    def accepting(self) -> bool:
        return self.state < 0 or self.compiled.accepts[self.state]

    @property
    def finished(self) -> bool:
        return self.state < 0 or self.compiled.ends[self.state]
