"""What few bits cost the demo model: its held-back questions under each format, `python benchmark/quality.py`.

int8 and int4 round the weights while they load; the files are written from the same weights by the writers of the
tests, which round each weight to its nearest code (tools that look at activations, as AWQ's and GPTQ's own, do better).
Greedy answers; right as in scripts/demo_model/evaluate.py.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results_file import add_flag, save
from safetensors.torch import load_file, save_file

from sglang.base.config import DEMO_MODEL
from sglang.launch import ThreadWorker
from sglang.offline import Engine

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "test" / "parity"), str(ROOT / "scripts" / "demo_model")]

import packers  # noqa: E402 - the folders above hold them
from data import questions  # noqa: E402
from evaluate import is_right  # noqa: E402

GREEDY = {"temperature": 0, "max_new_tokens": 40, "stop": "\n\n"}
Write = Callable[[Path], dict[str, Any]]  # folder -> flags of the engine


def as_is(folder: Path, **flags: Any) -> dict[str, Any]:
    return {"model_path": str(DEMO_MODEL), **flags}


def in_format(folder: Path, quantization: dict[str, Any], pack: packers.Packer) -> dict[str, Any]:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    (folder / "generation_config.json").write_text((DEMO_MODEL / "generation_config.json").read_text())
    tensors = {}
    for name, weight in load_file(DEMO_MODEL / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        found, _ = pack(weight.float().numpy())
        tensors |= {name.removesuffix("weight") + ending: t.contiguous() for ending, t in found.items()}
    save_file(tensors, folder / "model.safetensors")
    return {"model_path": str(folder), "dtype": "bfloat16"}


def in_gguf(folder: Path, kind: str) -> dict[str, Any]:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    tensors = {n: t.float().numpy() for n, t in load_file(DEMO_MODEL / "model.safetensors").items()}
    # As llama.cpp does: the embedding, which is also the head, keeps 6 bits or more.
    raw, _ = packers.gguf_of(config, tensors, lambda name: kind if "embed" not in name or kind == "Q8_0" else "Q6_K")
    (folder / "model.gguf").write_bytes(raw)
    return {"model_path": str(folder / "model.gguf"), "dtype": "bfloat16"}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "desc_act": False}
FORMATS: dict[str, tuple[int, Write]] = {
    "bfloat16": (16, as_is),
    "int8": (8, partial(as_is, quantization="int8")),
    "fp8 file with a scale a row": (
        8,
        partial(in_format, quantization={"quant_method": "fbgemm_fp8"}, pack=partial(packers.fp8, by="channel")),
    ),
    "GPTQ file of 8 bits": (
        8,
        partial(in_format, quantization=GPTQ | {"bits": 8, "sym": True}, pack=partial(packers.gptq, bits=8)),
    ),
    "GGUF Q8_0": (8, partial(in_gguf, kind="Q8_0")),
    "GGUF Q6_K": (6, partial(in_gguf, kind="Q6_K")),
    "GGUF Q5_K": (5, partial(in_gguf, kind="Q5_K")),
    "int4": (4, partial(as_is, quantization="int4")),
    "AWQ file in groups of 128": (4, partial(in_format, quantization=AWQ, pack=packers.awq)),
    "AWQ file in groups of 32": (
        4,
        partial(in_format, quantization=AWQ | {"group_size": 32}, pack=partial(packers.awq, size=32)),
    ),
    "GPTQ file of 4 bits": (4, partial(in_format, quantization=GPTQ, pack=partial(packers.gptq, sym=False))),
    "GGUF Q4_K": (4, partial(in_gguf, kind="Q4_K")),
    "GGUF Q4_0": (4, partial(in_gguf, kind="Q4_0")),
}


def answers(flags: dict[str, Any], prompts: list[str]) -> tuple[list[str], int]:
    """Greedy texts, and what the weights take in bytes."""
    settings = {"tokenizer_path": str(DEMO_MODEL), "device": "cpu", "max_total_tokens": 16384, "log_level": "error"}
    with Engine(worker=ThreadWorker, **{**settings, **flags}) as engine:
        texts = [found["text"] for found in engine.generate(prompts, GREEDY)]
        return texts, engine.get_server_info()["weight_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--formats", default=",".join(FORMATS), help="Names, comma-separated, as `a,b`; all by default."
    )
    parser.add_argument("--questions", type=int, default=0, help="So many of the questions, evenly spread; 0: all.")
    add_flag(parser, "quality")
    args = parser.parse_args()
    asked = questions()
    if args.questions:
        asked = asked[:: max(len(asked) // args.questions, 1)]
    prompts = [q["prompt"] for q in asked]
    rows: list[dict[str, Any]] = []
    first: list[str] = []
    print("| format | bits | weights, MB | right, % | less than bfloat16, points | other first lines, % |")
    print("|---|---|---|---|---|---|")
    for name, (bits, write) in FORMATS.items():
        if name not in args.formats.split(",") and name != "bfloat16":
            continue
        with tempfile.TemporaryDirectory() as scratch:
            texts, size = answers(write(Path(scratch)), prompts)
        first = first or texts
        right = 100 * sum(is_right(q, t) for q, t in zip(asked, texts, strict=True)) / len(asked)
        other = 100 * sum(
            a.strip().split("\n")[0] != b.strip().split("\n")[0] for a, b in zip(texts, first, strict=True)
        )
        row = {
            "format": name,
            "bits": bits,
            "weights": size / 1e6,
            "right": right,
            "lost": round((rows[0]["right"] if rows else right) - right, 3) + 0.0,  # no -0
            "other first lines": other / len(asked),
        }
        rows.append(row)
        print(
            "| " + " | ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()) + " |", flush=True
        )
    if args.save:
        note = (
            f"{len(asked)} held-back questions of the demo model, greedily; lost: against bfloat16. Files hold weights "
            "rounded to the nearest code."
        )
        units = {"weights": "MB", "right": "%", "lost": "points", "other first lines": "%"}
        save(args.save, rows, title="Answers under each weight format", units=units, note=note)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
