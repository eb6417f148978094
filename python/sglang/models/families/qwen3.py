"""Qwen 3: Llama with norms on each head's queries and keys; MoE: Qwen 2's experts without a shared one."""

from dataclasses import replace

from sglang.models.families.llama import IGNORED, NAMES, QK_NORMS
from sglang.models.families.qwen2 import qwen2
from sglang.models.families.qwen2_moe import EXPERTS, with_experts
from sglang.models.spec import Decoder, HFConfig, family


@family("Qwen3ForCausalLM", names=NAMES | QK_NORMS, ignored=IGNORED)
def qwen3(c: HFConfig) -> Decoder:
    return replace(qwen2(c), qkv_bias=bool(c.get("attention_bias")), qk_norm="head")


@family("Qwen3MoeForCausalLM", names=NAMES | QK_NORMS | EXPERTS, ignored=IGNORED)
def qwen3_moe(c: HFConfig) -> Decoder:
    return with_experts(c, qwen3(c))
