"""Greedy output belongs to the prompt alone: not to batching, caching, chunking, retraction or other clients.

Real engine, real scheduler, the demo model in float32 on the CPU; one worker thread per setting.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import HANG_S

from sglang.launch import ThreadWorker
from sglang.offline import Engine

PROMPTS = [
    "The capital of France is",
    "Q: What is the capital of Japan?\nA:",
    "Once upon a time,",
    "List three colours:",
    "The capital of France is Paris. The capital of Germany is",
    "Q: What is the IP address of the Google DNS servers?\nA: ",
    "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\n" * 4,
    "x",
]
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


def start(**flags: Any) -> Engine:
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_total_tokens": 4096, "log_level": "error"}
    return Engine(worker=ThreadWorker, **{**settings, **flags})


def ids(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [a["output_ids"] for a in answers]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with start() as running:
        yield running


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[list[int]]:
    """Every prompt by itself, on an empty cache."""
    answers = []
    for prompt in PROMPTS:
        assert engine.flush_cache()
        answers.append(engine.generate(prompt, GREEDY))
    return ids(answers)


def test_a_batch_gives_what_each_prompt_gives_alone(engine: Engine, alone: list[list[int]]) -> None:
    engine.flush_cache()
    assert ids(engine.generate(PROMPTS, GREEDY)) == alone


def test_a_cached_prefix_changes_nothing(engine: Engine, alone: list[list[int]]) -> None:
    engine.generate(PROMPTS, GREEDY)
    answers = engine.generate(PROMPTS, GREEDY)
    assert sum(a["meta_info"]["cached_tokens"] for a in answers) > 50
    assert ids(answers) == alone


@pytest.mark.parametrize("together", [False, True])
def test_a_stream_ends_with_the_same_tokens(engine: Engine, alone: list[list[int]], together: bool) -> None:
    last: dict[int, list[int]] = {}
    for batch in [PROMPTS] if together else [[prompt] for prompt in PROMPTS]:
        for event in engine.generate(batch, GREEDY, stream=True):
            last[event["index"] if together else PROMPTS.index(batch[0])] = event["output_ids"]
    assert [last[i] for i in range(len(PROMPTS))] == alone


@pytest.mark.parametrize("prompt", ["Once upon a time,", "日本語と café 👋 Привет: "])
def test_a_stop_string_cuts_the_text_wherever_token_borders_fall(engine: Engine, prompt: str) -> None:
    """Pieces of the free text as stop strings: the stopped text is the free one up to where it first occurs."""
    free = engine.generate(prompt, {**GREEDY, "max_new_tokens": 40, "skip_special_tokens": False})["text"]
    stops = sorted({free[at : at + n] for at in range(0, len(free) - 7, 3) for n in (1, 3, 7)})[::3]
    params = [{**GREEDY, "max_new_tokens": 40, "skip_special_tokens": False, "stop": stop} for stop in stops]
    for stop, answer in zip(stops, engine.generate([prompt] * len(stops), params), strict=True):
        assert answer["text"] == free[: free.index(stop)]
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    kept = engine.generate([prompt] * len(stops), [{**p, "no_stop_trim": True} for p in params])
    for stop, answer in zip(stops, kept, strict=True):
        assert answer["text"] == free[: free.index(stop) + len(stop)]


def test_no_event_of_a_stream_ends_in_half_a_character() -> None:
    """Random weights draw bytes of all kinds; what is streamed only grows, and into what the tokens spell."""
    override = '{"num_hidden_layers": 1}'
    hot = {"temperature": 1.5, "max_new_tokens": 60, "ignore_eos": True, "skip_special_tokens": False}
    with start(load_format="dummy", json_model_override_args=override, random_seed=3) as noisy:
        tokenizer = noisy.get_tokenizer()
        broken = 0
        for seed in range(12):
            shown = ""
            for event in noisy.generate("x", {**hot, "seed": seed}, stream=True):
                assert event["text"].startswith(shown)
                shown = event["text"]
                spelled = b"".join(tokenizer.table(False)[id] for id in event["output_ids"])  # type: ignore[index]
                if event["meta_info"]["finish_reason"] is None:
                    assert spelled.decode("utf-8", "replace").startswith(shown)
                    broken += spelled.decode("utf-8", "replace") != shown
                else:
                    assert shown == spelled.decode("utf-8", "replace")
        assert broken, "no character was ever cut: this shows nothing"


@pytest.mark.parametrize(
    "flags",
    [
        {"chunked_prefill_size": 7},
        {"chunked_prefill_size": -1},
        {"page_size": 16},
        {"disable_radix_cache": True},
        {"max_running_requests": 2},
        {"schedule_policy": "dfs-weight"},
        {"schedule_policy": "random", "chunked_prefill_size": 3},
    ],
    ids=str,
)
def test_no_setting_of_the_scheduler_changes_the_output(flags: dict[str, Any], alone: list[list[int]]) -> None:
    with start(**flags) as other:
        assert ids(other.generate(PROMPTS, GREEDY)) == alone
        assert ids(other.generate(PROMPTS, GREEDY)) == alone


@pytest.fixture(scope="module", params=["fp8_e4m3", "fp8_e5m2"])
def rounded(request: pytest.FixtureRequest, engine: Engine) -> tuple[str, list[list[int]]]:
    """A type of 8 bits, and what each prompt alone gives where keys and values are kept in it."""

    def score(of: Engine) -> float:
        answer = of.generate(PROMPTS[1], {**GREEDY, "max_new_tokens": 1}, return_logprob=True)
        return answer["meta_info"]["output_token_logprobs"][0][0]

    with start(kv_cache_dtype=request.param, disable_radix_cache=True) as few:
        assert score(few) != pytest.approx(score(engine), abs=1e-3), "nothing is rounded"
        return request.param, ids([few.generate(prompt, GREEDY) for prompt in PROMPTS])


@pytest.mark.parametrize(
    "flags",
    [{}, {"chunked_prefill_size": 7}, {"page_size": 16, "disable_radix_cache": True}, {"max_total_tokens": 244}],
    ids=str,
)
def test_no_setting_changes_the_output_with_keys_of_8_bits(
    flags: dict[str, Any], rounded: tuple[str, list[list[int]]]
) -> None:
    kind, wanted = rounded
    with start(kv_cache_dtype=kind, schedule_conservativeness=0.01, **flags) as other:
        assert ids(other.generate(PROMPTS, GREEDY)) == wanted
        assert ids(other.generate(PROMPTS, GREEDY)) == wanted
        info = other.get_server_info()["internal_states"][0]
        assert info["retractions"] > 0 or "max_total_tokens" not in flags


def test_retracted_sequences_go_on_as_if_nothing_had_happened(alone: list[list[int]]) -> None:
    longest = 24 + 40 * 4  # of PROMPTS, generously
    with start(max_total_tokens=longest + 60, schedule_conservativeness=0.01) as small:
        assert ids(small.generate(PROMPTS, GREEDY)) == alone
        assert small.get_server_info()["internal_states"][0]["retractions"] > 0


def test_sampling_with_a_seed_does_not_depend_on_company(engine: Engine) -> None:
    hot = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 16, "ignore_eos": True, "seed": 7}
    by_itself = [engine.generate(p, hot)["output_ids"] for p in PROMPTS]
    assert ids(engine.generate(PROMPTS, hot)) == by_itself


def test_other_clients_that_leave_change_nothing(engine: Engine, alone: list[list[int]]) -> None:
    async def storm() -> list[list[int]]:
        rng = random.Random(0)

        async def leave(prompt: str) -> None:
            stream = await engine.async_generate(prompt + "!", {**GREEDY, "max_new_tokens": 200}, stream=True)
            async for _ in stream:
                if rng.random() < 0.3:
                    break
            await stream.aclose()

        staying = [asyncio.create_task(engine.async_generate(p, GREEDY)) for p in PROMPTS]
        await asyncio.gather(*(leave(rng.choice(PROMPTS)) for _ in range(30)))
        return ids(await asyncio.gather(*staying))

    assert asyncio.run(storm()) == alone
    deadline = time.monotonic() + HANG_S  # the worker hears of who left last only now
    while engine.get_server_info()["internal_states"][0]["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
