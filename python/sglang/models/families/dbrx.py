"""DBRX: clipped queries, keys and values, LayerNorm without bias, experts of which a token takes four."""

from sglang.layers.moe import Routing
from sglang.models.config import choice, rope
from sglang.models.layout import experts, stacked
from sglang.models.spec import Decoder, Experts, HFConfig, family

LAYER = "transformer.blocks.*."
NAMES = {
    "transformer.wte": "embed",
    LAYER + "norm_attn_norm.norm_1": "layers.*.attn_norm",
    LAYER + "norm_attn_norm.attn.Wqkv": stacked("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v"),
    LAYER + "norm_attn_norm.attn.out_proj": "layers.*.out.o",
    LAYER + "norm_attn_norm.norm_2": "layers.*.mlp_norm",
    LAYER + "ffn.router.layer": "layers.*.router",
    LAYER + "ffn.experts.mlp.w1": experts("layers.*.experts.*.gate.weight", flat=True),
    LAYER + "ffn.experts.mlp.v1": experts("layers.*.experts.*.up.weight", flat=True),
    LAYER + "ffn.experts.mlp.w2": experts("layers.*.experts.*.down.weight", flat=True, inputs_first=True),
    "transformer.norm_f": "norm",
    "lm_head": "head.head",
}


@family("DbrxForCausalLM", names=NAMES, ignored=("inv_freq",))
def dbrx(c: HFConfig) -> Decoder:
    attn, ffn = c["attn_config"], c["ffn_config"]
    dim = c["d_model"] // c["n_heads"]
    routing = Routing(ffn["moe_num_experts"], ffn["moe_top_k"], norm=ffn.get("moe_normalize_expert_weights", 1.0))
    return Decoder(
        hidden=c["d_model"],
        layers=c["n_layers"],
        heads=c["n_heads"],
        kv_heads=attn["kv_n_heads"],
        head_dim=dim,
        inter=ffn["ffn_hidden_size"],
        vocab=c["vocab_size"],
        norm="layer",
        norm_eps=1e-5,
        rope=rope(c, dim, theta=attn.get("rope_theta")),
        act=choice(ffn.get("ffn_act_fn") or {}, "name", {"silu": "silu"}, "silu"),
        qkv_clip=attn.get("clip_qkv"),
        experts=Experts(routing, ffn["ffn_hidden_size"]),
        tied=bool(c.get("tie_word_embeddings", False)),
    )
