"""Checkpoints of Hugging Face's names as llama.cpp's converter writes them: names, layouts and keys by architecture.

Each case takes the tensors of a tiny checkpoint and its config, and gives the file's; nothing is shared with the
reader. Names: `gguf_names`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import packers
from gguf_names import (
    BEHIND,
    BERT,
    BETWEEN,
    CHATGLM,
    DBRX,
    GPT2,
    GROK,
    INTERN,
    LATENT,
    LLAMA,
    LLAMA4,
    MIXTRAL,
    MOE,
    NEOX,
    PHI,
    QWEN,
)
from packers import Array

Config = dict[str, Any]
Tensors = dict[str, Array]
LAYER = re.compile(r"^(?:\w+\.)*?(?:layers?|h|blocks)\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Kind:
    """arch: general.architecture. names: beside LLAMA's. keys: of the file, from the config.

    changed: what the converter does to names and layouts first; turned: it interleaves the rows of queries and keys.
    """

    arch: str
    names: dict[str, str] = field(default_factory=dict)
    keys: Callable[[Config], Config] = lambda c: {}
    changed: Callable[[Config, str, Array], Tensors] = lambda c, name, w: {name: w}
    turned: bool = False


def layer_norm(c: Config) -> Config:
    return {"attention.layer_norm_epsilon": float(c.get("layer_norm_eps") or c.get("layer_norm_epsilon") or 1e-5)}


def partial(c: Config) -> Config:
    rope = c.get("rope_parameters") or c
    share = rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    return {"rope.dimension_count": int(_dim(c) * share)}


def neox(c: Config) -> Config:
    return layer_norm(c) | partial(c) | {"attention.head_count_kv": None}


def routed(c: Config) -> Config:
    return {
        "leading_dense_block_count": c.get("first_k_dense_replace", 0),
        "expert_count": c["n_routed_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_shared_count": c.get("n_shared_experts", 1),
        "expert_weights_scale": float(c["routed_scaling_factor"]),
        "expert_weights_norm": bool(c.get("norm_topk_prob", True)),
        "expert_gating_func": 2,
        "expert_group_count": c.get("n_group") or 1,
        "expert_group_used_count": c.get("topk_group") or 1,
    }


def yarn(c: Config) -> Config:
    rope = c.get("rope_parameters") or {}
    if rope.get("rope_type") != "yarn":
        return {}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def latent(c: Config, version: int, apart: bool) -> Config:
    wide = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    found = routed(c) | {
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "rope.dimension_count": c["qk_rope_head_dim"],
        "attention.key_length": wide,
        "attention.value_length": c["v_head_dim"],
    }
    if apart:  # all queries see one head, as wide as the latent vector
        found |= {
            "attention.key_length": c["kv_lora_rank"] + c["qk_rope_head_dim"],
            "attention.value_length": c["kv_lora_rank"],
            "attention.key_length_mla": wide,
            "attention.value_length_mla": c["v_head_dim"],
            "attention.head_count_kv": 1,
        }
    if c.get("q_lora_rank"):
        found["attention.q_lora_rank"] = c["q_lora_rank"]
    rope = c.get("rope_parameters") or {}
    if "mscale_all_dim" in rope:
        found |= yarn(c) | {"rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"]}
    if version == 2:
        found |= {"expert_gating_func": 1, "expert_weights_norm": bool(c.get("norm_topk_prob"))}
    return found


def halves(c: Config, name: str, w: Array) -> Tensors:
    """Maps to keys and values apart, the former the other way round."""
    if "kv_b_proj" not in name:
        return {name: w}
    heads = w.reshape(c["num_attention_heads"], -1, w.shape[-1])
    keys, values = heads[:, : c["qk_nope_head_dim"]], heads[:, c["qk_nope_head_dim"] :]
    at = f"blk.{LAYER.match(name)[1]}"  # pyright: ignore[reportOptionalSubscript]
    return {f"{at}.attn_k_b.weight": keys.transpose(0, 2, 1), f"{at}.attn_v_b.weight": values}


def conv1d(c: Config, name: str, w: Array) -> Tensors:
    return {name: w.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else w}


def by_thirds(c: Config, name: str, w: Array) -> Tensors:
    """Heads of queries, keys and values in turn -> all queries, all keys, all values."""
    if "query_key_value" not in name:
        return {name: w}
    heads = w.reshape(c["num_attention_heads"], 3, -1, *w.shape[1:])
    return {name: np.concatenate([heads[:, i].reshape(-1, *w.shape[1:]) for i in range(3)])}


def by_groups(c: Config, name: str, w: Array) -> Tensors:
    if ".wqkv." not in name:
        return {name: w}
    each = w.reshape(c["num_key_value_heads"], -1, _dim(c), *w.shape[1:])
    parts = {"q": each[:, :-2], "k": each[:, -2], "v": each[:, -1]}
    at = name.replace("attention.wqkv", "self_attn.{}_proj")
    return {at.format(part): rows.reshape(-1, *w.shape[1:]) for part, rows in parts.items()}


def dbrx(c: Config, name: str, w: Array) -> Tensors:
    if ".experts.mlp." not in name:
        return {name: w}
    each = w.reshape(c["ffn_config"]["moe_num_experts"], -1, c["d_model"])
    return {name: each.transpose(0, 2, 1) if name.endswith("w2") else each}


def gpt_oss(c: Config, name: str, w: Array) -> Tensors:
    """Gate and up take turns in the checkpoint, whose weights are [experts, inputs, rows]."""
    at = LAYER.match(name)
    if at is None or ".experts." not in name:
        return {name.replace("self_attn.sinks", "self_attn.sinks.weight"): w}
    w = w.swapaxes(1, 2) if w.ndim == 3 else w
    end = "bias" if name.endswith("_bias") else "weight"
    if "down_proj" in name:
        return {f"blk.{at[1]}.ffn_down_exps.{end}": w}
    return {f"blk.{at[1]}.ffn_gate_exps.{end}": w[:, 0::2], f"blk.{at[1]}.ffn_up_exps.{end}": w[:, 1::2]}


def llama4(c: Config, name: str, w: Array) -> Tensors:
    at = LAYER.match(name)
    if at is None or ".experts." not in name:
        return {name: w}
    w = w.swapaxes(1, 2)
    if "down_proj" in name:
        return {f"blk.{at[1]}.ffn_down_exps.weight": w}
    half = w.shape[1] // 2
    return {f"blk.{at[1]}.ffn_gate_exps.weight": w[:, :half], f"blk.{at[1]}.ffn_up_exps.weight": w[:, half:]}


def granite_moe(c: Config, name: str, w: Array) -> Tensors:
    at = LAYER.match(name)
    if name.endswith("output_linear.weight") and at:
        return {f"blk.{at[1]}.ffn_down_exps.weight": w}
    if not name.endswith("input_linear.weight") or not at:
        return {name: w}
    half = w.shape[1] // 2
    return {f"blk.{at[1]}.ffn_gate_exps.weight": w[:, :half], f"blk.{at[1]}.ffn_up_exps.weight": w[:, half:]}


def bert(c: Config, name: str, w: Array) -> Tensors:
    """Without what makes one vector of BERT's own, and rows of positions that RoBERTa's texts do not have."""
    if "pooler" in name:
        return {}
    skipped = c["pad_token_id"] + 1 if "roberta" in c["model_type"] else 0
    return {name: w[skipped:] if "position_embeddings" in name else w}


def granite(c: Config) -> Config:
    return {
        "attention.scale": c["attention_multiplier"],
        "embedding_scale": c["embedding_multiplier"],
        "residual_scale": c["residual_multiplier"],
        "logit_scale": c["logits_scaling"],
        "expert_count": c["num_local_experts"],
        "expert_used_count": c["num_experts_per_tok"],
    }


def minicpm(c: Config) -> Config:
    return {
        "embedding_scale": c["scale_emb"],
        "residual_scale": c["scale_depth"] / c["num_hidden_layers"] ** 0.5,
        "logit_scale": c["hidden_size"] / c["dim_model_base"],
    }


def local(c: Config) -> Config:
    return {
        "expert_count": c["num_local_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_feed_forward_length": c["intermediate_size"],
    }


def grok(c: Config) -> Config:
    return {
        "expert_count": c["num_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "attention.output_scale": c["attn_output_multiplier"],
        "embedding_scale": c["embedding_multiplier_scale"],
        "logit_scale": c["output_multiplier_scale"],
        "attn_logit_softcapping": 30.0,
        "router_logit_softcapping": 30.0,
    }


def llama4_keys(c: Config) -> Config:
    return local(c) | {
        "feed_forward_length": c["intermediate_size_mlp"],
        "interleave_moe_layer_step": c["interleave_moe_layer_step"],
    }


DBRX_SIZES = {"num_hidden_layers": "n_layers", "hidden_size": "d_model", "num_attention_heads": "n_heads"}
GPT2_SIZES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}
GLM_SIZES = {"num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size", "head_dim": "kv_channels"}
GLM_SIZES |= {"rms_norm_eps": "layernorm_epsilon", "num_key_value_heads": "multi_query_group_num"}
# Case of family_cases or reference_models -> its file.
KINDS = {
    "gpt2": Kind("gpt2", GPT2, layer_norm, conv1d),
    "bigcode": Kind("starcoder", GPT2, layer_norm),
    "gpt-neox": Kind("gptneox", NEOX, lambda c: neox(c) | {"use_parallel_residual": True}, by_thirds),
    "gpt-neox serial": Kind("gptneox", NEOX, lambda c: neox(c) | {"use_parallel_residual": False}, by_thirds),
    "phi": Kind("phi2", PHI, lambda c: layer_norm(c) | partial(c)),
    "qwen": Kind(
        "qwen",
        QWEN,
        lambda c: {"attention.layer_norm_rms_epsilon": c["layer_norm_epsilon"], "rope.freq_base": 700.0},
    ),
    "internlm2": Kind("internlm2", INTERN, lambda c: {"rope.freq_base": c["rope_theta"]}, by_groups, turned=True),
    "internlm2 biases": Kind(
        "internlm2", INTERN, lambda c: {"rope.freq_base": c["rope_theta"]}, by_groups, turned=True
    ),
    "minicpm": Kind("minicpm", keys=minicpm, turned=True),
    "chatglm3": Kind(
        "chatglm", CHATGLM, lambda c: {"rope.freq_base": 1e4 * c["rope_ratio"], "rope.dimension_count": 8}
    ),
    "glm4 2024": Kind("chatglm", {"mlp.gate_up_proj": "ffn_up"}, partial),
    "glm4.5": Kind("glm4moe", MOE | BETWEEN, lambda c: routed(c) | partial(c)),
    "glm4.5 norms": Kind("glm4moe", MOE | BETWEEN, lambda c: routed(c) | partial(c)),
    "olmoe": Kind(
        "olmoe", MOE, lambda c: {"expert_count": c["num_experts"], "expert_used_count": c["num_experts_per_tok"]}
    ),
    "granite moe": Kind(
        "granitemoe", {"block_sparse_moe.router.layer": "ffn_gate_inp"}, granite, granite_moe, turned=True
    ),
    "dbrx": Kind(
        "dbrx",
        DBRX,
        lambda c: {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.clamp_kqv": c["attn_config"]["clip_qkv"],
            "attention.head_count_kv": c["attn_config"]["kv_n_heads"],
            "feed_forward_length": c["ffn_config"]["ffn_hidden_size"],
            "expert_count": c["ffn_config"]["moe_num_experts"],
            "expert_used_count": c["ffn_config"]["moe_top_k"],
            "context_length": c["max_seq_len"],
        },
        dbrx,
    ),
    "grok": Kind("grok", MIXTRAL | GROK, grok),
    "deepseek v2": Kind("deepseek2", MOE | LATENT, lambda c: latent(c, 2, True), halves),
    "deepseek v2 lite": Kind("deepseek2", MOE | LATENT, lambda c: latent(c, 2, False)),
    "deepseek v3": Kind("deepseek2", MOE | LATENT, lambda c: latent(c, 3, True), halves),
    "deepseek v3 yarn": Kind("deepseek2", MOE | LATENT, lambda c: latent(c, 3, True), halves),
    "gpt-oss": Kind(
        "gpt-oss",
        BETWEEN | {"mlp.router": "ffn_gate_inp", "self_attn.sinks": "attn_sinks"},
        lambda c: local(c) | yarn(c) | {"attention.sliding_window": c["sliding_window"]},
        gpt_oss,
    ),
    "minimax m2": Kind(
        "minimax-m2",
        MIXTRAL,
        lambda c: local(c) | {"rope.dimension_count": c["rotary_dim"], "expert_gating_func": 2},
    ),
    "ernie4.5": Kind("ernie4_5"),
    "exaone4": Kind("exaone4", BEHIND),
    "exaone4 32b": Kind("exaone4", BEHIND, lambda c: {"attention.sliding_window": c["sliding_window"]}),
    "seed-oss": Kind("seed_oss", BETWEEN),
    "smollm3": Kind("smollm3", turned=True),
    "mistral small": Kind("mistral3", turned=True),
    "ministral 3": Kind(
        "mistral3",
        keys=lambda c: (
            yarn(c)
            | {
                "attention.temperature_scale": c["rope_parameters"]["llama_4_scaling_beta"],
                "rope.scaling.yarn_log_multiplier": c["rope_parameters"]["mscale_all_dim"],
            }
        ),
        turned=True,
    ),
    "llama4": Kind("llama4", LLAMA4, llama4_keys, llama4),
    "llama4 maverick": Kind("llama4", LLAMA4, llama4_keys, llama4),
}


# Cases of embedding_cases, and the number of their pooling.
ENCODERS = {
    name: Kind("bert", BERT, lambda c, n=number: layer_norm(c) | {"pooling_type": n, "attention.causal": False}, bert)
    for name, number in {"bert": 1, "bert first": 2, "xlm-roberta": 2}.items()
}


def _dim(c: Config) -> int:
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def converted(case: str, c: Config, tensors: Tensors, blocks: str | None = None, spelt_out: bool = False) -> bytes:
    """The file, in float32. blocks: their type, of matrices that they can hold; spelt_out: as what these stand for."""
    kind = (KINDS | ENCODERS)[case]
    sizes = (
        DBRX_SIZES if kind.arch == "dbrx" else GPT2_SIZES if "n_embd" in c else GLM_SIZES if "num_layers" in c else {}
    )
    c = c | {ours: c[theirs] for ours, theirs in sizes.items()}
    if "n_embd" in c:
        c |= {"intermediate_size": c.get("n_inner") or 4 * c["n_embd"]}
        c |= {"num_key_value_heads": 1 if kind.arch == "starcoder" else c["n_head"]}
    keys: Config = {
        "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"],
        "feed_forward_length": c.get("intermediate_size"),
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c.get("num_key_value_heads") or c["num_attention_heads"],
        "context_length": 128,
        "rope.dimension_count": _dim(c),
        "attention.layer_norm_rms_epsilon": c.get("rms_norm_eps"),
        "attention.key_length": c.get("head_dim"),
        "attention.value_length": c.get("head_dim"),
        "rope.freq_base": (c.get("rope_parameters") or c).get("rope_theta"),
        **kind.keys(c),
    }
    if "n_embd" in c:
        del keys["rope.dimension_count"]
    found = {
        "general.architecture": kind.arch,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.tokens": ["a", "é"],
        f"{kind.arch}.vocab_size": len(next(w for n, w in tensors.items() if "embed" in n or "wte" in n)),
    }
    floats = ("epsilon", "base", "factor", "scale", "capping", "multiplier", "kqv")
    for key, value in keys.items():
        if value is not None:
            found[f"{kind.arch}.{key}"] = float(value) if key.endswith(floats) else value
    renamed: Tensors = {}
    stacks: dict[str, list[Array]] = {}
    names = LLAMA | kind.names
    for name, given in tensors.items():
        for changed, w in kind.changed(c, name, given).items():
            own, many = _renamed(changed, names)
            if kind.turned and re.search(r"attn_[qk]\.", own):
                heads = keys["attention.head_count" if "attn_q" in own else "attention.head_count_kv"]
                w = w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
            if many:
                stacks.setdefault(own, []).append(w)
            else:
                renamed[own] = w
    renamed |= {name: np.stack(parts) for name, parts in stacks.items()}
    written: dict[str, tuple[str, Array, bytes]] = {}
    for name, w in renamed.items():
        w = np.ascontiguousarray(w, np.float32)
        if blocks is None or w.ndim < 2 or w.shape[-1] % 32 or "norm" in name or "inp" in name or "bias" in name:
            written[name] = "F32", w, w.tobytes()
            continue
        raw, value = packers.ggml(w.reshape(-1, w.shape[-1]), blocks)
        written[name] = ("F32", w, value.tobytes()) if spelt_out else (blocks, w, raw)
    return packers.gguf(found, written)


def _renamed(name: str, names: dict[str, str]) -> tuple[str, bool]:
    """The file's name, and whether it is one of many that lie in one tensor."""
    if name.startswith("blk."):
        return name, False
    at = LAYER.match(name)
    whole = at[2] if at else name
    prefix = f"blk.{at[1]}." if at else ""
    if whole in names:  # without an ending
        return prefix + names[whole], False
    stem, _, end = whole.rpartition(".")
    pattern = re.sub(r"\.\d+", ".*", stem)
    return f"{prefix}{names[pattern]}.{'weight' if end == 'scale' else end}", "*" in pattern
