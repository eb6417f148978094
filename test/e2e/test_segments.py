"""Chains of segments: the same text as their gens sent one by one, and nothing left behind however they end."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import HANG_S

from sglang.base.errors import FieldError
from sglang.launch import ThreadWorker
from sglang.offline import Engine

GREEDY = {"temperature": 0, "max_new_tokens": 12}
FLAGS: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 6000, "log_level": "error"}
PROMPT = "Q: What is the capital of France?\nA:"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(worker=ThreadWorker, **FLAGS) as engine:
        yield engine


def gen(name: str | None, **sampling: Any) -> dict[str, Any]:
    return {"gen": name, "sampling_params": {**GREEDY, **sampling}}


def one_by_one(engine: Engine, segments: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The same segments as separate requests. Whole text, and the text of each gen and select."""
    text, parts = "", []
    for segment in segments:
        if "text" in segment:
            text += segment["text"]
            continue
        if "gen" in segment:
            parts.append(engine.generate(text, segment["sampling_params"])["text"])
        else:
            p = engine.generate(text, {"max_new_tokens": 0})["meta_info"]["prompt_tokens"]
            score = {"return_logprob": True, "logprob_start_len": p - 1}
            prompts = [text + choice for choice in segment["choices"]]
            answers = engine.generate(prompts, {"max_new_tokens": 0, "temperature": 0}, **score)
            means = [answer["meta_info"]["normalized_prompt_logprob"] for answer in answers]
            parts.append(segment["choices"][means.index(max(means))])
        text += parts[-1]
    return text.removeprefix(segments[0]["text"]), parts


