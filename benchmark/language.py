"""Programs on our runtime beside the same calls one by one: `python benchmark/language.py [-- server flags]`.

Two servers are started: one as it is, one with --disable-radix-cache. Each of eight kinds of program runs, in turn,

    ours      over RuntimeEndpoint, gens fused, forks and batches at once
    client    over the first server through the `openai` client, one call after another
    unfused   over the first server, one request for each gen
    plain     over the second server, one request for each gen: neither cache nor fusion

with an empty cache before each. Shown: the median wall time, how many times faster `ours` is, how much of what the
prompts have in common came from the cache, and what does not depend on who else uses the machine: the steps that the
first server took, and the processor time of the process that asks. Every gen has a fixed number of tokens, so that all
ways have the same to do. `--shape 0.5b` serves random weights in the shape of a model of half a billion parameters in
place of the demo model; another model is served by its flags. `--overhead` measures the interpreter alone, over a
backend that answers at once: microseconds per primitive, and 10,000 programs in a batch.
"""

import argparse
import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
from results_file import add_flag, save

import sglang as sgl
from sglang.lang.backends.native import Body, sampling_body
from sglang.lang.ir import SglSamplingParams

FACTS = "The sea is wide and blue. Rivers run into it, day and night, and it is never full. "
TOPICS = ["capitals of Europe", "the planets", "old rivers", "good bread", "tall trees", "short stories"]


class Size(NamedTuple):
    """shape: what is other than in the demo model. Programs of a kind, and rounds, that take some minutes."""

    shape: dict[str, int]
    programs: int
    rounds: int


SIZES = {
    "demo": Size({}, 2, 8),
    "0.5b": Size(
        {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "head_dim": 64,
        },
        1,
        4,
    ),
}  # fmt: skip
YEAR = r"[12][0-9]{3}"
# Of four rounds: each way comes after each other one once, for a server is slower after the other one's turn.
ORDERS = [
    ("ours", "client", "plain", "unfused"),
    ("client", "unfused", "ours", "plain"),
    ("unfused", "plain", "client", "ours"),
    ("plain", "ours", "unfused", "client"),
]


def gen(name: str, tokens: int) -> Any:
    """Of so many tokens, whatever the model says: all ways have the same to do."""
    return sgl.gen(name, max_tokens=tokens, min_tokens=tokens)


@sgl.function
def chat(s: Any, topic: str) -> None:
    s += sgl.system("You are a helpful assistant who knows much about " + topic + ".")
    for turn in range(4):
        s += sgl.user(f"Question {turn}: what else about {topic}?")
        s += sgl.assistant(gen(f"answer_{turn}", 16))


@sgl.function
def few_shot(s: Any, question: str) -> None:
    s += "".join(f"Q: What is {i} + {i}?\nA: {2 * i}\n" for i in range(1, 40))
    s += "Q: " + question + "\nA:" + gen("answer", 8)


@sgl.function
def tree_of_thought(s: Any, topic: str) -> None:
    s += f"A plan to learn about {topic}. {FACTS * 4}\n"
    plans = s.fork(3)
    plans += lambda i: f"Plan {i}:" + gen("plan", 12)
    groups = [plan.fork(2) for plan in plans]
    for steps in groups:
        steps += lambda k: f"\nStep {k}:" + gen("step", 12) + " Good? " + gen("score", 2)
    for steps in groups:
        steps.join()
    plans.join()


@sgl.function
def skeleton_of_thought(s: Any, topic: str) -> None:
    s += f"An essay on {topic}. {FACTS * 3}\nPoints:" + gen("points", 16)
    forks = s.fork(4)
    forks += lambda i: f"\nPoint {i} at length:" + gen("text", 24)
    forks.join("concate_and_append")
    s += "\nIn summary" + gen("summary", 16)


@sgl.function
def judge(s: Any, topic: str) -> None:
    s += f"Judge this essay on {topic}.\n{FACTS * 6}\n"
    forks = s.fork(3)
    for fork, dimension in zip(forks, ("clarity", "content", "style"), strict=True):
        fork += f"As to {dimension}:" + gen("opinion", 16) + "\nScore:" + gen("score", 2)
    forks.join()
    s += "Opinions:" + "".join(s["opinion"]) + "\nVerdict: " + sgl.select("verdict", ["good", "fair", "poor"])


