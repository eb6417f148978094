"""Drawing kernels against the distribution by definition, in float64."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from sglang.kernels import sample
from sglang.kernels.automata import FREE, KEEP, Held

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 5000  # two blocks, the second one mostly empty


def draws(n: int, **given: object) -> sample.Draws:
    values = {"slots": np.arange(n), "temperatures": 1.0, "top_ks": -1, "top_ps": 1.0, "min_ps": 0.0, "uniforms": 0.5}
    values |= given
    whole = ("slots", "top_ks")
    return sample.Draws(
        **{
            name: torch.tensor(
                np.broadcast_to(np.array(value), n).copy(),
                dtype=torch.int64 if name in whole else torch.float64,
                device=DEVICE,
            )
            for name, value in values.items()
        }
    )


def take(logits: torch.Tensor, wanted: sample.Draws, held: Held | None = None) -> torch.Tensor:
    n = len(logits)
    out = torch.full((n,), -7, dtype=torch.int64, device=DEVICE)
    last = torch.full((n + 1,), -7, dtype=torch.int64, device=DEVICE)
    sample.draw(logits.to(DEVICE), wanted, last, out, held)
    for slot, token in zip(wanted.slots.tolist(), out.tolist(), strict=True):
        assert slot < 0 or last[slot] == token
    assert last[n] == -7, "padding is filed nowhere"
    return out.cpu()


def by_definition(logits: torch.Tensor, u: float, top_k: int, top_p: float, min_p: float) -> int:
    """The token at `u` of the cumulative distribution over the tokens that stay, in the vocabulary's order."""
    probs = logits.double().softmax(-1)
    ranked = probs.sort(descending=True).values
    kept = (ranked.cumsum(-1) - ranked < top_p) & (ranked >= min_p * ranked[0])
    if top_k > 0:
        kept &= torch.arange(len(probs)) < top_k
    cumulative = probs.where(probs >= ranked[kept].min(), 0).cumsum(-1)  # as likely ones stay together
    return int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))


def some(n: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(n)) * spread


def test_greedy_rows_take_the_first_largest() -> None:
    logits = some(4)
    logits[1, [40, 4500]] = 90.0
    logits[2, 4999] = 95.0
    logits[3] = -torch.inf
    logits[3, 17] = -5
    assert take(logits, draws(4, temperatures=0.0)).tolist() == [int(logits[0].argmax()), 40, 4999, 17]


@pytest.mark.parametrize("limits", [(-1, 1.0, 0.0), (7, 1.0, 0.0), (-1, 0.8, 0.0), (-1, 1.0, 0.1), (300, 0.9, 0.01)])
def test_draws_are_those_of_the_definition(limits: tuple[int, float, float]) -> None:
    top_k, top_p, min_p = limits
    uniforms = np.array([0.0, 0.1, 0.5, 0.77, 0.999999])
    logits = some(1).expand(5, -1) if limits[0] != 300 else some(1, 0.5).expand(5, -1)
    got = take(logits / 0.7, draws(5, top_ks=top_k, top_ps=top_p, min_ps=min_p, uniforms=uniforms)).tolist()
    hot = take(logits, draws(5, temperatures=0.7, top_ks=top_k, top_ps=top_p, min_ps=min_p, uniforms=uniforms))
    wanted = [by_definition(logits[0] / 0.7, u, *limits) for u in uniforms]
    assert got == wanted
    assert hot.tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_least_logit_that_stays_is_found_among_those_of_a_type(dtype: torch.dtype) -> None:
    limits = [(1, 1.0), (2, 1.0), (40, 1.0), (4999, 1.0), (9999, 1.0), (-1, 1e-46), (-1, 0.001), (-1, 0.5), (-1, 0.999)]
    limits += [(40, 0.3), (3, 0.999)]
    n = len(limits)
    shifts, uniforms = np.resize([0.0, -30.0, 30.0], n), np.resize([0.0, 0.3, 0.9999, 0.7], n)
    logits = (some(n) + torch.from_numpy(shifts)[:, None]).to(dtype)
    top_ks, top_ps = zip(*limits, strict=True)
    got = take(logits, draws(n, top_ks=top_ks, top_ps=top_ps, uniforms=uniforms)).tolist()
    assert got == [by_definition(*of, 0.0) for of in zip(logits, uniforms, top_ks, top_ps, strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_limits_are_found_among_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.full((4, VOCAB), -torch.inf, dtype=dtype)
    logits[:, 7] = logits[:, 4100] = -1e30
    logits[1:, 9] = 0.0
    logits[2:, 11] = -0.0
    logits[3, 12] = torch.inf
    for top_k, top_p in ((2, 1.0), (-1, 0.999999)):
        got = take(logits, draws(4, top_ks=top_k, top_ps=top_p, uniforms=[0.75, 0.0, 0.75, 0.5])).tolist()
        assert got == [4100, 9, 11, 12]


def test_rows_of_all_kinds_stand_beside_each_other() -> None:
    logits = some(6)
    logits[4] = torch.nan
    logits[5] = -torch.inf
    wanted = draws(
        6, slots=[3, -1, 5, 0, 1, 2], temperatures=[0.0, 1.0, 1.0, 1.0, 1.0, 1.0], top_ks=[-1, -1, 4, -1, 2, -1]
    )
    got = take(logits, wanted).tolist()
    assert got[0] == int(logits[0].argmax())
    assert got[1] == by_definition(logits[1], 0.5, -1, 1.0, 0.0)
    assert got[2] == by_definition(logits[2], 0.5, 4, 1.0, 0.0)
    assert got[3] == by_definition(logits[3], 0.5, -1, 1.0, 0.0)
    assert got[4:] == [0, 0]


def test_masks_are_bits_of_words() -> None:
    logits = some(3)
    allowed = torch.zeros(2, VOCAB, dtype=torch.bool)
    allowed[0, [31, 32, 4999]] = True
    allowed[1, 64:90] = True
    bits = np.packbits(np.pad(allowed.numpy(), ((0, 0), (0, -VOCAB % 32))), axis=1, bitorder="little")
    masks = torch.from_numpy(bits.view(np.int32))
    # The first row's mask is given, the second is free, the third's is what its slot remembers.
    slots, places, states = torch.tensor([0, 1, 2]), torch.tensor([1, FREE, KEEP]), torch.tensor([0, 1, 0])
    under = Held(*(t.to(DEVICE) for t in (masks, slots, places, states)))
    got = take(logits, draws(3, temperatures=[1.0, 0.0, 0.0]), under).tolist()
    held = [logits[r].masked_fill(~allowed[m], -torch.inf) for r, m in ((0, 1), (2, 0))]
    assert got == [by_definition(held[0], 0.5, -1, 1.0, 0.0), int(logits[1].argmax()), int(held[1].argmax())]
