"""Requests that begin alike, with the prefix cache and without: `python benchmark/prefix_sharing.py`.

Two engines of the same model in worker processes of their own, one with --disable-radix-cache, take the same batch of
requests in turns; before each turn the cache is emptied, so all sharing happens inside the batch. Wall time of the
batch, and the prompt tokens that were computed.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from results_file import add_flag, save

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

from sglang.offline import Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="", help="Default: the demo model.")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--shared", type=int, default=512, help="Tokens all prompts begin with.")
    parser.add_argument("--own", type=int, default=16, help="Tokens of each prompt after these.")
    parser.add_argument("--output", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    add_flag(parser, "prefix_sharing")
    args = parser.parse_args()
    settings: dict[str, Any] = {
        "model_path": args.model_path,
        "max_total_tokens": args.requests * (args.shared + args.own + args.output + 1),
        "max_running_requests": args.requests,
        "log_level": "error",
        "context_length": args.shared + args.own + args.output + 8,
    }
    draw = np.random.default_rng(0)
    sampling = {"temperature": 0, "max_new_tokens": args.output, "ignore_eos": True}
    wall: dict[str, list[float]] = {"prefix cache": [], "without": []}
    work: dict[str, list[int]] = {name: [] for name in wall}
    texts: dict[str, Any] = {}
    with Engine(**settings) as cached, Engine(**settings, disable_radix_cache=True) as plain:
        vocab = min(cached.ready.vocab_size, 4000)
        for _ in range(args.rounds + 1):  # the first warms up
            shared = draw.integers(0, vocab, args.shared).tolist()
            prompts = [shared + draw.integers(0, vocab, args.own).tolist() for _ in range(args.requests)]
            for name, engine in (("prefix cache", cached), ("without", plain)):
                engine.flush_cache()
                before = _computed(engine)
                began = time.perf_counter()
                texts[name] = [a["output_ids"] for a in engine.generate(input_ids=prompts, sampling_params=sampling)]
                wall[name].append(time.perf_counter() - began)
                work[name].append(_computed(engine) - before)
    rows = []
    for name in wall:
        rows.append(
            {
                "": name,
                "wall": round(statistics.median(wall[name][1:]), 3),
                "prompt tokens computed": round(statistics.median(work[name][1:])),
                "speed-up": round(statistics.median(wall["without"][1:]) / statistics.median(wall[name][1:]), 2),
                "less prefill": round(statistics.median(work["without"][1:]) / statistics.median(work[name][1:]), 2),
            }
        )
        print(rows[-1])
    same = sum(a == b for a, b in zip(texts["prefix cache"], texts["without"], strict=True))
    print(f"same output: {same}/{args.requests}")
    if args.save:
        save(
            args.save,
            rows,
            title="Requests that begin alike",
            units={"wall": "s", "speed-up": "x", "less prefill": "x"},
            note=f"{args.requests} requests at once, {args.shared} tokens in common and {args.own} of their own, "
            f"{args.output} generated; model: {Path(args.model_path).name or 'the demo model'}; "
            f"{same} of {args.requests} outputs alike in the last round.",
        )


def _computed(engine: Engine) -> int:
    state = engine.get_server_info()["internal_states"][0]
    return state["prompt_tokens"] - state["prompt_cached_tokens"]


if __name__ == "__main__":
    main()
