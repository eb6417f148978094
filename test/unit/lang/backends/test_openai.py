"""The OpenAI backend against a server that speaks OpenAI's and Azure's formats."""

import json
import logging

import openai
import pytest
import tiktoken
from api_state import State, chat, text
from open_connections import check_it_closes_its_connections
from wire_model import vocabulary
from wire_server import WireServer

from sglang.base.choices import greedy_token_selection
from sglang.lang.backends.openai import OpenAI
from sglang.lang.ir import SglSamplingParams as Params

INSTRUCT = "gpt-3.5-turbo-instruct"


def chat_model(wire: WireServer, name: str = "gpt-4o", **more) -> OpenAI:
    return OpenAI(name, base_url=wire.url + "/v1", api_key="k", **more)


def completion_model(wire: WireServer, **more) -> OpenAI:
    """With the vocabulary that the server's model has, so that nothing is downloaded."""
    return OpenAI(INSTRUCT, base_url=wire.url + "/v1", api_key="k", tokenizer=vocabulary(), **more)


def foreign_model(wire: WireServer) -> OpenAI:
    """A completion model on another host, whose vocabulary nobody here knows."""
    return OpenAI("acme/small", is_chat_model=False, base_url=wire.url + "/v1", api_key="k")


def streamed(backend, state: State, params: Params) -> tuple[list[str], dict | None]:
    pieces = list(backend.generate_stream(state, params))
    return [piece for piece, _ in pieces], pieces[-1][1]


def test_a_chat_model_answers_the_messages(wire):
    backend = chat_model(wire)
    state = chat("What is the capital of the United States?", system="You are a helpful assistant.")
    answer, meta = backend.generate(state, Params(max_new_tokens=64))
    assert answer == "Washington, D.C."
    assert wire.bodies[0]["messages"] == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of the United States?"},
    ]
    assert meta and meta["finish_reason"] == {"type": "stop"} and meta["completion_tokens"] > 0


def test_arguments_are_sent_and_defaults_are_not(wire):
    params = Params(max_new_tokens=9, stop=("\n", "END"), temperature=0.5, top_p=0.9, frequency_penalty=0.1)
    chat_model(wire).generate(chat("Hi"), params)
    chat_model(wire).generate(chat("Hi"), Params(max_new_tokens=9))
    sent, plain = wire.bodies
    assert {k: v for k, v in sent.items() if k not in ("messages", "model")} == {
        "max_tokens": 9, "stop": ["\n", "END"], "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.1,
    }  # fmt: skip
    assert plain.keys() == {"model", "messages", "max_tokens"}


def test_a_completion_model_continues_the_text_until_the_stop(wire):
    answer, meta = completion_model(wire).generate(text("The capital of France is"), Params(stop=("\n",)))
    assert answer == " Paris."
    assert wire.requests[0].path == "/v1/completions"
    assert wire.bodies[0]["prompt"] == "The capital of France is"
    assert meta and meta["prompt_tokens"] == len(vocabulary().encode_ordinary("The capital of France is"))


@pytest.mark.parametrize(
    "make, state", [(chat_model, chat("two local attractions?")), (completion_model, text("two local attractions"))]
)
def test_a_stream_brings_the_same_text_in_pieces_and_then_the_usage(wire, make, state):
    backend = make(wire)
    whole, told = backend.generate(state, Params())
    pieces, meta = streamed(backend, state, Params())
    assert "".join(pieces) == whole
    assert len([p for p in pieces if p]) > 5
    assert meta == told
    assert backend.token_usage.completion_tokens == 2 * told["completion_tokens"]


def test_a_stream_that_breaks_is_an_error_and_not_a_short_answer(wire):
    wire.cut_streams_after = 3
    with pytest.raises((openai.APIConnectionError, RuntimeError)):
        streamed(chat_model(wire), chat("two local attractions?"), Params())


