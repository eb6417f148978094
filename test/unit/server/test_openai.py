"""The OpenAI routes, driven by the real `openai` client over a socket."""

import json
from typing import Any

import openai
import pytest
from server_doubles import EOS

from sglang.base.config import ServerConfig
from sglang.base.limits import MAX_NEW_TOKENS

TEXTS = ["the capital of France", "日本語 naïve café", "👋 🌍 Привет", "one\n\ntwo\tthree", "é" * 20]


def last(server: Any) -> Any:
    """The sampling parameters that reached the worker last."""
    return server.worker.submits[-1].sampling


def frames(server: Any, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, as they are on the wire."""
    answer = server.post(path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]


def test_a_completion_has_the_shape_clients_expect(echo: Any) -> None:
    answer = echo.openai.completions.create(model="default", prompt="one two three", max_tokens=50, temperature=0)
    ids = echo.tokenizer.encode("one two three")
    assert answer.object == "text_completion"
    assert answer.model == "default"
    assert len(answer.id) == 32
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "one two three", "stop", None)
    assert choice.model_extra == {"matched_stop": EOS}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(ids))
    assert answer.usage.total_tokens == 2 * len(ids)


def test_completions_end_after_sixteen_tokens_by_default(echo: Any) -> None:
    answer = echo.openai.completions.create(model="m", prompt="one two three four five six seven eight nine ten" * 2)
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("form", ["text", "texts", "ids", "id lists"])
def test_every_form_of_prompt_works(echo: Any, form: str) -> None:
    ids = echo.tokenizer.encode("one two")
    prompt = {"text": "one two", "texts": ["one two", "three"], "ids": ids, "id lists": [ids, ids]}[form]
    answer = echo.openai.completions.create(model="m", prompt=prompt, max_tokens=20)
    want = {"text": ["one two"], "texts": ["one two", "three"], "ids": ["one two"], "id lists": ["one two"] * 2}[form]
    assert [c.text for c in answer.choices] == want
    assert [c.index for c in answer.choices] == list(range(len(want)))


def test_usage_counts_every_prompt_once_whatever_n_is(echo: Any) -> None:
    answer = echo.openai.completions.create(model="m", prompt=["one two", "three"], n=3, max_tokens=20)
    prompts = [len(echo.tokenizer.encode(t)) for t in ("one two", "three")]
    assert [c.text for c in answer.choices] == ["one two"] * 3 + ["three"] * 3
    assert answer.usage.prompt_tokens == sum(prompts)
    assert answer.usage.completion_tokens == 3 * sum(prompts)


def test_best_of_may_only_repeat_n(echo: Any) -> None:
    assert len(echo.openai.completions.create(model="m", prompt="x", n=2, best_of=2).choices) == 2
    assert len(echo.openai.completions.create(model="m", prompt="x", best_of=1).choices) == 1
    with pytest.raises(openai.BadRequestError, match="best_of must be equal to n"):
        echo.openai.completions.create(model="m", prompt="x", best_of=3)


def test_echo_puts_the_prompt_before_the_completion(echo: Any) -> None:
    for prompt in ("one two", echo.tokenizer.encode("one two")):
        answer = echo.openai.completions.create(model="m", prompt=prompt, echo=True, max_tokens=20)
        assert answer.choices[0].text == "one twoone two"


def test_echo_alone_scores_a_prompt(echo: Any) -> None:
    """What evaluation harnesses do: no new tokens, the prompt's log-probabilities."""
    answer = echo.openai.completions.create(model="m", prompt="one two", echo=True, max_tokens=0, logprobs=1)
    ids = echo.tokenizer.encode("one two")
    [choice] = answer.choices
    assert choice.text == "one two"
    assert choice.logprobs.token_logprobs == [None, *(-i / 100 for i in ids[1:])]
    assert choice.logprobs.top_logprobs[0] is None
    assert answer.usage.completion_tokens == 0


def test_completion_logprobs_are_lists_by_token(echo: Any) -> None:
    answer = echo.openai.completions.create(model="m", prompt="one two", logprobs=2, max_tokens=20)
    ids = [*echo.tokenizer.encode("one two")[1:], EOS]
    text = echo.tokenizer.token_text
    scores = answer.choices[0].logprobs
    assert scores.tokens == [text(i) for i in ids]
    assert scores.token_logprobs == [-i / 100 for i in ids]
    assert scores.top_logprobs == [{text(i): -i / 100, text(2): -0.02} for i in ids]
    assert scores.text_offset == [-1] * len(ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("echoes", [False, True])
def test_a_streamed_completion_adds_up_to_the_plain_one(echo: Any, text: str, echoes: bool) -> None:
    asked: dict[str, Any] = {"model": "m", "prompt": text, "max_tokens": 100, "logprobs": 1, "echo": echoes}
    whole = echo.openai.completions.create(**asked)
    chunks = list(echo.openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    tail = chunks.pop()
    assert tail.choices == []
    assert tail.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        joined = [x for c in chunks for x in getattr(c.choices[0].logprobs, name)]
        assert joined == getattr(whole.choices[0].logprobs, name)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_of_several_choices_numbers_them(echo: Any) -> None:
    stream = echo.openai.completions.create(model="m", prompt=["one two", "three"], n=2, max_tokens=30, stream=True)
    texts: dict[int, str] = {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "one two", 1: "one two", 2: "three", 3: "three"}


def test_usage_in_a_stream_comes_only_where_asked_for(echo: Any) -> None:
    body = {"model": "m", "prompt": "one two three", "max_tokens": 30}
    assert all("usage" not in frame for frame in frames(echo, "/v1/completions", body))
    running = frames(echo, "/v1/completions", {**body, "stream_options": {"continuous_usage_stats": True}})
    counts = [frame["usage"]["completion_tokens"] for frame in running]
    assert counts == sorted(counts)
    assert counts[-1] == len(echo.tokenizer.encode("one two three"))
    both = {"include_usage": True, "continuous_usage_stats": True}
    assert frames(echo, "/v1/completions", {**body, "stream_options": both})[-1]["choices"] == []


def test_a_chat_answer_has_the_shape_clients_expect(echo: Any) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two"}]
    answer = echo.openai.chat.completions.create(model="x/y", messages=messages, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == "x/y"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert "be brief" in choice.message.content, "the worker repeats the rendered conversation"
    assert "one two" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage.completion_tokens == answer.usage.prompt_tokens == len(echo.worker.submits[-1].tokens)


def test_a_chat_without_a_limit_may_fill_the_context(echo: Any) -> None:
    user = [{"role": "user", "content": "hi"}]
    echo.openai.chat.completions.create(model="m", messages=user)
    assert last(echo).max_new_tokens == MAX_NEW_TOKENS
    echo.openai.chat.completions.create(model="m", messages=user, max_tokens=7)
    assert last(echo).max_new_tokens == 7
    echo.openai.chat.completions.create(model="m", messages=user, max_tokens=7, max_completion_tokens=5)
    assert last(echo).max_new_tokens == 5
    assert last(echo).temperature == 1.0


def test_a_chat_that_says_nothing_is_sampled_as_the_model_wants(serving: Any) -> None:
    """A completion is not: there OpenAI's defaults are what clients rely on."""
    user = [{"role": "user", "content": "hi"}]
    with serving(sampling={"temperature": 0.6, "top_p": 0.9, "top_k": 20}) as server:
        server.openai.chat.completions.create(model="m", messages=user, top_p=0.5)
        assert (last(server).temperature, last(server).top_p, last(server).top_k) == (0.6, 0.5, 20)
        server.openai.completions.create(model="m", prompt="hi")
        assert (last(server).temperature, last(server).top_k) == (1.0, -1)
        assert server.get("/get_model_info").json()["preferred_sampling_params"]["top_k"] == 20


def test_answers_name_the_weights_and_count_no_reasoning(echo: Any) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "one"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        answer = echo.post(path, body).json()
        assert answer["metadata"] == {"weight_version": "default"}
        assert answer["usage"]["reasoning_tokens"] == 0


def test_parts_of_text_are_joined_and_developers_speak_for_the_system(echo: Any) -> None:
    def tokens(messages: Any) -> list[int]:
        echo.openai.chat.completions.create(model="m", messages=messages, max_tokens=1)
        return echo.worker.submits[-1].tokens.tolist()

    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert tokens([{"role": "user", "content": parts}]) == tokens([{"role": "user", "content": "onetwo"}])
    user, hint = {"role": "user", "content": "hi"}, {"content": "be brief"}
    assert tokens([{"role": "developer", **hint}, user]) == tokens([{"role": "system", **hint}, user])


def test_a_bare_string_of_messages_is_a_raw_prompt(echo: Any) -> None:
    answer = echo.post("/v1/chat/completions", {"model": "m", "messages": "one two"}).json()
    assert answer["choices"][0]["message"]["content"] == "one two"


def test_the_prompt_of_a_chat_begins_once(echo: Any) -> None:
    echo.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=1)
    assert echo.worker.submits[-1].tokens.count(0) == 1


def test_an_answer_that_was_begun_is_gone_on_with(echo: Any) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one two"}]
    echo.post("/v1/chat/completions", {"messages": messages, "continue_final_message": True, "max_tokens": 1})
    assert echo.tokenizer.decode(echo.worker.submits[-1].tokens.tolist()).endswith("<|assistant|>one two")


def test_the_template_hears_the_callers_variables(echo: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"mood": "calm"}, "max_tokens": 1}
    assert echo.post("/v1/chat/completions", body).status_code == 200
    assert "mood: calm" in echo.tokenizer.decode(echo.worker.submits[-1].tokens.tolist())
    assert echo.post("/v1/chat/completions", {**body, "reasoning_effort": "low"}).status_code == 200
    assert "effort: low" in echo.tokenizer.decode(echo.worker.submits[-1].tokens.tolist())


@pytest.mark.parametrize("text", TEXTS)
def test_a_streamed_chat_adds_up_to_the_plain_one(echo: Any, text: str) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}], "n": 2, "logprobs": True}
    whole = echo.openai.chat.completions.create(**asked)
    chunks = list(echo.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    tail = chunks.pop()
    assert (tail.choices, tail.usage) == ([], whole.usage)
    for i in range(2):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == i]
        assert mine[0].delta.role == "assistant"
        assert mine[0].delta.content == ""
        assert all(c.delta.role is None for c in mine[1:])
        assert "".join(c.delta.content or "" for c in mine) == whole.choices[i].message.content
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert mine[-1].delta.content is None
        scores = [t for c in mine if c.logprobs for t in c.logprobs.content]
        assert scores == whole.choices[i].logprobs.content


