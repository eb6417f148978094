"""GPT-2: learned positions, LayerNorm, biases, weights kept as [in, out]."""

from sglang.models.config import act, refuse
from sglang.models.layout import transposed
from sglang.models.spec import Decoder, HFConfig, family

BARE = {  # the oldest files have no `transformer.` in front
    "wte": "embed",
    "wpe": "positions",
    "h.*.ln_1": "layers.*.attn_norm",
    "h.*.attn.c_attn": transposed("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v"),
    "h.*.attn.c_proj": transposed("layers.*.out.o"),
    "h.*.ln_2": "layers.*.mlp_norm",
    "h.*.mlp.c_fc": transposed("layers.*.gate_up.up"),
    "h.*.mlp.c_proj": transposed("layers.*.down.down"),
    "ln_f": "norm",
}
NAMES = {"transformer." + name: place for name, place in BARE.items()} | BARE | {"lm_head": "head.head"}
IGNORED = (".attn.bias", ".attn.masked_bias")  # the causal mask


@family("GPT2LMHeadModel", names=NAMES, ignored=IGNORED)
def gpt2(c: HFConfig) -> Decoder:
    for key, only in {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}.items():
        if c.get(key, only) is not only:
            refuse(c, key, f"only {str(only).lower()} is")
    heads, hidden = c["n_head"], c["n_embd"]
    return Decoder(
        hidden=hidden,
        layers=c["n_layer"],
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        inter=c.get("n_inner") or 4 * hidden,
        vocab=c["vocab_size"],
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        rope=None,
        learned_positions=c["n_positions"],
        act=act(c, "activation_function", "gelu_new"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=c.get("tie_word_embeddings", True),
    )
