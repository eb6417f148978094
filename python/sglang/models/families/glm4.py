"""GLM-4 and GLM-4-0414: half of each head turns, neighbours together; the later has norms before and after."""

from dataclasses import replace

from sglang.models.config import rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.families.phi3 import GATE_UP
from sglang.models.spec import Decoder, HFConfig, family

SANDWICH = {
    "model.layers.*.post_self_attn_layernorm": "layers.*.attn_post",
    "model.layers.*.post_mlp_layernorm": "layers.*.mlp_post",
}


@family("GlmForCausalLM", names=NAMES | GATE_UP, ignored=IGNORED)
def glm(c: HFConfig) -> Decoder:
    base = llama(c)
    turn = rope(c, base.head_dim, partial=0.5, interleaved=True)
    return replace(base, rope=turn, qkv_bias=bool(c.get("attention_bias")), out_bias=False)


@family("Glm4ForCausalLM", names=NAMES | GATE_UP | SANDWICH, ignored=IGNORED)
def glm4(c: HFConfig) -> Decoder:
    return replace(glm(c), block="sandwich")