def test_chat_logprobs_carry_bytes_and_alternatives(echo: Any) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "日本"}], "logprobs": True, "top_logprobs": 2}
    content = echo.openai.chat.completions.create(**asked).choices[0].logprobs.content
    assert [t.logprob for t in content] == [-i / 100 for i in [*echo.worker.submits[-1].tokens[1:], EOS]]
    assert all([x.logprob for x in t.top_logprobs] == [t.logprob, -0.02] for t in content)
    joined = b"".join(bytes(t.bytes) for t in content)
    assert "日本".encode() in joined, "bytes are the token's own, also inside a character"


def test_sampling_fields_reach_the_worker(echo: Any) -> None:
    body = {
        "prompt": "one", "max_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125,
        "min_tokens": 2, "repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -0.5, "seed": 42,
        "stop": ["a", "b"], "stop_token_ids": [9], "ignore_eos": True, "no_stop_trim": True,
        "skip_special_tokens": False, "logit_bias": {"5": 1.5},
    }  # fmt: skip
    assert echo.post("/v1/completions", body).status_code == 200
    p = last(echo)
    assert (p.max_new_tokens, p.temperature, p.top_p, p.top_k, p.min_p) == (9, 0.5, 0.25, 7, 0.125)
    assert (p.min_new_tokens, p.repetition_penalty, p.frequency_penalty, p.presence_penalty) == (2, 1.5, 0.5, -0.5)
    assert (p.seed, p.stop, p.stop_token_ids, p.logit_bias) == (42, ("a", "b"), (9,), {5: 1.5})
    assert (p.ignore_eos, p.no_stop_trim, p.skip_special_tokens) == (True, True, False)


