"""A device that remembers which token every KV cell holds, and refuses to attend to a foreign one."""

import hashlib
from collections.abc import Callable

import numpy as np

from sglang.base.messages import Score
from sglang.base.plan import DRAWN, Plan, Result

VOCAB = 50


def next_token(tokens: list[int]) -> int:
    """What the fake model says after `tokens`: any change of any token changes it."""
    return hashlib.blake2b(np.array(tokens, np.int32).tobytes(), digest_size=4).digest()[0] % VOCAB


def score(tokens: list[int], token: int) -> float:
    return -(next_token(tokens) * VOCAB + token) / 7.0


class FakeEngine:
    """Executes plans in order. A cell holds the whole prefix up to and with its token: the truth about a KV entry."""

    overlap = True

    def __init__(self, pages: int, page_size: int, slots: int):
        self.page_size = page_size
        self.cells: list[tuple[int, ...] | None] = [None] * (pages * page_size)
        self.table: list[dict[int, int]] = [{} for _ in range(slots)]
        self.last = [-1] * slots
        self.computed = 0

    def prepare(self, quiet_s: float, wanted: Callable[[], bool]) -> float | None:
        return None

    def launch(self, plan: Plan) -> "Landed":
        for slot, index, page in zip(plan.table_slots, plan.table_index, plan.table_pages, strict=True):
            self.table[slot][int(index)] = int(page)
        # All rows write, then all rows read, as every layer of a real model does.
        at, rows = 0, []
        for slot, start, count in zip(plan.slots, plan.starts, plan.counts, strict=True):
            tokens = [self.last[slot] if t == DRAWN else int(t) for t in plan.tokens[at : at + count]]
            at += count
            rows.append((int(slot), int(start), tokens))
        assert at == len(plan.tokens)
        assert len({slot for slot, _, _ in rows}) == len(rows), "two rows of one sequence in a step"
        pending = sorted(rows, key=lambda row: row[1])  # a prefix another row writes comes first
        prefixes: dict[int, list[int]] = {}
        for slot, start, tokens in pending:
            prefix: list[int] = []
            if start:
                held = self.cells[self._cell(slot, start - 1)]
                assert held is not None and len(held) == start, f"slot {slot} attends to what is not its prefix"
                prefix = list(held)
                for position in range(start):
                    cell = self.cells[self._cell(slot, position)]
                    assert cell == tuple(prefix[: position + 1]), f"slot {slot} attends to a foreign cell"
            for i, token in enumerate(tokens):
                prefix.append(token)
                self.cells[self._cell(slot, start + i)] = tuple(prefix)
            prefixes[slot] = prefix
            self.computed += len(tokens)
        drawn = np.full(len(rows), -1, np.int32)
        result = Result(drawn)
        for row, (slot, _, _) in enumerate(rows):
            if plan.samples[row]:
                drawn[row] = self.last[slot] = next_token(prefixes[slot])
        for ask in plan.asks:
            token = int(drawn[ask.row])
            result.scores[ask.row] = Score(token, score(prefixes[rows[ask.row][0]], token))
        for ask in plan.prompt_asks:
            slot, start, _ = rows[ask.row]
            known = prefixes[slot]
            result.prompt_scores[ask.row] = [
                Score(t, score(known[: start + ask.offset + i + 1], t)) for i, t in enumerate(ask.targets)
            ]
        return Landed(result)

    def _cell(self, slot: int, position: int) -> int:
        return self.table[slot][position // self.page_size] * self.page_size + position % self.page_size


class Landed:
    took_s = None

    def __init__(self, result: Result):
        self._result = result

    def done(self) -> bool:
        return True

    def wait(self) -> Result:
        return self._result
