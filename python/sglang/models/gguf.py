"""GGUF: one file with a model's sizes, its tokenizer and its weights in blocks, under names of llama.cpp's own.

Read as if it were a folder: `config` gives what config.json would say, `headers` and `tensor` the weights under the
names of Hugging Face's files. What differs by architecture is a record: `ARCHITECTURES`. The tokenizer: `text.gguf`.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang.base.errors import ConfigError
from sglang.base.gguf import Header, Stored, header
from sglang.models.spec import HFConfig
from sglang.quant.blocks import BLOCKS

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
LAYER_NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
WINDOW = {"attention.sliding_window": "sliding_window"}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
MIXED = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GLM_SANDWICH = {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
# A tensor for all experts (or heads), of which `*` is one.
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
PER_HEAD = {
    "attn_q_norm": "self_attn.q_layernorm.norms.*",
    "attn_k_norm": "self_attn.k_layernorm.norms.*",
}
# Types of tensors: the file's numbers.
PLAIN = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 30: ("BF16", torch.bfloat16)}
PACKED = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
OTHERS = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
          20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
          39: "MXFP4"}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_LENGTH = 8192  # that these models were trained with first; the file does not say


@dataclass(frozen=True)
class Architecture:
    """How files of one differ. names, keys: beside NAMES and KEYS.

    turned: rows of queries and keys were interleaved, since llama.cpp turns neighbours together where the files it
    converts turn halves. plus_one: norms hold 1 + weight. more: what the file leaves to those who know the model.
    """

    model: str
    names: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    turned: bool = False
    plus_one: bool = False
    more: "Callable[[_File], HFConfig]" = lambda file: {}


def _biased(file: "_File") -> HFConfig:
    return {"attention_bias": file.biased, "mlp_bias": file.has("mlp.gate_proj.bias")}


def _gemma(file: "_File") -> HFConfig:
    """Gemma 2 and 3 of 27B scale their scores by the width of what a head would have, the others by that of a head."""
    large = file.key("block_count") in (46, 62)
    share = file.key("embedding_length") // file.key("attention.head_count")
    return {"query_pre_attn_scalar": share if large else file.head_dim, "torch_dtype": "bfloat16"}


def _gemma3(file: "_File") -> HFConfig:
    return _gemma(file) | {"rope_local_base_freq": file.key("rope.freq_base_swa") or 1e4}


def _partial(file: "_File") -> HFConfig:
    turning = file.key("rope.dimension_count")
    return {} if turning is None else {"partial_rotary_factor": turning / file.head_dim}


def _stablelm(file: "_File") -> HFConfig:
    parallel = bool(file.key("use_parallel_residual"))
    norms = file.has("self_attn.q_layernorm.norms.0.weight")
    return _partial(file) | {"use_qkv_bias": file.biased, "use_parallel_residual": parallel, "qk_layernorm": norms}


def _command_r(file: "_File") -> HFConfig:
    return {"use_qk_norm": file.has("self_attn.q_norm.weight")}


def _experts(file: "_File") -> HFConfig:
    """Older files do not say how wide an expert is; its weight does."""
    found: HFConfig = {"norm_topk_prob": file.header.architecture == "qwen3moe", "qkv_bias": file.biased}
    for name, key in (
        ("mlp.experts.0.gate_proj", "moe_intermediate_size"),
        ("mlp.shared_expert.gate_proj", "shared_expert_intermediate_size"),
    ):
        if (stored := file.tensors.get(f"model.layers.0.{name}.weight")) is not None:
            found[key] = stored.shape[0]
    return found


COHERE = Architecture("CohereForCausalLM", keys=LAYER_NORM | {"logit_scale": "logit_scale"}, more=_command_r)
GLM4_NAMES = GLM_SANDWICH | {"ffn_up": FUSED["ffn_up"]}
GEMMA = Architecture("GemmaForCausalLM", plus_one=True, more=_gemma)
OLMO2 = Architecture("Olmo2ForCausalLM", {k: n for k, n in SANDWICH.items() if k != "ffn_norm"})
ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", turned=True, more=_biased),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        MIXTRAL,
        {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        turned=True,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", EXPERTS, MIXED, more=_experts),
    "qwen3": Architecture("Qwen3ForCausalLM", more=_biased),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", EXPERTS, MIXED, more=_experts),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, model="Gemma2ForCausalLM", names=SANDWICH, keys=CAPS | WINDOW),
    "gemma3": replace(GEMMA, model="Gemma3ForCausalLM", names=SANDWICH, keys=CAPS | WINDOW, more=_gemma3),
    "phi3": Architecture("Phi3ForCausalLM", FUSED, WINDOW, more=_partial),
    "stablelm": Architecture("StableLmForCausalLM", PER_HEAD, LAYER_NORM, more=_stablelm),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM",
        {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        WINDOW | {"attention.layer_norm_epsilon": "norm_epsilon"},
        more=lambda file: {"use_bias": file.biased},
    ),
    "command-r": COHERE,
    "cohere2": replace(COHERE, model="Cohere2ForCausalLM", keys=COHERE.keys | WINDOW, more=lambda file: {}),
    "glm4": Architecture("Glm4ForCausalLM", GLM4_NAMES, more=lambda file: _partial(file) | _biased(file)),
    "olmo2": OLMO2,
    "olmo3": replace(OLMO2, model="Olmo3ForCausalLM", keys=WINDOW),
    "granite": Architecture("GraniteForCausalLM", keys=GRANITE, turned=True, more=_biased),
}


# Models that files call by another's name: a key that these have.
WITHIN = {"llama": ("expert_count", "mixtral"), "olmo2": ("attention.sliding_window", "olmo3")}


@dataclass(frozen=True)
class _Tensor(Stored):
    """bytes: that it takes; part: number of the file, where a model lies in several."""

    bytes: int
    part: int = 0


class _File:
    """tensors: by their names in Hugging Face's files."""

    def __init__(self, path: Path):
        self.path, self.header = path, header(path)
        name = self.header.architecture
        hidden = {other for _, other in WITHIN.values()}
        if name not in ARCHITECTURES or name in hidden:
            known = ", ".join(one for one in ARCHITECTURES if one not in hidden)
            raise ConfigError(f"{path.name}: general.architecture = {name!r} is not supported; known: {known}")
        key, other = WITHIN.get(name, ("", ""))
        self.architecture = ARCHITECTURES[other if self.key(key) else name]
        for need in NEEDED:
            if self.key(need) is None:
                raise ConfigError(f"{path.name}: {self.header.architecture}.{need} is missing")
        if self.key("expert_count") and not any("*" in n for n in self.architecture.names.values()):
            raise self._refused("expert_count", "not supported")
        files = _files(path, self.header)
        self.raw = [np.memmap(file, np.uint8, "r") for file in files]
        self.tensors: dict[str, _Tensor] = {}
        self.factors: dict[str, Tensor] = {}  # of the rotation's wavelengths, by "freqs", "long", "short"
        for own, stored, part in (
            (own, stored, part) for part, file in enumerate(files) for own, stored in header(file).tensors.items()
        ):
            placed = self._placed(own, stored, part)
            if own.startswith("rope_"):
                self.factors[own.removeprefix("rope_").removeprefix("factors_").removesuffix(".weight")] = self._plain(
                    placed
                )
            else:
                self.tensors |= self._renamed(own, placed)

    def _placed(self, name: str, stored: Stored, part: int) -> _Tensor:
        kind, shape = stored.kind, stored.shape
        if kind in PLAIN:
            size = int(np.prod(shape, dtype=object)) * PLAIN[kind][1].itemsize
        elif kind in PACKED:
            block = BLOCKS[PACKED[kind]]
            if len(shape) not in (2, 3) or shape[-1] % block.columns:
                raise ConfigError(f"{self.path.name}: {name} has shape {list(shape)}, which {PACKED[kind]} cannot hold")
            size = int(np.prod(shape[:-1], dtype=object)) * (shape[-1] // block.columns) * block.bytes
        else:
            known = ", ".join((*(word for word, _ in PLAIN.values()), *PACKED.values()))
            raise ConfigError(f"{self.path.name}: {name} has type {OTHERS.get(kind, kind)}; known: {known}")
        if (beyond := stored.start + size - len(self.raw[part])) > 0:
            raise ConfigError(f"{self.path.name}: {name} ends {beyond} bytes beyond the file")
        return _Tensor(kind, shape, stored.start, size, part)

    def _renamed(self, own: str, placed: _Tensor) -> dict[str, _Tensor]:
        """A tensor of several is as many."""
        stem, _, end = own.rpartition(".")
        layer = ""
        if stem.startswith("blk."):
            _, number, stem = stem.split(".", 2)
            layer = f"model.layers.{number}."
        name = layer + (NAMES | self.architecture.names).get(stem, stem) + f".{end}"
        if "*" not in name:
            if stem == "ffn_gate_inp_shexp" and len(placed.shape) == 1:
                placed = replace(placed, shape=(1, *placed.shape))
            return {name: placed}
        count, size = placed.shape[0], placed.bytes // max(placed.shape[0], 1)
        return {
            name.replace("*", str(i)): replace(
                placed, shape=placed.shape[1:], start=placed.start + i * size, bytes=size
            )
            for i in range(count)
        }

    def _refused(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.path.name}: {self.header.architecture}.{key} = {self.key(key)}; {why}")

    def key(self, name: str) -> Any:
        return self.header.keys.get(f"{self.header.architecture}.{name}")

    def has(self, name: str) -> bool:
        """Of the first layer."""
        return f"model.layers.0.{name}" in self.tensors

    @property
    def head_dim(self) -> int:
        return self.key("attention.key_length") or self.key("embedding_length") // self.key("attention.head_count")

    @property
    def biased(self) -> bool:
        return self.has("self_attn.q_proj.bias")

    def _bytes(self, stored: _Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.raw[stored.part][stored.start : stored.start + stored.bytes]))

    def _plain(self, stored: _Tensor) -> Tensor:
        return self._bytes(stored).view(PLAIN[stored.kind][1]).view(stored.shape)

    def tensor(self, name: str) -> Tensor:
        """In floating point as it is, else uint8 [rows, bytes]."""
        stored = self.tensors[name]
        found = self._plain(stored) if stored.kind in PLAIN else self._bytes(stored).view(stored.shape[0], -1)
        if self.architecture.turned and ("q_proj" in name or "k_proj" in name):
            heads = self.key("attention.head_count")
            heads = heads if "q_proj" in name else self.key("attention.head_count_kv") or heads
            found = found.view(heads, -1, 2, *found.shape[1:]).transpose(1, 2).reshape(found.shape)
        return found - 1 if self.architecture.plus_one and name.endswith("norm.weight") else found

    def config(self) -> HFConfig:
        keys = KEYS | self.architecture.keys
        found: HFConfig = {name: self.key(key) for key, name in keys.items() if self.key(key) is not None}
        for key, name in keys.items():
            if isinstance(found.get(name), list):
                raise ConfigError(f"{self.path.name}: {self.header.architecture}.{key} differs from layer to layer; "
                                  "not supported")  # fmt: skip
        if self.key("attention.value_length") not in (None, self.head_dim):
            raise self._refused("attention.value_length", f"values are as wide as keys here ({self.head_dim})")
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ConfigError(f"{self.path.name}: token_embd.weight is missing")
        top, ends = self.header.keys, ("eos", "eot", "eom")  # of a text, of a turn, of a message to a tool
        plain = "bfloat16" if any(stored.kind == 30 for stored in self.tensors.values()) else "float16"
        return {
            **found,
            "architectures": [self.architecture.model],
            "model_type": self.header.architecture,
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "bos_token_id": top.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": [top[key] for end in ends if (key := f"tokenizer.ggml.{end}_token_id") in top],
            "torch_dtype": plain,
            "rope_scaling": self._scaling(),
            "quantization_config": {"quant_method": "gguf"},
            **self.architecture.more(self),
        }

    def _scaling(self) -> HFConfig | None:
        if "freqs" in self.factors:
            factor = float(self.factors["freqs"].max())
            return {**LLAMA3, "factor": factor, "original_max_position_embeddings": LLAMA3_LENGTH}
        kind, factor = self.key("rope.scaling.type"), self.key("rope.scaling.factor")
        length = self.key("rope.scaling.original_context_length")
        before = {} if length is None else {"original_max_position_embeddings": length}
        if {"long", "short"} <= self.factors.keys():
            lists = {f"{name}_factor": self.factors[name].tolist() for name in ("long", "short")}
            return {"rope_type": "longrope", **before, **lists}
        if kind in (None, "none"):
            return None
        return {"rope_type": kind, "factor": factor, **before}


