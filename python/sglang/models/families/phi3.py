"""Phi-3, 3.5 and 4: Llama with fused queries, keys and values, and fused gate and up."""

from dataclasses import replace

from sglang.models.families.llama import IGNORED, NAMES
from sglang.models.families.mistral import mistral
from sglang.models.layout import stacked
from sglang.models.spec import Decoder, HFConfig, family

GATE_UP = {"model.layers.*.mlp.gate_up_proj": stacked("layers.*.gate_up.gate", "layers.*.gate_up.up")}
FUSED = GATE_UP | {"model.layers.*.self_attn.qkv_proj": stacked("layers.*.qkv.q", "layers.*.qkv.k", "layers.*.qkv.v")}


@family("Phi3ForCausalLM", names=NAMES | FUSED, ignored=IGNORED)
def phi3(c: HFConfig) -> Decoder:
    return replace(mistral(c), norm_eps=c.get("rms_norm_eps", 1e-5))
