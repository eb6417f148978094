"""EXAONE 4: norms behind attention and MLP, and on each head; 32B: layers that see everything have no positions."""

from dataclasses import replace

from sglang.models.config import local_layers
from sglang.models.families.llama import IGNORED, NAMES, QK_NORMS, llama
from sglang.models.families.olmo2 import POST
from sglang.models.spec import Decoder, HFConfig, family


@family("Exaone4ForCausalLM", names=NAMES | QK_NORMS | POST, ignored=IGNORED)
def exaone4(c: HFConfig) -> Decoder:
    base = replace(llama(c), block="post", qk_norm="head", window=c.get("sliding_window"))
    if base.window is None:
        return base
    local = local_layers(c, lambda layer: (layer + 1) % 4 != 0)
    return replace(base, local=local, rope_of=lambda layer: base.rope if local(layer) else None)
