"""What the worker is told of a sequence, and of a chain ahead: what becomes of a guess that was wrong."""

import asyncio
from typing import Any

import pytest
from front_alone import Worker, collect, settle, spell, started, step, submits
from server_doubles import EOS

from sglang.base.errors import FieldError
from sglang.base.messages import AT_END, Abort, Extend, Finish, Logprobs, Piece, Resume, Submit, ToWorker
from sglang.base.sampling import SamplingParams
from sglang.server import segments
from sglang.server.front import Front
from sglang.server.native_types import ChainAnswer, GenerateRequest
from sglang.server.streams import Request
from sglang.text import tokenizer as text

PROMPT = "one two"


def chain(*steps: Any) -> segments.Chain:
    """Of texts, and of sampling parameters for gens."""
    raw = [{"text": s} if isinstance(s, str) else {"gen": f"g{i}", "sampling_params": s} for i, s in enumerate(steps)]
    body = segments.msgspec.convert({"segments": [{"text": PROMPT}, *raw], "rid": "r"}, GenerateRequest)
    return segments.parse(body, 1)


def started_chain(front: Front, *steps: Any) -> "asyncio.Task[ChainAnswer]":
    async def run() -> ChainAnswer:
        answer = [part async for part in segments.run(front, chain(*steps))][-1]
        assert isinstance(answer, ChainAnswer)
        return answer

    return asyncio.create_task(run())


async def told(worker: Worker) -> list[ToWorker]:
    await settle()
    return [*worker.receive()]


def play(tokenizer: text.Tokenizer, script: Any) -> None:
    async def main() -> None:
        async with started(tokenizer) as (front, worker):
            await script(front, worker)
            await settle()
            assert not front._streams and not front.open_requests

    asyncio.run(main())


@pytest.mark.parametrize("early", [False, True], ids=["tokens come later", "tokens are there already"])
@pytest.mark.parametrize("stop", [False, True], ids=["by its length", "by a stop token"])
def test_the_next_gen_is_told_ahead_and_its_tokens_are_taken(
    tokenizer: text.Tokenizer, stop: bool, early: bool
) -> None:
    async def script(front: Front, worker: Worker) -> None:
        task = started_chain(front, {"max_new_tokens": 2}, " five", {"max_new_tokens": 1}, " end")
        submit, ahead = await told(worker)
        said = spell(tokenizer, " three four")
        assert isinstance(submit, Submit) and submit.hold
        assert isinstance(ahead, Extend) and (ahead.of, ahead.keep, ahead.hold) == (submit.id, AT_END, False)
        assert submit.tokens.tolist() == tokenizer.encode(PROMPT) and ahead.tokens == spell(tokenizer, " five")
        last = Piece(submit.id, [*said, EOS] if stop else said, Finish("stop", EOS) if stop else Finish("length"))
        six = Piece(ahead.id, spell(tokenizer, " six"), Finish("length"))
        step(worker, last, *([six] if early else []))
        if not early:
            assert await told(worker) == []
            step(worker, six)
        answer = await task
        assert answer.text == " three four five six end"
        assert [part.text for part in answer.segments] == [" three four", " six"]
        assert answer.meta_info.prompt_tokens == len(submit.tokens) + len(ahead.tokens)
        assert [m for m in await told(worker) if not isinstance(m, Abort)] == []

    play(tokenizer, script)


@pytest.mark.parametrize("why", ["a stop string", "a pattern", "other tokens", "both"])
def test_a_wrong_guess_is_replaced(tokenizer: text.Tokenizer, why: str) -> None:
    async def script(front: Front, worker: Worker) -> None:
        stop: dict[str, Any] = {"a pattern": {"stop_regex": "fo.r"}, "other tokens": {}}.get(why, {"stop": ["four"]})
        params = {"max_new_tokens": 9, **stop}
        task = started_chain(front, params, " five", {"max_new_tokens": 1}, "!", {"max_new_tokens": 1})
        submit, ahead = await told(worker)
        assert isinstance(submit, Submit) and isinstance(ahead, Extend)
        letters = [token for letter in " three" for token in spell(tokenizer, letter)]  # not as it would be encoded
        said = letters if why == "other tokens" else spell(tokenizer, " three four")
        step(worker, Piece(submit.id, said, Finish("length") if why in ("other tokens", "both") else None))
        [instead] = await told(worker)
        assert isinstance(instead, Extend) and (instead.of, instead.ahead) == (submit.id, ahead.id)
        text = PROMPT + (" three" if why == "other tokens" else " three ") + " five"
        known = [*submit.tokens, *said]
        assert known[: instead.keep] + instead.tokens == tokenizer.encode(text)
        step(worker, Piece(ahead.id, spell(tokenizer, " seven")))  # what the wrong guess said is nobody's
        step(worker, Piece(instead.id, spell(tokenizer, " six"), Finish("length")))
        [after] = await told(worker)
        assert isinstance(after, Extend) and after.keep != AT_END, "who guessed wrong does not guess again"
        step(worker, Piece(after.id, spell(tokenizer, " ten"), Finish("length")))
        assert (await task).text == text.removeprefix(PROMPT) + " six! ten"

    play(tokenizer, script)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_that_leaves_ends_what_was_told_ahead(tokenizer: text.Tokenizer, when: str) -> None:
    async def script(front: Front, worker: Worker) -> None:
        task = started_chain(front, {"max_new_tokens": 2}, " five", {"max_new_tokens": 5}, "!", {})
        submit, ahead = await told(worker)
        assert isinstance(submit, Submit) and isinstance(ahead, Extend)
        ids = {submit.id, ahead.id}
        if when == "after":
            step(worker, Piece(submit.id, spell(tokenizer, " three four"), Finish("length")))
            [further] = await told(worker)
            assert isinstance(further, Extend) and further.keep == AT_END
            ids = {ahead.id, further.id}
        task.cancel()
        assert ids <= {message.id for message in await told(worker) if isinstance(message, Abort)}

    play(tokenizer, script)


