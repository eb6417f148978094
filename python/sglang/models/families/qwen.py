"""Qwen, the first: Llama with fused and biased queries, keys and values, and names of its own."""

from dataclasses import replace

from sglang.models.config import rope
from sglang.models.families.llama import IGNORED, llama
from sglang.models.layout import stacked
from sglang.models.spec import Decoder, HFConfig, family

NAMES = {
    "transformer.wte": "embed",
    "transformer.h.*.ln_1": "layers.*.attn_norm",
    "transformer.h.*.attn.c_attn": stacked("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v"),
    "transformer.h.*.attn.c_proj": "layers.*.out.o",
    "transformer.h.*.ln_2": "layers.*.mlp_norm",
    "transformer.h.*.mlp.w2": "layers.*.gate_up.gate",
    "transformer.h.*.mlp.w1": "layers.*.gate_up.up",
    "transformer.h.*.mlp.c_proj": "layers.*.down.down",
    "transformer.ln_f": "norm",
    "lm_head": "head.head",
}


@family("QWenLMHeadModel", names=NAMES, ignored=IGNORED)
def qwen(c: HFConfig) -> Decoder:
    base = llama(c)
    bias = not c.get("no_bias", True)
    return replace(
        base,
        inter=c["intermediate_size"] // 2,  # the file counts both halves
        norm_eps=c["layer_norm_epsilon"],
        rope=rope(c, base.head_dim, partial=c.get("rotary_pct"), theta=c.get("rotary_emb_base")),
        qkv_bias=True,
        out_bias=bias,
        mlp_bias=bias,
    )
