"""Mixtral: Mistral with eight experts a layer, of which a token takes two."""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.families.llama import IGNORED, NAMES
from sglang.models.families.mistral import mistral
from sglang.models.spec import Decoder, Experts, HFConfig, family

EXPERTS = {
    "model.layers.*.block_sparse_moe.gate": "layers.*.router",
    "model.layers.*.block_sparse_moe.experts.*.w1": "layers.*.experts.*.gate",
    "model.layers.*.block_sparse_moe.experts.*.w3": "layers.*.experts.*.up",
    "model.layers.*.block_sparse_moe.experts.*.w2": "layers.*.experts.*.down",
}


@family("MixtralForCausalLM", "QuantMixtralForCausalLM", names=NAMES | EXPERTS, ignored=IGNORED)
def mixtral(c: HFConfig) -> Decoder:
    routing = Routing(c["num_local_experts"], c["num_experts_per_tok"])
    return replace(mistral(c), experts=Experts(routing, c["intermediate_size"]))