def _files(path: Path, first: Header) -> list[Path]:
    """All of a model that lies in several: NAME-00001-of-00003.gguf, ..., of which `path` is the first."""
    count = first.keys.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [path]
    stem, _, rest = path.stem.rpartition("-00001-of-")
    if not stem or rest != f"{count:05d}":
        raise ConfigError(f"{path.name}: one of {count} files; --model-path names the first, -00001-of-{count:05d}")
    files = [path.with_name(f"{stem}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{path.name}: {file.name} is missing beside it")
    return files


@functools.lru_cache(maxsize=2)
def _opened(path: Path) -> _File:
    return _File(path)


def config(path: Path) -> HFConfig:
    """What the model's config.json would say. Raises ConfigError."""
    return _opened(path).config()


def headers(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every tensor; those in blocks end in their type, and are bytes."""
    for name, stored in _opened(path).tensors.items():
        if stored.kind in PLAIN:
            yield name, stored.shape, PLAIN[stored.kind][0]
        else:
            module = name.removesuffix(".weight")
            yield f"{module}.{PACKED[stored.kind]}", (stored.shape[0], stored.bytes // stored.shape[0]), "U8"


def tensor(path: Path, name: str) -> Tensor:
    """name: of `headers`."""
    stem, _, end = name.rpartition(".")
    return _opened(path).tensor(f"{stem}.weight" if end in BLOCKS else name)
