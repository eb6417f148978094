"""GPT-NeoX (Pythia): both halves of a layer read its input through norms of their own; a quarter of each head turns."""

from dataclasses import replace

from sglang.models.config import act, rope
from sglang.models.families.llama import llama
from sglang.models.layout import grouped
from sglang.models.spec import Decoder, HFConfig, family

LAYER = "gpt_neox.layers.*."
NAMES = {
    "gpt_neox.embed_in": "embed",
    LAYER + "input_layernorm": "layers.*.attn_norm",
    LAYER + "attention.query_key_value": grouped("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v"),
    LAYER + "attention.dense": "layers.*.out.o",
    LAYER + "post_attention_layernorm": "layers.*.mlp_norm",
    LAYER + "mlp.dense_h_to_4h": "layers.*.gate_up.up",
    LAYER + "mlp.dense_4h_to_h": "layers.*.down.down",
    "gpt_neox.final_layer_norm": "norm",
    "embed_out": "head.head",
}
IGNORED = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")


@family("GPTNeoXForCausalLM", names=NAMES, ignored=IGNORED)
def gpt_neox(c: HFConfig) -> Decoder:
    base = llama(c)
    bias = c.get("attention_bias", True)
    return replace(
        base,
        kv_heads=base.heads,
        block="parallel" if c.get("use_parallel_residual", True) else "pre",
        parallel_norms=True,
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("layer_norm_eps", 1e-5),
        rope=rope(c, base.head_dim, partial=c.get("rotary_pct", 0.25), theta=c.get("rotary_emb_base")),
        act=act(c, default="gelu"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
    )
