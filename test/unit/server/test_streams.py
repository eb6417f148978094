"""What comes of a sequence, in whatever pieces it comes: outputs that add up; the test is the worker."""

import asyncio
from contextlib import aclosing

import pytest
from front_alone import collect, settle, spell, started, step, submits
from hypothesis import given, settings
from hypothesis import strategies as st
from server_doubles import EOS

from sglang.base.messages import (
    Abort,
    Finish,
    Logprobs,
    Piece,
    Score,
)
from sglang.base.sampling import SamplingParams
from sglang.server.streams import Output, Request
from sglang.text import tokenizer as text

WORDS = st.sampled_from(["one two", " naïve", " 日本語", "👋🌍", " far, far", " Grüße", "e\u0301", "\n\n", " ten"])


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
            assert submit.tokens.tolist() == tokenizer.encode("one two")

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
@pytest.mark.parametrize("logprobs", [None, Logprobs()], ids=["plain", "scored"])
@pytest.mark.parametrize(
    "sampling", [SamplingParams(stop=(" four",)), SamplingParams(stop_regex=(r" f\w+r",))], ids=["string", "pattern"]
)
def test_a_stop_ends_the_sequence_at_once_and_drops_what_follows(
    tokenizer: text.Tokenizer, sampling: SamplingParams, logprobs: Logprobs | None, interval: int
) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            request = Request(prompt="x", interval=interval, sampling=sampling, logprobs=logprobs)
            task = asyncio.create_task(collect(front, request))
            [submit] = await submits(worker)
            kept = spell(tokenizer, "one two three four")
            for token in [*kept, *spell(tokenizer, " five six")]:
                step(worker, Piece(submit.id, [token], scores=[Score(token, -1.0)] if logprobs else []))
                await settle()
                if task.done():
                    break
            outputs = await task
            assert token == kept[-1], "found with the token that completes it, whatever the interval"
            last = outputs[-1]
            assert last.text == "one two three"
            assert last.finish == Finish("stop", " four")
            assert last.tokens == kept
            assert [s.token for o in outputs for s in o.scores] == (kept if logprobs else [])
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


@pytest.mark.parametrize("slow", [False, True])
def test_tokens_jumped_behind_a_stop_string_are_not_counted(tokenizer: text.Tokenizer, slow: bool) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            task = asyncio.create_task(collect(front, Request(prompt="x", sampling=SamplingParams(stop=(" three",)))))
            [submit] = await submits(worker)
            drawn, forced, rest = (spell(tokenizer, words) for words in ("one", " two three four", " five six"))
            step(worker, Piece(submit.id, drawn + forced, jumped=len(forced)))
            if slow:
                step(worker, Piece(submit.id, rest, jumped=len(rest) - 1))
            [output] = await task
            kept = spell(tokenizer, "one two three")
            assert (output.text, output.tokens) == ("one two", kept)
            assert output.jumped == len(kept) - len(drawn)

    asyncio.run(main())


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


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(stop=("zzz",)),
        SamplingParams(stop=("Tokyo",)),
        SamplingParams(stop_regex=("T.{3}o",)),
        SamplingParams(stop_regex=("é.*z",)),
    ],
)
def test_replaced_tokens_change_ids_and_never_text(
    tokenizer: text.Tokenizer, slow: bool, sampling: SamplingParams
) -> None:
    """The worker takes tokens back for others that spell the same and more, whether they were read already or not."""

    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            words = "café 日本語 Tokyo the capital"
            bytewise = [i for c in words for i in tokenizer.encode(c, add_special_tokens=False)]
            whole = tokenizer.encode(words, add_special_tokens=False)
            request = Request(prompt=[0, 3], sampling=sampling, interval=1)
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
            if sampling.stop == ("Tokyo",) or sampling.stop_regex == ("T.{3}o",):
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
