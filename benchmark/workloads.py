"""The workloads that the figures of other engines in docs/benchmarks.md were taken with: fixed shapes, fixed seeds.

    python benchmark/workloads.py --base-url http://127.0.0.1:30000 --workloads A1,A2,B --out runs.jsonl

  A1 single        1 request, 256 tokens in, 256 out, three times; the median run counts
  A2 prefill       1 request, 4096 in, 16 out, three times
  B  static32      32 requests at once, 256 in, 256 out
  C  throughput    512 requests at once, U[100,1024] in, U[100,1024] out
  D  shared        512 requests at once, 2048 tokens in common and 64 own, 64 out
  E  multi_turn    64 conversations at once, 4 turns of 256 new tokens, 128 out
  F  tree          32 roots of 1024 tokens; each has 4 children (+64, 64 out), each child 4 of its own (+64, 64 out),
                   sent when the child has ended
  G  regex_json    1 cold request, then 128 at once, held to one regular expression; then 128 free ones of as many
                   tokens (`free_wall_s`, and `time_of_free`: how many times as long the held ones took)
  J  schema_json   the same, held to a JSON schema of 60 fields, and cut at 512 tokens
  H  long          16 requests at once, 16384 in, 64 out
  I8 I24 I48       Poisson arrivals at 8, 24, 48 a second for 20 s, 512 in, 128 out

Requests are POST /v1/completions with token ids, greedy, to their full length; those of G and J are text, at
temperature 1.
In E and F random ids stand in a later prompt where an earlier answer would: a prefix cache holds the earlier prompt and
not the answer, and every server gets the same prompts. They are dealt out to several client processes, and encoded
before the clock starts. Each workload's figures are printed and appended to --out as soon as they are there.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from forms import PATTERN, bounded

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

from sglang.bench.client import Client, Events

VOCAB = 128000  # of an 8B Llama; ids from there on are special
# One seed a workload: no two share a prompt, so no cache reuses a prefix of one in another.
SEEDS = {"A1": 101, "A2": 102, "B": 103, "C": 104, "D": 105, "E": 106, "F": 107,
         "G": 108, "H": 109, "I8": 110, "I24": 111, "I48": 112, "J": 113, "warm": 199}  # fmt: skip
NAMES = [name for name in SEEDS if name != "warm"]
# What the texts of these are held to, and the most tokens that one has.
HELD = {"G": ({"regex": PATTERN}, 256), "J": ({"json_schema": bounded()}, 512)}
BEFORE_S = 0.05  # from the word to the first sending, so that every process has it in time


@dataclass
class Options:
    """scale: of lengths, and of how many requests there are; 1 is the real thing."""

    base_url: str
    model: str = "default"
    scale: float = 1.0
    vocab: int = VOCAB
    processes: int = 8
    c_requests: int = 512

    def some(self, n: int) -> int:
        return max(1, round(n * self.scale))

    def length(self, n: int) -> int:
        return max(8, round(n * self.scale)) if self.scale != 1 else n


@dataclass
class Node:
    """A request. at: seconds after the start; then: sent, all at once, when this one has ended."""

    prompt: list[int] | str
    out: int
    at: float = 0.0
    then: "list[Node]" = field(default_factory=list)
    body: bytes = b""


@dataclass
class Row:
    want: int
    sent: float = 0.0
    end: float = 0.0
    late: float = 0.0
    times: list[float] = field(default_factory=list)  # of each event that carries tokens
    n_in: int = 0
    n_out: int = 0
    cached: int = 0
    text: str = ""
    finish: str = ""
    error: str = ""


def build(name: str, o: Options, rep: int = 0) -> list[Node]:
    random = np.random.default_rng([SEEDS[name], rep, 0])

    def ids(n: int) -> list[int]:
        drawn = random.integers(0, VOCAB, o.length(n))
        return (drawn % o.vocab).tolist()

    match name:
        case "warm":
            return [Node(ids(n), o.length(32)) for n in (16, 64, 256, 700, 1500, 3000)]
        case "A1":
            return [Node(ids(256), o.length(256))]
        case "A2":
            return [Node(ids(4096), o.length(16))]
        case "B":
            return [Node(ids(256), o.length(256)) for _ in range(o.some(32))]
        case "C":
            n_in, n_out = random.integers(100, 1025, 512), random.integers(100, 1025, 512)
            made = [Node(ids(int(a)), o.length(int(b))) for a, b in zip(n_in, n_out, strict=True)]
            return made[: o.some(o.c_requests)]
        case "D":
            common = ids(2048)
            return [Node(common + ids(64), o.length(64)) for _ in range(o.some(512))]
        case "E":
            return [_conversation(ids, o) for _ in range(o.some(64))]
        case "F":
            tops = []
            for _ in range(o.some(32)):
                root = ids(1024)
                for _ in range(4):
                    child = root + ids(64)
                    answer = ids(64)
                    leaves = [Node(child + answer + ids(64), o.length(64)) for _ in range(4)]
                    tops.append(Node(child, o.length(64), then=leaves))
            return tops
        case "G" | "J":
            text = "Write the record of character number {} as JSON.\n"
            return [Node(text.format(rep * 1000 + i), HELD[name][1]) for i in range(o.some(128))]
        case "H":
            return [Node(ids(16384), o.length(64)) for _ in range(o.some(16))]
        case _:
            return _poisson(random, int(name[1:]) * min(1.0, o.scale * 8), 20.0 * min(1.0, o.scale * 8), ids, o)


def _conversation(ids: Any, o: Options) -> Node:
    prompts: list[list[int]] = []
    said: list[int] = []
    for turn in range(4):
        if turn:
            said = said + ids(128)  # stands for the answer
        said = said + ids(256)
        prompts.append(said)
    node: Node | None = None
    for prompt in reversed(prompts):
        node = Node(prompt, o.length(128), then=[] if node is None else [node])
    assert node is not None
    return node


def _poisson(random: np.random.Generator, rate: float, seconds: float, ids: Any, o: Options) -> list[Node]:
    nodes, at = [], 0.0
    while (at := at + float(random.exponential(1.0 / rate))) < seconds:
        nodes.append(Node(ids(512), o.length(128), at))
    return nodes


def encode(nodes: list[Node], o: Options, client: Client, held: dict[str, Any]) -> None:
    for node in nodes:
        body: dict[str, Any] = {"model": o.model, "prompt": node.prompt, "max_tokens": node.out, "stream": True,
                                "stream_options": {"include_usage": True}}  # fmt: skip
        if held:
            body |= {"temperature": 1.0, "ignore_eos": False, **held}
        elif isinstance(node.prompt, str):
            body |= {"temperature": 1.0, "ignore_eos": True}
        else:
            body |= {"temperature": 0.0, "ignore_eos": True}
        node.body = client.encode("/v1/completions", json.dumps(body, separators=(",", ":")).encode())
        node.prompt = ""
        encode(node.then, o, client, held)


async def _ask(client: Client, node: Node, start: float, keep: bool, rows: list[Row]) -> None:
    if node.at >= 0:
        await asyncio.sleep(max(0.0, start + node.at - time.perf_counter()))
    row = Row(node.out, sent=time.perf_counter())
    row.late = row.sent - start - node.at if node.at > 0 else 0.0
    rows.append(row)
    kept: list[bytes] = []
    last = b""

    def note(data: bytes, now: float) -> None:
        nonlocal last
        last = data
        if b'"choices":[]' in data or b'"choices": []' in data:
            return
        row.times.append(now)
        if keep:
            kept.append(data)

    events = Events(note)
    refused = bytearray()

    def take(data: bytes, now: float) -> None:
        if not events.done and len(refused) < 400:
            refused.extend(data)
        events.feed(data, now)

    try:
        head = await client.send(node.body, take)
        row.end = time.perf_counter()
        if head.status != 200:
            row.error = f"HTTP {head.status}: {bytes(refused[:300]).decode('utf-8', 'replace')}"
            return
        said = json.loads(last) if last else {}
        if "error" in said or not events.done:
            row.error = f"stream: {last[:300].decode('utf-8', 'replace')}"
            return
        usage = said.get("usage") or {}
        row.n_in, row.n_out = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or len(row.times)
        row.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for data in kept:
            choice = json.loads(data)["choices"][0]
            row.text += choice.get("text") or ""
            row.finish = choice.get("finish_reason") or row.finish
    except Exception as error:  # a broken request is a row with an error
        row.error = f"{type(error).__name__}: {error}"
    finally:
        row.end = row.end or time.perf_counter()
        if not row.error and row.n_out == 0:
            row.error = "not done in time"
    if row.error:
        return
    for child in node.then:
        child.at = -1.0  # at once
    await asyncio.gather(*(_ask(client, child, start, keep, rows) for child in node.then))


def _client(pipe: Any, o: Options) -> None:
    """A client process: nodes in, rows out, until None comes."""

    async def run(client: Client, nodes: list[Node], keep: bool) -> list[Row]:
        rows: list[Row] = []
        pipe.send("ready")
        start, limit = pipe.recv()
        asks = [asyncio.ensure_future(_ask(client, node, start, keep, rows)) for node in nodes]
        _, open_ = await asyncio.wait(asks, timeout=max(0.1, start + limit - time.perf_counter()))
        for ask in open_:
            ask.cancel()
        await asyncio.gather(*open_, return_exceptions=True)
        client.close()
        return rows

    while (job := pipe.recv()) is not None:
        nodes, held = job
        client = Client(o.base_url)
        encode(nodes, o, client, held)
        pipe.send(asyncio.run(run(client, nodes, bool(held))))


class Clients:
    """Processes that send; started once. perf_counter is one clock for all of them on Linux."""

    def __init__(self, o: Options):
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(o.processes):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_client, args=(there, o), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, nodes: list[Node], held: dict[str, Any] | None = None, limit: float = 600.0) -> list[Row]:
        """Send every node and wait for the replies, `limit` seconds at most. held: a constraint of all."""
        use = self._pipes[: max(1, min(len(self._pipes), len(nodes) // 8))]
        for i, pipe in enumerate(use):
            pipe.send((nodes[i :: len(use)], held or {}))
        for pipe in use:
            assert pipe.recv() == "ready"
        start = time.perf_counter() + BEFORE_S
        for pipe in use:
            pipe.send((start, limit))
        return [row for pipe in use for row in pipe.recv()]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(5)


def summary(rows: list[Row]) -> dict[str, Any]:
    good = [row for row in rows if not row.error]
    found: dict[str, Any] = {"requests": len(rows), "errors": len(rows) - len(good)}
    if found["errors"]:
        found["first_error"] = next(row.error for row in rows if row.error)
    if not good:
        return found
    wall = max(row.end for row in rows) - min(row.sent for row in rows)
    n_in, n_out = sum(row.n_in for row in good), sum(row.n_out for row in good)
    spans: dict[str, list[float]] = {
        "ttft": [row.times[0] - row.sent for row in good if row.times],
        "itl": [b - a for row in good for a, b in zip(row.times, row.times[1:], strict=False)],
        "tpot": [(row.times[-1] - row.times[0]) / (row.n_out - 1) for row in good if len(row.times) > 1],
        "e2e": [row.end - row.sent for row in good],
    }
    found |= {"wall_s": round(wall, 4), "tokens_in": n_in, "tokens_out": n_out,
              "output_tok_s": round(n_out / wall, 1), "total_tok_s": round((n_in + n_out) / wall, 1)}  # fmt: skip
    for name, seconds in spans.items():
        for q in (50, 99) if seconds else ():
            found[f"{name}_ms_p{q}"] = round(1000 * float(np.percentile(seconds, q)), 3)
        if seconds:
            found[f"{name}_ms_mean"] = round(1000 * statistics.fmean(seconds), 3)
            found[f"{name}_ms_max"] = round(1000 * max(seconds), 3)
    found["events_per_token"] = round(sum(len(row.times) for row in good) / max(1, n_out), 4)
    found["other_length"] = sum(row.n_out != row.want for row in good)
    found["cached_tokens"] = sum(row.cached for row in good)
    if late := max(row.late for row in rows):
        found["client_late_ms_max"] = round(1000 * late, 2)
    return found


COUNTERS = ("cached_tokens", "jump_forward_tokens", "num_retractions", "evicted_tokens")


def counters(o: Options) -> dict[str, int]:
    """What the server has counted since its start, where it says so as ours does."""
    try:
        with urllib.request.urlopen(o.base_url + "/metrics", timeout=10) as reply:
            text = reply.read().decode()
    except OSError:
        return {}
    found = {name: re.search(rf"^\w+[:_]{name}_total(?:\{{.*\}})? (\S+)$", text, re.MULTILINE) for name in COUNTERS}
    return {name: int(float(match[1])) for name, match in found.items() if match}


def measure(name: str, clients: Clients, o: Options, limit: float = 600.0) -> dict[str, Any]:
    """One workload's figures."""
    before = counters(o)
    found = _measure(name, clients, o, limit)
    return found | {key: value - before.get(key, 0) for key, value in counters(o).items()}


