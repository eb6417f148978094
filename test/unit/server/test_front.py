"""The life of a front and the ways into it; the test is the worker."""

import asyncio
import threading
from typing import ClassVar, cast

import pytest
from front_alone import collect, settle, spell, started, step, submits

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, FieldError, Overloaded, WorkerDied
from sglang.base.link import pair
from sglang.base.messages import (
    Abort,
    Failed,
    Finish,
    Flush,
    Flushed,
    Piece,
    Stats,
    Step,
)
from sglang.server.front import Front
from sglang.server.streams import Request
from sglang.text import tokenizer as text


@pytest.mark.parametrize("leave", ["aclose", "cancel"])
def test_a_reader_that_leaves_aborts_its_sequence(tokenizer: text.Tokenizer, leave: str) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            outputs = front.generate(Request(prompt="x"))
            task = asyncio.create_task(anext(outputs))
            [submit] = await submits(worker)
            if leave == "cancel":
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                step(worker, Piece(submit.id, [5]))
                await task
            await outputs.aclose()
            assert worker.receive() == [Abort(submit.id)]
            assert front.metrics.aborted == 1
            step(worker, Piece(submit.id, [6]))  # was on its way: nobody minds
            await settle()
            assert front.up

    asyncio.run(main())


def test_sequences_run_together_are_told_apart_by_index(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):

            async def run() -> list[tuple[int, list[int]]]:
                requests = [Request(prompt=[3 + i], interval=0) for i in range(3)]
                return [(i, output.tokens) async for i, output in front.run(requests)]

            task = asyncio.create_task(run())
            found = await submits(worker, 3)
            for submit in reversed(found):
                step(worker, Piece(submit.id, [submit.tokens[0] + 10], Finish("length")))
            assert sorted(await task) == [(0, [13]), (1, [14]), (2, [15])]

    asyncio.run(main())


def test_one_refused_sequence_of_a_group_ends_the_others(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):

            async def run() -> None:
                async for _ in front.run([Request(prompt=[3]), Request(prompt=[4])]):
                    pass

            task = asyncio.create_task(run())
            first, second = await submits(worker, 2)
            step(worker, Piece(second.id, [], Finish("abort", message="the queue is full", status=503)))
            with pytest.raises(Overloaded, match="queue is full"):
                await task
            assert worker.receive() == [Abort(first.id)]

    asyncio.run(main())


def test_a_refusal_harms_no_other_request(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            bad = asyncio.create_task(collect(front, Request(prompt=[3], source="text")))
            good = asyncio.create_task(collect(front, Request(prompt=[4])))
            first, second = await submits(worker, 2)
            refusal = Finish("abort", message="never fits", status=400)
            step(worker, Piece(first.id, [], refusal), Piece(second.id, [7], Finish("length")))
            with pytest.raises(FieldError, match="never fits") as caught:
                await bad
            assert (caught.value.field, caught.value.status) == ("text", 400)
            assert (await good)[-1].tokens == [7]

    asyncio.run(main())


def test_a_dead_worker_ends_every_open_stream_with_its_reason(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            tasks = [asyncio.create_task(collect(front, Request(prompt=[3]))) for _ in range(3)]
            await submits(worker, 3)
            flush = asyncio.create_task(front.flush())
            await settle()
            worker.send(Failed("out of memory: wanted 3 GiB"))
            for task in [*tasks, flush]:
                with pytest.raises(WorkerDied, match="wanted 3 GiB"):
                    await task
            assert front.failed == "out of memory: wanted 3 GiB"
            with pytest.raises(WorkerDied):
                await collect(front, Request(prompt=[3]))

    asyncio.run(main())


def test_what_came_before_the_end_of_the_worker_is_still_delivered(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3])))
            [submit] = await submits(worker)
            step(worker, Piece(submit.id, [5], Finish("length")))
            worker.send(Failed("gone"))
            assert (await task)[-1].tokens == [5]

    asyncio.run(main())


