"""BERT, RoBERTa and XLM-RoBERTa: every token sees the whole text, norms behind each sum, no head: for embeddings."""

from dataclasses import replace

from sglang.models.config import act, choice, refuse
from sglang.models.families.llama import llama
from sglang.models.spec import Decoder, HFConfig, family

LAYER = "encoder.layer.*."
PLAIN = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "embed_norm",
    LAYER + "attention.self.query": "layers.*.qkv.q",
    LAYER + "attention.self.key": "layers.*.qkv.k",
    LAYER + "attention.self.value": "layers.*.qkv.v",
    LAYER + "attention.output.dense": "layers.*.out.o",
    LAYER + "attention.output.LayerNorm": "layers.*.attn_post",
    LAYER + "intermediate.dense": "layers.*.gate_up.up",
    LAYER + "output.dense": "layers.*.down.down",
    LAYER + "output.LayerNorm": "layers.*.mlp_post",
}
# Norms of the first checkpoints are in the words of TensorFlow.
OLD = {
    f"{name}.{old}": f"{place}.{new}"
    for name, place in PLAIN.items()
    if name.endswith("LayerNorm")
    for old, new in (("gamma", "weight"), ("beta", "bias"))
}
NAMES = {prefix + name: place for prefix in ("bert.", "roberta.", "") for name, place in (PLAIN | OLD).items()}
OTHERS = ("position_ids", "pooler.*", "bert.pooler.*", "roberta.pooler.*", "cls.*", "lm_head.*")


@family("BertModel", "BertForMaskedLM", names=NAMES, ignored=OTHERS)
def bert(c: HFConfig) -> Decoder:
    choice(c, "position_embedding_type", {"absolute": 0}, "absolute")
    if c.get("is_decoder"):
        refuse(c, "is_decoder", "only false is")
    return replace(
        llama(c | {"num_key_value_heads": None, "is_causal": False}),
        block="sum",
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("layer_norm_eps", 1e-12),
        rope=None,
        act=act(c, default="gelu"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=c["max_position_embeddings"],
        token_kinds=c.get("type_vocab_size", 2),
        embed_norm=True,
        final_norm=False,
        has_head=False,
        tied=True,
    )


@family("XLMRobertaModel", "RobertaModel", "XLMRobertaForMaskedLM", "RobertaForMaskedLM", names=NAMES, ignored=OTHERS)
def roberta(c: HFConfig) -> Decoder:
    """Positions are counted from behind that of padding."""
    first = c.get("pad_token_id", 1) + 1
    return replace(bert(c), first_position=first, context=c["max_position_embeddings"] - first)
