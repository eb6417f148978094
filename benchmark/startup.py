"""From the command to the first answer: `python benchmark/startup.py`. Starts the server as a user does, several times.

Time from the command until a first /generate is answered (asked again every few milliseconds). Memory of front and
worker after that answer, pages that both use counted once. Beside it `import sglang` and `--help`.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from results_file import add_flag, save

ROOT = Path(__file__).parents[1]
BODY = json.dumps(
    {"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 4}}
).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("flags", nargs="*", help="Flags of launch_server, after --.")
    add_flag(parser, "startup")
    args = parser.parse_args()
    rounds = [start(args.flags) for _ in range(args.rounds)]
    commands = {
        "import sglang": [sys.executable, "-c", "import sglang"],
        "launch_server --help": [sys.executable, "-m", "sglang.launch_server", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    rows = [
        {
            "": "first answer",
            "median": round(statistics.median(r[0] for r in rounds), 2),
            "best": round(min(r[0] for r in rounds), 2),
            "memory": round(statistics.median(r[1] for r in rounds)),
        }
    ]
    for name, command in commands.items():
        times = []
        for _ in range(args.rounds):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT / "python")
            times.append(time.perf_counter() - began)
        rows.append({"": name, "median": round(statistics.median(times), 3), "best": round(min(times), 3)})
    for row in rows:
        print(row)
    if args.save:
        save(
            args.save,
            rows,
            title="From the command to the first answer",
            units={"median": "s", "best": "s", "memory": "MiB"},
            note="python -m sglang.launch_server with the demo model, files in the page cache. Memory: of front "
            "and worker, pages that both use counted once (PSS). Goal: under 6 s.",
        )


def start(flags: list[str]) -> tuple[float, float]:
    """Seconds to the first answer, MiB of memory after it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}/generate"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sglang.launch_server", "--port", str(port), "--log-level", "error", *flags],
        cwd=ROOT / "python",
    )
    try:
        while True:
            try:
                request = urllib.request.Request(url, BODY, {"Content-Type": "application/json"})
                answer = json.load(urllib.request.urlopen(request, timeout=60))
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with {process.returncode}") from None
                time.sleep(0.005)
        seconds = time.perf_counter() - began
        assert answer["meta_info"]["completion_tokens"] > 0
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return seconds, sum(p.memory_full_info().pss for p in family) / 2**20
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
