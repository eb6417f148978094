"""Gemma 3, text: five layers with windows and a short-ranged rotation for each that sees everything."""

from dataclasses import replace

from sglang.models.config import local_layers, rope
from sglang.models.families.gemma2 import SANDWICH, gemma2
from sglang.models.families.llama import IGNORED, QK_NORMS
from sglang.models.spec import Decoder, HFConfig, family


@family("Gemma3ForCausalLM", names=SANDWICH | QK_NORMS, ignored=IGNORED)
def gemma3(c: HFConfig) -> Decoder:
    every = c.get("sliding_window_pattern") or 6
    local = local_layers(c, lambda layer: (layer + 1) % every != 0)
    far = rope(c, c["head_dim"], theta=1e6)
    if c.get("rope_parameters"):
        near = rope(c, c["head_dim"], layer_type="sliding_attention")
    else:
        near = rope({**c, "rope_scaling": None, "rope_theta": c.get("rope_local_base_freq") or 1e4}, c["head_dim"])
    return replace(
        gemma2(c), qk_norm="head", local=local, rope=far, rope_of=lambda layer: near if local(layer) else far
    )
