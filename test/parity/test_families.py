"""Each family against transformers, in float32, over every way a sequence can be computed."""

from typing import Any

import pytest
import torch
from engine_driver import DRAWN, Driver, Row, all_logprobs, load
from family_cases import CASES, GREEDY, LLAMA3, LONGROPE, TOKENS, Make, known, moving_text

CLOSE = 1e-4  # of float32 log-probabilities: order of summation over 3 layers


@torch.no_grad()
def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities after each token. [tokens, vocab]"""
    return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_equal_those_of_transformers(case: str, make: Make, device: str) -> None:
    family, changes = CASES[case]
    folder, model = make(family, **changes)
    engine = load(folder, device)
    expected = reference(model, TOKENS)
    assert expected.std() > 0.5, "flat logits hide errors"
    driver = Driver(engine)
    for slot, cuts in enumerate(([], [1, 9, 24, 39], list(range(1, 40)))):
        worst = (known(driver, slot, TOKENS, cuts) - expected).abs().max().item()
        assert worst < CLOSE, f"cuts {cuts}: {worst}"


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_text_equals_that_of_transformers(case: str, make: Make, device: str) -> None:
    family, changes = CASES[case]
    folder, model = make(family, **changes)
    prompt, text = moving_text(Driver(load(folder, device)))
    assert reference(model, prompt + text).argmax(-1)[10:-1].tolist() == text


@pytest.mark.parametrize(("kind", "length"), [("dynamic", 120), ("dynamic", 128), ("dynamic", 200)])
def test_dynamic_rope_equals_transformers_at_the_longest_sequence(kind: str, length: int, make: Make) -> None:
    # transformers rebuilds the table as a sequence grows; we build it once for the longest that may come.
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    folder, model = make("Llama", rope_parameters=rope)
    tokens = (TOKENS * 5)[:length]
    engine = load(folder, context_length=length)
    assert (known(Driver(engine), 0, tokens, []) - reference(model, tokens)).abs().max() < CLOSE


@pytest.mark.parametrize("length", [40, 100])
def test_longrope_takes_its_factors_by_the_longest_sequence(length: int, make: Make) -> None:
    folder, model = make("Llama", rope_parameters=LONGROPE, max_position_embeddings=128)
    tokens = (TOKENS * 3)[:length]
    engine = load(folder, context_length=length)
    assert (known(Driver(engine), 0, tokens, []) - reference(model, tokens)).abs().max() < CLOSE


def test_old_rope_scaling_means_the_same_as_rope_parameters(make: Make, tmp_path: Any) -> None:
    import json
    import shutil

    folder, model = make("Llama", rope_parameters=LLAMA3)
    old = shutil.copytree(folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    (old / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    assert (known(Driver(load(old)), 0, TOKENS, []) - reference(model, TOKENS)).abs().max() < CLOSE


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_one_step_mixes_prompts_chunks_cached_prefixes_and_decodes(page_size: int, make: Make, device: str) -> None:
    folder, model = make("Mistral", sliding_window=8)
    driver = Driver(load(folder, device, page_size=page_size))
    texts = [TOKENS, TOKENS[:16] + TOKENS[5:20], TOKENS[::-1], TOKENS[7:30], TOKENS[3:28]]
    driver.step([Row(0, 0, texts[0][:39], samples=False), Row(2, 0, texts[2][:12], samples=False)])
    driver.step([Row(3, 0, texts[3][:22], samples=False)])
    shared = driver.share(1, 0, 16 // page_size)
    driver.step([Row(4, 0, texts[4][:1], samples=False)], shared=shared)
    rows = [
        Row(2, 12, texts[2][12:]),  # the rest of a prompt
        Row(0, 39, texts[0][39:]),  # a decode over 40 positions
        Row(1, 16, texts[1][16:]),  # after a prefix that slot 0 computed
        Row(3, 22, texts[3][22:]),  # a decode over 23 positions
        Row(4, 1, texts[4][1:]),
    ]
    got = all_logprobs(driver.engine, rows, driver, [driver.seat(r.slot, r.start + len(r.tokens)) for r in rows])
    wanted = torch.stack([reference(model, texts[r.slot])[-1] for r in rows])
    assert (got - wanted).abs().max() < CLOSE


@pytest.mark.parametrize("lengths", [[40], [40, 40, 40], [40, 38, 31], [5, 160, 1, 23, 158, 60, 300]], ids=str)
@pytest.mark.parametrize("scattered", [True, False])
def test_decodes_of_any_lengths_share_a_step(lengths: list[int], scattered: bool, make: Make, device: str) -> None:
    folder, model = make("Qwen2", max_position_embeddings=512)
    driver = Driver(load(folder, device), scattered)
    texts = [(TOKENS[i:] + TOKENS * 9)[: n + 1] for i, n in enumerate(lengths)]
    for slot, text in enumerate(texts):
        driver.step([Row(slot, 0, text[:-1], samples=False)])
    rows = [Row(slot, len(text) - 1, text[-1:]) for slot, text in enumerate(texts)]
    got = all_logprobs(driver.engine, rows, driver, [driver.seat(r.slot, r.start + 1) for r in rows])
    wanted = torch.stack([reference(model, text)[-1] for text in texts])
    assert (got - wanted).abs().max() < CLOSE


def test_a_step_may_use_the_token_its_predecessor_drew_unseen(make: Make, device: str) -> None:
    folder, _ = make("Llama")
    expected = Driver(load(folder, device)).generate(0, TOKENS[:9], 4)
    driver = Driver(load(folder, device))
    first = driver.step([Row(5, 0, TOKENS[:9])], [driver.seat(5, 9)])
    flights = [driver.step([Row(5, 9 + i, [DRAWN])]) for i in range(3)]
    assert [int(r.tokens[0]) for r in (first, *flights)] == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_types_stay_close_to_float32(dtype: str, make: Make, device: str) -> None:
    if device == "cpu" and dtype == "float16":
        pytest.skip("float16 on a CPU is as slow as it is rare")
    folder, model = make("Qwen2", tie_word_embeddings=True)
    expected = reference(model, TOKENS)
    got = known(Driver(load(folder, device, dtype=dtype)), 0, TOKENS, [7, 8, 9])
    # 8 bits of mantissa through 3 layers: the reference itself differs by as much in that type
    bound = 0.25 if dtype == "bfloat16" else 0.03
    assert (got - expected).abs().max() < bound
