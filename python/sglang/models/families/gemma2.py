"""Gemma 2: Gemma with norms before and after, capped scores and logits, and windows in every other layer."""

from dataclasses import replace

from sglang.models.config import local_layers
from sglang.models.families.gemma import gemma
from sglang.models.families.llama import IGNORED, NAMES
from sglang.models.spec import Decoder, HFConfig, family

SANDWICH = NAMES | {
    "model.layers.*.post_attention_layernorm": "layers.*.attn_post",
    "model.layers.*.pre_feedforward_layernorm": "layers.*.mlp_norm",
    "model.layers.*.post_feedforward_layernorm": "layers.*.mlp_post",
}


@family("Gemma2ForCausalLM", names=SANDWICH, ignored=IGNORED)
def gemma2(c: HFConfig) -> Decoder:
    return replace(
        gemma(c),
        block="sandwich",
        attn_scale=c["query_pre_attn_scalar"] ** -0.5,
        attn_softcap=c.get("attn_logit_softcapping"),
        logit_softcap=c.get("final_logit_softcapping"),
        window=c.get("sliding_window"),
        local=local_layers(c, lambda layer: layer % 2 == 0),
    )
