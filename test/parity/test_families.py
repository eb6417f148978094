"""Each family against transformers, in float32, over every way a sequence can be computed."""

from typing import Any

import pytest
import torch
from conftest import VOCAB, Make
from engine_driver import DRAWN, Driver, PromptAsk, Row, all_logprobs, load

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # wavelengths below 16, above 64 and between: 8 of them, 6.3 to 6e5
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama mha": ("Llama", {"num_key_value_heads": 4}),
    "llama mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("Llama", {"head_dim": 32}),
    "llama 256 per head": ("Llama", {"head_dim": 256}),
    "llama gelu": ("Llama", {"hidden_act": "gelu"}),
    "llama tanh gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama eps": ("Llama", {"rms_norm_eps": 0.1}),
    "rope theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}),
    "rope linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}}),
    "rope llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "rope yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "rope yarn tuned": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 0.9,
                "truncate": False,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
}
TOKENS = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
CLOSE = 1e-4  # of float32 log-probabilities: order of summation over 3 layers


@torch.no_grad()
def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities after each token. [tokens, vocab]"""
    return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def known(driver: Driver, slot: int, tokens: list[int], cuts: list[int]) -> torch.Tensor:
    """Log-probabilities after each token, computed in chunks that end at `cuts`. [tokens, vocab]"""
    rows = []
    everything = tuple(range(VOCAB))
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        part = tokens[start:end]
        ask = PromptAsk(0, 0, [0] * len(part), 0, everything)
        scores = driver.step([Row(slot, start, part, samples=False, scores=ask)]).prompt_scores[0]
        rows += [[value for _, value in score.ids] for score in scores]
    return torch.tensor(rows)


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


@pytest.mark.parametrize("case", ["llama", "mistral window", "qwen2"])
def test_greedy_text_equals_that_of_transformers(case: str, make: Make, device: str) -> None:
    family, changes = CASES[case]
    folder, model = make(family, **changes)
    prompt = TOKENS[:11]
    # transformers stops at end tokens; here nobody does
    wanted = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=64, min_new_tokens=64, pad_token_id=0, eos_token_id=-1
    )[0, 11:].tolist()
    assert len(set(wanted)) > 8, "a text that repeats itself hides errors"
    assert Driver(load(folder, device)).generate(2, prompt, 64) == wanted


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
