"""Qwen 2 MoE: Qwen 2 with many small experts, and one of its own weight that every token takes."""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.families.llama import IGNORED, NAMES
from sglang.models.families.qwen2 import qwen2
from sglang.models.spec import Decoder, Experts, HFConfig, family

EXPERTS = {
    "model.layers.*.mlp.gate": "layers.*.router",
    "model.layers.*.mlp.experts.*.gate_proj": "layers.*.experts.*.gate",
    "model.layers.*.mlp.experts.*.up_proj": "layers.*.experts.*.up",
    "model.layers.*.mlp.experts.*.down_proj": "layers.*.experts.*.down",
}
SHARED = {
    "model.layers.*.mlp.shared_expert.gate_proj": "layers.*.shared.gate_up.gate",
    "model.layers.*.mlp.shared_expert.up_proj": "layers.*.shared.gate_up.up",
    "model.layers.*.mlp.shared_expert.down_proj": "layers.*.shared.down.down",
    "model.layers.*.mlp.shared_expert_gate": "layers.*.shared_gate",
}


@family("Qwen2MoeForCausalLM", names=NAMES | EXPERTS | SHARED, ignored=IGNORED)
def qwen2_moe(c: HFConfig) -> Decoder:
    shared = c["shared_expert_intermediate_size"]
    return with_experts(c, replace(qwen2(c), qkv_bias=c.get("qkv_bias", True)), shared)


def with_experts(c: HFConfig, base: Decoder, shared: int = 0) -> Decoder:
    """`base` with Qwen's experts, in the layers that its config names; shared: width of the gated shared one."""
    dense, step = c.get("mlp_only_layers") or (), c.get("decoder_sparse_step") or 1
    count = c.get("num_experts") or c["num_local_experts"]
    routing = Routing(count, c["num_experts_per_tok"], norm=1.0 if c.get("norm_topk_prob") else None)
    return replace(
        base,
        experts=Experts(routing, c["moe_intermediate_size"], shared, shared_gate=shared > 0),
        expert_layers=lambda layer: layer not in dense and (layer + 1) % step == 0,
    )