def _measure(name: str, clients: Clients, o: Options, limit: float) -> dict[str, Any]:
    ends = time.perf_counter() + limit

    def left() -> float:
        return max(0.1, ends - time.perf_counter())

    if name in ("A1", "A2"):
        runs = []
        for rep in range(3):
            flush(o)
            runs.append(summary(clients.run(build(name, o, rep), limit=left())))
        middle = sorted(runs, key=lambda run: run.get("e2e_ms_p50", 1e9))[1]
        keys = ("ttft_ms_p50", "itl_ms_p50", "itl_ms_p99", "tpot_ms_p50", "e2e_ms_p50")
        return middle | {"runs": [{key: run.get(key) for key in keys} for run in runs]}
    flush(o)
    if name not in HELD:
        return summary(clients.run(build(name, o), limit=left()))
    held, _ = HELD[name]
    cold = clients.run(build(name, o)[:1], held=held, limit=left())[0]
    rows = clients.run(build(name, o, rep=1), held=held, limit=left())
    found = summary(rows)
    del found["other_length"]
    nodes = [Node(node.prompt, row.n_out or 1) for node, row in zip(build(name, o, rep=2), rows, strict=True)]
    free = summary(clients.run(nodes, limit=left()))
    if "wall_s" in found and "wall_s" in free:
        found |= {"free_wall_s": free["wall_s"], "time_of_free": round(found["wall_s"] / free["wall_s"], 3)}
    good = [row for row in rows if not row.error]
    match = [fits(name, row.text) for row in good]
    wrong = [row.text for row, ok in zip(good, match, strict=True) if not ok and row.finish != "length"]
    return found | {
        "cold_first_s": round(cold.end - cold.sent, 4), "cold_error": cold.error,
        "cold_ttft_s": round(cold.times[0] - cold.sent, 4) if cold.times else None,
        "match": sum(match), "cut": sum(row.finish == "length" for row in good),
        "wrong": len(wrong), "first_wrong": wrong[0][:400] if wrong else "",
    }  # fmt: skip