def test_usage_adds_up_and_can_be_reset(wire):
    backend = chat_model(wire)
    _, first = backend.generate(chat("Hi"), Params())
    _, second = backend.generate(chat("Hi again"), Params())
    assert backend.token_usage.prompt_tokens == first["prompt_tokens"] + second["prompt_tokens"]
    backend.token_usage.reset()
    assert (backend.token_usage.prompt_tokens, backend.token_usage.completion_tokens) == (0, 0)


def test_a_refused_request_is_repeated_after_the_time_the_server_asks_for(wire):
    wire.fail(429, times=2, headers={"retry-after-ms": "1"})
    wire.fail(500, headers={"retry-after-ms": "1"})
    answer, _ = chat_model(wire).generate(chat("the capital of the United States?"), Params())
    assert answer == "Washington, D.C."
    assert len(wire.requests) == 4


def test_after_the_retries_the_error_is_the_providers(wire):
    wire.fail(429, times=3, headers={"retry-after-ms": "1"})
    with pytest.raises(openai.RateLimitError, match="planted"):
        chat_model(wire, max_retries=2).generate(chat("Hi"), Params())


def test_azure_has_its_own_paths_and_key(wire):
    backend = OpenAI("my-deployment", is_azure=True, azure_endpoint=wire.url, api_key="k", api_version="2024-02-01")
    answer, _ = backend.generate(chat("the capital of the United States?"), Params())
    assert answer == "Washington, D.C."
    assert wire.requests[0].path == "/openai/deployments/my-deployment/chat/completions"
    assert wire.requests[0].query == {"api-version": "2024-02-01"}
    assert wire.requests[0].headers["api-key"] == "k"


def test_a_reasoning_model_is_asked_in_its_words(wire):
    answer, _ = chat_model(wire, "o3-mini").generate(chat("Write JSON"), Params(max_new_tokens=50))
    assert answer == '{"name": "Ada"}'
    assert wire.bodies[0]["max_completion_tokens"] == 50


def test_images_travel_in_the_message(wire):
    state = chat("x")
    state.messages_ = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/AAAA"}},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    chat_model(wire).generate(state, Params())
    assert wire.bodies[0]["messages"] == state.messages_


def test_a_json_schema_becomes_a_response_format(wire):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    chat_model(wire).generate(chat("Write JSON"), Params(json_schema=json.dumps(schema)))
    assert wire.bodies[0]["response_format"]["json_schema"]["schema"] == schema


def test_several_answers_are_a_list(wire):
    answers, _ = chat_model(wire).generate(chat("Write JSON"), Params(n=2))
    assert answers == ['{"name": "Ada"}'] * 2
    answers, _ = completion_model(wire).generate(text("Write JSON"), Params(n=2))
    assert answers == ['{"name": "Ada"}'] * 2


@pytest.mark.parametrize("make, state", [(chat_model, chat("Write JSON")), (completion_model, text("Write JSON"))])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_in_the_words_of_the_local_server(wire, make, state, stream):
    params = Params(return_logprob=True, top_logprobs_num=2)
    backend = make(wire)
    meta = streamed(backend, state, params)[1] if stream else backend.generate(state, params)[1]
    assert "".join(token for _, _, token in meta["output_token_logprobs"]) == '{"name": "Ada"}'
    assert all(-1e-3 < score <= 0 for score, *_ in meta["output_token_logprobs"])
    assert [len(top) for top in meta["output_top_logprobs"]] == [2] * len(meta["output_token_logprobs"])


@pytest.mark.parametrize(
    "wanted",
    [{"regex": r"\d+"}, {"ebnf": 'root ::= "a"'}, {"top_k": 5}, {"ignore_eos": True}, {"min_p": 0.1},
     {"stop_token_ids": (1,)}, {"min_new_tokens": 3}, {"stop_regex": ("a",)}, {"dtype": "float"},
     {"return_logprob": True, "logprob_start_len": 2}],
)  # fmt: skip
@pytest.mark.parametrize("make, state", [(chat_model, chat("Hi")), (completion_model, text("Hi"))])
def test_what_the_model_cannot_do_is_an_error_that_names_it(wire, make, state, wanted):
    name = list(wanted)[-1]
    with pytest.raises(ValueError, match=f"cannot serve {name}=.*sgl.Runtime"):
        make(wire).generate(state, Params(**wanted))
    assert not wire.requests


