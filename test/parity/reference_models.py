"""Families that transformers does not have, written out from their published descriptions: one sequence, no cache.

Each is a plain module whose state_dict has the names and layouts of its real checkpoints.
"""

from typing import Any

import torch
import torch.nn.functional as F
from family_cases import VOCAB
from torch import Tensor, nn


class Norm(nn.Module):
    """RMSNorm whose parameter has the name that the checkpoint gives it."""

    def __init__(self, size: int, eps: float, name: str = "weight"):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(size)))
        self.name, self.eps = name, eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * getattr(self, self.name)


def line(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def turned(x: Tensor, dim: int, theta: float, interleaved: bool = False) -> Tensor:
    """x: [tokens, heads, head_dim]; complex multiplication of the pairs among the first `dim` dims."""
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.outer(torch.arange(len(x), dtype=torch.float64), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    part = x[..., :dim].double()
    if interleaved:
        pairs = torch.complex(part[..., 0::2], part[..., 1::2]) * turn
        out = torch.stack((pairs.real, pairs.imag), -1).flatten(-2)
    else:
        pairs = torch.complex(part[..., : dim // 2], part[..., dim // 2 :]) * turn
        out = torch.cat((pairs.real, pairs.imag), -1)
    return torch.cat((out.to(x.dtype), x[..., dim:]), -1)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None = None) -> Tensor:
    """q: [tokens, heads, dim]; k, v: [tokens, kv_heads, dim]. Returns [tokens, heads * dim]."""
    n = len(q)
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def named(**children: Any) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def listed(count: int, make: Any) -> nn.ModuleList:
    return nn.ModuleList([make() for _ in range(count)])


class Qwen(nn.Module):
    def __init__(self, c: dict[str, Any]):
        super().__init__()
        self.c = c
        h, inter, eps = c["hidden_size"], c["intermediate_size"] // 2, c["layer_norm_epsilon"]

        def layer() -> nn.Module:
            return named(
                ln_1=Norm(h, eps),
                ln_2=Norm(h, eps),
                attn=named(c_attn=line(h, 3 * h, True), c_proj=line(h, h)),
                mlp=named(w1=line(h, inter), w2=line(h, inter), c_proj=line(inter, h)),
            )

        layers = listed(c["num_hidden_layers"], layer)
        self.transformer = named(wte=nn.Embedding(c["vocab_size"], h), h=layers, ln_f=Norm(h, eps))
        self.lm_head = line(h, c["vocab_size"])

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.c["num_attention_heads"]
        dim = self.c["hidden_size"] // heads
        x = self.transformer.wte(tokens)
        for layer in self.transformer.h:
            q, k, v = (p.view(-1, heads, dim) for p in layer.attn.c_attn(layer.ln_1(x)).chunk(3, -1))
            theta = self.c["rotary_emb_base"]
            x = x + layer.attn.c_proj(attended(turned(q, dim, theta), turned(k, dim, theta), v, dim**-0.5))
            n = layer.ln_2(x)
            x = x + layer.mlp.c_proj(F.silu(layer.mlp.w2(n)) * layer.mlp.w1(n))
        return self.lm_head(self.transformer.ln_f(x))


class InternLM2(nn.Module):
    def __init__(self, c: dict[str, Any]):
        super().__init__()
        self.c = c
        h, inter, eps = c["hidden_size"], c["intermediate_size"], c["rms_norm_eps"]
        self.dim = h // c["num_attention_heads"]
        rows = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * self.dim

        def layer() -> nn.Module:
            return named(
                attention_norm=Norm(h, eps),
                ffn_norm=Norm(h, eps),
                attention=named(wqkv=line(h, rows, c["bias"]), wo=line(h, h, c["bias"])),
                feed_forward=named(w1=line(h, inter), w3=line(h, inter), w2=line(inter, h)),
            )

        layers = listed(c["num_hidden_layers"], layer)
        self.model = named(tok_embeddings=nn.Embedding(c["vocab_size"], h), layers=layers, norm=Norm(h, eps))
        self.output = line(h, c["vocab_size"])

    def forward(self, tokens: Tensor) -> Tensor:
        groups, dim, theta = self.c["num_key_value_heads"], self.dim, self.c["rope_theta"]
        x = self.model.tok_embeddings(tokens)
        for layer in self.model.layers:
            group = layer.attention.wqkv(layer.attention_norm(x)).view(len(tokens), groups, -1, dim)
            q, k, v = group[:, :, :-2].flatten(1, 2), group[:, :, -2], group[:, :, -1]
            x = x + layer.attention.wo(attended(turned(q, dim, theta), turned(k, dim, theta), v, dim**-0.5))
            n, ffn = layer.ffn_norm(x), layer.feed_forward
            x = x + ffn.w2(F.silu(ffn.w1(n)) * ffn.w3(n))
        return self.output(self.model.norm(x))


class MiniCPM(nn.Module):
    def __init__(self, c: dict[str, Any]):
        super().__init__()
        self.c = c
        h, inter, eps = c["hidden_size"], c["intermediate_size"], c["rms_norm_eps"]
        self.dim = h // c["num_attention_heads"]
        kv = c["num_key_value_heads"] * self.dim

        def layer() -> nn.Module:
            return named(
                input_layernorm=Norm(h, eps),
                post_attention_layernorm=Norm(h, eps),
                self_attn=named(q_proj=line(h, h), k_proj=line(h, kv), v_proj=line(h, kv), o_proj=line(h, h)),
                mlp=named(gate_proj=line(h, inter), up_proj=line(h, inter), down_proj=line(inter, h)),
            )

        layers = listed(c["num_hidden_layers"], layer)
        self.model = named(embed_tokens=nn.Embedding(c["vocab_size"], h), layers=layers, norm=Norm(h, eps))

    def forward(self, tokens: Tensor) -> Tensor:
        c, dim = self.c, self.dim
        share = c["scale_depth"] / c["num_hidden_layers"] ** 0.5
        x = self.model.embed_tokens(tokens) * c["scale_emb"]
        for layer in self.model.layers:
            n, attn, mlp = layer.input_layernorm(x), layer.self_attn, layer.mlp
            q, k, v = (p(n).unflatten(-1, (-1, dim)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
            x = x + attn.o_proj(attended(turned(q, dim, 1e4), turned(k, dim, 1e4), v, dim**-0.5)) * share
            n = layer.post_attention_layernorm(x)
            x = x + mlp.down_proj(F.silu(mlp.gate_proj(n)) * mlp.up_proj(n)) * share
        return F.linear(self.model.norm(x) / (c["hidden_size"] / c["dim_model_base"]), self.model.embed_tokens.weight)


class ChatGLM(nn.Module):
    def __init__(self, c: dict[str, Any]):
        super().__init__()
        self.c = c
        h, inter, dim = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"]
        self.groups = c["multi_query_group_num"] if c["multi_query_attention"] else c["num_attention_heads"]
        q = c["num_attention_heads"] * dim
        bias = c["add_bias_linear"]

        def norm() -> nn.Module:
            return Norm(h, c["layernorm_epsilon"]) if c["rmsnorm"] else nn.LayerNorm(h, c["layernorm_epsilon"])

        def layer() -> nn.Module:
            rows = q + 2 * self.groups * dim
            return named(
                input_layernorm=norm(),
                post_attention_layernorm=norm(),
                self_attention=named(query_key_value=line(h, rows, bias or c["add_qkv_bias"]), dense=line(q, h, bias)),
                mlp=named(dense_h_to_4h=line(h, 2 * inter, bias), dense_4h_to_h=line(inter, h, bias)),
            )

        self.transformer = named(
            embedding=named(word_embeddings=nn.Embedding(c["padded_vocab_size"], h)),
            encoder=named(layers=listed(c["num_layers"], layer), final_layernorm=norm()),
            output_layer=line(h, c["padded_vocab_size"]),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        c, dim, groups = self.c, self.c["kv_channels"], self.groups
        sizes = [c["num_attention_heads"] * dim, groups * dim, groups * dim]
        x = self.transformer.embedding.word_embeddings(tokens)
        for layer in self.transformer.encoder.layers:
            qkv = layer.self_attention.query_key_value(layer.input_layernorm(x)).split(sizes, -1)
            q, k, v = (p.unflatten(-1, (-1, dim)) for p in qkv)
            q, k = (turned(p, dim // 2, 1e4 * c["rope_ratio"], c["original_rope"]) for p in (q, k))
            x = x + layer.self_attention.dense(attended(q, k, v, dim**-0.5))
            gate, up = layer.mlp.dense_h_to_4h(layer.post_attention_layernorm(x)).chunk(2, -1)
            x = x + layer.mlp.dense_4h_to_h(F.silu(gate) * up)
        return self.transformer.output_layer(self.transformer.encoder.final_layernorm(x))


class Grok(nn.Module):
    """layout: "w" has the tensor names of one public conversion, "linear" those of the other."""

    def __init__(self, c: dict[str, Any], layout: str):
        super().__init__()
        self.c, self.layout = c, layout
        h, inter, eps = c["hidden_size"], c["intermediate_size"], c["rms_norm_eps"]
        self.dim = h // c["num_attention_heads"]
        kv = c["num_key_value_heads"] * self.dim
        self.parts = ("w1", "w3", "w2") if layout == "w" else ("linear", "linear_v", "linear_1")
        self.blocks = ("self_attn", "block_sparse_moe") if layout == "w" else ("attn", "moe_block")
        scale = "weight" if layout == "w" else "scale"

        def expert() -> nn.Module:
            return named(**dict(zip(self.parts, (line(h, inter), line(h, inter), line(inter, h)), strict=True)))

        def layer() -> nn.Module:
            norms = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
            attn = named(q_proj=line(h, h), k_proj=line(h, kv), v_proj=line(h, kv), o_proj=line(h, h))
            moe = named(gate=line(h, c["num_experts"]), experts=listed(c["num_experts"], expert))
            return named(**{n: Norm(h, eps, scale) for n in norms}, **{self.blocks[0]: attn, self.blocks[1]: moe})

        layers = listed(c["num_hidden_layers"], layer)
        self.model = named(embed_tokens=nn.Embedding(c["vocab_size"], h), layers=layers, norm=Norm(h, eps, scale))
        self.lm_head = line(h, c["vocab_size"])

    def forward(self, tokens: Tensor) -> Tensor:
        c, dim = self.c, self.dim
        x = self.model.embed_tokens(tokens) * c["embedding_multiplier_scale"]
        for layer in self.model.layers:
            attn, moe = (layer.get_submodule(name) for name in self.blocks)
            n = layer.pre_attn_norm(x)
            q, k, v = (p(n).unflatten(-1, (-1, dim)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
            seen = attended(turned(q, dim, 1e4), turned(k, dim, 1e4), v, c["attn_output_multiplier"], 30.0)
            x = x + layer.post_attn_norm(attn.o_proj(seen))
            n = layer.pre_moe_norm(x)
            shares = (30 * torch.tanh(moe.gate(n) / 30)).softmax(-1)
            rows = []
            for token, share in zip(n, shares, strict=True):
                best = share.topk(c["num_experts_per_tok"])
                out = torch.zeros_like(token)
                for weight, index in zip(best.values, best.indices.tolist(), strict=True):
                    gate, up, down = (moe.experts[index].get_submodule(p) for p in self.parts)
                    out = out + weight * down(F.gelu(gate(token), approximate="tanh") * up(token))
                rows.append(out)
            x = x + layer.post_moe_norm(torch.stack(rows))
        return self.lm_head(self.model.norm(x)) * c["output_multiplier_scale"]


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
QWEN = SIZES | {"architectures": ["QWenLMHeadModel"], "intermediate_size": 192, "layer_norm_epsilon": 1e-6}
QWEN |= {"rotary_emb_base": 700, "rotary_pct": 1.0, "seq_length": 128, "no_bias": True}
INTERN = SIZES | {"architectures": ["InternLM2ForCausalLM"], "intermediate_size": 96, "num_key_value_heads": 2}
INTERN |= {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
GLM: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "padded_vocab_size": VOCAB,
    "hidden_size": 64,
    "num_layers": 3,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "ffn_hidden_size": 96,
    "seq_length": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "original_rope": True,
    "rope_ratio": 3,
}
GROK = SIZES | {"architectures": ["Grok1ModelForCausalLM"], "intermediate_size": 48, "num_key_value_heads": 2}
GROK |= {"num_experts": 4, "num_experts_per_tok": 2, "attn_output_multiplier": 0.3, "rms_norm_eps": 1e-5}
GROK |= {"embedding_multiplier_scale": 7.5, "output_multiplier_scale": 1.2, "tie_word_embeddings": False}
MINICPM = SIZES | {"architectures": ["MiniCPMForCausalLM"], "intermediate_size": 96, "num_key_value_heads": 2}
MINICPM |= {"rms_norm_eps": 1e-5, "scale_emb": 0.6, "scale_depth": 2.4, "dim_model_base": 20}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen": (Qwen, QWEN),
    "minicpm": (MiniCPM, MINICPM),
    "internlm2": (InternLM2, INTERN),
    "internlm2 biases": (InternLM2, INTERN | {"bias": True}),
    "chatglm3": (ChatGLM, GLM),
    "chatglm layernorm": (ChatGLM, GLM | {"rmsnorm": False, "add_bias_linear": True, "rope_ratio": 1}),
    "chatglm mha, halves": (ChatGLM, GLM | {"multi_query_attention": False, "original_rope": False}),
    "grok": (lambda c: Grok(c, "w"), GROK),
    "grok, other names": (lambda c: Grok(c, "linear"), GROK),
}
