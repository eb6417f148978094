"""CPU time that reading event streams costs a load client: `python benchmark/client_cost.py`.

A server in a process of its own sends each of `--streams` streams a canned event every `--step-ms`; the client of
`sglang.bench_serving` and one over httpx read the same streams, as `/v1/completions` and as `/generate` writes them.
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import time
from typing import Any

import httpx
from results_file import add_flag, save

from sglang.bench.apis import Job, Options, Record, Style, reader
from sglang.bench.client import Client
from sglang.bench.load import send_all

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def events(style: Style, tokens: int) -> list[bytes]:
    made = []
    for i in range(1, tokens + 1):
        if style == "native":
            meta = {"id": "a" * 32, "finish_reason": None, "prompt_tokens": 9, "completion_tokens": i}
            event: dict[str, Any] = {"text": " word" * i, "output_ids": list(range(300, 300 + i)), "meta_info": meta}
        else:
            choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
            event = {"id": "a" * 32, "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
            if i == tokens:
                event["usage"] = {"prompt_tokens": 9, "completion_tokens": tokens}
        made.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    return [b"%x\r\n%b\r\n" % (len(e), e) for e in [*made, b"data: [DONE]\n\n"]]


def serve(pipe: Any, style: Style, tokens: int, step_s: float) -> None:
    canned = events(style, tokens)

    async def answer(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while await source.readuntil(b"\r\n\r\n"):
                await source.readuntil(b"}")
                sink.write(HEAD)
                due = time.monotonic()
                for event in canned:
                    sink.write(event)
                    due += step_s
                    await asyncio.sleep(due - time.monotonic())
                sink.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            sink.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def with_ours(url: str, style: Style, streams: int) -> list[Record]:
    client = Client(url)
    await client.open(streams)
    try:
        return await send_all(client, style, [Job("x", 1, 1)] * streams, Options("m", True, True, False, {}))
    finally:
        client.close()


async def with_httpx(url: str, style: Style, streams: int) -> list[Record]:
    """The same events read by the same decoder, through httpx's lines."""
    options = Options("m", True, True, False, {})
    limits = httpx.Limits(max_connections=streams)

    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:

        async def one() -> Record:
            record = Record(Job("x", 1, 1))
            read = reader(style, record, options)
            async with client.stream("POST", "/", json={"a": 1}) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        read(line[6:].encode(), time.perf_counter())
            return record

        return list(await asyncio.gather(*(one() for _ in range(streams))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=50.0)
    add_flag(parser, "client_cost")
    args = parser.parse_args()
    try:
        import uvloop

        run: Any = uvloop.run
    except ImportError:
        run = asyncio.run
    context = mp.get_context("spawn")
    rows = []
    styles: tuple[Style, ...] = ("completions", "native")
    for style in styles:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, style, args.tokens, args.step_ms / 1e3), daemon=True)
        process.start()
        url = f"http://127.0.0.1:{ours.recv()}"
        for name, client in (("bench_serving", with_ours), ("httpx", with_httpx)):
            run(client(url, style, 2))
            cpu, wall = time.process_time(), time.perf_counter()
            records = run(client(url, style, args.streams))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            got = sum(len(record.times) for record in records)
            assert got == args.streams * args.tokens, (name, got, records[0])
            rows.append({"API": style, "client": name, "CPU per event": 1e6 * cpu / got, "wall": wall})
            print(f"{style:12} {name:14} {1e6 * cpu / got:7.1f} us CPU per event, {wall:.2f} s, {got} events")
        process.terminate()
    if args.save:
        note = (
            f"{args.streams} streams of {args.tokens} events, one every {args.step_ms:g} ms; msgspec decodes in both."
        )
        units, plots = {"CPU per event": "us", "wall": "s"}, [{"x": "API", "y": "CPU per event", "by": "client"}]
        save(args.save, rows, title="Cost of the load client", units=units, note=note, plots=plots)


if __name__ == "__main__":
    main()