@sgl.function
def react(s: Any, topic: str) -> None:
    s += f"Answer with a calculator or a search engine. The question is about {topic}.\n"
    for i in range(3):
        s += f"Thought {i}:" + gen("thought", 12)
        s += "\nAction: " + sgl.select("tool", ["calculator", "search engine"]) + " ["
        s += gen("argument", 6)
        s += f"]\nObservation {i}: {len(s['argument'])} results\n"
    s += "Answer:" + gen("answer", 8)


@sgl.function
def documents(s: Any, topic: str) -> None:
    s += f"Documents on {topic}.\n" + "".join(f"Document {i}: {FACTS}\n" for i in range(8))
    forks = s.fork(4)
    forks += lambda i: f"Q: What does document {i} say?\nA:" + gen("answer", 12)
    forks.join()


@sgl.function
def record(s: Any, topic: str) -> None:
    s += f"Somebody who knows about {topic}, as a record:\n"
    s += '{"name": "' + gen("name", 4) + '", "city": "' + gen("city", 3) + '", "work": "' + gen("work", 4)
    s += '", "languages": ["' + gen("first", 2) + '", "' + gen("second", 2) + '"], "born": '
    s += sgl.gen("born", max_tokens=8, regex=YEAR) + ', "about": "' + gen("about", 8) + '"}'


Kind = Callable[[Any, int, int, bool], list[sgl.ProgramState]]  # (backend, round, programs, whether at once)


def single(program: sgl.SglFunction) -> Kind:
    """One program after another, as somebody who waits for each."""

    def run(backend: Any, salt: int, programs: int, batched: bool) -> list[sgl.ProgramState]:
        states = []
        for topic in TOPICS[:programs]:
            states.append(program.run(f"{topic} ({salt})", backend=backend, temperature=0))
            states[-1].sync()
        return states

    return run


def questions(backend: Any, salt: int, programs: int, batched: bool) -> list[sgl.ProgramState]:
    items = [(f"What is {salt % 90} + {i}?",) for i in range(8 * programs)]
    threads: Any = "auto" if batched else 1
    return few_shot.run_batch(items, backend=backend, num_threads=threads, temperature=0)


KINDS: dict[str, Kind] = {
    "multi-turn chat": single(chat),
    "few-shot questions": questions,
    "tree of thought": single(tree_of_thought),
    "skeleton of thought": single(skeleton_of_thought),
    "judge, 3 dimensions": single(judge),
    "react agent": single(react),
    "questions on documents": single(documents),
    "JSON record": single(record),
}


