"""MiniCPM: Llama with a scaled embedding, scaled layers and a scaled head."""

from dataclasses import replace

from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("MiniCPMForCausalLM", names=NAMES, ignored=IGNORED)
def minicpm(c: HFConfig) -> Decoder:
    base = llama(c)
    return replace(
        base,
        embed_scale=c.get("scale_emb", 1.0),
        residual_scale=c.get("scale_depth", 1.0) / base.layers**0.5,
        logit_scale=c.get("dim_model_base", base.hidden) / base.hidden,
        tied=c.get("tie_word_embeddings", True),
    )
