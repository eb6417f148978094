"""Thousands of short requests, many of them cancelled: what stays behind? `python benchmark/soak.py -- [server flags]`

A server is started and sent random prompts (some begin alike), streamed and not, a part of them under a regular
expression; three in ten clients close their connection at a random moment. After each round of a fifth of them the
server must be idle: no sequence, no KV token in use. Its memory (PSS of its processes without files, whose pages
others may share for a while, and what nvidia-smi says) must not grow from the second round to the last by more than
--grows MiB. Exits 1 where it does. On a CPU the pool's memory is taken as the prefix cache first writes to it: a small
one (`-- --max-total-tokens 16384`) shows what else grows.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from results_file import add_flag, save

PACKAGE_ROOT = Path(__file__).parents[1] / "python"

CANCELLED = 0.3
ROUNDS = 5
QUIET_S = 20  # for the last of a round to leave


@contextmanager
def server(flags: list[str]) -> Iterator[tuple[int, int]]:
    """Port and process id of one that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "sglang.launch_server", *flags, "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, env=environment)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server did not start (exit code {process.returncode})")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def one(port: int, dice: random.Random) -> bool:
    """Send a request; whether it was cancelled. Raises where the answer is no 200."""
    begin = dice.choice([[7, 8, 9] * 20, []])
    prompt = begin + [dice.randrange(10, 250) for _ in range(dice.randrange(1, 24))]
    sampling: dict[str, Any] = {"max_new_tokens": dice.randrange(1, 24), "temperature": dice.choice([0, 1])}
    if dice.random() < 0.1:
        sampling["regex"] = dice.choice(["[a-z]{3,20}", "(yes|no|maybe)", "[0-9]+"])
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling, "stream": dice.random() < 0.5}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "POST /generate HTTP/1.1\r\nHost: me\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        if dice.random() < CANCELLED:
            try:
                await asyncio.wait_for(reader.read(-1), dice.expovariate(20))
            except TimeoutError:
                return True
            return False
        answer = await asyncio.wait_for(reader.read(-1), 120)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer[:300].decode(errors="replace"))
        return False
    finally:
        writer.close()


async def a_round(port: int, requests: int, at_once: int, seed: int) -> int:
    """How many were cancelled."""
    numbers = iter(range(requests))
    cancelled = 0

    async def client() -> None:
        nonlocal cancelled
        for i in numbers:
            left_early = await one(port, random.Random(f"{seed} {i}"))
            cancelled += left_early  # in two steps: the sum of before the await would forget the others'

    await asyncio.gather(*(client() for _ in range(at_once)))
    return cancelled


def state(port: int) -> dict[str, float]:
    """The gauges that must be zero when all have left."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found = {}
    for name in ("num_running_reqs", "num_queue_reqs", "num_used_tokens"):
        found[name] = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"sglang:{name}{{"))
    return found


def memory_mib(pid: int) -> dict[str, float]:
    """Of a process and its children: memory shared by several is counted once; and of their device."""
    pids, at = [pid], 0
    while at < len(pids):
        for task in Path(f"/proc/{pids[at]}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
        at += 1
    pss = 0
    for one in pids:
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        kib = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        pss += kib["Pss:"] - kib["Pss_File:"]
    found = {"host MiB": pss / 1024}
    try:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        found["device MiB"] = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError):
        pass
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=200, help="Clients.")
    parser.add_argument("--grows", type=float, default=30, help="MiB that memory may gain from round 2 to the last.")
    parser.add_argument("flags", nargs="*", help="Of the server, after --.")
    add_flag(parser, "soak")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    ok = True
    with server(args.flags) as (port, pid):
        for number in range(1, ROUNDS + 1):
            began = time.monotonic()
            cancelled = asyncio.run(a_round(port, args.requests // ROUNDS, args.at_once, number))
            wall = time.monotonic() - began
            until = time.monotonic() + QUIET_S
            while any((left := state(port)).values()) and time.monotonic() < until:
                time.sleep(0.1)
            row = {"round": number, "requests": args.requests // ROUNDS, "cancelled": cancelled, "s": wall}
            row |= {"in use after": left["num_used_tokens"], "sequences after": left["num_running_reqs"]}
            rows.append(row | memory_mib(pid))
            ok = ok and not any(left.values())
            print(rows[-1], flush=True)
    grown = {key: rows[-1][key] - rows[1][key] for key in rows[0] if key.endswith("MiB")}
    print("grown from round 2 to the last:", {key: f"{mib:.1f} MiB" for key, mib in grown.items()})
    ok = ok and all(mib <= args.grows for mib in grown.values())
    if args.save:
        save(
            args.save,
            rows,
            title="Ten thousand short requests, three in ten cancelled",
            units={"s": "s"},
            note="In use after: KV tokens of sequences, when all clients of a round have left.",
        )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
