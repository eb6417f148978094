"""Mistral: Llama with a sliding window (v0.1; null from v0.2 on)."""

from dataclasses import replace

from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("MistralForCausalLM", names=NAMES, ignored=IGNORED)
def mistral(c: HFConfig) -> Decoder:
    return replace(llama(c), window=c.get("sliding_window"))
