"""What loads would take on a device of known speed: the real scheduler, on a virtual clock.

    python benchmark/simulate.py --workloads C,H,I48 --beside 1024,2048,none

No device is needed: a step takes what its tokens and its attention cost by `Costs`, whose defaults are those of an 8B
model in bfloat16 on an H200. Good for comparing rules of the scheduler with each other, not for foretelling figures:
of what a server does besides only a constant is counted, and nothing that is captured or compiled.
"""

import argparse
import heapq
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from results_file import add_flag, save
from workloads import NAMES, Node, Options, build

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

from sglang import schedule
from sglang.base.messages import Submit, pack
from sglang.base.plan import Plan, Result
from sglang.base.sampling import SamplingParams


@dataclass(frozen=True)
class Costs:
    """In ms. token: of a product's row; least: reading all weights; pair: of a query and a key in a long row, all
    layers; key: of a decode. mixed: what a step with prompts costs besides; host: a turn of the loop, and its part for
    each row; front: from a client to the worker and back."""

    token: float = 0.0195
    least: float = 3.9
    pair: float = 524288 / 450e12 * 1e3
    key: float = 131072 / 3.6e12 * 1e3
    mixed: float = 6.0
    host: float = 0.6
    host_row: float = 0.004
    front: float = 4.0

    def step(self, plan: Plan) -> float:
        starts, counts = plan.starts.astype(np.int64), plan.counts.astype(np.int64)
        one = counts == 1
        pairs = (counts * starts + counts * (counts + 1) // 2)[~one].sum()
        took = max(self.least, self.token * int(counts.sum())) + self.pair * pairs + self.key * starts[one].sum()
        return float(took) + (0 if one.all() else self.mixed)


@dataclass
class Times:
    """Of a request, in ms."""

    node: Node
    sent: float
    tokens: list[float] = field(default_factory=list)


def budget(**changes: Any) -> schedule.Budget:
    values: dict[str, Any] = {
        "pages": 900_000, "page_size": 1, "slots": 512, "context_length": 131072, "chunk_tokens": 8192,
        "max_prefill_tokens": 16384, "policy": "lpm", "conservativeness": 1.0, "radix": True, "max_queued": 4096,
        "eos_ids": (), "seed": 0, "beside_tokens": 2048, "grain": 256,
    }  # fmt: skip
    return schedule.Budget(**{**values, **changes})


def run(nodes: list[Node], budget: schedule.Budget, costs: Costs) -> tuple[list[Times], list[Plan]]:
    """The worker's loop with steps one ahead."""
    state = schedule.State(budget)
    numbers = itertools.count()
    coming = [(node.at * 1e3 + costs.front / 2, next(numbers), node) for node in nodes]
    heapq.heapify(coming)
    requests: dict[int, Times] = {}
    plans: list[Plan] = []
    now = free = 0.0
    flying: tuple[Plan, float] | None = None

    def receive() -> None:
        while coming and coming[0][0] <= now:
            at, id, node = heapq.heappop(coming)
            requests[id] = Times(node, at - costs.front / 2)
            sampling = SamplingParams(max_new_tokens=node.out, temperature=0, ignore_eos=True)
            assert not isinstance(node.prompt, str)
            schedule.apply(state, Submit(id, pack(node.prompt), sampling), now / 1e3)

    while coming or flying or not state.idle:
        if flying is None and state.idle:
            now = max(now, coming[0][0])
        receive()
        plan = schedule.plan(state, now / 1e3)
        landed, flying = flying, None
        if plan is not None:
            plans.append(plan)
            now += costs.host + costs.host_row * len(plan.slots)
            free = max(free, now) + costs.step(plan)
            flying = plan, free
        if landed is not None:
            done, end = landed
            now = max(now, end)
            drawn = Result(np.where(done.samples, 7, -1).astype(np.int32))
            for piece in schedule.commit(state, done, drawn, now / 1e3):
                request = requests[piece.id]
                request.tokens += [now + costs.front / 2] * len(piece.tokens)
                if piece.finish is not None:
                    for then in request.node.then:
                        heapq.heappush(coming, (now + costs.front, next(numbers), then))
    return list(requests.values()), plans


def figures(times: list[Times]) -> dict[str, float]:
    first, last = min(t.sent for t in times), max(t.tokens[-1] for t in times)
    ttft = [t.tokens[0] - t.sent for t in times]
    gaps = np.concatenate([np.diff(t.tokens) for t in times])
    return {
        "wall_s": (last - first) / 1e3,
        "ttft_p50": float(np.percentile(ttft, 50)),
        "ttft_p99": float(np.percentile(ttft, 99)),
        "itl_p50": float(np.percentile(gaps, 50)),
        "itl_p99": float(np.percentile(gaps, 99)),
        "itl_max": float(gaps.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="B,C,D,E,F,H,I24,I48", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--beside", default="2048,none", help="tokens of a step for which streams wait; none: no limit")
    parser.add_argument("--mixed", type=float, default=Costs.mixed, help="ms that a step with prompts costs besides")
    add_flag(parser, "simulate")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.workloads.split(","):
        nodes = build(name, Options(""))
        for beside in args.beside.split(","):
            limit = None if beside == "none" else int(beside)
            times, plans = run(nodes, budget(beside_tokens=limit), Costs(mixed=args.mixed))
            found = {key: round(value, 2) for key, value in figures(times).items()}
            rows.append({"workload": name, "beside": beside, **found, "steps": len(plans)})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.save:
        save(args.save, rows, title="Loads on a virtual clock", note="Latencies in ms.")


if __name__ == "__main__":
    main()
