"""--model-impl transformers: its code over our attention and pool, against itself with its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import DRAWN, Driver, Row, all_logprobs, load
from family_cases import TOKENS, known, moving_text
from tiny_checkpoints import by_transformers

from sglang.attention.base import Look
from sglang.base.errors import ConfigError
from sglang.models.foreign import Foreign, Rule

CLOSE = 1e-4
# None of these has a family here.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nemotron": ("Nemotron", {"head_dim": 16}),
    "arcee": ("Arcee", {}),
    "olmo": ("Olmo", {"clip_qkv": 1.5}),
    "cwm windows": ("Cwm", {"sliding_window": 8, "head_dim": 16, "num_hidden_layers": 4}),
    "dots1 experts": ("Dots1", {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                                "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 16,
                                "n_shared_experts": 1}),
    "biogpt": ("BioGpt", {"tie_word_embeddings": False}),  # its head passes on what only other models have
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
}  # fmt: skip


@torch.no_grad()
def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_and_greedy_text_equal_transformers_own(case: str, tmp_path: Path, device: str) -> None:
    model = by_transformers(tmp_path, *CASES[case])
    driver = Driver(load(tmp_path, device))  # auto
    expected = reference(model, TOKENS)
    assert expected.std() > 0.5
    for slot, cuts in enumerate(([], [1, 9, 24, 39], list(range(1, 40)))):
        assert (known(driver, slot, TOKENS, cuts) - expected).abs().max() < CLOSE, cuts
    prompt, text = moving_text(driver)
    assert reference(model, prompt + text).argmax(-1)[10:-1].tolist() == text


def test_sequences_of_all_kinds_share_a_step(tmp_path: Path) -> None:
    model = by_transformers(tmp_path, *CASES["cwm windows"])
    driver = Driver(load(tmp_path))
    texts = [TOKENS, TOKENS[::-1], TOKENS[7:30]]
    driver.step([Row(0, 0, texts[0][:39], samples=False), Row(2, 0, texts[2][:12], samples=False)])
    rows = [Row(2, 12, texts[2][12:]), Row(0, 39, texts[0][39:]), Row(1, 0, texts[1])]
    got = all_logprobs(driver.engine, rows, driver, [driver.seat(r.slot, r.start + len(r.tokens)) for r in rows])
    wanted = torch.stack([reference(model, texts[r.slot])[-1] for r in rows])
    assert (got - wanted).abs().max() < CLOSE
    assert driver.step([Row(1, 40, [DRAWN])]).tokens[0] >= 0


@pytest.mark.parametrize("family", ["Gemma2", "GptOss"])
def test_a_family_of_ours_runs_in_transformers_code_where_that_is_asked_for(family: str, tmp_path: Path) -> None:
    from family_cases import GEMMA2, GPT_OSS

    model = by_transformers(tmp_path, family, {"Gemma2": GEMMA2, "GptOss": GPT_OSS}[family])
    driver = Driver(load(tmp_path, model_impl="transformers"))
    assert (known(driver, 0, TOKENS, [9, 24]) - reference(model, TOKENS)).abs().max() < CLOSE


def test_a_model_that_counts_positions_by_itself_is_refused(tmp_path: Path) -> None:
    from family_cases import LLAMA4

    by_transformers(tmp_path, "Llama4", LLAMA4)
    with pytest.raises(ConfigError, match="attn_temperature_tuning"):
        load(tmp_path, model_impl="transformers")


def test_a_model_that_hears_no_positions_is_refused(tmp_path: Path) -> None:
    model = by_transformers(tmp_path, "Nemotron", {"head_dim": 16})
    load(tmp_path)  # registers how we attend
    model.set_attn_implementation("sglang")
    inner = model.model.forward
    model.model.forward = lambda position_ids, **more: inner(**more)
    with pytest.raises(ConfigError, match="does not take positions"):
        Foreign(model, {}, torch.device("cpu"), torch.float32)


def test_what_cannot_be_run_stops_the_start(tmp_path: Path) -> None:
    by_transformers(tmp_path, "Nemotron", {"head_dim": 16})
    with pytest.raises(ConfigError, match="Unsupported architectures"):
        load(tmp_path, model_impl="sglang")
    flags: list[dict[str, Any]] = [{"is_embedding": True}, {"quantization": "int8"}]
    for flag in flags:
        with pytest.raises(ConfigError, match="not supported by --model-impl transformers"):
            load(tmp_path, **flag)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ConfigError, match=r"tensors are missing: model\.layers\.3"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_eps": "small"}))
    with pytest.raises(ConfigError, match=r"^[^\n]*transformers cannot load it: [^\n]*'norm_eps'[^\n]*$"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(ConfigError, match="Unsupported architectures"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="code of the folder is not run"):
        load(tmp_path, model_impl="transformers")


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("GPTJ", {"rotary_dim": 8}, "cannot be run|cannot load|only 0 attend"),
        ("Jamba", {"num_experts": 2, "use_mamba_kernels": False}, "of 3 layers of JambaForCausalLM only"),
    ],
)
def test_what_does_not_attend_as_transformers_lets_others_say_is_refused(
    family: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    by_transformers(tmp_path, family, changes)
    with pytest.raises(ConfigError, match=says):
        load(tmp_path)


def test_rules_of_masks_are_read() -> None:
    assert vars(Rule(lambda q, k: k <= q).look()) == vars(Look())
    assert Rule(lambda q, k: q - 8 < k <= q).look().window == 8
    assert Rule(lambda q, k: q - 4096 < k <= q).look().window == 4096
    assert Rule(lambda q, k: k <= q and k // 16 == q // 16).look().chunk == 16
    assert Rule(lambda q, k: k <= q and k // 8192 == q // 8192).look().chunk == 8192
    for strange in (lambda q, k: True, lambda q, k: k <= q and (k < 4 or k > q - 8), lambda q, k: q - k * 2 < 8):
        with pytest.raises(ValueError, match="a token sees"):
            Rule(strange).look()
