"""ChatGLM 2 and 3, GLM-4-9B of 2024: half of each head turns, neighbours together; everything fused."""

from dataclasses import replace

from sglang.layers.rope import Rope
from sglang.models.config import refuse
from sglang.models.families.llama import llama
from sglang.models.layout import stacked
from sglang.models.spec import Decoder, HFConfig, family

LAYER = "transformer.encoder.layers.*."
NAMES = {
    "transformer.embedding.word_embeddings": "embed",
    LAYER + "input_layernorm": "layers.*.attn_norm",
    LAYER + "self_attention.query_key_value": stacked("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v"),
    LAYER + "self_attention.dense": "layers.*.out.o",
    LAYER + "post_attention_layernorm": "layers.*.mlp_norm",
    LAYER + "mlp.dense_h_to_4h": stacked("layers.*.gate_up.gate", "layers.*.gate_up.up"),
    LAYER + "mlp.dense_4h_to_h": "layers.*.down.down",
    "transformer.encoder.final_layernorm": "norm",
    "transformer.output_layer": "head.head",
}


@family("ChatGLMModel", "ChatGLMForConditionalGeneration", "ChatGLMForCausalLM", names=NAMES, ignored=("inv_freq",))
def chatglm(c: HFConfig) -> Decoder:
    if c.get("apply_residual_connection_post_layernorm"):
        refuse(c, "apply_residual_connection_post_layernorm", "only false is")
    if not c.get("post_layer_norm", True):
        refuse(c, "post_layer_norm", "only true is")
    sizes = {
        "num_hidden_layers": c["num_layers"],
        "num_key_value_heads": c["multi_query_group_num"] if c.get("multi_query_attention") else None,
        "intermediate_size": c["ffn_hidden_size"],
        "vocab_size": c["padded_vocab_size"],
        "head_dim": c["kv_channels"],
    }
    bias, rms = bool(c.get("add_bias_linear")), c.get("rmsnorm", True)
    theta = 10000.0 * (c.get("rope_ratio") or 1)
    return replace(
        llama(c | sizes),
        norm="rms" if rms else "layer",
        norm_bias=not rms,
        norm_eps=c["layernorm_epsilon"],
        rope=Rope(c["kv_channels"] // 2, theta, interleaved=c.get("original_rope", True)),
        qkv_bias=bias or bool(c.get("add_qkv_bias")),
        out_bias=bias,
        mlp_bias=bias,
    )
