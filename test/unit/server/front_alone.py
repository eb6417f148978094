"""A front alone, against the other end of an in-memory link: the test is the worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server_doubles import CONTEXT, EOS, VOCAB

from sglang.base.config import ServerConfig
from sglang.base.link import Memory, pair
from sglang.base.messages import FromWorker, Piece, Ready, Stats, Step, Submit, ToWorker
from sglang.server.front import Front
from sglang.server.streams import Output, Request
from sglang.text import tokenizer as text

Worker = Memory[ToWorker, FromWorker]
READY = Ready("llama", "LlamaForCausalLM", "float32", "cpu", VOCAB, CONTEXT, 10_000, 1, 64, 1, 4, 8, 0.1, (EOS,))


@asynccontextmanager
async def started(tokenizer: text.Tokenizer) -> AsyncIterator[tuple[Front, Worker]]:
    ours, worker = pair()
    front = Front(ours, tokenizer, ServerConfig(model_path="m", random_seed=7))
    worker.send(READY)
    await front.start()
    yield front, worker
    await front.close()


async def settle() -> None:
    """Let everything that can run now run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def submits(worker: Worker, count: int = 1) -> list[Submit]:
    found: list[Submit] = []
    while len(found) < count:
        await asyncio.sleep(0.001)
        found += [m for m in worker.receive() if isinstance(m, Submit)]
    return found


def step(worker: Worker, *pieces: Piece) -> None:
    worker.send(Step(list(pieces), Stats()))


async def collect(front: Front, request: Request) -> list[Output]:
    return [output async for output in front.generate(request)]


def spell(tokenizer: text.Tokenizer, words: str) -> list[int]:
    return tokenizer.encode(words)[1:]  # without the beginning-of-text token
