"""Released config.json files, the keys that say what is computed, and what must be read out of them.

In parity tests transformers 5 writes the configs; these are in the words their makers used.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sglang.models.families  # noqa: F401 - fills the registry
from sglang.models.config import context_length
from sglang.models.decoder import Model
from sglang.models.spec import FAMILIES, Decoder

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 40}
YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEEPSEEK = {
    "first_k_dense_replace": 1, "kv_lora_rank": 32, "moe_intermediate_size": 16, "moe_layer_freq": 1,
    "n_shared_experts": 1, "num_key_value_heads": 4, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "max_position_embeddings": 163840, "hidden_act": "silu", "rope_theta": 10000, "num_hidden_layers": 3,
}  # fmt: skip
GLM = {
    "add_bias_linear": False, "add_qkv_bias": True, "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 48, "kv_channels": 16, "layernorm_epsilon": 1.5625e-07, "multi_query_attention": True,
    "multi_query_group_num": 2, "num_layers": 3, "original_rope": True, "padded_vocab_size": 40,
    "post_layer_norm": True, "rmsnorm": True, "seq_length": 131072,
}  # fmt: skip
RELEASED: dict[str, dict[str, Any]] = {
    "Llama 3.1 8B": {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2, "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
        "rms_norm_eps": 1e-05, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    },
    "Mixtral 8x7B": {
        "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2, "rope_theta": 1e6,
        "max_position_embeddings": 32768, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
    },
    "Gemma 2 9B": {
        "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 32,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
        "max_position_embeddings": 8192, "rope_theta": 10000.0,
    },
    "Gemma 3 1B": {
        "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "max_position_embeddings": 32768, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "Qwen3 30B A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 32,
        "decoder_sparse_step": 1, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 16,
        "norm_topk_prob": True, "num_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
        "use_sliding_window": False, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
    },
    "StableLM 2 12B": {
        "architectures": ["StableLmForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2,
        "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.25, "qk_layernorm": True, "use_parallel_residual": True,
        "use_qkv_bias": False, "rope_theta": 10000, "max_position_embeddings": 4096,
    },
    "StableLM 3B 4E1T": {
        "architectures": ["StableLMEpochForCausalLM"], "num_hidden_layers": 2, "norm_eps": 1e-05, "rope_pct": 0.25,
        "rotary_scaling_factor": 1.0, "rope_theta": 10000, "max_position_embeddings": 4096,
    },
    "Command-R": {
        "architectures": ["CohereForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 4,
        "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "rope_theta": 8000000.0, "max_position_embeddings": 8192,
        "model_max_length": 131072, "use_qk_norm": False,
    },
    "Command-R7B": {
        "architectures": ["Cohere2ForCausalLM"], "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16,
        "layer_norm_eps": 1e-05, "logit_scale": 0.25, "rope_theta": 50000, "max_position_embeddings": 132096,
        "position_embedding_type": "rope_gptj", "sliding_window": 4096, "sliding_window_pattern": 4,
    },
    "GLM-4-9B of 2024": GLM | {"architectures": ["ChatGLMModel"], "rope_ratio": 500},
    "ChatGLM3 6B": GLM | {"architectures": ["ChatGLMModel"], "seq_length": 8192, "add_bias_linear": False},
    "GLM-4.5 Air": {
        "architectures": ["Glm4MoeForCausalLM"], "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 32,
        "attention_bias": True, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "n_group": 1,
        "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True, "num_experts_per_tok": 2,
        "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5, "routed_scaling_factor": 1.0, "topk_group": 1,
        "use_qk_norm": False, "rope_scaling": None, "rope_theta": 1000000, "max_position_embeddings": 131072,
    },
    "Phi-3 mini 128k": {
        "architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 4,
        "original_max_position_embeddings": 4096, "max_position_embeddings": 131072, "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    },
    "GPT-OSS 20B": {
        "architectures": ["GptOssForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16,
        "attention_bias": True, "experts_per_token": 2, "num_experts_per_tok": 2, "num_local_experts": 4,
        "initial_context_length": 4096, "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 150000,
        "rope_scaling": YARN | {"factor": 32.0, "truncate": False}, "sliding_window": 128, "swiglu_limit": 7.0,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
    },
    "GPT-2": {
        "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 64,
        "n_head": 4, "n_layer": 2, "n_positions": 1024, "vocab_size": 40, "layer_norm_epsilon": 1e-05,
    },
    "Pythia": {
        "architectures": ["GPTNeoXForCausalLM"], "num_hidden_layers": 2, "hidden_act": "gelu", "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "use_parallel_residual": True, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-05, "tie_word_embeddings": False,
    },
    "DeepSeek V2 Lite": DEEPSEEK | {
        "architectures": ["DeepseekV2ForCausalLM"], "n_group": 1, "n_routed_experts": 8, "norm_topk_prob": False,
        "num_experts_per_tok": 2, "q_lora_rank": None, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
        "topk_group": 1, "topk_method": "greedy", "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "DeepSeek V3": DEEPSEEK | {
        "architectures": ["DeepseekV3ForCausalLM"], "n_group": 4, "n_routed_experts": 8, "norm_topk_prob": True,
        "num_experts_per_tok": 2, "q_lora_rank": 24, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "topk_group": 2, "topk_method": "noaux_tc", "num_nextn_predict_layers": 1,
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "MiniMax M2": {
        "architectures": ["MiniMaxM2ForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 32,
        "num_experts_per_tok": 2, "num_local_experts": 8, "qk_norm_type": "per_layer", "rope_theta": 5000000,
        "rotary_dim": 16, "scoring_func": "sigmoid", "shared_intermediate_size": 0, "use_qk_norm": True,
        "use_routing_bias": True, "max_position_embeddings": 196608, "rms_norm_eps": 1e-06,
    },
    "Llama 4 Scout": {
        "architectures": ["Llama4ForCausalLM"], "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16,
        "attention_chunk_size": 8192, "attn_scale": 0.1, "attn_temperature_tuning": 4, "floor_scale": 8192,
        "interleave_moe_layer_step": 1, "intermediate_size_mlp": 64, "num_experts_per_tok": 1, "num_local_experts": 4,
        "no_rope_layers": [], "use_qk_norm": True, "rope_theta": 500000.0, "max_position_embeddings": 10485760,
        "rope_scaling": LLAMA3 | {"factor": 16.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 8192},
    },
}  # fmt: skip


def spec_of(name: str) -> Decoder:
    config = SMALL | RELEASED[name]
    family = FAMILIES[config["architectures"][0]]
    return family.build(family.defaults | config)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_config_makes_a_model(name: str) -> None:
    model = Model(spec_of(name), 32, torch.device("meta"), torch.float32)
    assert all(t.numel() for t in model.places().values())


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("Mixtral 8x7B", lambda s: s.window is None and s.experts.routing.norm == 1 and s.experts.routing.count == 8),
        ("Gemma 2 9B", lambda s: s.tied and s.scale == 1 / 8 and [s.local(i) for i in range(3)] == [True, False, True]),
        (
            "Gemma 3 1B",
            lambda s: s.rope_in(0).theta == 1e4 and s.rope_in(5).theta == 1e6 and not s.local(5) and s.local(6),
        ),
        ("Gemma 3 1B", lambda s: s.attn_softcap is None and s.logit_softcap is None and s.context == 32768),
        ("Qwen3 30B A3B", lambda s: s.experts.routing.norm == 1 and s.experts.shared == 0 and s.expert_layers(0)),
        ("StableLM 2 12B", lambda s: s.rope.dim == 4 and s.block == "parallel" and s.qk_norm == "heads"),
        ("StableLM 3B 4E1T", lambda s: s.rope.dim == 4 and s.block == "pre" and s.qk_norm is None and not s.qkv_bias),
        ("Command-R", lambda s: s.tied and s.rope.interleaved and s.logit_scale == 0.0625 and s.context == 131072),
        (
            "Command-R7B",
            lambda s: s.rope_in(3) is None and s.rope_in(0).theta == 50000 and not s.local(3) and s.window == 4096,
        ),
        ("GLM-4-9B of 2024", lambda s: s.rope.dim == 8 and s.rope.theta == 5e6 and s.qkv_bias and not s.out_bias),
        ("ChatGLM3 6B", lambda s: s.rope.theta == 1e4 and s.rope.interleaved and s.kv_heads == 2),
        (
            "GLM-4.5 Air",
            lambda s: s.rope.dim == 16 and not s.rope.interleaved and s.spare_layers == 1 and s.expert_layers(1),
        ),
        (
            "Phi-3 mini 128k",
            lambda s: s.rope.original == 4096 and s.rope.positions == 131072 and s.rope.kind == "longrope",
        ),
        ("GPT-OSS 20B", lambda s: s.sinks and s.local(0) and not s.local(1) and s.out_bias and not s.rope.truncate),
        ("GPT-2", lambda s: s.tied and s.inter == 256 and s.act == "gelu_tanh" and s.learned_positions == 1024),
        (
            "Pythia",
            lambda s: s.kv_heads == 4 and s.rope.dim == 4 and s.parallel_norms and s.act == "gelu" and not s.tied,
        ),
        ("DeepSeek V2 Lite", lambda s: s.latent.q_rank is None and s.experts.routing.norm is None and s.kv_heads == 1),
        ("DeepSeek V2 Lite", lambda s: abs(s.scale * 24**0.5 - (0.0707 * 3.6888794541 + 1) ** 2) < 1e-6),
        (
            "DeepSeek V3",
            lambda s: s.experts.routing.groups == 4 and s.experts.routing.correction and s.spare_layers == 1,
        ),
        ("MiniMax M2", lambda s: s.rope.dim == 16 and s.qk_norm == "all" and s.experts.routing.correction),
        ("Llama 4 Scout", lambda s: s.rope_in(3) is None and s.rope_in(4 - 2).interleaved and s.chunk == 8192),
        (
            "Llama 4 Scout",
            lambda s: s.temperature.shift == 1 and not s.local(3) and s.inter == 64 and s.experts.shared == 48,
        ),
    ],
)
def test_what_a_released_config_means(name: str, facts: Callable[[Any], bool]) -> None:
    assert facts(spec_of(name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Llama 3.1 8B", 131072), ("GPT-OSS 20B", 131072), ("DeepSeek V3", 163840), ("GPT-2", 1024), ("Pythia", 2048)],
)
def test_the_context_of_a_released_config(name: str, expected: int) -> None:
    assert context_length(SMALL | RELEASED[name]) == expected
