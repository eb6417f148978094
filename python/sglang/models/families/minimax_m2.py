"""MiniMax M2: norms over all queries and keys at once, half of each head turning, experts chosen by bias."""

from dataclasses import replace

from sglang.layers.moe import Routing
from sglang.models.config import rope
from sglang.models.families.llama import IGNORED, NAMES, QK_NORMS, llama
from sglang.models.families.mixtral import EXPERTS
from sglang.models.spec import Decoder, Experts, HFConfig, family

CORRECTION = {"model.layers.*.block_sparse_moe.e_score_correction_bias": "layers.*.correction.bias"}


@family("MiniMaxM2ForCausalLM", names=NAMES | QK_NORMS | EXPERTS | CORRECTION, ignored=IGNORED)
def minimax_m2(c: HFConfig) -> Decoder:
    base = llama(c)
    routing = Routing(c["num_local_experts"], c["num_experts_per_tok"], score="sigmoid", correction=True)
    return replace(
        base,
        qk_norm="all",
        rope=rope(c, base.head_dim, partial=c.get("rotary_dim", base.head_dim) / base.head_dim),
        experts=Experts(routing, c["intermediate_size"]),
    )
