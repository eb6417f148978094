"""CPU time of the front per generated token, with the model taken out: `python benchmark/front_cost.py`.

A scripted worker, in a process of its own, gives each of `--streams` sequences a token every `--step-ms`; clients, in
another, read the event streams. Printed: microseconds of CPU that the front process spent per token.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing as mp
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import uvicorn
from results_file import add_flag, save
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from sglang.base.config import ServerConfig
from sglang.base.link import connect, listen
from sglang.base.messages import Abort, Finish, Piece, Ready, Stats, Step, Stop, Submit
from sglang.server.app import build_app
from sglang.server.front import Front
from sglang.text import tokenizer as text

PATHS = {"native": "/generate", "completions": "/v1/completions", "chat": "/v1/chat/completions"}


def make_tokenizer(folder: Path) -> None:
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [Path(__file__).read_text()] * 3,
        trainers.BpeTrainer(
            vocab_size=600,
            show_progress=False,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    raw.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": template}))


def work(address: str, step_s: float) -> None:
    link = connect(address)
    link.send(Ready("llama", "L", "float32", "cpu", 600, 1 << 20, 1 << 20, 1, 4096, 1, 1, 1, 0.0, (1,)))
    left: dict[int, int] = {}
    while True:
        began = time.monotonic()
        for message in link.receive(0.0 if left else None):
            match message:
                case Submit():
                    left[message.id] = message.sampling.max_new_tokens
                case Abort():
                    left.pop(message.id, None)
                case Stop():
                    return
                case _:
                    pass
        pieces: list[Piece] = []
        for id, count in list(left.items()):
            pieces.append(Piece(id, [300 + count % 200], Finish("length") if count == 1 else None))
            left[id] = count - 1
            if count == 1:
                del left[id]
        if pieces:
            link.send(Step(pieces, Stats(running=len(pieces))))
        time.sleep(max(0.0, step_s - (time.monotonic() - began)))


async def read(port: int, path: str, body: bytes) -> int:
    """Events of one stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    events = 0
    while data := await reader.read(1 << 16):
        events += data.count(b"data: ")
    writer.close()
    return events


def clients(port: int, api: str, streams: int, tokens: int, pipe: Any) -> None:
    body: dict[str, Any] = {"stream": True, "temperature": 0, "ignore_eos": True, "max_tokens": tokens}
    match api:
        case "native":
            params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
            body = {"text": "x", "stream": True, "sampling_params": params}
        case "chat":
            body["messages"] = [{"role": "user", "content": "x"}]
        case _:
            body["prompt"] = "x"

    async def main() -> int:
        content = json.dumps(body).encode()
        return sum(await asyncio.gather(*(read(port, PATHS[api], content) for _ in range(streams))))

    pipe.send(asyncio.run(main()))


async def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder))
        config = ServerConfig(model_path="m", random_seed=0)
        link = listen(f"ipc://{folder}/link")
        context = mp.get_context("spawn")
        context.Process(target=work, args=(f"ipc://{folder}/link", options.step_ms / 1000), daemon=True).start()
        front = Front(link, text.load(folder), config)
        await front.start()
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as serve() does
        app = build_app(front, config)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        rows = []
        for api in options.api:
            ours, theirs = context.Pipe()
            port = listener.getsockname()[1]
            process = context.Process(
                target=clients, args=(port, api, options.streams, options.tokens, theirs), daemon=True
            )
            cpu, wall = time.process_time(), time.monotonic()
            process.start()
            while not ours.poll():
                await asyncio.sleep(0.05)
            tokens = options.streams * options.tokens
            used, seconds, events = time.process_time() - cpu, time.monotonic() - wall, ours.recv()
            print(
                f"{api}: {options.streams} streams, {tokens} tokens, {events} events, "
                f"{seconds:.1f} s, {1e6 * used / tokens:.1f} us CPU per token"
            )
            rows.append({"API": PATHS[api], "tokens": tokens, "events": events, "CPU per token": 1e6 * used / tokens})
        link.send(Stop())
        server.should_exit = True
        await serving
        await front.close()
        link.close()
    if options.save:
        note = f"{options.streams} streams, a token each every {options.step_ms:g} ms, from a scripted worker."
        save(options.save, rows, title="Cost of the HTTP front", units={"CPU per token": "us"}, note=note)


def main() -> None:
    logging.basicConfig(level="WARNING")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--api", nargs="+", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--uvloop", action=argparse.BooleanOptionalAction, default=True)
    add_flag(parser, "front_cost")
    options = parser.parse_args()
    if options.uvloop:
        import uvloop

        uvloop.run(measure(options))
    else:
        asyncio.run(measure(options))


if __name__ == "__main__":
    main()
