"""Tiny random checkpoints in the names and layouts of real ones, and the models that wrote them."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from family_cases import BASE
from safetensors.torch import save_file

HEADS = {"GPT2": "LMHeadModel"}
NORM = re.compile(r"(norm\w*|norms\.\d+|ln_\w+)\.weight$")
FINAL = re.compile(r"[^0-9]\.(norm|ln_f|final_\w*norm)\.weight$")


@torch.no_grad()
def by_transformers(folder: Path, family: str, changes: dict[str, Any]) -> Any:
    """family: what transformers' classes are called. Returns its model, in float32."""
    import transformers

    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = kind(**{**BASE, **changes})
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}{HEADS.get(family, 'ForCausalLM')}")(config).float().eval()
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if not p.requires_grad and not name.endswith("correction_bias"):
            continue
        # Biases start at zero and norms at one: a mix-up would go unseen. Embeddings at 0.02 give flat logits, and
        # flat logits hide errors.
        one = not family.startswith("Gemma") and bool(NORM.search(name))
        scale = p.shape[-1] ** -0.5 if p.dim() > 1 else 0.15 if name.endswith("bias") else 0.3
        p.copy_(torch.randn_like(p) * (1 if "wpe" in name else scale) + one)
    if config.tie_word_embeddings:  # else every token is its own successor
        model.get_input_embeddings().weight.mul_(0.2)
        next(p for name, p in model.named_parameters() if FINAL.search(name)).add_(5)
    else:
        model.get_input_embeddings().weight.mul_(4)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def by_reference(folder: Path, build: Any, config: dict[str, Any]) -> Any:
    """build: a class of `reference_models`. Returns its model."""
    torch.manual_seed(7)
    model = build(config)
    for name, p in model.named_parameters():
        one = p.dim() == 1 and "bias" not in name
        p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.3) + one)
        if "embed" in name or "wte" in name:
            p.mul_(4 / config.get("embedding_multiplier_scale", 1))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return model
