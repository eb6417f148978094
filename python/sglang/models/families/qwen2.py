"""Qwen 2 and 2.5: Llama with biases on queries, keys and values."""

from dataclasses import replace

from sglang.models.config import local_layers
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("Qwen2ForCausalLM", names=NAMES, ignored=IGNORED)
def qwen2(c: HFConfig) -> Decoder:
    first = c.get("max_window_layers") or 0
    return replace(
        llama(c),
        qkv_bias=True,
        window=c.get("sliding_window") if c.get("use_sliding_window") else None,
        local=local_layers(c, lambda layer: layer >= first),
    )
