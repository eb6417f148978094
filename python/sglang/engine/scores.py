"""Log-probabilities that were asked for: computed with a step, and read once it has landed.

The device is not waited for: what rows ask goes there from pinned memory, and what is found comes back in one piece.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sglang.base.messages import Score
from sglang.base.plan import Ask, PromptAsk, Result
from sglang.kernels.staging import sent

BLOCK = 64  # positions whose logits are made at a time for prompts


class Scores:
    """Of n tokens under the model's own distributions."""

    def __init__(self, logits: Tensor, tokens: Tensor, tops: Sequence[int], ids: Sequence[tuple[int, ...]]):
        """logits: float32 [n, vocab]; tokens: int64 [n].

        tops, ids: how many of the likeliest each wants beside, and which others.
        """
        self._tops, self._ids = tops, ids
        self._most, wide = min(max(tops), logits.shape[-1]), max(map(len, ids))
        norm = logits.logsumexp(-1, keepdim=True)
        columns = [tokens[:, None], logits.gather(-1, tokens[:, None]) - norm]
        if self._most:
            values, places = logits.topk(self._most, -1)
            columns += [places, values - norm]
        if wide:
            asked = sent(torch.tensor([[*some, *[0] * (wide - len(some))] for some in ids]), logits.device)
            columns.append(logits.gather(-1, asked) - norm)
        found = torch.cat([column.double() for column in columns], 1)  # which holds ids exactly, too
        self._found = found if found.device.type == "cpu" else _coming(found)

    def read(self) -> list[Score]:
        """Once the device is done."""
        most, scores = self._most, []
        for row, top, ids in zip(self._found.tolist(), self._tops, self._ids, strict=True):
            places, values, others = row[2 : 2 + most], row[2 + most : 2 + 2 * most], row[2 + 2 * most :]
            best = [(int(place), value) for place, value in zip(places[:top], values, strict=False)]
            scores.append(Score(int(row[0]), row[1], best, list(zip(ids, others, strict=False))))
        return scores


def _coming(found: Tensor) -> Tensor:
    return torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)


class Drawn:
    """Of what rows have drawn."""

    def __init__(self, logits: Tensor, tokens: Tensor, asks: Sequence[Ask], rows: np.ndarray):
        """logits: [S, vocab]; tokens: [S]; rows: [S], the plan's row of each."""
        place = {int(row): i for i, row in enumerate(rows)}
        wanted = sent(torch.tensor([place[ask.row] for ask in asks]), logits.device)
        self._rows = [ask.row for ask in asks]
        some = logits[wanted].float()
        self._scores = Scores(some, tokens[wanted], [ask.top for ask in asks], [ask.ids for ask in asks])

    def file(self, result: Result) -> None:
        """Once the device is done."""
        result.scores = dict(zip(self._rows, self._scores.read(), strict=True))


class Known:
    """Of tokens of a prompt, given what comes before them."""

    def __init__(self, ask: PromptAsk) -> None:
        self._ask = ask
        self._parts: list[Scores] = []

    def add(self, logits: Tensor) -> None:
        """logits: float32 [n, vocab], the distributions before each of the next n targets."""
        ask, at, n = self._ask, BLOCK * len(self._parts), len(logits)
        targets = sent(torch.tensor(ask.targets[at : at + n]), logits.device)
        self._parts.append(Scores(logits, targets, [ask.top] * n, [ask.ids] * n))

    def file(self, result: Result) -> None:
        """Once the device is done."""
        result.prompt_scores[self._ask.row] = [score for part in self._parts for score in part.read()]