def test_a_loss_noticed_by_another_thread_reaches_the_streams(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3])))
            await submits(worker)
            await asyncio.to_thread(front.fail_soon, "exit code -9")
            with pytest.raises(WorkerDied, match="exit code -9"):
                await task

    asyncio.run(main())


@pytest.mark.parametrize(("setting", "kind"), [(True, ConfigError), (False, WorkerDied)])
def test_a_worker_that_cannot_start_says_why(tokenizer: text.Tokenizer, setting: bool, kind: type[Exception]) -> None:
    async def main() -> None:
        ours, worker = pair()
        front = Front(ours, tokenizer, ServerConfig(model_path="m", random_seed=7))
        worker.send(Failed("--tp-size 3 does not divide 32 heads", setting))
        with pytest.raises(kind, match="does not divide"):
            await front.start()
        await front.close()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["mine", "all of them", None])
def test_an_abort_by_name_gives_the_reader_a_last_output(tokenizer: text.Tokenizer, name: str | None) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3], rid="mine", group="all of them")))
            other = asyncio.create_task(collect(front, Request(prompt=[3], rid="other")))
            first, second = await submits(worker, 2)
            step(worker, Piece(first.id, spell(tokenizer, "one")))
            await settle()
            assert (front.abort_all() if name is None else front.abort(name)) == (2 if name is None else 1)
            last = (await task)[-1]
            assert last.text == "one"
            assert last.finish is not None
            assert last.finish.type == "abort"
            assert Abort(first.id) in worker.receive()
            if name is not None:
                step(worker, Piece(second.id, [], Finish("length")))
            await other
            assert front.abort("nobody") == 0

    asyncio.run(main())


def test_a_drain_lets_open_requests_end_and_takes_no_new_ones(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3])))
            [submit] = await submits(worker)
            drain = asyncio.create_task(front.drain(5))
            await settle()
            with pytest.raises(Overloaded, match="shutting down"):
                await collect(front, Request(prompt=[3]))
            assert not drain.done()
            step(worker, Piece(submit.id, [5], Finish("length")))
            assert (await task)[-1].tokens == [5]
            await drain

    asyncio.run(main())


def test_a_drain_that_takes_too_long_ends_what_is_left(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3])))
            [submit] = await submits(worker)
            await front.drain(0.05)
            with pytest.raises(Overloaded, match="shutting down"):
                await task
            assert Abort(submit.id) in worker.receive()

    asyncio.run(main())


def test_a_flush_waits_for_its_own_answer(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            first, second = asyncio.create_task(front.flush()), asyncio.create_task(front.flush())
            await settle()
            a, b = [m for m in worker.receive() if isinstance(m, Flush)]
            worker.send(Flushed(b.ticket, False))
            worker.send(Flushed(a.ticket, True))
            assert (await first, await second) == (True, False)

    asyncio.run(main())


def test_a_message_that_breaks_the_reader_fails_the_front_instead_of_hanging_it(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3])))
            await submits(worker)
            worker.send(Step([None], Stats()))  # pyright: ignore[reportArgumentType]
            with pytest.raises(WorkerDied):
                await task

    asyncio.run(main())


def test_a_long_prompt_is_tokenised_without_holding_up_the_loop() -> None:
    class Noting:
        """A tokenizer that notes its threads."""

        threads: ClassVar[dict[int, int]] = {}

        def encode(self, text: str, most: int | None = None, side: str = "right") -> list[int]:
            self.threads[len(text)] = threading.get_ident()
            return [len(text)]

    async def main() -> None:
        front = Front(pair()[0], cast(text.Tokenizer, Noting()), ServerConfig(model_path="m", random_seed=1))
        assert await front.encode("short") == [5]
        assert await front.encode("x" * 100_000) == [100_000]
        assert Noting.threads[5] == threading.get_ident()
        assert Noting.threads[100_000] != threading.get_ident()

    asyncio.run(main())
