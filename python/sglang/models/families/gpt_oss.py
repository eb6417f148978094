"""GPT-OSS: a sink in every head's softmax, windows in every other layer, biased experts with a clamped gate.

The released files hold the experts in MXFP4 (OCP Microscaling formats, 1.0); they are unpacked where they are loaded.
"""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.config import local_layers, refuse
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.layout import experts, mxfp4
from sglang.models.spec import Decoder, Experts, HFConfig, family

MLP = "model.layers.*.mlp."
GATE, UP, DOWN = (f"layers.*.experts.*.{part}" for part in ("gate", "up", "down"))
OWN = {
    "model.layers.*.self_attn.sinks": "layers.*.sinks",
    MLP + "router": "layers.*.router",
    MLP + "experts.gate_up_proj": experts(GATE + ".weight", UP + ".weight", inputs_first=True, interleaved=True),
    MLP + "experts.gate_up_proj_bias": experts(GATE + ".bias", UP + ".bias", interleaved=True),
    MLP + "experts.down_proj": experts(DOWN + ".weight", inputs_first=True),
    MLP + "experts.down_proj_bias": experts(DOWN + ".bias"),
    MLP + "experts.gate_up_proj_blocks": mxfp4(GATE + ".weight", UP + ".weight", interleaved=True),
    MLP + "experts.down_proj_blocks": mxfp4(DOWN + ".weight"),
}


@family("GptOssForCausalLM", names=NAMES | OWN, ignored=IGNORED, formats=("mxfp4",))
def gpt_oss(c: HFConfig) -> Decoder:
    if c.get("swiglu_alpha", 1.702) != 1.702:
        refuse(c, "swiglu_alpha", "only 1.702 is")
    routing = Routing(c["num_local_experts"], c.get("num_experts_per_tok") or c["experts_per_token"], bias=True)
    experts = Experts(routing, c["intermediate_size"], bias=True, limit=c.get("swiglu_limit", 7.0))
    return replace(
        llama(c),
        sinks=True,
        experts=experts,
        window=c["sliding_window"],
        local=local_layers(c, lambda layer: layer % 2 == 0),
    )
