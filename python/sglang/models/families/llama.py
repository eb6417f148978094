"""Llama 1, 2, 3, 3.1 and everything that kept its shape: the base other families vary."""

from sglang.models.config import act, refuse, rope
from sglang.models.spec import Decoder, HFConfig, family

NAMES = {
    "model.embed_tokens": "embed",
    "model.layers.*.input_layernorm": "layers.*.attn_norm",
    "model.layers.*.self_attn.q_proj": "layers.*.qkv.q",
    "model.layers.*.self_attn.k_proj": "layers.*.qkv.k",
    "model.layers.*.self_attn.v_proj": "layers.*.qkv.v",
    "model.layers.*.self_attn.o_proj": "layers.*.out.o",
    "model.layers.*.post_attention_layernorm": "layers.*.mlp_norm",
    "model.layers.*.mlp.gate_proj": "layers.*.gate_up.gate",
    "model.layers.*.mlp.up_proj": "layers.*.gate_up.up",
    "model.layers.*.mlp.down_proj": "layers.*.down.down",
    "model.norm": "norm",
    "lm_head": "head.head",
}
QK_NORMS = {
    "model.layers.*.self_attn.q_norm": "layers.*.q_norm",
    "model.layers.*.self_attn.k_norm": "layers.*.k_norm",
}
IGNORED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


@family("LlamaForCausalLM", "LLaMAForCausalLM", names=NAMES, ignored=IGNORED)
def llama(c: HFConfig) -> Decoder:
    heads = c["num_attention_heads"]
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    kv_heads = c.get("num_key_value_heads") or heads
    if heads % kv_heads:
        refuse(c, "num_key_value_heads", f"it must divide num_attention_heads = {heads}")
    bias = bool(c.get("attention_bias", False))
    return Decoder(
        hidden=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inter=c["intermediate_size"],
        vocab=c["vocab_size"],
        norm_eps=c.get("rms_norm_eps", 1e-6),
        rope=rope(c, head_dim),
        act=act(c),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bool(c.get("mlp_bias", False)),
        tied=bool(c.get("tie_word_embeddings", False)),
        causal=c.get("is_causal", True) is not False,
    )
