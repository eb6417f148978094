"""SmolLM 3: Llama whose every fourth layer has no positions."""

from dataclasses import replace

from sglang.models.config import refuse
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("SmolLM3ForCausalLM", names=NAMES, ignored=IGNORED)
def smollm3(c: HFConfig) -> Decoder:
    if c.get("use_sliding_window"):
        refuse(c, "use_sliding_window", "only false is")
    base = llama(c)
    turns = c.get("no_rope_layers") or [(i + 1) % 4 for i in range(base.layers)]  # 0: no rotation there
    return replace(
        base, rope_of=lambda layer: base.rope if turns[layer] else None, tied=c.get("tie_word_embeddings", True)
    )
