"""Vectors of texts against transformers and sentence-transformers' formulas, over every way they can be computed."""

from pathlib import Path

import pytest
import torch
from embedding_cases import CASES, TEXTS, expected, vectors, written

CLOSE = 1e-5  # float32, of numbers up to 1 or some


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("case", CASES)
def test_vectors_equal_those_of_transformers(case: str, chunk: int | None, tmp_path: Path) -> None:
    model = written(tmp_path, case)
    found, state = vectors(tmp_path, TEXTS, chunked_prefill_size=chunk)
    for text, vector in zip(TEXTS, found, strict=True):
        wanted = expected(model, case, text)
        assert (vector - wanted).abs().max() < CLOSE * max(1.0, wanted.abs().max().item())
    if state.budget.radix:
        assert state.count.prompt_cached_tokens > 0, "texts with a common beginning must share it"
    if chunk is not None:
        assert state.count.steps >= 5, "a step has as many tokens as it may, or one whole text"


@pytest.mark.parametrize("case", ["bert", "llama mean", "qwen3-embedding"])
def test_a_text_may_fill_the_context_and_no_more(case: str, tmp_path: Path) -> None:
    model = written(tmp_path, case)
    full = (TEXTS[0] * 4)[:128]
    [vector], _ = vectors(tmp_path, [full])
    assert (vector - expected(model, case, full)).abs().max() < CLOSE
    with pytest.raises(AssertionError, match="longer than the model's context length"):
        vectors(tmp_path, [[*full, 5]])


def test_the_same_text_has_the_same_vector_in_any_company(tmp_path: Path) -> None:
    written(tmp_path, "bert")
    together, _ = vectors(tmp_path, TEXTS)
    alone = [vectors(tmp_path, [text])[0][0] for text in TEXTS[:3]]
    assert all(torch.allclose(a, b, atol=CLOSE) for a, b in zip(alone, together, strict=False))