def test_a_chat_model_speaks_only_where_its_message_begins(wire):
    with pytest.raises(RuntimeError, match="num_api_spec_tokens"):
        chat_model(wire).generate(chat("Hi", begun="Sure: "), Params())
    with pytest.raises(RuntimeError, match=r"sgl\.assistant"):
        chat_model(wire).generate(text("The capital of France is"), Params())
    with pytest.raises(RuntimeError, match=r"sgl\.assistant"):
        chat_model(wire).generate(State("USER:", cur_role="user"), Params())
    assert not wire.requests


def test_a_completion_model_sees_no_images(wire):
    with pytest.raises(ValueError, match="no images"):
        completion_model(wire).generate(State("<image>What?", images_=["AA"]), Params())


def test_without_the_key_the_constructor_says_so(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError, match="api_key"):
        OpenAI("gpt-4o")


class TestTypes:
    def test_an_int_is_held_to_digits(self, wire):
        number, _ = completion_model(wire).generate(text("The number of hours in a day is "), Params(dtype="int"))
        assert number == "24"
        allowed = {vocabulary().decode([int(i)]) for i in wire.bodies[0]["logit_bias"]}
        assert {"7", "-", " ", "<|endoftext|>"} <= allowed
        assert len(allowed) <= 300

    def test_without_a_vocabulary_an_int_is_read_from_what_was_said(self, wire):
        number, _ = foreign_model(wire).generate(text("The number of hours in a day is "), Params(dtype="int"))
        assert number == "24"
        assert "logit_bias" not in wire.bodies[0]

    def test_no_int_in_the_answer_is_an_error(self, wire):
        with pytest.raises(RuntimeError, match="asked for an int and wrote"):
            foreign_model(wire).generate(text("The capital of France is"), Params(dtype="int"))

    def test_a_str_is_what_stands_between_quotes(self, wire):
        wire.model.answers["Her name is"] = 'Ada Lovelace" she said'  # type: ignore[index]
        name, _ = completion_model(wire).generate(text("Her name is "), Params(dtype="str"))
        assert name == '"Ada Lovelace"'
        assert wire.bodies[0]["prompt"] == 'Her name is "'

    def test_a_typed_stream_is_one_piece(self, wire):
        pieces, _ = streamed(completion_model(wire), text("hours in a day is "), Params(dtype="int"))
        assert pieces == ["24"]


