import numpy as np
import pytest
import torch

from sglang.base.plan import Ask, PromptAsk, Result
from sglang.engine import scores

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def some(rows: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and their log-probabilities in float64."""
    logits = 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows))
    return logits.to(DEVICE), logits.double().log_softmax(-1)


def filed(*asked: scores.Drawn | scores.Known) -> Result:
    result = Result(np.zeros(10, np.int32))
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    for one in asked:
        one.file(result)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_are_those_of_the_raw_distribution(dtype: torch.dtype) -> None:
    logits, _ = some(3, 50)
    logits = logits.to(dtype)
    wanted = logits.double().cpu().log_softmax(-1)
    tokens = torch.tensor([4, 7, 49], device=DEVICE)
    asks = [Ask(9, 0, ()), Ask(5, 3, (1, 2))]
    found = filed(scores.Drawn(logits, tokens, asks, np.array([5, 7, 9]))).scores
    assert set(found) == {5, 9}
    assert found[5].token == 4 and found[5].logprob == pytest.approx(wanted[0, 4].item(), abs=1e-5)
    assert [i for i, _ in found[5].top] == wanted[0].topk(3).indices.tolist()
    assert [v for _, v in found[5].top] == pytest.approx(wanted[0].topk(3).values.tolist(), abs=1e-5)
    assert found[5].ids == [(i, pytest.approx(wanted[0, i].item(), abs=1e-5)) for i in (1, 2)]
    assert found[9].token == 49 and found[9].top == found[9].ids == []
    assert found[9].logprob == pytest.approx(wanted[2, 49].item(), abs=1e-5)


@pytest.mark.parametrize("n", [1, scores.BLOCK, 2 * scores.BLOCK + 5])
def test_tokens_of_prompts_are_scored_part_by_part(n: int) -> None:
    logits, wanted = some(n, 30)
    targets = [i % 30 for i in range(n)]
    asked = [scores.Known(PromptAsk(2, 0, targets, 60, (3,))), scores.Known(PromptAsk(4, 0, targets, 0, ()))]
    for one in asked:
        for part in logits.split(scores.BLOCK):
            one.add(part)
    found = filed(*asked).prompt_scores
    assert [score.token for score in found[2]] == [score.token for score in found[4]] == targets
    for i, (full, bare) in enumerate(zip(found[2], found[4], strict=True)):
        assert full.logprob == bare.logprob == pytest.approx(wanted[i, targets[i]].item(), abs=1e-5)
        assert [t for t, _ in full.top] == wanted[i].argsort(descending=True).tolist() and not bare.top
        assert full.ids == [(3, pytest.approx(wanted[i, 3].item(), abs=1e-5))] and not bare.ids


def test_ids_are_exact_and_what_cannot_come_has_no_probability() -> None:
    logits = torch.full((1, 300_001), -torch.inf, device=DEVICE)
    logits[0, [16_777, 300_000]] = 0.0
    found = filed(scores.Drawn(logits, torch.tensor([300_000], device=DEVICE), [Ask(0, 2, (5,))], np.array([0])))
    [score] = found.scores.values()
    assert score.token == 300_000 and {t for t, _ in score.top} == {16_777, 300_000}
    assert score.ids == [(5, -float("inf"))]
