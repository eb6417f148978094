"""What a constraint costs and saves: `python benchmark/constrained.py [--model-path DIR] [--requests 128]`.

Two engines of the same model, one with jump-forward and one without, take turns in one run:

  free      no constraint; each request as many tokens as `drawn` gave it
  drawn     constrained, every token drawn
  jumping   constrained, forced text appended

Two constraints: the pattern of a character's record and a schema of 60 fields. Ratios are of the medians of a run;
`cold` is the time of a first, lone request whose constraint nobody has compiled, less that of a second one. `gap` is
the time between two tokens of a free stream, its median and 99th percentile: alone, beside requests whose constraint is
known, and beside the same requests whose constraints must be compiled, one after another (`gap of known`: their ratio).
"""

import argparse
import itertools
import json
import statistics
import threading
import time
from typing import Any

from grammar_compile import PATTERN, schema
from results_file import add_flag, save

from sglang.offline import Engine

PROMPT = "Please fill in the following information about a character of Harry Potter, number {}.\n"


def run(engine: Engine, prompts: list[str], params: list[dict[str, Any]]) -> tuple[float, list[Any]]:
    engine.flush_cache()
    began = time.perf_counter()
    answers = engine.generate(prompts, params)
    return time.perf_counter() - began, answers


def cold(engine: Engine, constraint: dict[str, Any], limit: int) -> float:
    """Seconds that the first request with a constraint waits for its compilation."""
    [(kind, text)] = constraint.items()
    new = text.replace("name", f"nam{time.time_ns() % 10**6}")
    times = [run(engine, [PROMPT], [{kind: new, "max_new_tokens": limit, "temperature": 0}])[0] for _ in range(2)]
    return times[0] - times[1]


def gaps(engine: Engine, constraints: list[dict[str, Any]], tokens: int) -> list[float]:
    """Seconds between the tokens of a free stream while requests of one token are made with each of `constraints`."""
    done = threading.Event()

    def ask() -> None:
        for constraint in itertools.cycle(constraints):
            if done.is_set():
                return
            engine.generate(PROMPT, {**constraint, "max_new_tokens": 1, "temperature": 0})

    other = threading.Thread(target=ask)
    if constraints:
        other.start()
    came = []
    for _ in engine.generate(PROMPT, {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}, stream=True):
        came.append(time.perf_counter())
    done.set()
    if constraints:
        other.join()
    return [b - a for a, b in itertools.pairwise(came)]


def fresh(constraint: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """The constraint under names that nobody has asked for."""
    [(kind, text)] = constraint.items()
    return [{kind: text.replace("name", f"n{time.time_ns() % 10**9}x{i}")} for i in range(n)]


def stalls(engine: Engine, name: str, constraint: dict[str, Any], tokens: int) -> list[dict[str, Any]]:
    many = max(2, tokens)  # more than can be asked for while the stream lasts
    known = fresh(constraint, 1)
    engine.generate(PROMPT, {**known[0], "max_new_tokens": 1})
    rows, median = [], {}
    for beside, constraints in (("nothing", []), ("known", known), ("compiling", fresh(constraint, many))):
        found = sorted(gaps(engine, constraints, tokens))
        median[beside] = statistics.median(found)
        row = {"constraint": name, "mode": f"stream beside {beside}", "gap": median[beside] * 1e3}
        row |= {"gap p99": found[int(len(found) * 0.99)] * 1e3}
        row["gap of known"] = median[beside] / median["known"] if "known" in median else None
        rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--cpu-threads", type=int)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1500, help="most tokens of an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--stream", type=int, default=300, help="tokens of the stream whose gaps are measured")
    parser.add_argument("--only", choices=("record", "schema"))
    add_flag(parser, "constrained")
    args = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {
        "record": {"regex": PATTERN},
        "schema": {"json_schema": json.dumps(schema()[0])},
    }
    if args.only:
        cases = {args.only: cases[args.only]}
    prompts = [PROMPT.format(i) for i in range(args.requests)]
    common: dict[str, Any] = {
        "model_path": args.model_path,
        "load_format": args.load_format,
        "log_level": "warning",
        "random_seed": 0,
    }
    common["cpu_threads"] = args.cpu_threads
    rows: list[dict[str, Any]] = []
    with Engine(**common) as jumping, Engine(disable_regex_jump_forward=True, **common) as plain:
        engines = {"free": plain, "drawn": plain, "jumping": jumping}
        for name, constraint in cases.items():
            said = {**constraint, "max_new_tokens": args.limit, "temperature": args.temperature}
            first = cold(jumping, constraint, args.limit)
            params = {"drawn": [{**said, "seed": i} for i in range(args.requests)]}
            params["jumping"] = params["drawn"]
            _, answers = run(plain, prompts, params["drawn"])  # compiled, warm, and the lengths
            run(jumping, prompts, params["jumping"])
            lengths = [a["meta_info"]["completion_tokens"] for a in answers]
            params["free"] = [
                {"max_new_tokens": n, "ignore_eos": True, "temperature": args.temperature, "seed": i}
                for i, n in enumerate(lengths)
            ]
            times: dict[str, list[float]] = {mode: [] for mode in engines}
            last: dict[str, list[Any]] = {}
            for _ in range(args.repeat):
                for mode, engine in engines.items():
                    seconds, last[mode] = run(engine, prompts, params[mode])
                    times[mode].append(seconds)
            medians = {mode: statistics.median(t) for mode, t in times.items()}
            for mode, seconds in medians.items():
                metas = [a["meta_info"] for a in last[mode]]
                tokens = sum(m["completion_tokens"] for m in metas)
                steps = sum(m["completion_tokens_wo_jump_forward"] for m in metas)
                rows.append(
                    {
                        "model": args.model_path.rstrip("/").rsplit("/", 1)[-1] or "demo",
                        "constraint": name,
                        "mode": mode,
                        "requests": args.requests,
                        "requests/s": round(args.requests / seconds, 2),
                        "tokens/s": round(tokens / seconds, 1),
                        "tokens a request": round(tokens / args.requests, 1),
                        "drawn a request": round(steps / args.requests, 1),
                        "time of free": round(seconds / medians["free"], 3),
                        "cold": round(first * 1e3, 1) if mode == "jumping" else None,
                        "ended": sum(m["finish_reason"]["type"] == "stop" for m in metas),
                    }
                )
                print(rows[-1])
            rows += stalls(jumping, name, constraint, args.stream)
    if args.save:
        units = {"cold": "ms", "gap": "ms", "gap p99": "ms"}
        save(args.save, rows, units=units, note="free and drawn: the same engine, the same number of tokens")


if __name__ == "__main__":
    main()
