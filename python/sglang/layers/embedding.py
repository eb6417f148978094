"""Token embedding, and the head that shares its weight where a model ties them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang.layers.linear import Linear


class Embedding:
    """weight: [vocab, hidden]."""

    def __init__(self, vocab: int, hidden: int, device: torch.device, dtype: torch.dtype):
        self.weight = torch.empty(vocab, hidden, device=device, dtype=dtype)

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: [T]. Returns [T, hidden]."""
        return F.embedding(tokens, self.weight)


def head(embedding: Embedding, tied: bool) -> Linear:
    """hidden -> vocab. A tied head reads the embedding's weight until `finish` packs a copy of it, if it does."""
    vocab, hidden = embedding.weight.shape
    weight = embedding.weight
    made = Linear(hidden, {"head": 0 if tied else vocab}, split="out", device=weight.device, dtype=weight.dtype)
    if tied:
        made.store.weight = weight
    return made
