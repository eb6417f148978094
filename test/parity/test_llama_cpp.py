"""GGUF files as llama.cpp reads them, where it is installed: the same scores. Its tokens: test_gguf_tokenizer.py."""

import json
from pathlib import Path
from typing import Any

import packers
import pytest
import torch
from engine_driver import Driver, load
from family_cases import CASES, TOKENS, Make, known
from safetensors.torch import load_file
from test_gguf import FILES, USUAL

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference here")
# It leaves out the windows of Phi 3 and StarCoder 2, and has Command-R+'s norms in models of 64 layers only.
OTHERWISE = ("phi3", "starcoder2", "command-r+")
HALF_GELU = 5e-3  # its GELU is a table of float16


@pytest.mark.parametrize("case", [case for case in FILES if case not in OTHERWISE])
def test_files_mean_what_llama_cpp_says(case: str, make: Make, tmp_path: Path) -> None:
    family, changes = CASES[case]
    arch, keys = FILES[case]
    folder, _ = make(family, **changes | USUAL.get(case, {}))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": arch}
    tensors = {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    more = {"tokenizer.ggml.model": "no_vocab", f"{arch}.vocab_size": config["vocab_size"]}
    more |= {f"{arch}.rope.dimension_count": dim, f"{arch}.attention.value_length": dim}
    if arch == "qwen2moe":
        more |= {"qwen2moe.expert_feed_forward_length": 24, "qwen2moe.expert_shared_feed_forward_length": 40}
    more |= {f"{arch}.{key}": value for key, value in keys.items()}
    raw, _ = packers.gguf_of(config, tensors, lambda name: "F32", more)
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    theirs = llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, type_k=0, type_v=0,
        flash_attn=False,
    )  # fmt: skip
    theirs.eval(TOKENS)
    expected = torch.tensor(theirs.scores[: len(TOKENS)].copy()).float().log_softmax(-1)
    bound = HALF_GELU if arch.startswith("gemma") else 1e-4
    assert (known(Driver(load(path)), 0, TOKENS, [9]) - expected).abs().max() < bound
