"""OLMoE: Llama with norms over all queries and keys at once, and Qwen's kind of experts."""

from dataclasses import replace

from sglang.models.config import refuse
from sglang.models.families.llama import IGNORED, NAMES, QK_NORMS, llama
from sglang.models.families.qwen2_moe import EXPERTS, with_experts
from sglang.models.spec import Decoder, HFConfig, family


@family("OlmoeForCausalLM", names=NAMES | QK_NORMS | EXPERTS, ignored=IGNORED)
def olmoe(c: HFConfig) -> Decoder:
    if c.get("clip_qkv") is not None:
        refuse(c, "clip_qkv", "only null is")
    return with_experts(c | {"moe_intermediate_size": c["intermediate_size"]}, replace(llama(c), qk_norm="all"))
