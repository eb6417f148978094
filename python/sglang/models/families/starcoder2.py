"""StarCoder 2: Llama with LayerNorm, biases everywhere, and an MLP without a gate."""

from dataclasses import replace

from sglang.models.config import act
from sglang.models.families.llama import IGNORED, NAMES
from sglang.models.families.mistral import mistral
from sglang.models.spec import Decoder, HFConfig, family

OWN = {"model.layers.*.mlp.c_fc": "layers.*.gate_up.up", "model.layers.*.mlp.c_proj": "layers.*.down.down"}


@family("Starcoder2ForCausalLM", names=NAMES | OWN, ignored=IGNORED)
def starcoder2(c: HFConfig) -> Decoder:
    bias = c.get("use_bias", True)
    return replace(
        mistral(c),
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("norm_epsilon", 1e-5),
        act=act(c, default="gelu_pytorch_tanh"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tied=c.get("tie_word_embeddings", True),
    )
