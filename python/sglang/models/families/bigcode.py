"""BigCode (SantaCoder, StarCoder): GPT-2 with one key and value for all heads, weights the usual way round."""

from dataclasses import replace

from sglang.models.config import refuse
from sglang.models.families.gpt2 import IGNORED, gpt2
from sglang.models.families.gpt2 import NAMES as GPT2
from sglang.models.layout import stacked
from sglang.models.spec import Decoder, HFConfig, family

NAMES = {name: place if isinstance(place, str) else stacked(*place.places) for name, place in GPT2.items()}


@family("GPTBigCodeForCausalLM", names=NAMES, ignored=IGNORED)
def bigcode(c: HFConfig) -> Decoder:
    if not c.get("multi_query", True):
        refuse(c, "multi_query", "only true is")
    return replace(gpt2(c), kv_heads=1)
