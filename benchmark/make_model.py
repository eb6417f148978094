"""A model folder with random weights, for benchmarks that read files: `python benchmark/make_model.py qwen0.5b DIR`.

qwen0.5b has the shape of Qwen2.5-0.5B (988 MB in bfloat16), tiny four small layers. The tokenizer is the demo model's,
with as many words more as the shape has rows; `vocab32k` is one of 32,768 words without weights.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from sglang.base.config import DEMO_MODEL

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 768, "vocab_size": 8192, "rope_theta": 1e4, "max_position_embeddings": 4096,
    },
    "qwen0.5b": {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936, "rope_theta": 1e6, "max_position_embeddings": 32768,
    },
    "vocab32k": {"vocab_size": 32768},
}  # fmt: skip


def make(shape: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (DEMO_MODEL / name).exists():
            shutil.copy(DEMO_MODEL / name, folder)
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    known = max([*words.values(), *(token["id"] for token in tokenizer["added_tokens"])]) + 1
    words |= {f"word{i}": i for i in range(known, shape["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if "hidden_size" not in shape:
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    demo = json.loads((DEMO_MODEL / "config.json").read_text())
    ends = {name: demo[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in demo}
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(Qwen2Config(**{**shape, **ends, "tie_word_embeddings": True, "dtype": "bfloat16"}))
    model.to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make(SHAPES[args.shape], args.folder)
    print(args.folder)


if __name__ == "__main__":
    main()
