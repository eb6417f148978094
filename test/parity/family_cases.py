"""The checkpoints that families are compared on: a name for the case -> transformers' class, and config values;
and what they are asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine_driver import Driver, PromptAsk, Row

Make = Callable[..., tuple[Path, Any]]
VOCAB = 128
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}

TOKENS = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()
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
GEMMA2 = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0}
GEMMA2 |= {"final_logit_softcapping": 3.0}
GEMMA3 = {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24}
QWEN_MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "sliding_window": None}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
MLA_YARN = YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
GLM_MOE = {"head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GLM_MOE |= {"attention_bias": True, "routed_scaling_factor": 1.5}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2, "logits_scaling": 0.7}
LLAMA4 = {"num_hidden_layers": 4, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 1}
LLAMA4 |= {"attention_chunk_size": 16, "floor_scale": 8, "attn_scale": 0.3, "intermediate_size_mlp": 80}
GPT_OSS = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
DEEPSEEK = {"kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}
DEEPSEEK |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
DEEPSEEK |= {"num_key_value_heads": 4, "routed_scaling_factor": 1.7}
# Released files have rotary_dim alone; with that transformers 5.17 turns whole heads, as later ones do not.
MINIMAX = {"head_dim": 16, "rotary_dim": 8, "partial_rotary_factor": 0.5}
MINIMAX |= {"num_local_experts": 8, "num_experts_per_tok": 3}
DBRX: dict[str, Any] = {
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 128,
    "attn_config": {"clip_qkv": 0.7, "kv_n_heads": 2, "rope_theta": 500.0},
    "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
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
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", GEMMA2),
    "gemma3": ("Gemma3", GEMMA3),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm 12b": ("StableLm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "command-r": ("Cohere", {"logit_scale": 0.5}),
    "command-r+": ("Cohere", {"logit_scale": 0.8, "use_qk_norm": True}),
    "command-r7b": ("Cohere2", {"num_hidden_layers": 4, "sliding_window": 8, "logit_scale": 0.5}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2 moe": ("Qwen2Moe", QWEN_MOE | {"decoder_sparse_step": 2, "shared_expert_intermediate_size": 40}),
    "qwen2 moe renorm": ("Qwen2Moe", QWEN_MOE | {"mlp_only_layers": [1], "norm_topk_prob": True}),
    "dbrx": ("Dbrx", DBRX),
    "dbrx raw weights": ("Dbrx", DBRX | {"ffn_config": DBRX["ffn_config"] | {"moe_normalize_expert_weights": None}}),
    "mistral small": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "ministral": ("Ministral", {"head_dim": 16, "sliding_window": 8, "layer_types": ALTERNATING}),
    "ministral 3": ("Ministral3", {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0}}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3 moe": ("Qwen3Moe", QWEN_MOE | {"norm_topk_prob": True, "num_local_experts": 8}),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "phi4 mini": ("Phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi norms": ("Phi", {"qk_layernorm": True}),
    "glm4 2024": ("Glm", {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "glm4": ("Glm4", {"head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-5}),
    "glm4.5": ("Glm4Moe", GLM_MOE),
    "glm4.5 norms": ("Glm4Moe", GLM_MOE | {"use_qk_norm": True, "n_group": 4, "topk_group": 2}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 4, "sliding_window": 8}),
    "granite": ("Granite", GRANITE),
    "granite moe": ("GraniteMoe", GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4": ("Llama4", LLAMA4),
    "llama4 maverick": ("Llama4", LLAMA4 | {"use_qk_norm": False, "interleave_moe_layer_step": 2}),
    "gpt-oss": ("GptOss", GPT_OSS),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "bigcode": ("GPTBigCode", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 96}),
    "gpt-neox": ("GPTNeoX", {"intermediate_size": 96}),
    "gpt-neox serial": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "deepseek v2": ("DeepseekV2", DEEPSEEK | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    "deepseek v2 lite": ("DeepseekV2", DEEPSEEK | {"q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "deepseek v3": ("DeepseekV3", DEEPSEEK | {"n_group": 4, "topk_group": 2}),
    "deepseek v3 yarn": ("DeepseekV3", DEEPSEEK | {"n_group": 1, "topk_group": 1, "rope_parameters": MLA_YARN}),
    "starcoder2": ("Starcoder2", {"sliding_window": 8}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "seed-oss": ("SeedOss", {"head_dim": 16}),
    "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "exaone4 32b": ("Exaone4", {"num_hidden_layers": 4, "sliding_window": 8}),
    "ernie4.5": ("Ernie4_5", {"head_dim": 16, "use_bias": True}),
    "olmoe": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 24}),
    "minimax m2": ("MiniMaxM2", MINIMAX),
    "glm4.7 flash": ("Glm4MoeLite", DEEPSEEK | {"n_group": 1, "topk_group": 1}),
}
GREEDY = (
    "llama",
    "mistral window",
    "qwen2",
    "gemma",
    "gemma2",
    "gemma3",
    "stablelm",
    "stablelm 12b",
    "command-r",
    "command-r+",
    "command-r7b",
    "mixtral",
    "qwen2 moe",
    "dbrx",
    "ministral 3",
    "qwen3",
    "qwen3 moe",
    "phi3",
    "phi",
    "glm4",
    "glm4.5",
    "olmo2",
    "granite moe",
    "llama4",
    "gpt-oss",
    "gpt2",
    "bigcode",
    "gpt-neox",
    "deepseek v2",
    "deepseek v3 yarn",
    "starcoder2",
    "smollm3",
    "exaone4 32b",
    "minimax m2",
    "seed-oss",
    "ernie4.5",
    "olmoe",
)


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


def moving_text(driver: Driver) -> tuple[list[int], list[int]]:
    """A prompt of 11 tokens and the 64 that follow it, greedily; a text that repeats itself would hide errors."""
    for i in range(0, 29, 4):
        prompt = TOKENS[i : i + 11]
        text = driver.generate(5, prompt, 64)
        if len(set(text)) > 6:
            return prompt, text
    raise AssertionError("no prompt leads to a text that moves")
