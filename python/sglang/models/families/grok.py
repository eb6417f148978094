"""Grok-1: capped scores everywhere, norms before and after, eight experts of which a token takes two."""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.families.llama import IGNORED, llama
from sglang.models.families.llama import NAMES as LLAMA
from sglang.models.families.mixtral import EXPERTS
from sglang.models.spec import Decoder, Experts, HFConfig, family

LAYER = "model.layers.*."
NORMS = {"pre_attn_norm": "attn_norm", "post_attn_norm": "attn_post", "pre_moe_norm": "mlp_norm"}
NORMS |= {"post_moe_norm": "mlp_post"}
OTHER = {"attn.q_proj": "qkv.q", "attn.k_proj": "qkv.k", "attn.v_proj": "qkv.v", "attn.o_proj": "out.o"}
OTHER |= {"moe_block.gate": "router", "moe_block.experts.*.linear": "experts.*.gate"}
OTHER |= {"moe_block.experts.*.linear_v": "experts.*.up", "moe_block.experts.*.linear_1": "experts.*.down"}
NAMES = (
    LLAMA
    | EXPERTS
    | {LAYER + name: "layers.*." + place for name, place in (NORMS | OTHER).items()}
    | {f"{LAYER}{name}.scale": f"layers.*.{place}.weight" for name, place in NORMS.items()}
    | {"model.norm.scale": "norm.weight"}
)


@family("Grok1ForCausalLM", "Grok1ModelForCausalLM", names=NAMES, ignored=IGNORED)
def grok(c: HFConfig) -> Decoder:
    count = c.get("num_experts") or c["num_local_experts"]
    routing = Routing(count, c["num_experts_per_tok"], norm=None, softcap=30.0)
    return replace(
        llama(c),
        block="sandwich",
        act="gelu_tanh",
        experts=Experts(routing, c["intermediate_size"]),
        attn_scale=c.get("attn_output_multiplier"),
        attn_softcap=c.get("max_attn_value", 30.0),
        embed_scale=c.get("embedding_multiplier_scale", 78.38367176906169),
        logit_scale=c.get("output_multiplier_scale", 0.5773502691896257),
        tied=c.get("tie_word_embeddings", True),
    )
