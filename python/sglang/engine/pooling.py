"""Texts -> vectors: what an engine does with hidden states instead of drawing tokens."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.base.plan import Plan
from sglang.engine.batch import Batch
from sglang.models.decoder import Model
from sglang.models.spec import Pooling


class Pooler:
    """A mean is summed up over the steps that a text comes in; its tokens must all be computed, none found cached."""

    def __init__(self, pooling: Pooling, model: Model, slots: int):
        self._pooling = pooling
        self._model = model
        rows = slots if pooling.kind == "mean" else 0
        self._sums = torch.zeros(rows, model.spec.hidden, device=model.device)

    @property
    def caches(self) -> bool:
        """Whether prefixes that were computed for other texts will do."""
        return self._pooling.kind == "last" and self._model.spec.causal

    def pool(self, plan: Plan, batch: Batch, hidden: Tensor) -> dict[int, bytes]:
        """hidden: [T + padding, hidden] of `Model.forward`. Returns the vectors of plan.embeds, as float32."""
        rows = np.array(plan.embeds, np.int64)
        if self._pooling.kind == "mean":
            self._add(plan, hidden[: batch.offsets[-1]])
            lengths = torch.from_numpy((plan.starts + plan.counts)[rows]).to(hidden.device)
            vectors = self._sums[self._index(plan.slots[rows])] / lengths[:, None]
        else:
            at = batch.offsets[1:][rows] - 1 if self._pooling.kind == "last" else batch.offsets[:-1][rows]
            vectors = self._model.states(hidden[self._index(at)]).float()
        if self._pooling.unit:
            vectors = F.normalize(vectors, dim=-1)
        return dict(zip(plan.embeds, (v.tobytes() for v in vectors.cpu().numpy()), strict=True))

    def _add(self, plan: Plan, hidden: Tensor) -> None:
        slots = self._index(plan.slots)
        self._sums[self._index(plan.slots[plan.starts == 0])] = 0
        states = self._model.states(hidden).float()
        self._sums.index_add_(0, slots.repeat_interleave(self._index(plan.counts)), states)

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._sums.device)
