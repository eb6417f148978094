"""Token embedding, and the head that shares its weight where a model ties them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.layers.linear import Linear
from sglang.quant.dense import Dense


class Embedding:
    """weight: [rows, hidden], of tokens or of positions. scale: of what is read."""

    def __init__(self, rows: int, hidden: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0):
        self.weight = torch.empty(rows, hidden, device=device, dtype=dtype)
        # Models are trained with a factor that has been rounded to their type: 55.5 for 55.4256 in bfloat16.
        self._scale = torch.tensor(scale, dtype=dtype).item()

    def __call__(self, indices: Tensor) -> Tensor:
        """indices: [T]. Returns [T, hidden]."""
        found = F.embedding(indices, self.weight)
        return found if self._scale == 1 else found * self._scale


def head(embedding: Embedding, tied: bool, bias: bool = False) -> Linear:
    """hidden -> vocab. A tied head reads the embedding's weight until `finish` packs a copy of it, if it does."""
    vocab, hidden = embedding.weight.shape
    weight = embedding.weight
    parts = {"head": 0 if tied else vocab}
    made = Linear(hidden, parts, split="out", bias=bias, device=weight.device, dtype=weight.dtype)
    if tied:
        assert isinstance(made.store, Dense)
        made.store.weight = weight
    return made
