"""Command-R, R+ (norms per head) and R7B / A (Cohere 2: windows; layers that see everything have no positions)."""

from dataclasses import replace

from sglang.models.config import local_layers, rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.layout import listed
from sglang.models.spec import Decoder, HFConfig, family

ONE_NORM = {name: place for name, place in NAMES.items() if place != "layers.*.mlp_norm"}
PER_HEAD = {
    "model.layers.*.self_attn.q_norm": listed("layers.*.q_norm.*"),
    "model.layers.*.self_attn.k_norm": listed("layers.*.k_norm.*"),
}


@family("CohereForCausalLM", names=ONE_NORM | PER_HEAD, ignored=IGNORED)
def command_r(c: HFConfig) -> Decoder:
    base = llama(c)
    return replace(
        base,
        block="parallel",
        norm="layer",
        norm_eps=c.get("layer_norm_eps") or 1e-5,
        rope=rope(c, base.head_dim, interleaved=True),
        qk_norm="heads" if c.get("use_qk_norm") else None,
        logit_scale=c.get("logit_scale", 0.0625),
        tied=c.get("tie_word_embeddings", True),
        context=c.get("model_max_length"),
    )


@family("Cohere2ForCausalLM", names=ONE_NORM, ignored=IGNORED)
def cohere2(c: HFConfig) -> Decoder:
    base = command_r(c)
    every = c.get("sliding_window_pattern") or 4
    local = local_layers(c, lambda layer: (layer + 1) % every != 0)
    return replace(
        base, window=c["sliding_window"], local=local, rope_of=lambda layer: base.rope if local(layer) else None
    )
