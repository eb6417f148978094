"""A server under the usual kinds of load: `python benchmark/serving.py [--size full] [--save NAME] -- [server flags]`.

Starts `sglang.launch_server` with the flags after `--` (or measures the one at --base-url) and sends it, one after the
other, with the prefix cache emptied before each:

  single      one request at a time
  prefill     one long prompt at a time, few tokens out
  batch       32 at once
  mixed       many at once, lengths of prompt and answer spread over a factor of ten
  shared      many at once behind one long common prefix
  steady      Poisson arrivals, below what the server can do
  busy        Poisson arrivals, three times as many
  long        16 very long prompts at once

`--size small` suits a small model on a laptop's CPU; `full` an 8B model on a large GPU.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from results_file import add_flag, save

from sglang import bench_serving

PACKAGE_ROOT = Path(__file__).parents[1] / "python"
START_S = 900  # loading a large model over a slow disk


def random(count: int, input_len: int, output_len: int, *more: str) -> list[str]:
    lengths = ["--random-input-len", str(input_len), "--random-output-len", str(output_len)]
    return ["--num-prompts", str(count), *lengths, *more]


def shared(count: int, prefix: int, own: int, output_len: int) -> list[str]:
    words = ["--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "1"]
    sizes = {"prompts-per-group": count, "system-prompt-len": prefix, "question-len": own, "output-len": output_len}
    return [*words, *(word for name, size in sizes.items() for word in (f"--gsp-{name}", str(size)))]


SIZES: dict[str, dict[str, list[str]]] = {
    "small": {
        "single": random(3, 128, 128, "--max-concurrency", "1"),
        "prefill": random(3, 1024, 8, "--max-concurrency", "1"),
        "batch": random(32, 128, 64),
        "mixed": random(128, 256, 128, "--random-range-ratio", "0.1"),
        "shared": shared(64, 512, 32, 32),
        "steady": random(40, 128, 32, "--request-rate", "4"),
        "busy": random(120, 128, 32, "--request-rate", "12"),
        "long": random(4, 1900, 32),
    },
    "full": {
        "single": random(3, 256, 256, "--max-concurrency", "1"),
        "prefill": random(3, 4096, 16, "--max-concurrency", "1"),
        "batch": random(32, 256, 256),
        "mixed": random(512, 1024, 1024, "--random-range-ratio", "0.0976"),
        "shared": shared(512, 2048, 64, 64),
        "steady": random(160, 512, 128, "--request-rate", "8"),
        "busy": random(480, 512, 128, "--request-rate", "24"),
        "long": random(16, 16384, 64),
    },
}


@contextmanager
def server(flags: list[str]) -> Iterator[str]:
    """The address of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE_ROOT))
    command = [sys.executable, "-m", "sglang.launch_server", *flags, "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start (exit code {process.poll()})")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"load": name, "requests": result["completed"], "failed": result["failed"]}
    found |= {"wall": result["duration"], "output": result["output_throughput"], "cached": result["cached_tokens"]}
    for latency in ("ttft", "itl"):
        for statistic, short in (("median", "p50"), ("p99", "p99")):
            found[f"{latency.upper()} {short}"] = result[f"{statistic}_{latency}_ms"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--loads", nargs="+", choices=SIZES["full"], default=list(SIZES["full"]), metavar="LOAD")
    parser.add_argument("--backend", choices=bench_serving.BACKENDS, default="sglang")
    parser.add_argument("--base-url", help="Measure the server here instead of starting one.")
    parser.add_argument("--note", default="", help="Words about the run for the saved result.")
    add_flag(parser, "serving")
    parser.add_argument("flags", nargs="*", help="Flags of launch_server, after --.")
    args = parser.parse_args()
    if args.base_url and args.flags:
        parser.error("flags of the server go with a server that is started here, not with --base-url")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs.jsonl"
        if args.base_url:
            code = measure(args, args.base_url, out)
        else:
            with server(args.flags) as url:
                code = measure(args, url, out)
        results = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    rows = [row(name, result) for name, result in zip(args.loads, results, strict=False)]
    if args.save and rows:
        units = {"wall": "s", "output": "token/s", "cached": "tokens"}
        units |= {name: "ms" for name in rows[0] if name.startswith(("TTFT", "ITL"))}
        save(args.save, rows, title=f"Load of many kinds: {results[0]['model']}", units=units, note=args.note)
    return code


def measure(args: argparse.Namespace, url: str, out: Path) -> int:
    """Every load; stops at the first that could not be run. The exit code."""
    common = ["--backend", args.backend, "--base-url", url, "--output-file", str(out), "--flush-cache"]
    worst = 0
    for name in args.loads:
        print(f"\n{name}: bench_serving {' '.join(SIZES[args.size][name])}", flush=True)
        code = bench_serving.main([*common, *SIZES[args.size][name]])
        if code not in (0, 1):
            return code
        worst = max(worst, code)
    return worst


if __name__ == "__main__":
    sys.exit(main())
