"""Experts for tests of kernels: numbers, choices of experts, and what they give by their definition."""

import torch

from sglang.kernels.experts_stack import Gate, Stack
from sglang.quant.dense import ACTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = 1e-5 if DEVICE == "cuda" else 2e-6
COUNT, HIDDEN, INTER = 5, 96, 48


def some(*size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(size) + seed)
    return (torch.randn(size, generator=generator) * size[-1] ** -0.5).to(DEVICE)


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.double() - wanted) / torch.linalg.norm(wanted))


def ids_of(kind: str, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    match kind:
        case "random":
            ids = torch.rand(tokens, COUNT, generator=generator).argsort(-1)[:, :2]
        case "some empty":  # the first, the last, and one between them
            ids = torch.tensor([1, 3]).expand(tokens, 2).clone()
        case _:  # an expert has all
            ids = torch.full((tokens, 2), 4)
    return ids.int().to(DEVICE)


KINDS = ["random", "some empty", "one has all"]


def by_definition(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, opens: Stack, closes: Stack, gate: Gate,
    weigh_inputs: bool = False, first: int = 0,
) -> torch.Tensor:  # fmt: skip
    """In float64, one pair at a time."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for t, chosen in enumerate(ids.tolist()):
        for share, e in zip(weights[t].double(), (e - first for e in chosen), strict=True):
            if not 0 <= e < len(opens.weight):
                continue
            read = x[t].double() * (share if weigh_inputs else 1)
            a, b = (opens.weight[e].double() @ read + (0 if opens.bias is None else opens.bias[e])).chunk(2)
            if gate.limit is None:
                inner = ACTS[gate.act](a) * b  # type: ignore[index]
            else:
                a, b = a.clamp(max=gate.limit), b.clamp(-gate.limit, gate.limit)
                inner = a * torch.sigmoid(1.702 * a) * (b + 1)
            given = closes.weight[e].double() @ inner + (0 if closes.bias is None else closes.bias[e])
            out[t] += given if weigh_inputs else given * share
    return out
