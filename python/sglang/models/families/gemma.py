"""Gemma: Llama with norms that multiply by 1 + weight, a scaled embedding that is also the head, and GELU."""

from dataclasses import replace

from sglang.models.config import choice, refuse
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("GemmaForCausalLM", names=NAMES, ignored=IGNORED)
def gemma(c: HFConfig) -> Decoder:
    if c.get("use_bidirectional_attention"):
        refuse(c, "use_bidirectional_attention", "only causal attention is")
    # The first release says "gelu" and was trained with its approximation.
    key = "hidden_activation" if c.get("hidden_activation") else "hidden_act"
    return replace(
        llama(c),
        act=choice(c, key, {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}, "gelu_pytorch_tanh"),
        norm="rms+1",
        embed_scale=c["hidden_size"] ** 0.5,
        tied=c.get("tie_word_embeddings", True),
    )