class TestSelect:
    CHOICES = ["calculator", "search engine", "search party"]

    @pytest.mark.parametrize("make", [completion_model, foreign_model, chat_model])
    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_the_model_s_choice_is_taken(self, wire, make, at):
        state = text("I need to use a ")
        wire.model.answers[state.text_] = self.CHOICES[at]
        if make is chat_model:
            state = chat("Which tool?", begun="I will use a ")
            wire.model.answers["Reply with one letter"] = "ABC"[at]
        picked = make(wire).select(state, self.CHOICES)
        assert picked.decision == self.CHOICES[at]
        assert picked.meta_info["scores"].index(max(picked.meta_info["scores"])) == at

    def test_only_where_choices_part_the_model_is_asked(self, wire):
        wire.model.answers["I need to use a "] = "search engine"
        completion_model(wire).select(text("I need to use a "), self.CHOICES)
        rows = [vocabulary().encode_ordinary(choice) for choice in self.CHOICES]
        common = sum(a == b for a, b in zip(rows[1], rows[2], strict=False))
        partings = {tuple(row[:i]) for row in rows for i in range(common + 1) if rows[1][:i] == row[:i]}
        assert len(wire.requests) <= len(partings)
        assert all(body["max_tokens"] == 1 and set(body["logit_bias"].values()) == {100} for body in wire.bodies)

    def test_one_choice_needs_no_model(self, wire):
        assert completion_model(wire).select(text("x"), ["only"]).decision == "only"
        assert not wire.requests

    def test_a_model_that_wants_none_of_them_takes_the_likeliest(self, wire):
        wire.model.likes = {"blue": 5.0, "red": 3.0}
        wire.model.answers["Color: "] = "ultraviolet"
        assert completion_model(wire).select(text("Color: "), ["red", "blue", "green"]).decision == "blue"

    def test_without_a_vocabulary_that_is_read_from_the_likeliest_tokens(self, wire):
        wire.model.likes = {"blue": 5.0, "red": 3.0}
        wire.model.answers["Color: "] = "ultraviolet"
        assert foreign_model(wire).select(text("Color: "), ["red", "blue", "green"]).decision == "blue"
        with pytest.raises(RuntimeError, match=r"none of .*'purple'.*tokenizer="):
            foreign_model(wire).select(text("Color: "), ["purple", "orange"])

    @pytest.mark.parametrize("make", [completion_model, foreign_model])
    @pytest.mark.parametrize("city", ["New York", "New York City"])
    def test_a_choice_that_begins_another_can_win_and_lose(self, wire, make, city):
        wire.model.answers["I live in "] = f"{city}, and you?"
        assert make(wire).select(text("I live in "), ["New York City", "New York"]).decision == city

    @pytest.mark.parametrize("word", ["作业", "使用", "日本"])
    def test_choices_whose_tokens_are_halves_of_characters(self, wire, word):
        wire.model.answers["选择："] = word
        assert completion_model(wire).select(text("选择："), ["作业", "使用", "日本"]).decision == word

    def test_a_chat_model_is_shown_letters(self, wire):
        wire.model.answers["Reply with one letter"] = "B"
        picked = chat_model(wire).select(chat("Is the sky blue?"), ["no", "yes"])
        assert picked.decision == "yes"
        (body,) = wire.bodies
        assert body["max_tokens"] == 1 and body["top_logprobs"] == 20
        assert len(body["messages"]) == 1 and "A. no\nB. yes" in body["messages"][0]["content"]

    def test_a_reasoning_model_s_letter_is_read_from_its_answer(self, wire):
        wire.model.answers["Reply with one letter"] = "B. yes"
        assert chat_model(wire, "o3").select(chat("Is the sky blue?"), ["no", "yes"]).decision == "yes"

    def test_a_chat_model_that_answers_no_letter_is_an_error(self, wire):
        wire.model.answers["Reply with one letter"] = "Well, perhaps"
        with pytest.raises(RuntimeError, match="asked for a letter of AB and wrote"):
            chat_model(wire, "o3").select(chat("Is the sky blue?"), ["no", "yes"])

    def test_what_select_cannot_do_is_an_error(self, wire):
        with pytest.raises(ValueError, match="choices_method=greedy_token_selection"):
            completion_model(wire).select(text("x"), ["a", "b"], 0.0, greedy_token_selection)
        with pytest.raises(ValueError, match="temperature must be 0"):
            completion_model(wire).select(text("x"), ["a", "b"], 0.7)
        with pytest.raises(ValueError, match="1 to 26"):
            chat_model(wire).select(chat("x"), [str(i) for i in range(27)])


def test_offline_the_vocabulary_is_missed_aloud_and_select_goes_on(wire, monkeypatch, caplog):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens: what no network looks like
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})  # what others of this process have loaded
    backend = OpenAI(INSTRUCT, base_url=wire.url + "/v1", api_key="k")
    wire.model.answers["I need to use a "] = "calculator"
    with caplog.at_level(logging.WARNING, "sglang"):
        for _ in range(2):
            picked = backend.select(text("I need to use a "), ["calculator", "search engine"])
    assert picked.decision == "calculator"
    assert len(caplog.records) == 1 and "TIKTOKEN_CACHE_DIR" in caplog.text


def test_a_backend_closes_its_connections(wire):
    check_it_closes_its_connections(
        wire.url, lambda: chat_model(wire), lambda it: it.generate(chat("Hi"), Params(max_new_tokens=4))
    )