class OneByOne(sgl.BaseBackend):
    """The `openai` client, one call at a time: what a script without a language would do."""

    def __init__(self, url: str, endpoint: sgl.RuntimeEndpoint):
        import threading

        self._client = openai.OpenAI(base_url=url + "/v1", api_key="EMPTY", max_retries=0, timeout=600)
        self._template = endpoint.get_chat_template()
        self._turn = threading.Lock()

    def get_chat_template(self) -> Any:
        return self._template

    def generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[str, Any]:
        body = sampling_body(sampling_params)
        if least := body.pop("min_new_tokens", 0):
            body["min_tokens"] = least
        known = ("max_new_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "stop")
        extra = {k: v for k, v in body.items() if k not in known}
        with self._turn:
            answer = self._client.completions.create(
                model="default",
                prompt=s.text_,
                max_tokens=sampling_params.max_new_tokens,
                temperature=sampling_params.temperature,
                stop=list(sampling_params.stop) or None,
                extra_body=extra,
            )
        return answer.choices[0].text, {}

    def select(self, s: Any, choices: list[str], temperature: float = 0.0, choices_method: Any = None) -> Any:
        scores = []
        for choice in choices:
            with self._turn:
                answer = self._client.completions.create(
                    model="default", prompt=s.text_ + choice, max_tokens=0, temperature=0, echo=True, logprobs=1
                )
            found = answer.choices[0].logprobs
            assert found is not None and found.tokens and found.token_logprobs
            reach: list[float] = []
            left = len(choice)  # of its characters; the prompt and the choice may meet inside of a token
            for token, logprob in zip(reversed(found.tokens), reversed(found.token_logprobs), strict=True):
                if left <= 0 or logprob is None:
                    break
                reach.append(logprob)
                left -= len(token)
            scores.append(sum(reach) / len(reach))
        return sgl.ChoicesDecision(choices[scores.index(max(scores))], {})


class Counting(sgl.RuntimeEndpoint):
    """Keeps the prompts it sends, how many of their tokens were computed, and how many requests it made."""

    prompts: list[str]
    computed: int
    requests: int

    async def _post(self, body: Body) -> Any:
        self.requests += 1
        answer = await super()._post(body)
        if "segments" in body:
            text = ""
            for segment in body["segments"]:
                if "text" in segment:
                    text += segment["text"]
                    continue
                said = answer["segments"][
                    sum("text" not in s for s in body["segments"][: body["segments"].index(segment)])
                ]
                self.prompts += [text + c for c in segment["choices"]] if "select" in segment else [text]
                text += said["text"]
            metas = [answer["meta_info"]]
        else:
            texts = body.get("text", [])
            self.prompts += [texts] if isinstance(texts, str) else texts
            metas = [item["meta_info"] for item in (answer if isinstance(answer, list) else [answer])]
        self.computed += sum(meta["prompt_tokens"] - meta["cached_tokens"] for meta in metas)
        return answer

    def begin(self) -> None:
        self.prompts, self.computed, self.requests = [], 0, 0

    def steps(self) -> int:
        return self.get_server_info()["internal_states"][0]["steps"]

    def tokens(self) -> tuple[int, int]:
        """Of all prompts, and how many of them are different: those that prompts begin with alike count once."""
        tokens = httpx.post(self.base_url + "/tokenize", json={"prompt": self.prompts}, timeout=60).json()["tokens"]
        different: set[int] = set()
        for ids in tokens:
            different.update(accumulate(ids, lambda before, id: hash((before, id)), initial=0))
        return sum(map(len, tokens)), len(different) - 1

    def shared(self) -> tuple[int, float]:
        """Tokens that prompts have in common with others before, and the share of them that was not computed."""
        total, different = self.tokens()
        common = total - different
        return common, min(1.0, (total - self.computed) / common) if common else 1.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(*flags: str) -> Iterator[str]:
    port = free_port()
    root = Path(__file__).parents[1] / "python"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", "--port", str(port), *flags],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url + "/health").is_success:
                        break
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server did not start:\n{log.read().decode(errors='replace')}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def measure(size: Size, kinds: Sequence[str], flags: Sequence[str]) -> list[dict[str, Any]]:
    with server(*flags) as first, server(*flags, "--disable-radix-cache") as second:
        ours, plain = Counting(first), sgl.RuntimeEndpoint(second, fusion=False)
        unfused, client = Counting(first, fusion=False), OneByOne(first, ours)
        ways: dict[str, tuple[Any, bool]] = {
            "ours": (ours, True),
            "client": (client, False),
            "unfused": (unfused, True),
            "plain": (plain, True),
        }
        counting = {"ours": ours, "unfused": unfused}
        for one in counting.values():
            one.begin()
        for backend, batched in ways.values():  # a server's first steps are slow
            KINDS["JSON record"](backend, 0, 1, batched)
        rows = []
        for kind in kinds:
            times: dict[str, list[float]] = {way: [] for way in ways}
            texts: dict[str, list[str]] = {}
            common, served = 0, 1.0
            steps: dict[str, int] = {}
            requests: dict[str, int] = {}
            cpu: dict[str, list[float]] = {way: [] for way in ways}
            for i in range(size.rounds):
                for way in ORDERS[i % 4]:
                    backend, batched = ways[way]
                    ours.flush_cache()
                    for one in counting.values():
                        one.begin()
                    steps_before, cpu_before = ours.steps(), time.process_time()
                    began = time.perf_counter()
                    states = KINDS[kind](backend, i, size.programs, batched)
                    took = time.perf_counter() - began
                    cpu[way].append(time.process_time() - cpu_before)
                    steps[way] = ours.steps() - steps_before
                    for state in states:
                        if (error := state.error()) is not None:
                            raise SystemExit(f"{kind}, {way}: {error}")
                    times[way].append(took)
                    if way in counting:
                        requests[way] = counting[way].requests
                    if way == "ours":
                        common, served = ours.shared()
                    texts[way] = [state.text() for state in states]
            median = {way: statistics.median(found) for way, found in times.items()}
            row = {
                "program": kind,
                **{f"{way} (s)": median[way] for way in ways},
                "over client": median["client"] / median["ours"],
                "over unfused": median["unfused"] / median["ours"],
                "over plain": median["plain"] / median["ours"],
                **{f"steps, {way}": steps[way] for way in ("ours", "client")},
                **{f"requests, {way}": requests[way] for way in counting},
                **{f"cpu, {way} (ms)": 1e3 * statistics.median(cpu[way]) for way in ("ours", "client", "unfused")},
                "shared tokens": common,
                "from cache": 100 * served,
                "same text": texts["client"] == texts["unfused"] == texts["ours"],
                "plain too": texts["plain"] == texts["ours"],
            }
            rows.append(row)
            print(
                "  ".join(f"{k}: {v:.3f}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items()), flush=True
            )
    return rows


class AtOnce(sgl.AsyncBackend):
    async def async_generate(self, s: Any, sampling_params: Any) -> tuple[str, Any]:
        return "x", None


@sgl.function
def trivial(s: Any, q: str) -> None:
    s += "Q: " + q + "\nA:" + sgl.gen("a")


def overhead() -> list[dict[str, Any]]:
    backend, rows = AtOnce(), []

    def body(step: Callable[[Any], Any]) -> Any:
        def program(s: Any, n: int) -> None:
            for _ in range(n):
                step(s)

        return sgl.function(program)

    def fork(s: Any) -> None:
        group = s.fork(2)
        group += sgl.gen("x")
        group.join()

    steps: dict[str, tuple[Callable[[Any], Any], int]] = {
        "text": (lambda s: s.__iadd__("x"), 5000),
        "gen": (lambda s: s.__iadd__(sgl.gen("x")), 2000),
        "gen and read": (lambda s: (s.__iadd__(sgl.gen("x")), s["x"]), 2000),
        "user message": (lambda s: s.__iadd__(sgl.user("x")), 2000),
        "fork of 2, gens, join": (fork, 300),
    }
    for name, (step, count) in steps.items():
        found = []
        for _ in range(5):
            began = time.perf_counter()
            body(step).run(count, backend=backend).sync()
            found.append((time.perf_counter() - began) / count * 1e6)
        rows.append({"what": name, "time": min(found), "unit": "us"})
    sizes = []
    items = [(str(i),) for i in range(10_000)]
    for _ in range(5):
        began = time.perf_counter()
        for state in trivial.run_batch(items, backend=backend, generator_style=True):
            assert state["a"] == "x"
        rows.append({"what": "batch of 10,000", "time": time.perf_counter() - began, "unit": "s"})
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    rows.append({"what": "memory after the first batch", "time": sizes[0], "unit": "MiB"})
    rows.append({"what": "memory after the fifth", "time": sizes[-1], "unit": "MiB"})
    for row in rows:
        print(f"{row['what']:30} {row['time']:10.2f} {row['unit']}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="runs of each kind and way (default: as many as take some minutes)")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("--shape", choices=list(SIZES), default="demo", help="what is served (default: %(default)s)")
    parser.add_argument("--overhead", action="store_true", help="the interpreter alone")
    parser.add_argument("flags", nargs="*", help="flags of the server, after --")
    add_flag(parser, "language")
    args = parser.parse_args()
    if args.overhead:
        rows = overhead()
        if args.save:
            name = "language_overhead" if args.save == "language" else args.save
            save(name, rows, title="Interpreter of the language", note="Over a backend that answers at once.")
        return
    size = SIZES[args.shape]
    dummy = ["--load-format", "dummy", "--json-model-override-args", json.dumps(size.shape)] if size.shape else []
    size = size._replace(rounds=args.rounds or size.rounds)
    rows = measure(size, args.kinds, [*dummy, *args.flags])
    if args.save:
        save(
            args.save,
            rows,
            title=f"Programs beside the same calls one by one, {args.shape}",
            units={"from cache": "% of the shared tokens"},
            note="Medians of alternating runs with an empty cache; see benchmark/language.py for the four ways.",
            plots=[{"x": "program", "y": ["over client", "over unfused"], "kind": "bar", "title": "times faster"}],
        )


if __name__ == "__main__":
    main()