def fits(name: str, text: str) -> bool:
    """Whether a whole text is what G or J ask for."""
    if name == "G":
        return bool(re.fullmatch(PATTERN, text))
    try:
        return list(json.loads(text)) == list(HELD[name][0]["json_schema"]["properties"])
    except ValueError:
        return False


def warm(clients: Clients, o: Options, limit: float = 120.0) -> dict[str, Any]:
    """Load that no figure is taken from, twice: prompts of several lengths, then 48 at once."""
    began = time.perf_counter()
    rows: list[Row] = []
    for rep in range(2):
        rows += clients.run(build("warm", o, rep), limit=limit)
        again = [Node(n.prompt, n.out) for n in build("warm", o, 10 + rep) for _ in range(o.some(8))]
        rows += clients.run(again, limit=limit)
    errors = [row.error for row in rows if row.error]
    return {"s": round(time.perf_counter() - began, 2), "errors": len(errors), "first_error": (errors or [""])[0]}


def flush(o: Options) -> None:
    """Empty the server's prefix cache."""
    for _ in range(20):
        try:
            request = urllib.request.Request(o.base_url + "/flush_cache", data=b"", method="POST")
            urllib.request.urlopen(request, timeout=20).close()
            return
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return
            time.sleep(0.1)  # a request is still ending
        except OSError:
            return


