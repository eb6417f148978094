"""DeepSeek V2, V3, R1 (also Kimi K2, GLM-4.7 Flash): latent attention, experts in groups, some for every token."""

import math
from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.config import choice, rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.families.qwen2_moe import EXPERTS as QWEN
from sglang.models.spec import Decoder, Experts, HFConfig, Latent, family

EXPERTS = QWEN | {
    "model.layers.*.mlp.gate.e_score_correction_bias": "layers.*.correction.bias",
    "model.layers.*.mlp.shared_experts.gate_proj": "layers.*.shared.gate_up.gate",
    "model.layers.*.mlp.shared_experts.up_proj": "layers.*.shared.gate_up.up",
    "model.layers.*.mlp.shared_experts.down_proj": "layers.*.shared.down.down",
}
LATENT = {
    "model.layers.*.self_attn.q_proj": "layers.*.qkv.q",
    "model.layers.*.self_attn.q_a_proj": "layers.*.qkv.q_a",
    "model.layers.*.self_attn.q_a_layernorm": "layers.*.q_norm",
    "model.layers.*.self_attn.q_b_proj": "layers.*.q_up.q_b",
    "model.layers.*.self_attn.kv_a_proj_with_mqa": "layers.*.qkv.kv_a",
    "model.layers.*.self_attn.kv_a_layernorm": "layers.*.kv_norm",
    "model.layers.*.self_attn.kv_b_proj": "layers.*.kv_b",
}


def latent(c: HFConfig) -> Decoder:
    sizes = Latent(
        c["kv_lora_rank"], c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"], c.get("q_lora_rank")
    )
    turn = rope(c, sizes.rope, interleaved=c.get("rope_interleave", True))
    sharp = 0.1 * turn.mscale_all_dim * math.log(turn.factor) + 1 if turn.mscale_all_dim and turn.factor > 1 else 1
    return replace(
        llama(c | {"num_key_value_heads": 1}),
        head_dim=sizes.kv_rank + sizes.rope,
        latent=sizes,
        rope=turn,
        attn_scale=(sizes.nope + sizes.rope) ** -0.5 * sharp**2,
    )


def with_experts(c: HFConfig, base: Decoder, routing: Routing) -> Decoder:
    dense, every = c.get("first_k_dense_replace") or 0, c.get("moe_layer_freq") or 1
    kinds = c.get("mlp_layer_types") or ["sparse" if i >= dense and i % every == 0 else "" for i in range(base.layers)]
    inter = c["moe_intermediate_size"]
    return replace(
        base,
        experts=Experts(routing, inter, inter * (c.get("n_shared_experts") or 0)),
        expert_layers=lambda layer: kinds[layer] == "sparse",
        spare_layers=c.get("num_nextn_predict_layers") or c.get("num_mtp_layers") or 0,
    )


def corrected(c: HFConfig) -> Routing:
    """V3: groups are ranked by their two best experts, and a learned bias keeps the experts equally busy."""
    choice(c, "scoring_func", {"sigmoid": True}, "sigmoid")
    return Routing(
        c["n_routed_experts"],
        c["num_experts_per_tok"],
        score="sigmoid",
        norm=1.0 if c.get("norm_topk_prob", True) else None,
        scale=c.get("routed_scaling_factor", 1.0),
        groups=c.get("n_group") or 1,
        top_groups=c.get("topk_group") or 1,
        group_by=2,
        correction=True,
    )


@family("DeepseekV2ForCausalLM", names=NAMES | LATENT | EXPERTS, ignored=IGNORED)
def deepseek_v2(c: HFConfig) -> Decoder:
    choice(c, "scoring_func", {"softmax": True}, "softmax")
    grouped = choice(c, "topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    renorm = bool(c.get("norm_topk_prob"))  # its code scales the weights only where it does not
    routing = Routing(
        c["n_routed_experts"],
        c["num_experts_per_tok"],
        norm=1.0 if renorm else None,
        scale=1.0 if renorm else c.get("routed_scaling_factor", 1.0),
        groups=c["n_group"] if grouped else 1,
        top_groups=c["topk_group"] if grouped else 1,
    )
    return with_experts(c, latent(c), routing)


@family("DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM", names=NAMES | LATENT | EXPERTS, ignored=IGNORED)
def deepseek_v3(c: HFConfig) -> Decoder:
    return with_experts(c, latent(c), corrected(c))
