"""Random walks: texts that an automaton accepts, sequences that a cursor allows."""

import random

import numpy as np

from sglang.grammar.automaton import Automaton
from sglang.grammar.rules import Cursor
from sglang.grammar.vocab import Vocabulary


class Walker:
    """Draws texts of an automaton: `wander` steps at random, then the shortest way to an end."""

    def __init__(self, automaton: Automaton):
        self.automaton = automaton
        table = automaton.table
        before: list[set[int]] = [set() for _ in range(automaton.states)]
        for state in range(automaton.states):
            for target in {*table[state].tolist()} - {-1}:
                before[target].add(state)
        todo = np.flatnonzero(automaton.accepts).tolist()
        self.distance = dict.fromkeys(todo, 0)
        for state in todo:
            for other in before[state]:
                if other not in self.distance:
                    self.distance[other] = self.distance[state] + 1
                    todo.append(other)

    def draw(self, random: random.Random, wander: int) -> str:
        table, accepts = self.automaton.table, self.automaton.accepts
        state, text = 0, bytearray()
        while True:
            ways = np.flatnonzero(table[state] >= 0).tolist()
            if not ways or (accepts[state] and (len(text) >= wander or random.random() < 0.1)):
                return text.decode()
            if len(text) < wander:
                byte = random.choice(ways)
            else:
                byte = min(ways, key=lambda b: self.distance[int(table[state, b])])
            text.append(byte)
            state = int(table[state, byte])


def sample(cursor: Cursor, vocabulary: Vocabulary, rng: np.random.Generator, steps: int) -> tuple[bytes, bool]:
    """A model without sense: random logits under the mask. Returns the text and whether it ended by itself."""
    text = b""
    for _ in range(steps):
        logits = rng.gumbel(size=vocabulary.size)
        allowed = vocabulary.unpack(cursor.mask())
        token = int(np.where(allowed, logits, -np.inf).argmax())
        assert allowed[token], "nothing is allowed"
        cursor.advance(token)
        if token in vocabulary.eos_ids:
            return text, True
        text += vocabulary.bytes[token]
    return text, False
