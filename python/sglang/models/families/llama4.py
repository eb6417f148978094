"""Llama 4, text: layers that see their chunk and turn, layers that see everything and do not; experts of one piece."""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.config import local_layers, rope
from sglang.models.families.llama import IGNORED, NAMES, llama
from sglang.models.layout import SEEING, below, experts
from sglang.models.spec import Decoder, Experts, HFConfig, Temperature, family

FFN = "model.layers.*.feed_forward."
OWN = {
    FFN + "gate_proj": "layers.*.gate_up.gate",
    FFN + "up_proj": "layers.*.gate_up.up",
    FFN + "down_proj": "layers.*.down.down",
    FFN + "router": "layers.*.router",
    FFN + "shared_expert.gate_proj": "layers.*.shared.gate_up.gate",
    FFN + "shared_expert.up_proj": "layers.*.shared.gate_up.up",
    FFN + "shared_expert.down_proj": "layers.*.shared.down.down",
    FFN + "experts.gate_up_proj": experts(
        "layers.*.experts.*.gate.weight", "layers.*.experts.*.up.weight", inputs_first=True
    ),
    FFN + "experts.down_proj": experts("layers.*.experts.*.down.weight", inputs_first=True),
    # Checkpoints in few bits have a map for each expert.
    FFN + "experts.*.gate_proj": "layers.*.experts.*.gate",
    FFN + "experts.*.up_proj": "layers.*.experts.*.up",
    FFN + "experts.*.down_proj": "layers.*.experts.*.down",
}


@family("Llama4ForConditionalGeneration", names=below("language_model.", NAMES | OWN), ignored=SEEING)
@family("Llama4ForCausalLM", names=NAMES | OWN, ignored=IGNORED)
def llama4(c: HFConfig) -> Decoder:
    base = llama(c)
    turn = rope(c, base.head_dim, interleaved=True)
    turns = c.get("no_rope_layers") or [(i + 1) % 4 for i in range(base.layers)]  # 0: no rotation there
    step = c.get("interleave_moe_layer_step") or 1
    sparse = c.get("moe_layers") or range(step - 1, base.layers, step)
    routing = Routing(c["num_local_experts"], c["num_experts_per_tok"], score="sigmoid", norm=None, weigh_inputs=True)
    heat = Temperature(c.get("attn_scale", 0.1), c.get("floor_scale", 8192), shift=1)
    return replace(
        base,
        inter=c["intermediate_size_mlp"],
        rope=turn,
        rope_of=lambda layer: turn if turns[layer] else None,
        qk_norm="unit" if c.get("use_qk_norm", True) else None,
        chunk=c.get("attention_chunk_size"),
        local=local_layers(c, lambda layer: bool(turns[layer])),
        temperature=heat if c.get("attn_temperature_tuning", True) else None,
        temperature_in=lambda layer: not turns[layer],
        experts=Experts(routing, c["intermediate_size"], shared=c["intermediate_size"]),
        expert_layers=lambda layer: layer in sparse,
    )
