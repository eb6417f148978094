"""What a decode step costs besides the model: `python benchmark/engine_overhead.py --model-path DIR` (a tiny model).

The body of the worker's loop (plan, launch, wait, commit, encode the message) runs in this process with N greedy
requests; the time inside the model's layers and its output matrix is measured apart and taken out. What stays is
scheduling, the batch tensors, drawing tokens, filing them. Median over the steps; N in alternation, several rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from results_file import add_flag, save

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

from sglang import schedule
from sglang.base.config import ServerConfig
from sglang.base.messages import Step, Submit, pack
from sglang.base.sampling import SamplingParams
from sglang.engine.engine import Engine
from sglang.worker.build import budget

T = TypeVar("T")
PROMPT = 24
WARM_STEPS = 8  # the first decodes of a batch, not counted


class Stopwatch:
    """Time spent inside wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, work: Callable[..., T]) -> Callable[..., T]:
        def timed(*args: Any, **kwargs: Any) -> T:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="", help="Folder of a small model; default: the demo model.")
    parser.add_argument("--running", default="1,32,256", help="Numbers of running requests, comma-separated.")
    parser.add_argument("--steps", type=int, default=100, help="Decode steps per measurement.")
    parser.add_argument("--rounds", type=int, default=3)
    add_flag(parser, "engine_overhead")
    args = parser.parse_args()
    counts = [int(n) for n in args.running.split(",")]
    tokens = max(counts) * (PROMPT + args.steps + WARM_STEPS + 2)
    config = ServerConfig(
        model_path=args.model_path, max_total_tokens=tokens, max_running_requests=max(counts), load_format="auto"
    ).resolve()
    engine = Engine.load(config)
    state = schedule.State(budget(config, engine))
    watch = Stopwatch()
    model: Any = engine._model  # the line between model and engine is inside launch()
    model.forward = watch.wrap(model.forward)
    model.logits = watch.wrap(model.logits)
    encode = msgspec.msgpack.Encoder().encode
    rest: dict[int, list[float]] = {n: [] for n in counts}
    inside: dict[int, list[float]] = {n: [] for n in counts}
    next_id = 0
    for _ in range(args.rounds):
        for n in counts:
            sampling = SamplingParams(max_new_tokens=args.steps + WARM_STEPS, temperature=0, ignore_eos=True)
            for i in range(n):
                next_id += 1
                prompt = [(next_id * 7919 + i * 31 + k * k) % 4000 for k in range(PROMPT)]
                schedule.apply(state, Submit(next_id, pack(prompt), sampling), time.monotonic())
            decodes = 0
            while state.seqs:
                watch.seconds, began = 0.0, time.perf_counter()
                plan = schedule.plan(state, time.monotonic())
                assert plan is not None
                pieces = schedule.commit(state, plan, engine.launch(plan).wait(), time.monotonic())
                encode(Step(pieces, state.stats()))
                whole = time.perf_counter() - began
                if len(plan.tokens) == len(plan.slots) == n:
                    decodes += 1
                    if decodes > WARM_STEPS:
                        rest[n].append(1e6 * (whole - watch.seconds))
                        inside[n].append(1e6 * watch.seconds)
    rows = []
    print("| running | besides the model (us/step) | per request (us) | goal 300 + 5 n (us) | the model (us/step) |")
    print("|---|---|---|---|---|")
    for n in counts:
        us, model_us = statistics.median(rest[n]), statistics.median(inside[n])
        rows.append(
            {
                "running": n,
                "besides the model": round(us, 1),
                "per request": round(us / n, 2),
                "goal": 300 + 5 * n,
                "the model": round(model_us, 1),
            }
        )
        print(f"| {n} | {us:.0f} | {us / n:.2f} | {300 + 5 * n} | {model_us:.0f} |")
    if args.save:
        save(
            args.save,
            rows,
            title="What a decode step costs besides the model",
            units={"besides the model": "us/step", "per request": "us", "goal": "us/step", "the model": "us/step"},
            note="Plan, batch tensors, drawing, commit and the message of a greedy decode step on a CPU; goal: 0.3 ms "
            "+ 5 us per request.",
        )


if __name__ == "__main__":
    main()
