"""Seed-OSS: Llama with biases on queries, keys and values."""

from dataclasses import replace

from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("SeedOssForCausalLM", names=NAMES, ignored=IGNORED)
def seed_oss(c: HFConfig) -> Decoder:
    return replace(llama(c), qkv_bias=c.get("attention_bias", True), out_bias=bool(c.get("attention_out_bias")))
