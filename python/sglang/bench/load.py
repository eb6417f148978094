"""Sends jobs to a server at their times and notes what comes back."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from sglang.bench.apis import PATHS, Job, Options, Record, Style, body, reader, refusal
from sglang.bench.client import Client, Events, clock


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which each of `count` requests is due: a Poisson process, or all at once."""
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.random.default_rng([seed, 1]).exponential(1 / rate, count)
    return (np.cumsum(gaps) - gaps[0]).tolist()


async def send_all(
    client: Client,
    style: Style,
    jobs: Sequence[Job],
    options: Options,
    *,
    rate: float = math.inf,
    most: int | None = None,
    seed: int = 0,
    ended: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Send every job; one record each, in the order of jobs.

    rate: requests per second. most: requests under way at a time. ended: called with each record when it is complete.
    """
    # Everything is encoded before the clock starts.
    requests = [client.encode(PATHS[style], json.dumps(body(style, job, options)).encode()) for job in jobs]
    turns = asyncio.Semaphore(most or len(jobs))
    due = arrivals(len(jobs), rate, seed)
    began = clock()

    async def one(job: Job, request: bytes, at: float) -> Record:
        record = Record(job)
        if at:
            await asyncio.sleep(began + at - clock())
            record.late = max(0.0, clock() - began - at)
        async with turns:
            await send(client, style, request, options, record)
        ended(record)
        return record

    return list(await asyncio.gather(*map(one, jobs, requests, due)))


async def send(client: Client, style: Style, request: bytes, options: Options, record: Record) -> None:
    """Send one request; everything that goes wrong is the record's error."""
    read = reader(style, record, options)
    whole: list[bytes] = []

    def note(data: bytes, now: float) -> None:
        try:
            read(data, now)
        except msgspec.MsgspecError as error:
            record.error = f"a reply that cannot be read: {error}: {data[:100]!r}"

    events = Events(note)
    record.sent = clock()
    try:
        head = await client.send(request, events.feed if options.stream else lambda data, now: whole.append(data))
    except OSError as error:
        record.error = str(error) or type(error).__name__
        record.end = clock()
        return
    record.end = clock()
    if head.status != 200:
        record.error = refusal(head.status, b"".join(whole) or events.rest)
        return
    if not options.stream:
        note(b"".join(whole), record.end)
    elif not events.done:
        record.error = record.error or "the stream ended before [DONE]"
    if not record.error and not record.input_tokens and not record.output_tokens:
        record.error = "the server does not say how many tokens it used (usage)"
