"""Checkpoints that make vectors of texts, and which: transformers' states by sentence-transformers' formulas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_driver import GREEDY
from family_cases import BASE, TOKENS
from torch import Tensor

from sglang import schedule
from sglang.base.config import ServerConfig
from sglang.base.messages import Submit, pack
from sglang.engine.engine import Engine
from sglang.worker.build import budget

BERT = {"attn_implementation": "eager", "hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-3}
ROBERTA = BERT | {"pad_token_id": 1, "type_vocab_size": 1}
# name -> transformers' class, config values, the files' word for pooling (None: no files), whether they normalise
CASES: dict[str, tuple[str, dict[str, Any], str | None, bool]] = {
    "bert": ("BertModel", BERT, "mean_tokens", True),
    "bert first": ("BertModel", BERT | {"hidden_act": "gelu_new"}, "cls_token", False),
    "bert of a language model": ("BertForMaskedLM", BERT, None, True),
    "xlm-roberta": ("XLMRobertaModel", ROBERTA, "cls_token", True),
    "roberta": ("RobertaModel", ROBERTA, "mean_tokens", False),
    "e5-mistral": ("MistralModel", {"sliding_window": 8}, "lasttoken", True),
    "gte-qwen2": ("Qwen2ForCausalLM", {"is_causal": False, "use_sliding_window": False}, "lasttoken", True),
    "qwen3-embedding": ("Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}, None, True),
    "llama mean": ("LlamaModel", {}, "mean_tokens", True),
    "gemma": ("GemmaModel", {"head_dim": 32}, "mean_tokens", False),
}
TEXTS = [
    TOKENS,
    TOKENS[:7],
    TOKENS[:1],
    TOKENS[5:30],
    TOKENS[:24] + TOKENS[3:9],
    TOKENS[:7],
    TOKENS[3:20],
    TOKENS[::-1],
    [9, 1, 1, 7, 0, 1, 12, 8, 1],  # 1 is RoBERTa's padding, which a text can hold
]


@torch.no_grad()
def written(folder: Path, case: str) -> Any:
    """Returns transformers' model, in float32."""
    import transformers

    kind, changes, mode, unit = CASES[case]
    family = kind.removesuffix("Model").removesuffix("ForCausalLM").removesuffix("ForMaskedLM")
    config = getattr(transformers, f"{family}Config")(**{**BASE, **changes})
    torch.manual_seed(7)
    model = getattr(transformers, kind)(config).float().eval()
    for name, p in model.named_parameters():
        one = p.dim() == 1 and name.endswith("weight") and not family.startswith("Gemma")
        p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.3) + one)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, **changes}))
    if mode is not None:
        parts = [("Transformer", ""), ("Pooling", "1_Pooling")] + ([("Normalize", "2_Normalize")] if unit else [])
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(parts)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {f"pooling_mode_{m}": m == mode for m in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    return model


@torch.no_grad()
def expected(model: Any, case: str, tokens: list[int]) -> Tensor:
    """The vector of a text, by itself."""
    _, changes, mode, unit = CASES[case]
    body = model.base_model
    more: dict[str, Any] = {}
    if changes.get("is_causal") is False:
        more["attention_mask"] = torch.zeros(1, 1, len(tokens), len(tokens))  # added to the scores: all are seen
    states = body(input_ids=torch.tensor([tokens]), **more).last_hidden_state[0]
    causal = not any(word in type(model).__name__ for word in ("Bert", "Roberta"))
    match mode or ("lasttoken" if causal else "mean_tokens"):
        case "cls_token":
            vector = states[0]
        case "lasttoken":
            vector = states[-1]
        case _:
            vector = states.mean(0)
    return vector / vector.norm() if unit else vector


def vectors(folder: Path, texts: list[list[int]], **flags: Any) -> tuple[list[Tensor], schedule.State]:
    """Of our engine, through the scheduler, all at once."""
    settings: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 512, "max_running_requests": 4, "device": "cpu"}
    config = ServerConfig(model_path=str(folder), is_embedding=True, **{**settings, **flags}).resolve()
    engine = Engine.load(config, progress=False)
    state = schedule.State(budget(config, engine))
    nothing = type(GREEDY)(max_new_tokens=0)
    pieces = [p for i, text in enumerate(texts) for p in schedule.apply(state, Submit(i, pack(text), nothing), 0.0)]
    while (plan := schedule.plan(state, 0.0)) is not None:
        pieces += schedule.commit(state, plan, engine.launch(plan).wait(), 0.0)
        state.check()
    assert all(p.finish is not None and p.finish.type == "length" for p in pieces), pieces
    found = {p.id: torch.from_numpy(np.frombuffer(p.embedding, np.float32).copy()) for p in pieces}
    return [found[i] for i in range(len(texts))], state
