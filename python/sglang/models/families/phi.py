"""Phi-1 and 2: both halves of a layer read one LayerNorm; biases everywhere."""

from dataclasses import replace

from sglang.models.config import act, rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family

OWN = {
    "model.layers.*.self_attn.dense": "layers.*.out.o",
    "model.layers.*.self_attn.q_layernorm": "layers.*.q_norm",
    "model.layers.*.self_attn.k_layernorm": "layers.*.k_norm",
    "model.layers.*.mlp.fc1": "layers.*.gate_up.up",
    "model.layers.*.mlp.fc2": "layers.*.down.down",
    "model.final_layernorm": "norm",
}


@family("PhiForCausalLM", names=NAMES | OWN, ignored=IGNORED)
def phi(c: HFConfig) -> Decoder:
    base = llama(c)
    return replace(
        base,
        block="parallel",
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("layer_norm_eps", 1e-5),
        rope=rope(c, base.head_dim, partial=0.5),
        qk_norm="head" if c.get("qk_layernorm") else None,
        act=act(c, default="gelu_new"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
    )
