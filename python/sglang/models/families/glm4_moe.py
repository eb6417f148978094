"""GLM-4.5 to 4.7: Llama's attention with half of each head turning, DeepSeek V3's experts."""

from dataclasses import replace

from sglang.models.config import rope
from sglang.models.families.deepseek import EXPERTS, corrected, with_experts
from sglang.models.families.llama import IGNORED, NAMES, QK_NORMS, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("Glm4MoeForCausalLM", names=NAMES | QK_NORMS | EXPERTS, ignored=IGNORED)
def glm4_moe(c: HFConfig) -> Decoder:
    base = llama(c)
    base = replace(base, rope=rope(c, base.head_dim, partial=0.5), out_bias=False)
    return with_experts(c, replace(base, qk_norm="head" if c.get("use_qk_norm") else None), corrected(c))
