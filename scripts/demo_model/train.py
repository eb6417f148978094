"""Train the demo model: a Llama of seven million parameters, minutes on one H100 or H200.

    python scripts/demo_model/train.py --out python/sglang/assets/demo --minutes 4
    python scripts/demo_model/train.py --out /tmp/try --minutes 0.5 --chars 2000000 --batch 4    # a CPU smoke test
    python scripts/demo_model/train.py --start-from python/sglang/assets/demo --out /tmp/next --minutes 16 \\
        --chars 24000000 --batch 8 --length 384 --lr 3e-4 --warmup 20 --keep 0.7 \\
        --more sums question statement retrieval                                                 # a second pass

Writes a Hugging Face folder. The learning rate falls to zero by the end of the given minutes, and the model is saved
every minute on the way, so a run that is cut still leaves one.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import tokenizer as tokenizers
from data import corpus
from forms import BREAK
from tokenizers import Tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 768, "vocab_size": 4096,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "initializer_range": 0.02,
    "torch_dtype": "bfloat16", "bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": 0, "use_cache": True,
}  # fmt: skip
LENGTH = 2048
FIRST = 1 << 15  # beyond every token id


class Block(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        hidden, inter = c["hidden_size"], c["intermediate_size"]
        self.heads, self.kv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.eps = c["rms_norm_eps"]
        self.attn_norm = nn.Parameter(torch.ones(hidden))
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        self.q = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k = nn.Linear(hidden, self.kv * self.dim, bias=False)
        self.v = nn.Linear(hidden, self.kv * self.dim, bias=False)
        self.o = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.gate = nn.Linear(hidden, inter, bias=False)
        self.up = nn.Linear(hidden, inter, bias=False)
        self.down = nn.Linear(inter, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        h = F.rms_norm(x, x.shape[-1:], self.attn_norm, self.eps)
        q = turn(self.q(h).view(b, t, self.heads, self.dim).transpose(1, 2), cos, sin)
        k = turn(self.k(h).view(b, t, self.kv, self.dim).transpose(1, 2), cos, sin)
        v = self.v(h).view(b, t, self.kv, self.dim).transpose(1, 2)
        k, v = (s.repeat_interleave(self.heads // self.kv, 1) for s in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, -1))
        h = F.rms_norm(x, x.shape[-1:], self.mlp_norm, self.eps)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.eps = c["rms_norm_eps"]
        steps = torch.arange(0, c["head_dim"], 2) / c["head_dim"]
        angles = torch.outer(torch.arange(LENGTH), 1 / c["rope_theta"] ** steps)
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())
        for name, p in self.named_parameters():
            if p.dim() == 2:
                deep = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * c["num_hidden_layers"]) if deep else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens[:, :-1])
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(F.rms_norm(x, x.shape[-1:], self.norm, self.eps), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


NAMES = {"attn_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight"}
NAMES |= {f"{n}.weight": f"self_attn.{n}_proj.weight" for n in "qkvo"}
NAMES |= {f"{n}.weight": f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")}


def parameters(model: Llama) -> dict[str, Tensor]:
    """By the names that Hugging Face gives them."""
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm}
    for i, block in enumerate(model.blocks):
        for ours, theirs in NAMES.items():
            tensors[f"model.layers.{i}.{theirs}"] = block.get_parameter(ours)
    return tensors


@torch.no_grad()
def load(model: Llama, folder: Path, share: float = 1.0) -> None:
    """Replace the weights, or that share of them, by saved ones.

    A blend of two passes forgets less of the first: arXiv 2203.05482 averages the weights of runs in the same way.
    """
    saved = load_file(str(folder / "model.safetensors"))
    for name, tensor in parameters(model).items():
        tensor.lerp_(saved[name].to(tensor), share)


def save(model: Llama, folder: Path) -> None:
    plain = {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in parameters(model).items()}
    save_file(plain, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def encode(job: tuple[str, int, int, list[str]]) -> np.ndarray:
    """One worker's part of the corpus as token ids; the top bit marks where a document begins."""
    path, seed, chars, more = job
    texts = corpus(seed, chars, more)
    pieces = [(piece, at) for text in texts for at, piece in enumerate(text.split(BREAK))]
    encoded = Tokenizer.from_file(path).encode_batch([piece for piece, _ in pieces])
    parts = []
    for (_, at), e in zip(pieces, encoded, strict=True):
        ids = np.array(e.ids, np.uint16)
        if at == 0:
            ids[0] |= FIRST
        parts.append(ids)
    return np.concatenate(parts)