def test_a_stop_string_ends_a_completion_and_a_chat(echo: Any) -> None:
    choice = echo.openai.completions.create(model="m", prompt="one two three", stop=" three").choices[0]
    assert (choice.text, choice.finish_reason, choice.model_extra["matched_stop"]) == ("one two", "stop", " three")
    messages = [{"role": "user", "content": "one two three four"}]
    stream = echo.openai.chat.completions.create(model="m", messages=messages, stop=[" three"], stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text.endswith("one two")


def test_a_pattern_ends_a_completion_and_a_chat(echo: Any) -> None:
    extra = {"stop_regex": r"\sth\w+ee"}
    choice = echo.openai.completions.create(model="m", prompt="one two three", extra_body=extra).choices[0]
    assert (choice.text, choice.finish_reason, choice.model_extra["matched_stop"]) == ("one two", "stop", " three")
    messages = [{"role": "user", "content": "one two three four"}]
    stream = echo.openai.chat.completions.create(model="m", messages=messages, extra_body=extra, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text.endswith("one two")


def test_what_openai_has_and_we_do_not_need_is_ignored(echo: Any) -> None:
    extra = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True}
    user = [{"role": "user", "content": "hi"}]
    body = {"model": "m", "messages": user, **extra, "tool_choice": "none", "tools": [{"function": {"name": "f"}}]}
    assert echo.post("/v1/chat/completions", body).status_code == 200
    for harmless in ({"tools": []}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}}, {"model": "m"}):
        assert echo.post("/v1/chat/completions", {"messages": user, **harmless}).status_code == 200


