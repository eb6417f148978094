"""python -m sglang.bench_serving: send requests to a running server as many users would, and say how it served them."""

import argparse
import asyncio
import contextlib
import json
import math
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.bench.apis import BACKENDS, Job, Options, Record
from sglang.launch_server import HelpFormatter, Parser

if TYPE_CHECKING:
    import httpx

    from sglang.bench.datasets import Tokens

SHARED_PREFIX = ("generated-shared-prefix", "shared-prefix")
PLOT_KINDS = (".png", ".svg", ".pdf")
AT_LEAST_ONE = (
    "num_prompts", "sharegpt_output_len", "random_input_len", "random_output_len", "gsp_num_groups",
    "gsp_prompts_per_group", "gsp_system_prompt_len", "gsp_question_len", "gsp_output_len", "max_concurrency",
)  # fmt: skip
MOST_CONNECTIONS = 2048  # opened before the clock starts
WARM_UP_TOKENS = 32
FLUSH_S = 10.0  # how long a busy server may refuse to empty its cache
LATE_MS = 50.0  # a client later than this is said to be


class Refusal(Exception):
    """The run cannot be made: one line that says why."""


class Facts(NamedTuple):
    """What the server says of itself."""

    model: str
    tokenizer: str  # folder or hub id, "" where it does not say
    max_len: int | None  # most tokens of prompt and answer


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    prog = prog or "python -m sglang.bench_serving"
    top = Parser(
        prog=prog,
        usage=f"{prog} [--backend NAME] [--port N] [--num-prompts N] [--flag VALUE ...]",
        description="Measure a running server under load.",
        formatter_class=HelpFormatter,
        epilog="The server's key, where it needs one, is read from OPENAI_API_KEY.",
    )
    add = top.add_argument_group("the server").add_argument
    add("--backend", choices=BACKENDS, default="sglang", help="Which server, by which of its APIs; sglang: /generate.")
    add("--base-url", help="http://HOST:PORT, instead of --host and --port.")
    add("--host", default="127.0.0.1", help="Where the server is.")
    add("--port", type=int, help="Its port; by the backend 30000, 8000 (vllm, openai) or 23333 (lmdeploy).")
    add("--model", help="Name of the model; the first that the server lists by default.")
    add("--tokenizer", help="Folder or hub id; by default the one the server names, or its own /tokenize.")

    add = top.add_argument_group("what is sent").add_argument
    names = ("sharegpt", "random", "random-ids", *SHARED_PREFIX)
    add("--dataset-name", choices=names, help="sharegpt where --dataset-path is given, random otherwise.")
    add("--dataset-path", type=Path, help="A ShareGPT JSON file.")
    add("--num-prompts", type=int, help="Requests; 1000, or all of a shared-prefix set.")
    add("--sharegpt-output-len", type=int, help="Tokens to generate, instead of as many as the file's reply has.")
    add("--random-input-len", type=int, default=1024, help="Tokens of a prompt.")
    add("--random-output-len", type=int, default=128, help="Tokens to generate.")
    add("--random-range-ratio", type=float, default=1.0, help="Lengths are uniform in [LEN x this, LEN].")
    add("--gsp-num-groups", type=int, default=64, help="Shared-prefix set: prefixes.")
    add("--gsp-prompts-per-group", type=int, default=16, help="Requests with each prefix.")
    add("--gsp-system-prompt-len", type=int, default=2048, help="Tokens of a prefix.")
    add("--gsp-question-len", type=int, default=128, help="Tokens after it.")
    add("--gsp-output-len", type=int, default=256, help="Tokens to generate.")
    formats = ("auto", "ids", "text")
    add("--prompt-format", choices=formats, default="auto", help="auto: token ids where the API is known to take them.")
    add("--apply-chat-template", action="store_true", help="Put the model's chat template around each prompt.")
    add("--disable-ignore-eos", action="store_true", help="Let answers end where the model ends them.")
    add("--disable-stream", action="store_true", help="Ask for whole answers instead of streams.")
    add("--extra-request-body", default="{}", metavar="JSON", help="Object that is merged into each request.")
    add("--seed", type=int, default=0, help="Of the data and of the arrival times.")

    add = top.add_argument_group("how it is sent").add_argument
    add("--request-rate", type=float, default=math.inf, help="Requests per second, Poisson; inf: all at once.")
    add("--max-concurrency", type=int, help="Most requests under way; the others wait for their turn.")
    add("--warmup-requests", type=int, default=1, help="Sent before, one by one, and not counted.")
    add("--flush-cache", action="store_true", help="Empty the server's prefix cache before measuring.")
    add("--profile", action="store_true", help="Let the server profile itself meanwhile (/start_profile).")
    add("--multi", action="store_true", help="Measure at each rate of --request-rate-range.")
    add("--request-rate-range", default="2,34,2", metavar="A,B,STEP", help="Rates for --multi: A, A + STEP … below B.")

    add = top.add_argument_group("the result").add_argument
    add("--output-file", type=Path, help="Append the figures to this file, one JSON line per run.")
    add("--output-details", action="store_true", help="Add the times and the text of each request to that line.")
    add("--plot", type=Path, help="Draw the run: .png, .svg or .pdf.")
    add("--disable-tqdm", action="store_true", help="No progress bar.")
    for action in top._actions:
        action.metavar = action.metavar or {int: "N", float: "F", Path: "FILE"}.get(action.type)
    return top


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """0; 1: the server did not answer well; 2: flags that cannot be."""
    args = parser(prog).parse_args(argv)
    import httpx

    from sglang.base.errors import ConfigError
    from sglang.bench.datasets import DataError

    try:
        check(args)
        return run(args)
    except (Refusal, DataError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (httpx.HTTPError, OSError) as error:
        print(f"error: {base_url(args)}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, and fill in what follows. Raises Refusal."""
    for name in AT_LEAST_ONE:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Refusal(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 0 <= args.random_range_ratio <= 1:
        raise Refusal(f"--random-range-ratio must be in [0, 1], got {args.random_range_ratio}")
    if not args.request_rate > 0:
        raise Refusal(f"--request-rate must be above 0, or inf; got {args.request_rate}")
    if args.warmup_requests < 0:
        raise Refusal(f"--warmup-requests must be at least 0, got {args.warmup_requests}")
    if args.seed < 0:
        raise Refusal(f"--seed must be at least 0, got {args.seed}")
    if args.port is not None and not 0 < args.port < 65536:
        raise Refusal(f"--port must be in [1, 65535], got {args.port}")
    if args.base_url is not None and not args.base_url.startswith(("http://", "https://")):
        raise Refusal(f"--base-url must be http://HOST[:PORT] or https://…, got {args.base_url!r}")
    args.dataset_name = args.dataset_name or ("sharegpt" if args.dataset_path else "random")
    if args.dataset_name == "sharegpt" and args.dataset_path is None:
        raise Refusal("--dataset-name sharegpt needs --dataset-path FILE: nothing is downloaded")
    if args.dataset_name != "sharegpt" and args.dataset_path is not None:
        raise Refusal(f"--dataset-path goes with --dataset-name sharegpt, not {args.dataset_name}")
    if args.dataset_path is not None and not args.dataset_path.is_file():
        raise Refusal(f"--dataset-path {args.dataset_path}: no such file")
    try:
        args.extra = json.loads(args.extra_request_body)
    except ValueError as error:
        raise Refusal(f"--extra-request-body is not JSON: {error}") from None
    if not isinstance(args.extra, dict):
        raise Refusal(f"--extra-request-body must be a JSON object, got {args.extra_request_body}")
    args.rates = [args.request_rate]
    if args.multi:
        args.rates = rates(args.request_rate_range)
    if args.output_details and args.output_file is None:
        raise Refusal("--output-details needs --output-file")
    if args.plot is not None:
        if args.multi:
            raise Refusal("--plot draws one run: leave --multi away")
        if args.disable_stream:
            raise Refusal("--plot draws when tokens came: leave --disable-stream away")
        if args.plot.suffix not in PLOT_KINDS:
            raise Refusal(f"--plot must end in {', '.join(PLOT_KINDS)}, got {args.plot}")
        from sglang.bench import plot

        if not plot.available():
            raise Refusal('--plot needs matplotlib: pip install "sglang[plot]"')
    for flag, path in (("--output-file", args.output_file), ("--plot", args.plot)):
        if path is not None and (why := unwritable(path)):
            raise Refusal(f"{flag} {path}: {why}")


def unwritable(path: Path) -> str:
    """Why a file cannot be written to, found before the work is done that should end there; "" where it can."""
    if path.is_dir():
        return "is a folder"
    if not path.absolute().parent.is_dir():
        return f"there is no folder {path.parent}"
    return "" if os.access(path if path.exists() else path.absolute().parent, os.W_OK) else "may not be written to"


def rates(text: str) -> list[float]:
    try:
        first, end, step = (float(part) for part in text.split(","))
    except ValueError:
        raise Refusal(f"--request-rate-range must be A,B,STEP, got {text!r}") from None
    if not (0 < first < end < math.inf and step > 0):
        raise Refusal(f"--request-rate-range must have 0 < A < B and STEP > 0, got {text}")
    return [first + i * step for i in range(math.ceil((end - first) / step))]


def base_url(args: argparse.Namespace) -> str:
    if args.base_url:
        return args.base_url.rstrip("/").removesuffix("/v1")  # as clients of OpenAI's are given it
    host = f"[{args.host}]" if ":" in args.host else args.host
    return f"http://{host}:{args.port or BACKENDS[args.backend].port}"


def run(args: argparse.Namespace) -> int:
    import httpx

    api, url, key = BACKENDS[args.backend], base_url(args), os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Proxies of the environment are for the world outside: what is measured here is named by its address.
    # Certificates as Python's ssl finds them, which SSL_CERT_FILE can add to.
    verify = ssl.create_default_context() if url.startswith("https") else False
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False, verify=verify) as http:
        facts = ask(http, args)
        tokens = find_tokens(http, args, facts)
        jobs = make_jobs(args, tokens, facts)
        ignore_eos = api.ignores_eos and not args.disable_ignore_eos
        options = Options(facts.model, not args.disable_stream, ignore_eos, args.output_details, args.extra)
        failed = 0
        for rate in args.rates:
            records = measure(args, http, headers, jobs, make_warm_up(args, tokens), options, rate)
            failed += report(args, facts, records, rate)
            if len(records) < len(jobs):
                print(f"interrupted: {len(records)} of {len(jobs)} requests had ended", file=sys.stderr)
                return 130
    return 1 if failed else 0


def ask(http: "httpx.Client", args: argparse.Namespace) -> Facts:
    """Model, tokenizer and longest sequence, from whichever of these paths the server has."""

    def get(path: str) -> dict[str, Any]:
        answer = http.get(path)
        if answer.status_code in (401, 403):
            raise Refusal(f"{http.base_url} wants a key: set OPENAI_API_KEY ({answer.status_code} from {path})")
        found = answer.json() if answer.is_success and "json" in answer.headers.get("content-type", "") else {}
        return found if isinstance(found, dict) else {}

    listed = (get("/v1/models").get("data") or [{}])[0]
    info = get("/get_model_info") if args.backend.startswith("sglang") else {}
    model = args.model or listed.get("id")
    if model is None and not info:
        raise Refusal(f"{http.base_url} lists no model at /v1/models: name it with --model")
    tokenizer = info.get("tokenizer_path") or listed.get("root") or model or ""
    return Facts(model or "default", tokenizer, info.get("max_model_len") or listed.get("max_model_len"))


def find_tokens(http: "httpx.Client", args: argparse.Namespace, facts: Facts) -> "Tokens":
    from sglang.bench.tokens import LocalTokens, ServerTokens
    from sglang.text import tokenizer

    if args.tokenizer:
        return LocalTokens(tokenizer.load(args.tokenizer))
    if Path(facts.tokenizer).is_dir():
        return LocalTokens(tokenizer.load(facts.tokenizer))
    return ServerTokens(http, facts.model)


def make_jobs(args: argparse.Namespace, tokens: "Tokens", facts: Facts) -> list[Job]:
    """The requests of the run. Raises Refusal where the model is too short for them."""
    from sglang.bench import datasets

    as_text = prompts_as_text(args)
    if args.dataset_name == "sharegpt":
        count, length = args.num_prompts or 1000, args.sharegpt_output_len
        jobs = datasets.sharegpt_jobs(tokens, args.dataset_path, count, length, args.seed, as_text)
        if len(jobs) < count:
            print(f"note: {args.dataset_path} has {len(jobs)} usable conversations, not {count}", file=sys.stderr)
        sizes = "--sharegpt-output-len"
    elif args.dataset_name in SHARED_PREFIX:
        groups, each = args.gsp_num_groups, args.gsp_prompts_per_group
        if args.num_prompts is not None and args.num_prompts > groups * each:
            raise Refusal(f"--num-prompts {args.num_prompts} is more than {groups} groups of {each} prompts")
        lengths = args.gsp_system_prompt_len, args.gsp_question_len, args.gsp_output_len
        jobs = datasets.shared_prefix_jobs(tokens, groups, each, *lengths, args.seed, as_text)[: args.num_prompts]
        sizes = "--gsp-system-prompt-len, --gsp-question-len and --gsp-output-len"
    else:
        lengths, count = (args.random_input_len, args.random_output_len), args.num_prompts or 1000
        jobs = datasets.random_jobs(tokens, count, *lengths, args.random_range_ratio, args.seed, as_text)
        sizes = "--random-input-len and --random-output-len"
    if args.apply_chat_template:
        jobs = with_template(args, tokens, jobs)
    longest = max(job.input_tokens + job.output_tokens for job in jobs)
    if facts.max_len is not None and longest > facts.max_len:
        raise Refusal(f"a request would be {longest} tokens long, the model takes {facts.max_len}: lower {sizes}")
    assert BACKENDS[args.backend].style != "chat" or as_text
    return jobs


def prompts_as_text(args: argparse.Namespace) -> bool:
    api = BACKENDS[args.backend]
    if args.prompt_format == "ids" and api.style == "chat":
        raise Refusal(f"--prompt-format ids: --backend {args.backend} takes chat messages, which are text")
    if args.dataset_name == "random-ids" and (args.prompt_format == "text" or not api.takes_ids):
        raise Refusal("--dataset-name random-ids sends token ids; random can be sent as text")
    return args.prompt_format == "text" or (args.prompt_format == "auto" and not api.takes_ids)


def with_template(args: argparse.Namespace, tokens: "Tokens", jobs: list[Job]) -> list[Job]:
    from sglang.bench.tokens import LocalTokens

    if BACKENDS[args.backend].style == "chat":
        raise Refusal(f"--apply-chat-template: with --backend {args.backend} the server does that")
    if not isinstance(tokens, LocalTokens):
        raise Refusal("--apply-chat-template needs the tokenizer here: name its folder with --tokenizer")
    made = []
    for job in jobs:
        question = job.prompt if isinstance(job.prompt, str) else tokens.decode([job.prompt])[0]
        text = tokens.tokenizer.render_chat([{"role": "user", "content": question}])
        ids = tokens.tokenizer.encode_chat(text)
        made.append(job._replace(prompt=text if isinstance(job.prompt, str) else ids, input_tokens=len(ids)))
    return made


def make_warm_up(args: argparse.Namespace, tokens: "Tokens") -> list[Job]:
    """Short requests of their own: they must not put the measured prompts into the server's cache."""
    from sglang.bench.datasets import random_jobs

    n = args.warmup_requests
    return random_jobs(tokens, n, WARM_UP_TOKENS, WARM_UP_TOKENS, 1.0, args.seed + 2**31, prompts_as_text(args))


def measure(
    args: argparse.Namespace,
    http: "httpx.Client",
    headers: dict[str, str],
    jobs: list[Job],
    warm_up: list[Job],
    options: Options,
    rate: float,
) -> list[Record]:
    """One run: warm up, empty the cache, send everything. Interrupted, what had ended until then. Raises Refusal."""
    from sglang.bench.client import Client
    from sglang.bench.load import send_all

    backend = BACKENDS[args.backend]

    async def go() -> list[Record]:
        client = Client(str(http.base_url).rstrip("/"), headers)
        try:
            for job in warm_up:
                [record] = await send_all(client, backend.style, [job], options)
                if record.error:
                    raise Refusal(f"the warm-up request failed: {record.error}")
            if args.flush_cache:
                flush(http, args.backend)
            await client.open(min(len(jobs), args.max_concurrency or len(jobs), MOST_CONNECTIONS))
            with profile(http, args.profile), progress(len(jobs), args.disable_tqdm) as ended:
                traffic = {"rate": rate, "most": args.max_concurrency, "seed": args.seed}
                try:
                    return await send_all(client, backend.style, jobs, options, **traffic, ended=ended.add)
                except asyncio.CancelledError:
                    if not ended.records:
                        raise
                    return ended.records
        finally:
            client.close()

    raise_file_limit()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(go())
    return uvloop.run(go())


def raise_file_limit() -> None:
    """As many open files as the system lets us have: a connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def flush(http: "httpx.Client", backend: str) -> None:
    path = BACKENDS[backend].flush
    if path is None:
        raise Refusal(f"--flush-cache: servers of --backend {backend} have no call for it")
    deadline = time.monotonic() + FLUSH_S
    while not (answer := http.post(path)).is_success:  # refused while the warm-up request is still ending
        if time.monotonic() > deadline or answer.status_code == 404:
            raise Refusal(f"--flush-cache: {path} answers {answer.status_code}: {answer.text[:200]}")
        time.sleep(0.05)


@contextlib.contextmanager
def profile(http: "httpx.Client", wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    answer = http.post("/start_profile")
    if not answer.is_success:
        raise Refusal(f"--profile: this server cannot profile itself (/start_profile answers {answer.status_code})")
    try:
        yield
    finally:
        http.post("/stop_profile", timeout=600).raise_for_status()


class Progress:
    """A bar over the requests that have ended."""

    def __init__(self, bar: Any):
        self.records: list[Record] = []
        self._bar = bar
        self._tokens = self._failed = 0

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._tokens += record.output_tokens
        self._failed += bool(record.error)
        rate = self._tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"{rate:.0f} tok/s" + (f", {self._failed} failed" if self._failed else ""), refresh=False
        )
        self._bar.update()


@contextlib.contextmanager
def progress(total: int, hidden: bool) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=total, disable=hidden, unit="req", dynamic_ncols=True, smoothing=0.1) as bar:
        yield Progress(bar)


def report(args: argparse.Namespace, facts: Facts, records: list[Record], rate: float) -> int:
    """Print, append and draw the result; how many requests failed."""
    from sglang.bench.figures import figures, gaps, table

    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": args.backend,
        "model": facts.model,
        "dataset_name": args.dataset_name,
        "num_prompts": len(records),
        "request_rate": "inf" if math.isinf(rate) else rate,
        "max_concurrency": args.max_concurrency,
        "seed": args.seed,
        "sharegpt_output_len": args.sharegpt_output_len,
        "random_input_len": args.random_input_len,
        "random_output_len": args.random_output_len,
        "random_range_ratio": args.random_range_ratio,
        **figures(records, not args.disable_stream),
    }
    print("\n" + table(result))
    errors = Counter(record.error for record in records if record.error)
    for error, count in errors.most_common(5):
        print(f"error: {count} requests: {error}", file=sys.stderr)
    if result["max_client_delay_ms"] > LATE_MS:
        late = result["max_client_delay_ms"]
        print(f"note: a request was sent {late:.0f} ms late: this client is too busy to keep the rate", file=sys.stderr)
    if args.output_file is not None:
        if args.output_details:
            result |= {
                "input_lens": [r.input_tokens for r in records],
                "output_lens": [r.output_tokens for r in records],
                "ttfts": [r.times[0] - r.sent if r.times else None for r in records],
                "itls": [gaps(r) for r in records],
                "latencies": [r.end - r.sent for r in records],
                "generated_texts": [r.text for r in records],
                "errors": [r.error for r in records],
            }
        with args.output_file.open("a") as out:
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
    if args.plot is not None:
        from sglang.bench.plot import draw

        draw(records, result, args.plot)
        print(f"plot: {args.plot}")
    return result["failed"]


if __name__ == "__main__":
    sys.exit(main())
