"""InternLM 2 and 2.5: Llama with queries, keys and values fused group by group, and names of its own."""

from dataclasses import replace

from sglang.models.families.llama import IGNORED, llama
from sglang.models.layout import grouped
from sglang.models.spec import Decoder, HFConfig, family

NAMES = {
    "model.tok_embeddings": "embed",
    "model.layers.*.attention_norm": "layers.*.attn_norm",
    "model.layers.*.attention.wqkv": grouped("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v"),
    "model.layers.*.attention.wo": "layers.*.out.o",
    "model.layers.*.ffn_norm": "layers.*.mlp_norm",
    "model.layers.*.feed_forward.w1": "layers.*.gate_up.gate",
    "model.layers.*.feed_forward.w3": "layers.*.gate_up.up",
    "model.layers.*.feed_forward.w2": "layers.*.down.down",
    "model.norm": "norm",
    "output": "head.head",
}


@family("InternLM2ForCausalLM", names=NAMES, ignored=IGNORED)
def internlm2(c: HFConfig) -> Decoder:
    bias = bool(c.get("bias"))
    return replace(llama(c), qkv_bias=bias, out_bias=bias)
