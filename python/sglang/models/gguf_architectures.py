"""How GGUF files of each architecture differ: names of tensors, keys, and what they leave to those who know the model.

Names lead straight to places (`spec.Family.names`), whatever Hugging Face's files of the same model call them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sglang.models.layout import Names, listed, stacked
from sglang.models.spec import HFConfig

if TYPE_CHECKING:
    from sglang.models.gguf import File

TOP: Names = {
    "token_embd": "embed",
    "position_embd": "positions",
    "token_types": "kinds",
    "token_embd_norm": "embed_norm",
    "output_norm": "norm",
    "output": "head.head",
}
# Of a layer. `*` is one of the experts, which lie in one tensor.
LAYER: Names = {
    "attn_norm": "attn_norm",
    "post_attention_norm": "attn_post",
    "ffn_norm": "mlp_norm",
    "post_ffw_norm": "mlp_post",
    "attn_q": "qkv.q",
    "attn_k": "qkv.k",
    "attn_v": "qkv.v",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "attn_sinks.weight": "sinks",
    "attn_output": "out.o",
    "ffn_gate": "gate_up.gate",
    "ffn_up": "gate_up.up",
    "ffn_down": "down.down",
    "ffn_gate_inp": "router",
    "exp_probs_b": "correction",
    "ffn_gate_exps.*": "experts.*.gate",
    "ffn_up_exps.*": "experts.*.up",
    "ffn_down_exps.*": "experts.*.down",
    "ffn_gate_inp_shexp": "shared_gate",
    "ffn_gate_shexp": "shared.gate_up.gate",
    "ffn_up_shexp": "shared.gate_up.up",
    "ffn_down_shexp": "shared.down.down",
}
FUSED: Names = {"attn_qkv": stacked("qkv.q", "qkv.k", "qkv.v")}
BOTH_UP: Names = {"ffn_up": stacked("gate_up.gate", "gate_up.up")}  # the gate above what it multiplies
PER_HEAD: Names = {"attn_q_norm": listed("q_norm.*"), "attn_k_norm": listed("k_norm.*")}
BETWEEN: Names = {"post_attention_norm": "mlp_norm"}  # where others have a norm behind the attention
BEHIND: Names = {"attn_output_norm": "attn_post", "layer_output_norm": "mlp_post"}
LATENT: Names = {
    "attn_q_a": "qkv.q_a",
    "attn_q_a_norm": "q_norm",
    "attn_q_b": "q_up.q_b",
    "attn_kv_a_mqa": "qkv.kv_a",
    "attn_kv_a_norm": "kv_norm",
    "attn_kv_b": "kv_b",
}

KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
LAYER_NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
WINDOW = {"attention.sliding_window": "sliding_window"}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
USED = {"expert_used_count": "num_experts_per_tok"}
QWEN_MOE = USED | {
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
LOCAL = USED | {"expert_count": "num_local_experts"}
ROUTED = USED | {
    "expert_count": "n_routed_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
RANKS = ROUTED | {"attention.q_lora_rank": "q_lora_rank", "attention.kv_lora_rank": "kv_lora_rank"}
GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
GPT2 = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "context_length": "n_positions",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}


@dataclass(frozen=True)
class Architecture:
    """model: the family's name. names, keys: beside LAYER and KEYS.

    turned: rows of queries and keys were interleaved, since llama.cpp turns neighbours together where the files it
    converts turn halves. plus_one: norms hold 1 + weight. more: what the file does not say in one key.
    """

    model: str
    names: Names = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    turned: bool = False
    plus_one: bool = False
    more: "Callable[[File], HFConfig]" = lambda file: {}


def _biased(file: "File") -> HFConfig:
    return {"attention_bias": file.biased, "mlp_bias": file.has("ffn_up.bias")}


def _llama(file: "File") -> HFConfig:
    """Mixtral's files have the name of Llama's."""
    if file.key("expert_count"):
        return {"architectures": ["MixtralForCausalLM"], "num_local_experts": file.key("expert_count")}
    return _biased(file)


def _gemma(file: "File") -> HFConfig:
    """Gemma 2 and 3 of 27B scale their scores by the width of what a head would have, the others by that of a head."""
    large = file.key("block_count") in (46, 62)
    share = file.key("embedding_length") // file.key("attention.head_count")
    return {"query_pre_attn_scalar": share if large else file.head_dim, "torch_dtype": "bfloat16"}


def _gemma3(file: "File") -> HFConfig:
    return _gemma(file) | {"rope_local_base_freq": file.key("rope.freq_base_swa") or 1e4}


def _partial(file: "File") -> HFConfig:
    turning = file.key("rope.dimension_count")
    return {} if turning is None else {"partial_rotary_factor": turning / file.head_dim}


def _stablelm(file: "File") -> HFConfig:
    parallel = bool(file.key("use_parallel_residual"))
    norms = file.has("attn_q_norm.weight")
    return _partial(file) | {"use_qkv_bias": file.biased, "use_parallel_residual": parallel, "qk_layernorm": norms}


def _neox(file: "File") -> HFConfig:
    parallel = file.key("use_parallel_residual") is not False
    return _partial(file) | {"attention_bias": file.biased, "use_parallel_residual": parallel}


def _experts(file: "File") -> HFConfig:
    """Older files do not say how wide an expert is; its weight does."""
    found: HFConfig = {"norm_topk_prob": file.header.architecture == "qwen3moe", "qkv_bias": file.biased}
    for name, key in (
        ("ffn_gate_exps.0", "moe_intermediate_size"),
        ("ffn_gate_shexp", "shared_expert_intermediate_size"),
    ):
        if (stored := file.tensors.get(f"blk.0.{name}.weight")) is not None:
            found[key] = stored.shape[0]
    return found


def _dbrx(file: "File") -> HFConfig:
    return {
        "attn_config": {
            "clip_qkv": file.key("attention.clamp_kqv"),
            "kv_n_heads": file.key("attention.head_count_kv"),
            "rope_theta": file.key("rope.freq_base"),
        },
        "ffn_config": {
            "ffn_hidden_size": file.key("feed_forward_length"),
            "moe_num_experts": file.key("expert_count"),
            "moe_top_k": file.key("expert_used_count"),
        },
    }


def _deepseek(file: "File") -> HFConfig:
    """V2 scores its experts with a softmax, V3 (whose numbers are the file's 2) with sigmoids.

    Newer files say how wide heads are beside how wide the one head is that all queries see.
    """
    turning = file.key("rope.dimension_count")
    wide = file.key("attention.key_length_mla") or file.head_dim
    sizes = {"qk_rope_head_dim": turning, "qk_nope_head_dim": wide - turning}
    sizes["v_head_dim"] = file.key("attention.value_length_mla") or file.key("attention.value_length")
    grouped = (file.key("expert_group_count") or 1) > 1
    version = "V3" if file.key("expert_gating_func") == 2 else "V2"
    method = "group_limited_greedy" if grouped else "greedy"
    return {**_routed(file), **sizes, "architectures": [f"Deepseek{version}ForCausalLM"], "topk_method": method}


def _routed(file: "File") -> HFConfig:
    """What a file leaves out is as llama.cpp takes it. Layers that guess ahead are not read."""
    return {"norm_topk_prob": bool(file.key("expert_weights_norm")), "num_hidden_layers": file.layers}


def _glm_moe(file: "File") -> HFConfig:
    return _routed(file) | _partial(file) | _biased(file) | {"use_qk_norm": file.has("attn_q_norm.weight")}


def _llama4(file: "File") -> HFConfig:
    """Scout (16 experts) norms queries and keys, Maverick (128) does not."""
    return {
        "intermediate_size": file.key("expert_feed_forward_length"),
        "intermediate_size_mlp": file.key("feed_forward_length"),
        "use_qk_norm": file.key("expert_count") != 128,
        "attention_chunk_size": 8192,
    }


def _minicpm(file: "File") -> HFConfig:
    """The oldest files leave out the scales of the first models."""
    layers, hidden = file.key("block_count"), file.key("embedding_length")
    return {
        "scale_emb": file.key("embedding_scale") or 12.0,
        "scale_depth": (file.key("residual_scale") or 1.4 / layers**0.5) * layers**0.5,
        "dim_model_base": hidden / (file.key("logit_scale") or hidden / 256),
    }


def _mistral3(file: "File") -> HFConfig:
    """Ministral 3, where queries grow; this file's logarithm of YaRN is not a tenth, as others' is."""
    beta, scaling = file.key("attention.temperature_scale"), file.scaling()
    if not beta or scaling is None:
        return {"architectures": ["MistralForCausalLM"]}
    both = file.key("rope.scaling.yarn_log_multiplier")
    scaling |= {"mscale": 1.0, "mscale_all_dim": both, "llama_4_scaling_beta": beta}
    return {"rope_scaling": None, "rope_parameters": scaling | {"rope_theta": file.key("rope.freq_base")}}


def _bert(file: "File") -> HFConfig:
    """Tables are as long as they lie there: RoBERTa's without the rows that no position has."""
    rows = {name: t.shape[0] for name, t in file.tensors.items()}
    sizes = {"max_position_embeddings": "position_embd.weight", "type_vocab_size": "token_types.weight"}
    return {key: rows[name] for key, name in sizes.items() if name in rows}


def _minimax(file: "File") -> HFConfig:
    wide, turning = file.key("expert_feed_forward_length"), file.key("rope.dimension_count")
    return {"intermediate_size": wide or file.key("feed_forward_length"), "rotary_dim": turning or file.head_dim}


def _gpt_oss(file: "File") -> HFConfig:
    wide = file.key("expert_feed_forward_length") or file.key("feed_forward_length")
    scaling = file.scaling()
    exact = None if scaling is None else scaling | {"truncate": False}  # where its ramp begins and ends is not rounded
    return {"intermediate_size": wide, "attention_bias": file.biased, "rope_scaling": exact}


def _olmo2(file: "File") -> HFConfig:
    """OLMo 3's files have the name of OLMo 2's."""
    return {"architectures": ["Olmo3ForCausalLM"]} if file.key("attention.sliding_window") else {}


COHERE = Architecture(
    "CohereForCausalLM",
    PER_HEAD,
    LAYER_NORM | {"logit_scale": "logit_scale"},
    more=lambda file: {"use_qk_norm": file.has("attn_q_norm.weight")},
)
GEMMA = Architecture("GemmaForCausalLM", plus_one=True, more=_gemma)
GRANITE3 = Architecture("GraniteForCausalLM", keys=GRANITE, turned=True, more=_biased)
LLAMA = Architecture("LlamaForCausalLM", keys=LOCAL, turned=True, more=_llama)
ARCHITECTURES = {
    "llama": LLAMA,
    "llama4": Architecture(
        "Llama4ForCausalLM",
        keys=LOCAL | {"interleave_moe_layer_step": "interleave_moe_layer_step"},
        more=_llama4,
    ),
    "mistral3": Architecture("Ministral3ForCausalLM", keys=WINDOW, turned=True, more=_mistral3),
    "internlm2": Architecture("InternLM2ForCausalLM", turned=True, more=lambda file: {"bias": file.biased}),
    "minicpm": Architecture("MiniCPMForCausalLM", turned=True, more=_minicpm),
    "smollm3": Architecture("SmolLM3ForCausalLM", turned=True, more=_biased),
    "qwen": Architecture("QWenLMHeadModel", FUSED, {"attention.layer_norm_rms_epsilon": "layer_norm_epsilon"}),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", keys=QWEN_MOE, more=_experts),
    "qwen3": Architecture("Qwen3ForCausalLM", more=_biased),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", keys=QWEN_MOE, more=_experts),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, model="Gemma2ForCausalLM", keys=CAPS | WINDOW),
    "gemma3": replace(GEMMA, model="Gemma3ForCausalLM", keys=CAPS | WINDOW, more=_gemma3),
    "phi2": Architecture("PhiForCausalLM", FUSED, LAYER_NORM, more=_partial),
    "phi3": Architecture("Phi3ForCausalLM", FUSED | BOTH_UP, WINDOW, more=_partial),
    "stablelm": Architecture("StableLmForCausalLM", PER_HEAD, LAYER_NORM, more=_stablelm),
    "gpt2": Architecture("GPT2LMHeadModel", FUSED, GPT2),
    "gptneox": Architecture("GPTNeoXForCausalLM", FUSED, LAYER_NORM, more=_neox),
    "starcoder": Architecture("GPTBigCodeForCausalLM", FUSED, GPT2),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM",
        keys=WINDOW | {"attention.layer_norm_epsilon": "norm_epsilon"},
        more=lambda file: {"use_bias": file.biased},
    ),
    "bert": Architecture("BertModel", BEHIND, LAYER_NORM, more=_bert),
    "command-r": COHERE,
    "cohere2": replace(COHERE, model="Cohere2ForCausalLM", names={}, keys=COHERE.keys | WINDOW, more=lambda file: {}),
    "chatglm": Architecture("GlmForCausalLM", FUSED | BOTH_UP, more=lambda file: _partial(file) | _biased(file)),
    "glm4": Architecture("Glm4ForCausalLM", BOTH_UP, more=lambda file: _partial(file) | _biased(file)),
    "glm4moe": Architecture("Glm4MoeForCausalLM", BETWEEN, ROUTED, more=_glm_moe),
    "olmo2": Architecture("Olmo2ForCausalLM", keys=WINDOW, more=_olmo2),
    "olmoe": Architecture("OlmoeForCausalLM", keys=USED | {"expert_count": "num_experts"}),
    "granite": GRANITE3,
    "granitemoe": replace(GRANITE3, model="GraniteMoeForCausalLM", keys=GRANITE | LOCAL),
    "dbrx": Architecture(
        "DbrxForCausalLM",
        FUSED | {"attn_output_norm": "mlp_norm"},
        {
            "embedding_length": "d_model",
            "block_count": "n_layers",
            "attention.head_count": "n_heads",
            "context_length": "max_seq_len",
            "expert_count": "num_experts",
        },
        more=_dbrx,
    ),
    "grok": Architecture(
        "Grok1ForCausalLM",
        BEHIND,
        LOCAL
        | {
            "attention.output_scale": "attn_output_multiplier",
            "attn_logit_softcapping": "max_attn_value",
            "embedding_scale": "embedding_multiplier_scale",
            "logit_scale": "output_multiplier_scale",
        },
    ),
    "deepseek2": Architecture("DeepseekV2ForCausalLM", LATENT, RANKS, more=_deepseek),
    "gpt-oss": Architecture("GptOssForCausalLM", BETWEEN, LOCAL | WINDOW, more=_gpt_oss),
    "minimax-m2": Architecture("MiniMaxM2ForCausalLM", keys=LOCAL, more=_minimax),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", more=lambda file: {"use_bias": file.biased}),
    "exaone4": Architecture("Exaone4ForCausalLM", keys=WINDOW),
    "seed_oss": Architecture(
        "SeedOssForCausalLM",
        BETWEEN,
        more=lambda file: {"attention_bias": file.biased, "attention_out_bias": file.has("attn_output.bias")},
    ),
}
VALUES_APART = ("deepseek2",)  # keys and values of a head differ in width


def names(own: Names) -> Names:
    """The name table of a file whose layers have `own` beside LAYER."""
    layers: Names = {}
    # `own` comes last: what is missing is called as these files call it.
    for name, place in ({n: p for n, p in LAYER.items() if n not in own} | own).items():
        if isinstance(place, str):
            layers[f"blk.*.{name}"] = f"layers.*.{place}"
        else:
            layers[f"blk.*.{name}"] = replace(place, places=tuple(f"layers.*.{one}" for one in place.places))
    return TOP | layers
