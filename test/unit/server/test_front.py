"""The front alone, against the other end of an in-memory link: the test is the worker."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import ClassVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_doubles import CONTEXT, EOS, VOCAB

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, FieldError, Overloaded, WorkerDied
from sglang.base.link import Memory, pair
from sglang.base.messages import (
    Abort,
    Failed,
    Finish,
    Flush,
    Flushed,
    FromWorker,
    Logprobs,
    Piece,
    Ready,
    Score,
    Stats,
    Step,
    Submit,
    ToWorker,
)
from sglang.base.sampling import SamplingParams
from sglang.server.front import Front, Output, Request
from sglang.text import tokenizer as text

Worker = Memory[ToWorker, FromWorker]
READY = Ready("llama", "LlamaForCausalLM", "float32", "cpu", VOCAB, CONTEXT, 10_000, 1, 64, 1, 4, 8, 0.1, (EOS,))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> text.Tokenizer:
    return text.load(str(tokenizer_folder))


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


def test_outputs_grow_by_their_deltas_and_end_with_a_finish(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt="one two")))
            [submit] = await submits(worker)
            ids = spell(tokenizer, "three four five")
            for token in ids:
                step(worker, Piece(submit.id, [token], cached_tokens=2 if token == ids[0] else 0))
                await settle()
            step(worker, Piece(submit.id, [EOS], Finish("stop", EOS)))
            outputs = await task
            assert len(outputs) == len(ids) + 1
            assert "".join(o.delta for o in outputs) == outputs[-1].text == "three four five"
            assert [t for o in outputs for t in o.new] == outputs[-1].tokens == [*ids, EOS]
            assert [o.finish for o in outputs[:-1]] == [None] * len(ids)
            assert outputs[-1].finish == Finish("stop", EOS)
            assert outputs[-1].cached_tokens == 2
            assert outputs[-1].prompt_tokens == len(tokenizer.encode("one two"))
            assert submit.tokens == tokenizer.encode("one two")

    asyncio.run(main())


def test_a_slow_reader_gets_what_has_waited_as_one_output(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker), aclosing(front.generate(Request(prompt="x"))) as outputs:
            first = asyncio.create_task(anext(outputs))
            [submit] = await submits(worker)
            ids = spell(tokenizer, "one two three four five six seven")
            step(worker, Piece(submit.id, ids[:1]))
            await first
            for token in ids[1:]:
                step(worker, Piece(submit.id, [token]))
            await settle()
            assert (await anext(outputs)).new == ids[1:]

    asyncio.run(main())


def test_an_interval_spaces_outputs_but_never_the_first_and_the_last(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt="x", interval=4)))
            [submit] = await submits(worker)
            ids = spell(tokenizer, "a long time ago in a galaxy far, far away one")[:11]
            for token in ids:
                step(worker, Piece(submit.id, [token]))
                await settle()
            step(worker, Piece(submit.id, [], Finish("length")))
            assert [len(o.new) for o in await task] == [1, 4, 4, 2]

    asyncio.run(main())


@pytest.mark.parametrize("interval", [0, 1, 3, 100])
def test_a_stop_string_ends_the_sequence_at_once_and_drops_what_follows(
    tokenizer: text.Tokenizer, interval: int
) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            request = Request(
                prompt="x", interval=interval, sampling=SamplingParams(stop=(" four",)), logprobs=Logprobs()
            )
            task = asyncio.create_task(collect(front, request))
            [submit] = await submits(worker)
            kept = spell(tokenizer, "one two three four")
            for token in [*kept, *spell(tokenizer, " five six")]:
                step(worker, Piece(submit.id, [token], scores=[Score(token, -1.0)]))
                await settle()
                if task.done():
                    break
            outputs = await task
            assert token == kept[-1], "found with the token that completes it, whatever the interval"
            last = outputs[-1]
            assert last.text == "one two three"
            assert last.finish == Finish("stop", " four")
            assert last.tokens == kept
            assert [s.token for o in outputs for s in o.scores] == kept
            assert Abort(submit.id) in worker.receive()

    asyncio.run(main())


def test_tokens_that_came_together_with_a_stop_string_are_not_counted(tokenizer: text.Tokenizer) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            request = Request(prompt="x", sampling=SamplingParams(stop=(" two",)), logprobs=Logprobs())
            task = asyncio.create_task(collect(front, request))
            [submit] = await submits(worker)
            kept, rest = spell(tokenizer, "one two"), spell(tokenizer, " three four")
            scores = [Score(t, -1.0) for t in kept + rest]
            step(worker, Piece(submit.id, kept + rest, Finish("length"), scores))
            [output] = await task
            assert (output.text, output.tokens, len(output.scores)) == ("one", kept, len(kept))
            assert output.finish == Finish("stop", " two")
            assert worker.receive() == [], "the worker had ended it by itself"

    asyncio.run(main())


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


def test_samples_of_one_request_get_seeds_of_their_own(tokenizer: text.Tokenizer) -> None:
    async def seeds() -> list[int | None]:
        async with started(tokenizer) as (front, worker):
            tasks = [asyncio.create_task(collect(front, Request(prompt=[3]))) for _ in range(3)]
            tasks.append(asyncio.create_task(collect(front, Request(prompt=[3], sampling=SamplingParams(seed=11)))))
            found = await submits(worker, 4)
            for submit in found:
                step(worker, Piece(submit.id, [], Finish("length")))
            await asyncio.gather(*tasks)
            return [submit.sampling.seed for submit in found]

    first, second = asyncio.run(seeds()), asyncio.run(seeds())
    assert first[3] == 11
    assert len(set(first)) == 4
    assert None not in first
    assert first == second, "--random-seed makes a run repeatable"


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (Request(prompt=[]), "prompt", "at least one token"),
        (Request(prompt=[0, 400], source="input_ids"), "input_ids", r"\[0, 400\), got 400"),
        (Request(prompt=[-1]), "prompt", "got -1"),
        (Request(prompt=[2**70]), "prompt", r"\[0, 400\)"),
        (Request(prompt=[3], sampling=SamplingParams(stop_token_ids=(400,))), "stop_token_ids", "got 400"),
        (Request(prompt=[3], sampling=SamplingParams(logit_bias={500: 1.0})), "logit_bias", "got 500"),
        (Request(prompt=[3], logprobs=Logprobs(ids=(-3,))), "token_ids_logprob", "got -3"),
        (Request(prompt=[3], logprobs=Logprobs(start=2)), "logprob_start_len", r"\[-1, 1\]"),
    ],
)
def test_what_the_model_cannot_take_never_reaches_the_worker(
    tokenizer: text.Tokenizer, request_: Request, field: str, words: str
) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            with pytest.raises(FieldError, match=words) as caught:
                await collect(front, request_)
            assert caught.value.field == field
            assert worker.receive() == []

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


WORDS = st.sampled_from(["one two", " naïve", " 日本語", "👋🌍", " far, far", " Grüße", "e\u0301", "\n\n", " ten"])


@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORDS, min_size=1, max_size=6), cuts=st.lists(st.integers(1, 5), min_size=1), waits=st.data())
def test_streamed_text_is_the_whole_text_however_steps_fall(
    tokenizer: text.Tokenizer, words: list[str], cuts: list[int], waits: st.DataObject
) -> None:
    """Characters of several tokens, steps of several tokens, readers slow and fast: the deltas add up."""
    whole = "".join(words)
    ids = spell(tokenizer, whole)
    pauses = waits.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))

    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt=[3])))
            [submit] = await submits(worker)
            at = turn = 0
            while at < len(ids):
                size = cuts[turn % len(cuts)]
                step(worker, Piece(submit.id, ids[at : at + size]))
                if pauses[at]:
                    await settle()
                at, turn = at + size, turn + 1
            step(worker, Piece(submit.id, [EOS], Finish("stop", EOS)))
            outputs = await task
            assert "".join(o.delta for o in outputs) == whole
            assert outputs[-1].text == whole
            assert not any("\ufffd" in o.delta for o in outputs)

    asyncio.run(main())


def test_a_long_prompt_is_tokenised_without_holding_up_the_loop() -> None:
    class Noting:
        """A tokenizer that notes its threads."""

        threads: ClassVar[dict[int, int]] = {}

        def encode(self, text: str) -> list[int]:
            self.threads[len(text)] = threading.get_ident()
            return [len(text)]

    async def main() -> None:
        front = Front(pair()[0], cast(text.Tokenizer, Noting()), ServerConfig(model_path="m", random_seed=1))
        assert await front.encode("short") == [5]
        assert await front.encode("x" * 100_000) == [100_000]
        assert Noting.threads[5] == threading.get_ident()
        assert Noting.threads[100_000] != threading.get_ident()

    asyncio.run(main())


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("stop", [(), ("zzz",), ("Tokyo",)])
def test_replaced_tokens_change_ids_and_never_text(
    tokenizer: text.Tokenizer, slow: bool, stop: tuple[str, ...]
) -> None:
    """The worker takes tokens back for others that spell the same and more, whether they were read already or not."""

    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            words = "café 日本語 Tokyo the capital"
            bytewise = [i for c in words for i in tokenizer.encode(c, add_special_tokens=False)]
            whole = tokenizer.encode(words, add_special_tokens=False)
            request = Request(prompt=[0, 3], sampling=SamplingParams(stop=stop), interval=1)
            outputs: list[Output] = []

            async def read() -> None:
                async for output in front.generate(request):
                    outputs.append(output)

            reader = asyncio.create_task(read())
            [sent] = await submits(worker)
            n = len(tokenizer.encode("café 日本語", add_special_tokens=False))
            begin = [i for c in "café 日本語" for i in tokenizer.encode(c, add_special_tokens=False)]
            steps = [Piece(sent.id, begin[:1]), Piece(sent.id, begin[1:-1])]
            steps.append(Piece(sent.id, begin[-1:]))
            steps.append(Piece(sent.id, whole[: n + 2], replaced=len(begin), jumped=2))
            steps.append(Piece(sent.id, whole[n + 1 :], Finish("stop"), replaced=1, jumped=1))
            for piece in steps:
                step(worker, piece)
                if not slow:
                    await settle()
                    await asyncio.sleep(0.002)
            await reader
            last = outputs[-1]
            assert len(bytewise) > len(whole)
            if stop == ("Tokyo",):
                assert last.text == "café 日本語 "
                assert last.finish == Finish("stop", "Tokyo")
            else:
                assert last.text == words
                assert last.tokens == whole
                assert last.jumped == 3
                assert last.finish == Finish("stop")
            assert "".join(output.delta for output in outputs) == last.text
            assert [output.first for output in outputs] == [True] + [False] * (len(outputs) - 1)

    asyncio.run(main())