def test_the_model_field_may_be_left_out_and_is_echoed(echo: Any) -> None:
    assert echo.post("/v1/completions", {"prompt": "one"}).json()["model"] == "default"
    assert echo.post("/v1/completions", {"prompt": "one", "model": "a b"}).json()["model"] == "a b"


def test_the_callers_id_is_the_answers_id(echo: Any) -> None:
    assert echo.post("/v1/completions", {"prompt": "one", "rid": "mine", "n": 2}).json()["id"] == "mine"


def test_models_lists_the_one_and_finds_it_by_name(serving: Any) -> None:
    with serving(config=ServerConfig(model_path="some/model", served_model_name="org/nice", random_seed=1)) as server:
        [card] = server.openai.models.list().data
        assert (card.id, card.object, card.owned_by) == ("org/nice", "model", "sglang")
        assert card.model_extra["max_model_len"] == 512
        assert server.get("/v1/models/org/nice").json()["id"] == "org/nice"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            server.openai.models.retrieve("other")


def test_cached_prompt_tokens_are_reported_where_the_server_is_told_to(serving: Any) -> None:
    body = {"prompt": ["one two", "three"], "n": 2}
    with serving(config=ServerConfig(model_path="m", random_seed=1, enable_cache_report=True)) as server:

        def cached() -> int:
            return server.post("/v1/completions", body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached() == 0, "what the second sample finds is the first one's work"
        assert cached() == sum(len(server.tokenizer.encode(text)) - 1 for text in ("one two", "three"))
    with serving() as server:
        assert server.post("/v1/completions", body).json()["usage"]["prompt_tokens_details"] is None


def test_the_async_client_streams_many_at_once(echo: Any) -> None:
    import asyncio

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=echo.url + "/v1", api_key="k", max_retries=0) as client:

            async def one(i: int) -> str:
                stream = await client.completions.create(model="m", prompt=f"one {i}", max_tokens=50, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(i) for i in range(64)))

    assert asyncio.run(main()) == [f"one {i}" for i in range(64)]


def test_a_body_without_a_content_type_is_still_json(echo: Any) -> None:
    answer = echo.http.post("/v1/completions", content=b'{"prompt": "one"}')
    assert answer.json()["choices"][0]["text"] == "one"
