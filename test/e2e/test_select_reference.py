"""`select` on random tiny models: the choice and its scores are those that transformers' logits give."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import by_transformers

import sglang as sgl
from sglang.lang.backends.engine import EngineBackend
from sglang.launch import ThreadWorker

pytestmark = pytest.mark.e2e

DEMO = Path(sgl.__file__).parent / "assets" / "demo"
FAMILIES = {"Llama": {}, "Qwen2": {}, "Gemma": {"head_dim": 16}}
PROMPTS = ["The capital of France is", "Q: 12 + 7?\nA: ", "I need to use a ", "x", 'He said, "', "été à"]
CHOICES = [
    [" Paris", " London", " a town by the sea"],
    ["calculator", "search engine"],
    ["yes", "no", "yes, and", "not at all"],
    ["1", "12", "123", "  "],
    [" é", "ñ", "日本"],
]
METHODS = (sgl.token_length_normalized, sgl.greedy_token_selection, sgl.unconditional_likelihood_normalized)


class Reference:
    """The three formulas of the language over a transformers model's logits, each written out."""

    def __init__(self, folder: Path, model: Any):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = model

    def logprobs(self, ids: list[int]) -> list[float]:
        """Of each token but the first, given those before it."""
        with torch.no_grad():
            table = self._model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return [float(table[i, token]) for i, token in enumerate(ids[1:])]

    def row(self, prompt: str, choice: str) -> tuple[list[int], list[float]]:
        """The tokens that count, and their scores: from the last one of the prompt on, which may have become one with
        the beginning of the choice; where it has not, from behind it."""
        ids, start = self._tokenizer(prompt + choice)["input_ids"], len(self._tokenizer(prompt)["input_ids"]) - 1
        if start < len(ids) - 1 and prompt.endswith(self._tokenizer.decode([ids[start]])):
            start += 1
        scores = [0.0, *self.logprobs(ids)]  # nothing comes before the first token of all
        return ids[start:], scores[start:] if start else scores[1:]

    def scores(self, method: Any, prompt: str, choices: list[str]) -> list[float]:
        rows = [self.row(prompt, choice) for choice in choices]
        if method is sgl.unconditional_likelihood_normalized:
            gains = []
            for tokens, given in rows:
                alone = [0.0, *self.logprobs(tokens)]
                gains.append(sum(a - b for a, b in zip(given, alone, strict=True)) / len(given))
            return gains
        return [sum(given) / len(given) for _, given in rows]

    def choice(self, method: Any, prompt: str, choices: list[str]) -> str:
        if method is not sgl.greedy_token_selection:
            scores = self.scores(method, prompt, choices)
            return choices[scores.index(max(scores))]
        rows = [self.row(prompt, choice)[1] for choice in choices]
        longest = max(map(len, rows))
        padded = [row + [sum(row) / len(row)] * (longest - len(row)) for row in rows]
        left = list(range(len(choices)))
        for column in range(longest):
            best = max(padded[i][column] for i in left)
            left = [i for i in left if padded[i][column] > best - 1e-5]
        return choices[left[0]]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Reference]]:
    """A random model behind an engine, and the same one in transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(folder))
    model = by_transformers(folder, request.param, {"vocab_size": size, **FAMILIES[request.param]})
    with sgl.Engine(worker=ThreadWorker, model_path=str(folder), max_total_tokens=4000, log_level="error") as engine:
        yield EngineBackend(engine), Reference(folder, model)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("fusion", [True, False], ids=["in one request", "by its prompts"])
def test_a_select_picks_what_transformers_logits_say(pair: tuple[Any, Reference], method: Any, fusion: bool) -> None:
    backend, reference = pair
    backend.fusion = fusion

    @sgl.function
    def choose(s: Any, prompt: str, choices: list[str]) -> None:
        s += prompt + sgl.select("c", choices, choices_method=method)

    picked = set()
    for prompt in PROMPTS:
        for i, choices in enumerate(CHOICES):
            state = choose.run(prompt, choices, backend=backend)
            assert state.error() is None
            meta = state.get_meta_info("c")
            told = meta["normalized_prompt_logprobs"]
            if method is sgl.unconditional_likelihood_normalized:
                told = meta["normalized_unconditional_prompt_logprobs"]
            expected = reference.scores(method, prompt, choices)
            assert told == pytest.approx(expected, abs=2e-3), (prompt, choices)
            assert state["c"] == reference.choice(method, prompt, choices), (prompt, choices)
            picked.add((i, state["c"]))
    assert len(picked) > len(CHOICES), "more than one choice of some list was picked"
