"""Tiny random checkpoints written by transformers, the reference all families are compared with."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import BASE, Make

HEADS = {"GPT2": "LMHeadModel"}
NORM = re.compile(r"(norm\w*|norms\.\d+|ln_\w+)\.weight$")
FINAL = re.compile(r"[^0-9]\.(norm|ln_f|final_\w*norm)\.weight$")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing here is worth a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make("Llama", **config) -> (folder, transformers model in float32). The same arguments give the same folder."""
    import transformers

    made: dict[str, tuple[Path, Any]] = {}

    def build(family: str, **changes: Any) -> tuple[Path, Any]:
        key = f"{family} {sorted(changes.items())}"
        if key not in made:
            kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
            config = kind(**{**BASE, **changes})
            torch.manual_seed(7)
            model = getattr(transformers, f"{family}{HEADS.get(family, 'ForCausalLM')}")(config).float().eval()
            with torch.no_grad():
                for name, p in (*model.named_parameters(), *model.named_buffers()):
                    if not p.requires_grad and not name.endswith("correction_bias"):
                        continue
                    # Biases start at zero and norms at one: a mix-up would go unseen. Embeddings at 0.02 give flat
                    # logits, and flat logits hide errors.
                    one = not family.startswith("Gemma") and bool(NORM.search(name))
                    scale = p.shape[-1] ** -0.5 if p.dim() > 1 else 0.15 if name.endswith("bias") else 0.3
                    p.copy_(torch.randn_like(p) * (1 if "wpe" in name else scale) + one)
                if config.tie_word_embeddings:  # else every token is its own successor
                    model.get_input_embeddings().weight.mul_(0.2)
                    next(p for name, p in model.named_parameters() if FINAL.search(name)).add_(5)
                else:
                    model.get_input_embeddings().weight.mul_(4)
            folder = tmp_path_factory.mktemp(family.lower())
            model.save_pretrained(folder)
            made[key] = (folder, model)
        return made[key]

    return build
