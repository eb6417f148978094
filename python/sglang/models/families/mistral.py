"""Mistral: Llama with a sliding window (v0.1; null from v0.2 on). Ministral: windows in some layers, or hot queries."""

from dataclasses import replace

from sglang.models.config import local_layers, refuse
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.layout import SEEING, below
from sglang.models.spec import Decoder, HFConfig, Temperature, everywhere, family


@family("MistralForCausalLM", names=NAMES, ignored=IGNORED)
def mistral(c: HFConfig) -> Decoder:
    return replace(llama(c), window=c.get("sliding_window"))


@family("MinistralForCausalLM", names=NAMES, ignored=IGNORED)
def ministral(c: HFConfig) -> Decoder:
    return replace(mistral(c), local=local_layers(c, everywhere))


@family("Mistral3ForConditionalGeneration", names=below("language_model.", NAMES), ignored=SEEING)
def mistral3(c: HFConfig) -> Decoder:
    """Mistral Small 3.1 and later, and Ministral 3: `text_config` says which of the two reads."""
    return ministral3(c) if c["text_config"].get("model_type") == "ministral3" else mistral(c)


@family("Ministral3ForCausalLM", names=NAMES, ignored=IGNORED)
def ministral3(c: HFConfig) -> Decoder:
    rope = c.get("rope_parameters") or {}
    if "llama_4_scaling_beta" not in rope:
        refuse(c, "rope_parameters", "llama_4_scaling_beta is missing")
    heat = Temperature(rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"])
    return replace(mistral(c), temperature=heat)
