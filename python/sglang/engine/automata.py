"""What rows are held to, on the device: automata that slots follow there, and masks that the host brings.

Both lie in one arena of states. The first rows are the host's: masks of a plan, whose states lead nowhere. Behind them
automata come and go as the scheduler says (`schedule/residents.py`); the masks of all their states are made here, once.
A row draws under the mask of its state, and its state follows the token, so that a step needs nothing of the one
before it from the host.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sglang.base.plan import DEAD, FREE, Load, Plan
from sglang.engine.idle import waits_for_device
from sglang.kernels import automata as kernels
from sglang.kernels.automata import Arena, Held, Spelling
from sglang.kernels.staging import Stager, sent

log = logging.getLogger("sglang.engine")
WORDS = 4  # rows of masks are a multiple of so many words: 16 bytes, which loads and copies like


class Automata:
    """rows: states there is room for, the host's included."""

    def __init__(self, slots: int, vocab: int, budget_bytes: int, device: torch.device):
        words = -(-vocab // (32 * WORDS)) * WORDS
        self.first = slots
        self.rows = slots + budget_bytes // (4 * words + 512 + 1)
        self.arena = Arena(
            torch.full((self.rows, 256), kernels.NONE, dtype=torch.int16, device=device),
            torch.zeros(self.rows, dtype=torch.uint8, device=device),
            torch.zeros(self.rows, words, dtype=torch.int32, device=device),
        )
        self.states = torch.full((slots,), FREE, dtype=torch.int64, device=device)
        self._vocab = vocab
        self._device = device
        self._stager = Stager(device)
        self._spelling: Spelling | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.arena.table, self.arena.flags, self.arena.masks))

    def learn(self, tokens: Sequence[bytes], eos_ids: Sequence[int]) -> bool:
        """What each token says; nothing for special ones. False, with a warning, where the device cannot follow.

        May be called in a thread of its own, before the first plan with a Load.
        """
        if self.rows == self.first:
            return False
        try:
            with torch.inference_mode(), waits_for_device:
                spelling = spell(tokens, eos_ids, self._vocab, self._device)
                self.rehearse(spelling)
        except Exception as error:  # whatever a compiler throws
            log.warning("Automata are not followed on the device, their masks come from the host: %s", error)
            return False
        self._spelling = spelling
        return True

    @property
    def learned(self) -> bool:
        """Whether states follow tokens: a graph captured before would never let them."""
        return self._spelling is not None

    def load(self, load: Load) -> None:
        """Put an automaton where the scheduler wants it, and make masks of it."""
        assert self._spelling is not None
        if states := len(load.flags):
            here = slice(load.base, load.base + states)
            distances = load.table - np.arange(states, dtype=np.int16)[:, None]
            distances[load.table == DEAD] = kernels.NONE
            for target, array in ((self.arena.table, distances), (self.arena.flags, load.flags.copy())):
                target[here].copy_(sent(torch.from_numpy(array), self._device))
        kernels.make_masks(self.arena, self._spelling, load.base + load.first, load.count or states)

    def places(self, plan: Plan) -> np.ndarray | None:
        """int64 [R], where each row of the plan finds its mask; None where all are free. Files what the plan brings."""
        for load in plan.loads:
            self.load(load)
        if not len(plan.places) and not len(plan.masked):
            return None
        places = np.full(len(plan.slots), FREE, np.int64)
        if len(plan.places):
            places[:] = plan.places
        if len(plan.masked):
            padded = np.zeros((len(plan.masks), self.arena.masks.shape[1]), np.uint32)
            padded[:, : plan.masks.shape[1]] = plan.masks
            self._stager.put_into(self.arena.masks[: len(padded)].view(torch.int64), padded.view(np.int64))
            places[plan.masked] = plan.mask_of
        return places

    def held(self, slots: Tensor, places: Tensor | np.ndarray) -> Held:
        """For a draw. slots: int64 [n], on the device; places: as many, of the same rows."""
        if isinstance(places, np.ndarray):
            [places] = self._stager.put([places])
        return Held(self.arena.masks, slots, places, self.states)

    def advance(self, held: Held, tokens: Tensor) -> None:
        """The rows drew `tokens`: int64 [n]."""
        if self._spelling is not None:
            kernels.advance(self.arena, self._spelling, held, tokens)

    def rehearse(self, spelling: Spelling | None = None) -> None:
        """Every kernel once, over a row that leads nowhere."""
        spelling = spelling or spell([b"a"], (), self._vocab, self._device)
        kernels.make_masks(self.arena, spelling, self.first, 1)
        nobody = torch.full((1,), -1, dtype=torch.int64, device=self._device)
        kernels.advance(self.arena, spelling, self.held(nobody, nobody), torch.zeros_like(nobody))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def spell(tokens: Sequence[bytes], eos_ids: Sequence[int], vocab: int, device: torch.device) -> Spelling:
    lengths = np.zeros(vocab, np.int64)
    lengths[: len(tokens)] = [len(token) for token in tokens[:vocab]]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    data = np.frombuffer(b"".join(tokens[:vocab]), np.uint8)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    sorted_lengths = lengths[order]
    ranks = np.full(vocab, -1, np.int32)
    ranks[order] = np.arange(len(order))
    ranks[[i for i in eos_ids if i < vocab]] = kernels.END
    columns, bases, size = [np.zeros(0, np.uint8)], [], 0
    for depth in range(int(lengths.max(initial=0))):
        first = int(np.searchsorted(sorted_lengths, depth, "right"))  # of the ranks that have this byte
        columns.append(data[starts[order[first:]] + depth])
        bases.append(size - first)
        size += len(order) - first
    # One value more than there is: a tensor without any has no memory to point to.
    arrays = (starts, np.append(data, 0), ranks, sorted_lengths, np.concatenate(columns), [*bases, 0])
    kinds = (np.int32, np.uint8, np.int32, np.int32, np.uint8, np.int32)
    return Spelling(
        *(torch.from_numpy(np.array(array, kind)).to(device) for array, kind in zip(arrays, kinds, strict=True))
    )