CHAINS = {
    "stop strings": [
        {"text": PROMPT},
        gen("a", stop=["."]),
        {"text": ".\nQ: What is the capital of Japan?\nA:"},
        gen("b", stop=["\n"]),
        {"text": "\nQ: What is the capital of Italy?\nA:"},
        gen("c"),
        {"text": " The end."},
    ],
    "patterns": [
        {"text": PROMPT},
        gen("a", stop_regex=r"[.,]"),
        {"text": ".\nQ: What is the capital of Japan?\nA:"},
        gen("b", stop_regex=[r"\n\w", "Q"], stop="A", max_new_tokens=30),
        {"text": "\nQ: What is the capital of Italy?\nA:"},
        gen("c"),
    ],
    "no text between": [{"text": PROMPT}, gen("a", max_new_tokens=3), gen("b", max_new_tokens=3), gen(None)],
    "a select between": [
        {"text": PROMPT},
        gen("a", stop=["."]),
        {"text": ". To find it I use a"},
        {"select": "tool", "choices": [" calculator", " search engine"]},
        {"text": ".\nQ: What is 2 plus 3?\nA:"},
        gen("b"),
    ],
    "a select first": [
        {"text": "To answer this question: What is 7 times 6?. I need to use a "},
        {"select": "tool", "choices": ["calculator", "search engine"]},
        {"text": "\n"},
        gen("b", max_new_tokens=4),
    ],
    "nothing drawn": [{"text": PROMPT}, gen("a", max_new_tokens=0), {"text": " Paris"}, gen("b")],
    "a constraint": [
        {"text": PROMPT},
        gen("a", stop=["."]),
        {"text": ". The year is "},
        gen("year", regex="[0-9]{4}"),
        {"text": " and"},
        gen("b"),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_says_what_its_gens_say_one_by_one(engine: Engine, name: str) -> None:
    segments = CHAINS[name]
    answer = engine.generate(segments=segments)
    text, parts = one_by_one(engine, segments)
    assert answer["text"] == text
    assert [part["text"] for part in answer["segments"]] == parts
    assert [part["name"] for part in answer["segments"]] == [
        segment.get("gen", segment.get("select")) for segment in segments if "text" not in segment
    ]
    assert in_use(engine) == 0


@pytest.mark.parametrize("flags", [{"disable_radix_cache": True}, {"max_total_tokens": 120}], ids=["no cache", "tiny"])
def test_settings_change_no_chain(engine: Engine, flags: dict[str, Any]) -> None:
    expected = engine.generate(segments=CHAINS["stop strings"])["text"]
    with Engine(worker=ThreadWorker, **{**FLAGS, **flags}) as other:
        answers: list[str] = []
        chains = [
            threading.Thread(target=lambda: answers.append(other.generate(segments=CHAINS["stop strings"])["text"]))
            for _ in range(6)
        ]
        for chain in chains:
            chain.start()
        for chain in chains:
            chain.join(HANG_S)
        assert answers == [expected] * 6
        assert in_use(other) == 0


def test_a_chain_computes_nothing_twice(engine: Engine) -> None:
    engine.flush_cache()
    before = engine.get_server_info()["internal_states"][0]
    answer = engine.generate(segments=CHAINS["stop strings"])
    meta = answer["meta_info"]
    after = engine.get_server_info()["internal_states"][0]
    assert after["prompt_tokens"] - before["prompt_tokens"] <= meta["prompt_tokens"], "admitted once, then extended"
    assert meta["cached_tokens"] <= 12, "what the chain has computed itself is not called cached"
    assert meta["completion_tokens"] == sum(p["meta_info"]["completion_tokens"] for p in answer["segments"])


def test_a_chain_takes_a_step_for_each_token_and_none_besides(engine: Engine) -> None:
    """What follows a gen is computed with the step that draws the next token; what lies behind a stop string, never."""
    for segments in (CHAINS["stop strings"], CHAINS["no text between"], CHAINS["stop strings"][:2]):
        before = engine.get_server_info()["internal_states"][0]
        answer = engine.generate(segments=segments)
        assert in_use(engine) == 0
        after = engine.get_server_info()["internal_states"][0]
        said = sum(part["meta_info"]["completion_tokens"] for part in answer["segments"])
        assert after["generated_tokens"] - before["generated_tokens"] == said + 1, "one is in_use's"
        assert after["steps"] - before["steps"] == said + 1


def test_a_stream_of_a_chain_names_its_segments(engine: Engine) -> None:
    segments = CHAINS["a select between"]
    *parts, whole = list(engine.generate(segments=segments, stream=True))
    assert whole["text"] == engine.generate(segments=segments)["text"]
    seen: dict[int, str] = {}
    for part in parts:
        assert part["text"].startswith(seen.get(part["segment"], "")), "text only grows"
        seen[part["segment"]] = part["text"]
    assert list(seen) == [0, 1, 2], "in order"
    assert [seen[i] for i in range(3)] == [part["text"] for part in whole["segments"]]
    assert {part["segment"]: part["name"] for part in parts} == {0: "a", 1: "tool", 2: "b"}


@pytest.mark.parametrize(
    ("segments", "field"),
    [
        ([], "segments"),
        ([{"text": "a"}], "segments"),
        ([{"text": "a"}, {"text": "b"}], "segments"),
        ([gen("a"), {"text": "b"}], "segments[0]"),
        ([{"text": "a"}, {}], "segments[1]"),
        ([{"text": "a"}, {"text": "b", "gen": "c"}], "segments[1]"),
        ([{"text": "a"}, gen("b", temperature=-1)], "segments[1].sampling_params.temperature"),
        ([{"text": "a"}, gen("b", n=2)], "segments[1].sampling_params.n"),
        ([{"text": "a"}, {"select": "b"}], "segments[1].choices"),
        ([{"text": "a"}, {"select": "b", "choices": ["c", ""]}], "segments[1].choices"),
        ([{"text": "a"}, {"select": "b", "choices": ["c"], "method": "best"}], "segments[1].method"),
        ([{"text": "a"}, {"select": "b", "choices": ["c"], "sampling_params": {}}], "segments[1].sampling_params"),
        ([{"text": "a"}, gen("b"), gen("c", stop_regex="(")], "segments[2].sampling_params.stop_regex"),
        ([{"text": "a"}, gen("b", regex="(")], "segments[1].sampling_params.regex"),
        ([{"text": "a"}, gen("b", max_new_tokens=2), {"text": "long " * 9000}, gen("c")], "segments"),
    ],
)
def test_a_bad_segment_is_named(engine: Engine, segments: list[dict[str, Any]], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        engine.generate(segments=segments)
    assert caught.value.field == field
    assert in_use(engine) == 0


def test_what_belongs_into_a_segment_is_refused_beside_them(engine: Engine) -> None:
    with pytest.raises(FieldError, match="belongs into a segment"):
        engine.generate("text", segments=CHAINS["no text between"])


def test_a_client_that_leaves_a_chain_frees_it(served: Any) -> None:
    body = {"segments": [{"text": PROMPT}, gen("a", max_new_tokens=500, ignore_eos=True), gen("b")], "stream": True}
    for _ in range(8):
        with httpx.stream("POST", served.url + "/generate", json=body, timeout=HANG_S) as response:
            first = next(line for line in response.iter_lines() if line)
            assert json.loads(first.removeprefix("data: "))["segment"] == 0
    deadline = time.monotonic() + HANG_S
    while served.metric("sglang:num_used_tokens") or served.metric("sglang:num_running_reqs"):
        assert time.monotonic() < deadline, "a chain nobody reads goes on"
        time.sleep(0.05)
    assert httpx.get(served.url + "/get_model_info", timeout=HANG_S).json()["segments"] is True


def in_use(engine: Engine) -> int:
    """KV tokens of sequences that run or are held, once the worker has nothing to do."""
    deadline = time.monotonic() + HANG_S
    while True:
        engine.generate("x", {"max_new_tokens": 1})  # what the worker says of itself comes with an answer
        state = engine.get_server_info()["internal_states"][0]
        if not state["used_tokens"] or time.monotonic() > deadline:
            return state["used_tokens"]
