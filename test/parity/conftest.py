"""Tiny random checkpoints written by transformers, the reference all families are compared with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "2")

VOCAB = 128
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
Make = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make("Llama", **config) -> (folder, transformers model in float32). The same arguments give the same folder."""
    import transformers

    torch.set_num_threads(2)
    made: dict[str, tuple[Path, Any]] = {}

    def build(family: str, **changes: Any) -> tuple[Path, Any]:
        key = f"{family} {sorted(changes.items())}"
        if key not in made:
            config = getattr(transformers, f"{family}Config")(**{**BASE, **changes})
            torch.manual_seed(7)
            model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    # Biases start at zero and norms at one: a mix-up would go unseen. Embeddings at 0.02 give flat
                    # logits, and flat logits hide errors.
                    p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.3) + ("norm" in name))
                model.get_input_embeddings().weight.mul_(4)
            folder = tmp_path_factory.mktemp(family.lower())
            model.save_pretrained(folder)
            made[key] = (folder, model)
        return made[key]

    return build
