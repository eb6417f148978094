"""What a constraint costs and saves: `python benchmark/constrained.py [--model-path DIR] [--requests 128 1]`.

Two engines of the same model, one with jump-forward and one without, take turns in one run:

  free      no constraint; each request as many tokens as `drawn` gave it
  drawn     constrained, every token drawn
  jumping   constrained, forced text appended

Two constraints: the pattern of a character's record, and a schema of 60 fields whose strings and lists are bounded, so
that random weights come to an end too. Answers longer than --limit (1000 tokens for the demo model, 256 for others) are
cut there, in all modes alike: `ended` tells. Rounds of the three modes are repeated until --repeat or --seconds, at
least once; ratios are of the medians. `cold` is what a first request whose constraint nobody has compiled takes longer.

`gap` is the time between two tokens of free streams, in turns, its median and 99th percentile, beside: nothing;
requests whose constraint is known; the same and a process of the lowest priority that keeps a core busy; requests whose
constraints must all be compiled, one after another (`worst`: large automata, patterns that are refused after all the
work that is allowed, recursive schemas, in turns). `gap of known` is the ratio to the second. What a busy neighbour
costs is the machine's: cores that share a memory, or are two halves of one.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from forms import PATTERN, bounded
from results_file import add_flag, save

from sglang.offline import Engine

TURNS = 12
BUSY = "known and a busy neighbour"
PROMPT = "Please fill in the following information about a character of Harry Potter, number {}.\n"
WORST = (  # a large automaton, one that is refused after all the work allowed, one that needs a stack
    ("regex", "[a-z]{20000}NAME"),
    ("regex", "(.*a.*){20}b(.?c){30}NAME"),
    ("json_schema", '{"type": "object", "properties": {"NAME": {"$ref": "#"}, "b": {"type": "string"}}}'),
)


def run(engine: Engine, prompts: list[str], params: list[dict[str, Any]]) -> tuple[float, list[Any]]:
    engine.flush_cache()
    began = time.perf_counter()
    answers = engine.generate(prompts, params)
    return time.perf_counter() - began, answers


def use_memory(engine: Engine, requests: int, tokens: int) -> None:
    """The first time that memory is used it costs more, and would be paid by whichever mode comes first."""
    free = {"ignore_eos": True, "max_new_tokens": tokens, "temperature": 0}
    run(engine, [PROMPT.format(i) for i in range(requests)], [free] * requests)


def cold(engine: Engine, constraint: dict[str, Any]) -> float:
    """Seconds that the first request with a constraint waits for its compilation."""
    [new] = fresh(constraint, 1)
    times = [run(engine, [PROMPT], [{**new, "max_new_tokens": 1, "temperature": 0}])[0] for _ in range(2)]
    return times[0] - times[1]


def gaps(engine: Engine, constraints: list[dict[str, Any]], tokens: int) -> list[float]:
    """Seconds between the tokens of a free stream while requests of one token are made with each of `constraints`."""
    done = threading.Event()

    def ask() -> None:
        for constraint in itertools.cycle(constraints):
            if done.is_set():
                return
            with contextlib.suppress(ValueError):  # some are too large
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
    new = [f"n{time.time_ns() % 10**9}x{i}" for i in range(n)]
    return [{kind: text.replace("name", word).replace("field_0", word)} for word in new]


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps a core busy, and gives way to any other."""
    other = subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def stalls(engine: Engine, cases: dict[str, dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Gaps of streams beside requests that come one after another; in turns, since a machine's speed changes."""
    known = fresh(cases["record"], 1)
    engine.generate(PROMPT, {**known[0], "max_new_tokens": 1})
    company = ["nothing", "known", BUSY, *(f"new, {name}" for name in cases), "new, worst"]
    found: dict[str, list[float]] = {beside: [] for beside in company}
    each = max(2, tokens // TURNS)  # more than can be asked for while a stream lasts
    for _ in range(TURNS):
        for beside in company:
            constraints = [] if beside == "nothing" else known
            if beside == "new, worst":
                constraints = [
                    {kind: text.replace("NAME", f"n{time.time_ns() % 10**9}x{i}") for kind, text in [WORST[i % 3]]}
                    for i in range(each)
                ]
            elif beside.startswith("new, "):
                constraints = fresh(cases[beside.removeprefix("new, ")], each)
            with neighbour() if beside == BUSY else contextlib.nullcontext():
                found[beside] += gaps(engine, constraints, each)
    rows = []
    median = {beside: statistics.median(times) for beside, times in found.items()}
    late = {beside: sorted(times)[int(len(times) * 0.99)] for beside, times in found.items()}
    for beside in company:
        row: dict[str, Any] = {"constraint": "", "mode": f"stream beside {beside}", "gap": median[beside] * 1e3}
        row |= {"gap p99": late[beside] * 1e3}
        row |= {"gap of known": median[beside] / median["known"], "p99 of known": late[beside] / late["known"]}
        rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
        print(rows[-1], flush=True)
    return rows


def compare(
    engines: dict[str, Engine], constraint: dict[str, Any], requests: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row a mode."""
    prompts = [PROMPT.format(i) for i in range(requests)]
    said = {**constraint, "max_new_tokens": args.limit, "temperature": args.temperature}
    bound = [{**said, "seed": i} for i in range(requests)]
    params: dict[str, list[dict[str, Any]]] = {"drawn": bound, "jumping": bound}
    times: dict[str, list[float]] = {mode: [] for mode in engines}
    metas: dict[str, list[dict[str, Any]]] = {}
    began, rounds = time.perf_counter(), 0
    while rounds < args.repeat and (time.perf_counter() - began) * (rounds + 1) <= args.seconds * max(rounds, 1):
        for mode, engine in engines.items():
            seconds, answers = run(engine, prompts, params[mode])
            times[mode].append(seconds)
            metas[mode] = [a["meta_info"] for a in answers]
            if mode == "drawn":
                free = {"ignore_eos": True, "temperature": args.temperature}
                lengths = [m["completion_tokens"] for m in metas[mode]]
                params["free"] = [{**free, "max_new_tokens": n, "seed": i} for i, n in enumerate(lengths)]
        rounds += 1
    medians = {mode: statistics.median(t) for mode, t in times.items()}
    freely = sum(m["completion_tokens"] for m in metas["free"]) / medians["free"]
    rows = []
    for mode, seconds in medians.items():
        tokens = sum(m["completion_tokens"] for m in metas[mode])
        steps = sum(m["completion_tokens_wo_jump_forward"] for m in metas[mode])
        rows.append(
            {
                "mode": mode,
                "requests": requests,
                "requests/s": round(requests / seconds, 2),
                "tokens/s": round(tokens / seconds, 1),
                "tokens a request": round(tokens / requests, 1),
                "drawn a request": round(steps / requests, 1),
                "tokens/s of free": round(tokens / seconds / freely, 3),
                "requests/s of drawn": round(medians["drawn"] / seconds, 2),
                "ended": sum(m["finish_reason"]["type"] == "stop" for m in metas[mode]),
                "rounds": rounds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--cpu-threads", type=int)
    parser.add_argument("--requests", type=int, nargs="+", default=[128, 1], help="at once")
    parser.add_argument("--repeat", type=int, default=3, help="most rounds of a case")
    parser.add_argument("--seconds", type=float, default=60, help="no further round that would end later than this")
    parser.add_argument("--limit", type=int, help="most tokens of an answer")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--stream", type=int, help="tokens of the stream whose gaps are measured")
    parser.add_argument("--only", choices=("record", "schema", "stream"), help="one part of all")
    add_flag(parser, "constrained")
    args = parser.parse_args()
    args.limit = args.limit or (256 if args.model_path else 1000)
    args.stream = args.stream or (100 if args.model_path else 300)
    cases: dict[str, dict[str, Any]] = {
        "record": {"regex": PATTERN},
        "schema": {"json_schema": json.dumps(bounded())},
    }
    common: dict[str, Any] = {
        "model_path": args.model_path,
        "load_format": args.load_format,
        "cpu_threads": args.cpu_threads,
        "log_level": "warning",
        "random_seed": 0,
    }
    model = args.model_path.rstrip("/").rsplit("/", 1)[-1] or "demo"
    rows: list[dict[str, Any]] = []
    with Engine(**common) as jumping, Engine(disable_regex_jump_forward=True, **common) as plain:
        engines = {"drawn": plain, "free": plain, "jumping": jumping}
        if args.only != "stream":
            for engine in (plain, jumping):
                use_memory(engine, max(args.requests), args.limit)
        for name, constraint in cases.items():
            if args.only and args.only != name:
                continue
            first = cold(jumping, constraint)
            for engine in (plain, jumping):  # compiled, and warm
                run(engine, [PROMPT], [{**constraint, "max_new_tokens": args.limit, "temperature": 0}])
            for requests in args.requests:
                for row in compare(engines, constraint, requests, args):
                    is_first = row["mode"] == "jumping" and requests == args.requests[0]
                    rows.append({"model": model, "constraint": name, **row})
                    rows[-1]["cold"] = round(first * 1e3, 1) if is_first else None
                    print(rows[-1], flush=True)
        if args.only in (None, "stream"):
            rows += [{"model": model, **row} for row in stalls(jumping, cases, args.stream)]
    if args.save:
        units = {name: "ms" for name in ("cold", "gap", "gap p99") if any(name in row for row in rows)}
        save(args.save, rows, units=units, note="free and drawn: the same engine, the same number of tokens")


if __name__ == "__main__":
    main()
