"""Granite 3: Llama with four multipliers; MoE: experts of one tensor a layer."""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.layout import experts
from sglang.models.spec import Decoder, Experts, HFConfig, family

EXPERTS = {
    "model.layers.*.block_sparse_moe.router.layer": "layers.*.router",
    "model.layers.*.block_sparse_moe.input_linear": experts("layers.*.experts.*.gate", "layers.*.experts.*.up"),
    "model.layers.*.block_sparse_moe.output_linear": experts("layers.*.experts.*.down"),
}


@family("GraniteForCausalLM", names=NAMES, ignored=IGNORED)
def granite(c: HFConfig) -> Decoder:
    return replace(
        llama(c),
        embed_scale=c.get("embedding_multiplier", 1.0),
        residual_scale=c.get("residual_multiplier", 1.0),
        attn_scale=c.get("attention_multiplier", 1.0),
        logit_scale=1 / c.get("logits_scaling", 1.0),
    )


@family("GraniteMoeForCausalLM", names=NAMES | EXPERTS, ignored=IGNORED)
def granite_moe(c: HFConfig) -> Decoder:
    routing = Routing(c["num_local_experts"], c["num_experts_per_tok"])
    return replace(granite(c), experts=Experts(routing, c["intermediate_size"]))
