"""Gemma 3, text: five layers with windows and a short-ranged rotation for each that sees everything."""

from dataclasses import replace

from sglang.models.config import local_layers, rope
from sglang.models.families.gemma2 import SANDWICH, gemma2
from sglang.models.families.llama import IGNORED, QK_NORMS
from sglang.models.layout import SEEING, below
from sglang.models.spec import Decoder, HFConfig, family

NAMES = SANDWICH | QK_NORMS
DEFAULTS = {  # what the released files of 4B leave out
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
}


@family("Gemma3ForConditionalGeneration", names=below("language_model.", NAMES), ignored=SEEING, defaults=DEFAULTS)
@family("Gemma3ForCausalLM", names=NAMES, ignored=IGNORED, defaults=DEFAULTS)
def gemma3(c: HFConfig) -> Decoder:
    every = c.get("sliding_window_pattern") or 6
    local = local_layers(c, lambda layer: (layer + 1) % every != 0)
    far = rope(c, c["head_dim"], theta=1e6)
    if c.get("rope_parameters"):
        near = rope(c, c["head_dim"], layer_type="sliding_attention")
    else:
        near = rope({**c, "rope_scaling": None, "rope_theta": c.get("rope_local_base_freq") or 1e4}, c["head_dim"])
    return replace(
        gemma2(c),
        qk_norm="head",
        local=local,
        rope=far,
        rope_of=lambda layer: near if local(layer) else far,
        context=c["max_position_embeddings"],  # the scaling is counted in
    )
