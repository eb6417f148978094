"""StableLM: Llama with LayerNorm and a rotation of a quarter of each head; 12B: norms per head, parallel halves."""

from dataclasses import replace

from sglang.models.config import rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family

PER_HEAD = {
    "model.layers.*.self_attn.q_layernorm.norms.*": "layers.*.q_norm.*",
    "model.layers.*.self_attn.k_layernorm.norms.*": "layers.*.k_norm.*",
}


@family("StableLmForCausalLM", "StableLMEpochForCausalLM", names=NAMES | PER_HEAD, ignored=IGNORED)
def stablelm(c: HFConfig) -> Decoder:
    base = llama(c)
    return replace(
        base,
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("layer_norm_eps") or c.get("norm_eps") or 1e-5,
        rope=rope(c, base.head_dim, partial=c.get("rope_pct", 0.25)),
        qkv_bias=bool(c.get("use_qkv_bias")),
        qk_norm="heads" if c.get("qk_layernorm") else None,
        block="parallel" if c.get("use_parallel_residual") else "pre",
    )