def tokens_of(folder: Path, chars: int, more: list[str]) -> tuple[Tensor, Tensor]:
    """The corpus as token ids, and where its documents begin."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parts = min(os.cpu_count() or 1, 16)
    jobs = [(str(folder / "tokenizer.json"), 100 + i, chars // parts // 4, more) for i in range(parts * 4)]
    with ProcessPoolExecutor(parts) as pool:
        stream = np.concatenate(list(pool.map(encode, jobs)))
    starts = np.flatnonzero(stream & FIRST)
    return torch.from_numpy((stream & ~np.uint16(FIRST)).astype(np.int32)), torch.from_numpy(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--chars", type=int, default=400_000_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps until the learning rate is reached")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens in a window")
    parser.add_argument("--start-from", type=Path, help="a folder that an earlier run wrote; its tokenizer is kept")
    parser.add_argument("--keep", type=float, default=0, help="how much of the earlier weights goes into the result")
    parser.add_argument("--more", nargs="*", default=[], help="kinds of documents that come four times as often")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    if args.start_from:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.start_from / name, args.out / name)
    else:
        tokenizers.train(args.out)
    print(f"tokenizer {time.monotonic() - began:.1f} s", flush=True)
    data, firsts = (t.to(device) for t in tokens_of(args.out, args.chars, args.more))
    firsts = firsts[firsts < len(data) - args.length]
    print(f"{len(data) / 1e6:.1f} M tokens {time.monotonic() - began:.1f} s", flush=True)
    model = Llama(CONFIG).to(device)
    if args.start_from:
        load(model, args.start_from)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    run = torch.compile(model) if device == "cuda" else model
    window = torch.arange(args.length + 1, device=device)

    def step() -> Tensor:
        # A window begins with a document, as a prompt does; the documents after it teach long contexts.
        starts = firsts[torch.randint(0, len(firsts), (args.batch, 1), device=device)]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = run(data[starts + window].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step()  # compiles; learns nothing
    start, saved, n = time.monotonic(), time.monotonic(), 0
    total = args.minutes * 60
    loss = torch.zeros((), device=device)
    while (gone := time.monotonic() - start) < total:
        part = gone / total
        lr = args.lr * min(1.0, n / args.warmup) * (0.5 * (1 + math.cos(math.pi * part)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = step()
        n += 1
        if n % 20 == 0 and device == "cuda":
            torch.cuda.synchronize()  # the clock above must not run ahead of the device
        if n % (500 if device == "cuda" else 50) == 0:
            rate = n * args.batch * args.length / (time.monotonic() - start) / 1e6
            print(f"step {n} loss {loss.item():.4f} lr {lr:.2e} {gone:.0f} s {rate:.2f} M tokens/s", flush=True)
        if time.monotonic() - saved > 60:
            save(model, args.out)
            saved = time.monotonic()
    if args.keep:
        load(model, args.start_from, args.keep)
    save(model, args.out)
    figures = {
        "arguments": {
            k: getattr(args, k) for k in ("minutes", "chars", "batch", "length", "lr", "warmup", "keep", "more")
        },
        "steps": n,
        "tokens": n * args.batch * args.length,
        "loss": round(loss.item(), 4),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "corpus_tokens": len(data),
    }
    earlier = json.loads((args.start_from / "training.json").read_text())["passes"] if args.start_from else []
    training = {"parameters": sum(p.numel() for p in model.parameters()), "passes": [*earlier, figures]}
    (args.out / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
