"""Language trees -> minimal automata over the bytes of UTF-8.

Tree -> DFA over classes of characters (`characters.py`) -> fewer states (`minimal.py`) -> bytes (`utf8.py`). Going to
bytes last keeps every step small: a counted string of 1000 characters is 1000 states until the end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.base.errors import FieldError
from sglang.grammar.characters import determine
from sglang.grammar.language import Node
from sglang.grammar.minimal import DEAD, minimal
from sglang.grammar.utf8 import Table, over_bytes
from sglang.grammar.work import Work


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over bytes. State 0 is the start; from every state an accepting one can be reached.

    table: [states, 256].
    only: the byte that must come next, where there is one way on and the text may not end here; -1 elsewhere.
    """

    table: Table
    accepts: NDArray[np.bool_]  # [states]
    only: NDArray[np.int16]  # [states]

    @staticmethod
    def of(table: Table, accepts: NDArray[np.bool_]) -> "Automaton":
        ways = table >= 0
        only = np.where((ways.sum(1) == 1) & ~accepts, ways.argmax(1), -1).astype(np.int16)
        return Automaton(table, accepts, only)

    @property
    def states(self) -> int:
        return len(self.accepts)

    def walk(self, state: int, data: bytes) -> int:
        """The state after `data`, DEAD where it leaves the language."""
        for byte in data:
            if state < 0:
                return DEAD
            state = int(self.table[state, byte])
        return state

    def matches(self, text: str | bytes) -> bool:
        end = self.walk(0, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        return end >= 0 and bool(self.accepts[end])

    def forced(self, state: int) -> bytes:
        """What must come next: the bytes up to the next place with a choice, the choice to end included."""
        if self.only[state] < 0:
            return b""
        out = bytearray()
        while (byte := int(self.only[state])) >= 0:
            out.append(byte)
            state = int(self.table[state, byte])
        return bytes(out)


def compile(node: Node, field: str = "regex") -> Automaton:
    """Raises FieldError(field) for an empty language, TooLarge for one over limits.GRAMMAR_STATES or GRAMMAR_WORK."""
    work = Work(field)
    try:
        dfa = minimal(determine(node, work), work)
    except RecursionError:
        raise FieldError(field, f"{field} is nested too deeply") from None
    if not len(dfa.accepts):
        raise FieldError(field, f"{field} matches no text at all")
    return Automaton.of(*over_bytes(dfa, work))
