"""CPU time of the front per generated token, with the model taken out: `python benchmark/front_cost.py`.

A scripted worker, in a process of its own, gives each of `--streams` sequences a token every `--step-ms`; clients, in
another, read the event streams. Measured while all streams run: microseconds of CPU that the front process spent per
token; tokens per event (more than one where the front or a client was behind); and how late tokens came, from the
worker's sending to the client's reading. What is left of the whole run's CPU is the cost of a request.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing as mp
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from results_file import add_flag, save
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from sglang.base.config import ServerConfig
from sglang.base.errors import WorkerDied
from sglang.base.link import connect, listen
from sglang.base.messages import Abort, Finish, Piece, Ready, Stats, Step, Stop, Submit
from sglang.server.app import build_app, serve
from sglang.server.front import Front
from sglang.text import tokenizer as text

PATHS = {"native": "/generate", "completions": "/v1/completions", "chat": "/v1/chat/completions"}
WORDS = 10_000  # the token of step i is word i of so many, four letters each: a text tells when its tokens were sent
FIRST = 300  # id of word 0
LOOK_AT = 16  # one stream in so many has its tokens timed: reading them all would cost the client more than the front
TEXTS = {"native": rb'"text":"([^"]*)"', "completions": rb'"text":"([^"]*)"', "chat": rb'"content":"([^"]*)"'}


def word(i: int) -> str:
    return "".join(chr(97 + i // 26**k % 26) for k in range(4))


NUMBER = {word(i): i for i in range(WORDS)}


def make_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {c: 2 + i for i, c in enumerate(alphabet)}
    vocab |= {word(i): FIRST + i for i in range(WORDS)}
    raw = RawTokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": template}))


def work(address: str, step_s: float, sent: Any, wanted: Any) -> None:
    """`sent`: a shared array in which the time of each step is kept. `wanted`: so many sequences begin together."""
    link = connect(address)
    link.send(Ready("llama", "L", "float32", "cpu", FIRST + WORDS, 1 << 20, 1 << 20, 1, 4096, 1, 1, 1, 0.0, (1,)))
    left: dict[int, int] = {}
    step = generated = 0
    going = False
    while True:
        began = time.monotonic()
        for message in link.receive(0.0 if going else 0.1):
            match message:
                case Submit():
                    left[message.id] = message.sampling.max_new_tokens
                case Abort():
                    left.pop(message.id, None)
                case Stop():
                    return
                case _:
                    pass
        going = len(left) >= (1 if going else wanted.value)
        pieces: list[Piece] = []
        for id, count in list(left.items()) if going else ():
            pieces.append(Piece(id, [FIRST + step % WORDS], Finish("length") if count == 1 else None))
            left[id] = count - 1
            if count == 1:
                del left[id]
        if pieces:
            generated += len(pieces)
            sent[step % WORDS] = time.monotonic()
            link.send(Step(pieces, Stats(running=len(pieces), generated_tokens=generated)))
            step += 1
        if going:
            time.sleep(max(0.0, step_s - (time.monotonic() - began)))


async def read(port: int, path: str, body: bytes, seen: Callable[[bytes], None]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    while data := await reader.read(1 << 16):
        seen(data)
    writer.close()


class Watch:
    """Of one stream in LOOK_AT: how late each token came."""

    def __init__(self, api: str, sent: Any, late: list[float]):
        self._text = re.compile(TEXTS[api])
        self._grows = api == "native"  # its events hold the whole text
        self._sent = sent
        self._late = late
        self._known = 0

    def __call__(self, data: bytes, counts: bool) -> None:
        now = time.monotonic()
        for found in self._text.findall(data):
            new = found.decode()[self._known if self._grows else 0 :]
            self._known += len(new)
            if counts:
                self._late += [now - self._sent[NUMBER[new[i : i + 4]]] for i in range(0, len(new), 4)]


def clients(port: int, api: str, streams: int, tokens: int, prompt: int, sent: Any, steady: Event, pipe: Any) -> None:
    """Sends (events, seconds late in order), of what came while `steady` was set. prompt: ids of each; 0: a letter."""
    body: dict[str, Any] = {"stream": True, "temperature": 0, "ignore_eos": True, "max_tokens": tokens}
    ids = [FIRST + 7 * i % WORDS for i in range(prompt)]
    match api:
        case "native":
            params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
            body = {"stream": True, "sampling_params": params} | ({"input_ids": ids} if ids else {"text": "x"})
        case "chat":
            body["messages"] = [{"role": "user", "content": "x" * max(1, prompt)}]
        case _:
            body["prompt"] = ids or "x"
    content = json.dumps(body).encode()
    events = 0
    late: list[float] = []

    async def one(i: int) -> None:
        watch = Watch(api, sent, late) if i % LOOK_AT == 0 else None

        def seen(data: bytes) -> None:
            nonlocal events
            if watch is not None:
                watch(data, steady.is_set())
            if steady.is_set():
                events += data.count(b"data: ")

        await read(port, PATHS[api], content, seen)

    async def main() -> None:
        await asyncio.gather(*map(one, random.Random(0).sample(range(streams), streams)))

    run(main())
    pipe.send((events, sorted(late)))


def run(work: Any) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder))
        config = ServerConfig(model_path="m", random_seed=0)
        link = listen(f"ipc://{folder}/link")
        context = mp.get_context("spawn")
        sent, wanted, steady = context.Array("d", WORDS, lock=False), context.Value("i", 1), context.Event()
        address = f"ipc://{folder}/link"
        context.Process(target=work, args=(address, options.step_ms / 1000, sent, wanted), daemon=True).start()
        front = Front(link, text.load(folder), config)
        await front.start()
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        app = build_app(front, config)
        serving = asyncio.create_task(serve(app, front, config, [listener]))
        for streams in options.streams:
            for api in options.api:
                ours, theirs = context.Pipe()
                known = (listener.getsockname()[1], api, streams, options.tokens, options.prompt, sent, steady, theirs)
                process = context.Process(target=clients, args=known, daemon=True)
                wanted.value, cpu = streams, time.process_time()
                front.metrics.stats = Stats()
                process.start()
                while front.metrics.stats.running < streams:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(options.settle_s)
                marks = []
                for on in (True, False):
                    marks.append((front.metrics.stats.generated_tokens, time.process_time()))
                    (steady.set if on else steady.clear)()
                    if on:
                        await asyncio.sleep(options.seconds)
                assert front.metrics.stats.running == streams, "streams ended too soon: use more --tokens"
                while not ours.poll():
                    await asyncio.sleep(0.05)
                events, late = ours.recv()
                process.join()
                tokens, used = (after - before for before, after in zip(*marks, strict=True))
                row = {
                    "streams": streams,
                    "API": PATHS[api],
                    "CPU per token": 1e6 * used / tokens,
                    "CPU per request": 1e6
                    * (time.process_time() - cpu - used / tokens * streams * options.tokens)
                    / streams,
                    "tokens per event": tokens / events,
                    "late, median": 1e3 * late[len(late) // 2],
                    "late, p99": 1e3 * late[len(late) * 99 // 100],
                    "of a core": used / options.seconds,
                }
                rows.append(row)
                print("  ".join(f"{name}: {v if not isinstance(v, float) else round(v, 2)}" for name, v in row.items()))
        link.send(Stop())
        await front.close()  # which ends the server
        with contextlib.suppress(WorkerDied):
            await serving
        link.close()
    return rows


def main() -> None:
    logging.basicConfig(level="WARNING")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[512, 2000])
    parser.add_argument("--tokens", type=int, default=120, help="of each stream")
    parser.add_argument("--prompt", type=int, default=0, help="ids of each, letters of a chat; 0: a letter")
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure once all streams run")
    parser.add_argument("--settle-s", type=float, default=0.5)
    parser.add_argument("--api", nargs="+", choices=list(PATHS), default=list(PATHS))
    add_flag(parser, "front_cost")
    options = parser.parse_args()
    rows = run(measure(options))
    if options.save:
        units = {"CPU per token": "us", "CPU per request": "us", "late, median": "ms", "late, p99": "ms"}
        note = (
            f"A token each every {options.step_ms:g} ms, from a scripted worker. Late: from the worker's sending to "
            f"the client's reading. Front, worker and clients share the machine."
        )
        plots = [{"x": "streams", "y": "CPU per token", "by": "API"}, {"x": "streams", "y": "late, p99", "by": "API"}]
        save(options.save, rows, title="Cost of the HTTP front", units=units, note=note, plots=plots)


if __name__ == "__main__":
    main()