def test_an_abort_by_name_counts_a_chain_once(tokenizer: text.Tokenizer) -> None:
    async def script(front: Front, worker: Worker) -> None:
        task = started_chain(front, {"max_new_tokens": 2}, " five", {"max_new_tokens": 5})
        submit, ahead = await told(worker)
        assert isinstance(submit, Submit) and isinstance(ahead, Extend)
        assert front.abort("r") == 1
        assert (await task).meta_info.finish_reason.type == "abort"  # type: ignore[union-attr]
        assert {submit.id, ahead.id} <= {message.id for message in await told(worker) if isinstance(message, Abort)}

    play(tokenizer, script)


def test_what_is_told_ahead_may_be_refused_or_its_worker_may_die(tokenizer: text.Tokenizer) -> None:
    async def refused(front: Front, worker: Worker) -> None:
        task = started_chain(front, {"max_new_tokens": 1}, " five", {"max_new_tokens": 5}, "!", {})
        submit, ahead, *_ = await told(worker)
        assert isinstance(submit, Submit) and isinstance(ahead, Extend)
        step(worker, Piece(submit.id, spell(tokenizer, " four"), Finish("length")))
        step(worker, Piece(ahead.id, [], Finish("abort", message="too long", status=400)))
        with pytest.raises(Exception, match="too long"):
            await task
        assert ahead.id in {message.id for message in await told(worker) if isinstance(message, Abort)}, "it is held"

    async def dead(front: Front, worker: Worker) -> None:
        task = started_chain(front, {"max_new_tokens": 1}, " five", {"max_new_tokens": 5})
        await told(worker)
        front.fail("gone")
        with pytest.raises(Exception, match="gone"):
            await task

    play(tokenizer, refused)
    play(tokenizer, dead)


@pytest.mark.parametrize(
    ("first", "between", "second"),
    [
        ({"regex": "a"}, " five", {}),
        ({}, " five", {"regex": "a"}),
        ({}, " five", {"logit_bias": {"399999": 1}}),
        ({}, "nd", {}),  # how it is encoded depends on what stands before it
        ({}, "x " * 2000, {}),
    ],
    ids=["after a constraint", "before one", "what is not valid", "a word's end", "long"],
)
def test_what_cannot_be_guessed_is_not_told(tokenizer: text.Tokenizer, first: Any, between: str, second: Any) -> None:
    async def script(front: Front, worker: Worker) -> None:
        task = started_chain(front, first, between, second)
        assert len(await told(worker)) == 1
        task.cancel()

    play(tokenizer, script)


def test_a_worker_that_pauses_is_told_whether_it_was_a_stop_string(tokenizer: text.Tokenizer) -> None:
    async def script(front: Front, worker: Worker) -> None:
        task = started_chain(front, {"max_new_tokens": 9, "stop": ["four"]}, " five", {"max_new_tokens": 1})
        submit, ahead = await told(worker)
        assert isinstance(submit, Submit) and isinstance(ahead, Extend)
        step(worker, Piece(submit.id, spell(tokenizer, " three"), paused=True))
        assert await told(worker) == [Resume(submit.id)]
        step(worker, Piece(submit.id, spell(tokenizer, " four"), paused=True))
        [instead] = await told(worker)
        assert isinstance(instead, Extend) and instead.keep == len(submit.tokens) + len(spell(tokenizer, " three"))
        step(worker, Piece(instead.id, spell(tokenizer, " six"), Finish("length")))
        assert (await task).text == " three  five six"

    play(tokenizer, script)


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
