"""Qwen 2 and 2.5: Llama with biases on queries, keys and values."""

from dataclasses import replace

from sglang.models.config import refuse
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("Qwen2ForCausalLM", names=NAMES, ignored=IGNORED)
def qwen2(c: HFConfig) -> Decoder:
    if c.get("use_sliding_window"):
        refuse(c, "use_sliding_window", "only false is supported")
    return replace(llama(c), qkv_bias=True)
