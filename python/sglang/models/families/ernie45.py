"""ERNIE 4.5, dense: Llama with neighbours turning together."""

from dataclasses import replace

from sglang.models.config import rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.spec import Decoder, HFConfig, family


@family("Ernie4_5ForCausalLM", names=NAMES, ignored=IGNORED)
def ernie45(c: HFConfig) -> Decoder:
    base, bias = llama(c), bool(c.get("use_bias"))
    return replace(
        base,
        rope=rope(c, base.head_dim, interleaved=True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tied=c.get("tie_word_embeddings", True),
    )
