"""Families that transformers does not have, against the reference implementations of `reference_models.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import Driver, load
from family_cases import TOKENS, VOCAB, known, moving_text
from reference_models import ChatGLM, Grok, InternLM2, Qwen
from safetensors.torch import save_file

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
QWEN = SIZES | {"architectures": ["QWenLMHeadModel"], "intermediate_size": 192, "layer_norm_epsilon": 1e-6}
QWEN |= {"rotary_emb_base": 700, "rotary_pct": 1.0, "seq_length": 128, "no_bias": True}
INTERN = SIZES | {"architectures": ["InternLM2ForCausalLM"], "intermediate_size": 96, "num_key_value_heads": 2}
INTERN |= {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
GLM: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "padded_vocab_size": VOCAB,
    "hidden_size": 64,
    "num_layers": 3,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "ffn_hidden_size": 96,
    "seq_length": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "original_rope": True,
    "rope_ratio": 3,
}
GROK = SIZES | {"architectures": ["Grok1ModelForCausalLM"], "intermediate_size": 48, "num_key_value_heads": 2}
GROK |= {"num_experts": 4, "num_experts_per_tok": 2, "attn_output_multiplier": 0.3, "rms_norm_eps": 1e-5}
GROK |= {"embedding_multiplier_scale": 7.5, "output_multiplier_scale": 1.2, "tie_word_embeddings": False}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen": (Qwen, QWEN),
    "internlm2": (InternLM2, INTERN),
    "internlm2 biases": (InternLM2, INTERN | {"bias": True}),
    "chatglm3": (ChatGLM, GLM),
    "chatglm layernorm": (ChatGLM, GLM | {"rmsnorm": False, "add_bias_linear": True, "rope_ratio": 1}),
    "chatglm mha, halves": (ChatGLM, GLM | {"multi_query_attention": False, "original_rope": False}),
    "grok": (lambda c: Grok(c, "w"), GROK),
    "grok, other names": (lambda c: Grok(c, "linear"), GROK),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_log_probabilities_and_greedy_text_equal_those_of_the_reference(case: str, tmp_path: Path) -> None:
    build, config = CASES[case]
    torch.manual_seed(7)
    model = build(config)
    for name, p in model.named_parameters():
        one = p.dim() == 1 and "bias" not in name
        p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.3) + one)
        if "embed" in name or "wte" in name:
            p.mul_(4 / config.get("embedding_multiplier_scale", 1))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = load(tmp_path, context_length=128)
    expected = model(torch.tensor(TOKENS)).float().log_softmax(-1)
    assert expected.std() > 0.5, "flat logits hide errors"
    driver = Driver(engine)
    for slot, cuts in enumerate(([], [1, 9, 24, 39], list(range(1, 40)))):
        assert (known(driver, slot, TOKENS, cuts) - expected).abs().max() < 1e-4, cuts
    prompt, text = moving_text(driver)
    assert model(torch.tensor(prompt + text)).argmax(-1)[10:-1].tolist() == text
