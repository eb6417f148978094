"""More programs than memory has room for, with and without `parent`: `python benchmark/crowd.py [-- server flags]`.

Each program states a fact of its own at length, draws points, forks four times for what to say of them, joins, and
draws a summary. All begin at once, over one server whose KV pool holds the texts of two dozen. In turns, with an empty
cache:

    named     each request names the one that it continues, as the language does
    unnamed   each is a newcomer, as where such names are not known

Shown of all rounds: the median wall time; when a program was done, counted from the beginning of all, on average and at
the 95th percentile; and how many tokens of prompts were computed, beside how many different ones there are.
"""

import argparse
import statistics
import time
from typing import Any

from language import Counting, server
from results_file import add_flag, save

import sglang as sgl
from sglang.lang.backends.native import Body

WARM_UP = 20  # programs: a server's first steps of each shape are slow
FACTS = "The sea is wide and blue. Rivers run into it, day and night, and it is never full. " * 10


@sgl.function
def program(s: Any, i: int, ends: list[float]) -> None:
    s += f"Number {i}. " + f"{i} and again. " * 10 + FACTS + "\nPoints:" + gen("points")
    s["points"]
    forks = s.fork(4)
    forks += lambda k: f"\nPoint {k} at length:" + gen("text")
    forks.join("concate_and_append")
    s += "\nIn summary" + gen("summary")
    s["summary"]
    ends.append(time.perf_counter())


def gen(name: str) -> Any:
    return sgl.gen(name, max_tokens=8, min_tokens=8)


class Unnamed(Counting):
    def _kin(self, s: Any) -> Body:
        return {}


def measure(programs: int, rounds: int, flags: list[str]) -> list[dict[str, Any]]:
    with server(*flags) as url:
        ways: dict[str, Counting] = {"named": Counting(url), "unnamed": Unnamed(url)}
        walls: dict[str, list[float]] = {way: [] for way in ways}
        ends: dict[str, list[float]] = {way: [] for way in ways}
        program.run_batch([(i, []) for i in range(WARM_UP)], backend=sgl.RuntimeEndpoint(url), temperature=0)
        for i in range(rounds):
            for way in list(ways)[:: 1 if i % 2 == 0 else -1]:
                backend, found = ways[way], list[float]()
                backend.flush_cache()
                backend.begin()
                began = time.perf_counter()
                items = [{"i": k, "ends": found} for k in range(programs)]
                states = program.run_batch(items, backend=backend, num_threads=programs, temperature=0)
                walls[way].append(time.perf_counter() - began)
                if errors := [state.error() for state in states if state.error() is not None]:
                    raise SystemExit(f"{way}: {errors[0]}")
                ends[way] += [end - began for end in found]
        rows = []
        for way, backend in ways.items():
            rows.append(
                {
                    "requests": way,
                    "wall": statistics.median(walls[way]),
                    "program done, mean": statistics.mean(ends[way]),
                    "program done, p95": statistics.quantiles(ends[way], n=20)[-1],
                    "prompt tokens computed": backend.computed,
                    "different ones": backend.tokens()[1],
                }
            )
            print("  ".join(f"{k}: {v:.2f}" if isinstance(v, float) else f"{k}: {v}" for k, v in rows[-1].items()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="that begin at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way (default: %(default)s)")
    parser.add_argument("flags", nargs="*", help="flags of the server, after --")
    add_flag(parser, "crowd")
    args = parser.parse_args()
    flags = args.flags or ["--max-total-tokens", "10000", "--max-running-requests", "16"]
    rows = measure(args.programs, args.rounds, flags)
    if args.save:
        save(
            args.save,
            rows,
            title=f"{args.programs} programs at once on little memory",
            units=dict.fromkeys(("wall", "program done, mean", "program done, p95"), "s"),
            note=f"`{' '.join(flags)}`; tokens are those of the last round.",
        )


if __name__ == "__main__":
    main()
