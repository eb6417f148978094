"""OLMo 2: Llama with norms behind attention and MLP, and over all queries and keys at once. OLMo 3: windows."""

from dataclasses import replace

from sglang.models.config import local_layers
from sglang.models.families.llama import IGNORED, NAMES, QK_NORMS, llama
from sglang.models.spec import Decoder, HFConfig, family

POST = {
    "model.layers.*.post_attention_layernorm": "layers.*.attn_post",
    "model.layers.*.post_feedforward_layernorm": "layers.*.mlp_post",
}


@family("Olmo2ForCausalLM", names=NAMES | QK_NORMS | POST, ignored=IGNORED)
def olmo2(c: HFConfig) -> Decoder:
    return replace(llama(c), block="post", qk_norm="all")


@family("Olmo3ForCausalLM", names=NAMES | QK_NORMS | POST, ignored=IGNORED)
def olmo3(c: HFConfig) -> Decoder:
    local = local_layers(c, lambda layer: (layer + 1) % 4 != 0)
    base = olmo2(c)
    if base.rope is None or base.rope.kind == "default":
        return replace(base, window=c["sliding_window"], local=local)
    # Only layers that see everything were stretched to longer contexts.
    near = replace(base.rope, kind="default")
    return replace(
        base, window=c["sliding_window"], local=local, rope_of=lambda layer: near if local(layer) else base.rope
    )