def line(name: str, s: dict[str, Any]) -> str:
    """A workload's figures in one line."""

    def both(key: str) -> str:
        return f"{s.get(f'{key}_ms_p50', '-')}/{s.get(f'{key}_ms_p99', '-')}"

    words = f"{name:4} req {s['requests']} err {s['errors']} wall {s.get('wall_s', '-')} s "
    words += f"out {s.get('output_tok_s', '-')} tok/s TTFT {both('ttft')} ITL {both('itl')} E2E {both('e2e')} ms "
    words += f"cached {s.get('cached_tokens', '-')}"
    if name in HELD:
        words += f" free {s.get('free_wall_s', '-')} s cold {s['cold_first_s']} s"
        words += f" match {s['match']} cut {s['cut']} wrong {s['wrong']} {s['cold_error']}"
    return words + (f" FIRST ERROR {s['first_error']}" if s["errors"] else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--model", default="default")
    parser.add_argument("--workloads", default="A1,A2,B,C,D,E,F,G,H,I8,I24,I48")
    parser.add_argument("--scale", type=float, default=1.0, help="Of lengths and numbers of requests.")
    parser.add_argument("--vocab", type=int, default=VOCAB, help="Prompts are of ids below this.")
    parser.add_argument("--processes", type=int, default=min(8, max(1, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--limit", type=float, default=600.0, help="Seconds for one workload.")
    parser.add_argument("--out", help="Append each workload's figures here, as a line of JSON.")
    parser.add_argument("--no-warmup", action="store_true")
    args = parser.parse_args()
    names = args.workloads.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--workloads: {unknown[0]} is none of {', '.join(NAMES)}")
    o = Options(args.base_url.rstrip("/"), args.model, args.scale, args.vocab, args.processes)
    clients = Clients(o)
    if not args.no_warmup:
        print("warm-up", warm(clients, o), flush=True)
    wrong = 0
    for name in names:
        figures = measure(name, clients, o, args.limit)
        wrong += figures["errors"]
        print(line(name, figures), flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps({"workload": name, **figures}) + "\n")
    clients.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
