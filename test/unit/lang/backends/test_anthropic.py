"""The Anthropic backend against a server that speaks the Messages API."""

import json

import pytest
from api_state import State, chat, text
from open_connections import check_it_closes_its_connections
from wire_server import WireServer

from sglang.lang.ir import SglSamplingParams as Params

anthropic = pytest.importorskip("anthropic", reason="the SDK is an extra: sglang[anthropic]")

from sglang.lang.backends.anthropic import Anthropic  # noqa: E402  # after the skip


def model(wire: WireServer, **more) -> Anthropic:
    return Anthropic("claude-3-haiku-20240307", base_url=wire.url, api_key="k", **more)


def streamed(backend, state: State, params: Params) -> tuple[list[str], dict]:
    pieces = list(backend.generate_stream(state, params))
    return [piece for piece, _ in pieces if piece], pieces[-1][1]


def test_the_leading_system_message_is_sent_apart_and_stays_in_the_state(wire):
    state = chat("What is the capital of the United States?", system="You are a helpful assistant.")
    answer, meta = model(wire).generate(state, Params(max_new_tokens=64))
    assert answer == "Washington, D.C."
    assert wire.bodies[0]["system"] == "You are a helpful assistant."
    assert [m["role"] for m in wire.bodies[0]["messages"]] == ["user"]
    assert [m["role"] for m in state.messages_] == ["system", "user"]
    assert meta["finish_reason"] == {"type": "stop"} and meta["prompt_tokens"] > 0


def test_a_later_system_message_is_an_error(wire):
    state = chat("Hi")
    state.messages_.append({"role": "system", "content": "Be brief."})
    with pytest.raises(ValueError, match="only at the beginning"):
        model(wire).generate(state, Params())


def test_arguments_are_sent_and_defaults_are_not(wire):
    model(wire).generate(chat("Hi"), Params(max_new_tokens=9, stop=("END",), temperature=0.5, top_k=7))
    model(wire).generate(chat("Hi"), Params(max_new_tokens=9))
    sent, plain = ({k: v for k, v in body.items() if k not in ("model", "messages")} for body in wire.bodies)
    assert sent == {"max_tokens": 9, "stop_sequences": ["END"], "temperature": 0.5, "top_k": 7}
    assert plain == {"max_tokens": 9}


def test_a_stream_brings_the_same_text_in_pieces(wire):
    backend = model(wire)
    whole, told = backend.generate(chat("two local attractions?"), Params())
    pieces, meta = streamed(backend, chat("two local attractions?"), Params())
    assert "".join(pieces) == whole and len(pieces) > 5
    assert meta == told
    assert backend.token_usage.completion_tokens == 2 * told["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["\n", "\n\n"])
def test_a_blank_stop_which_the_api_refuses_is_found_here(wire, stream, stop):
    wire.model.answers["tips?"] = "Eat well.\n\nMove.\n\nSleep."
    backend, state, params = model(wire), chat("tips?"), Params(stop=(stop,))
    answer = "".join(streamed(backend, state, params)[0]) if stream else backend.generate(state, params)[0]
    assert answer == "Eat well."
    assert "stop_sequences" not in wire.bodies[0]


@pytest.mark.parametrize("stream", [False, True])
def test_the_length_limit_is_told(wire, stream):
    backend, state, params = model(wire), chat("two local attractions?"), Params(max_new_tokens=3)
    meta = streamed(backend, state, params)[1] if stream else backend.generate(state, params)[1]
    assert meta["finish_reason"] == {"type": "length"} and meta["completion_tokens"] == 3


def test_a_stream_that_breaks_is_an_error(wire):
    wire.cut_streams_after = 5
    with pytest.raises(Exception, match=r"(?i)connection|stream|peer"):
        streamed(model(wire), chat("two local attractions?"), Params())


def test_a_text_without_roles_is_the_users_message(wire):
    answer, _ = model(wire).generate(text("The capital of France is"), Params(stop=("\n",)))
    assert answer == " Paris."
    assert wire.bodies[0]["messages"] == [{"role": "user", "content": "The capital of France is"}]


def test_an_answer_goes_on_from_what_stands_in_its_message(wire):
    model(wire).generate(chat("Hi", begun="My name is"), Params())
    assert wire.bodies[0]["messages"][-1] == {"role": "assistant", "content": "My name is"}


def test_images_are_sent_with_their_real_type(wire):
    state = chat("x")
    url = {"url": "data:image/jpeg;base64,iVBORw0KGgo="}  # the bytes of a PNG
    state.messages_[0]["content"] = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}]
    model(wire).generate(state, Params())
    picture, words = wire.bodies[0]["messages"][0]["content"]
    assert picture["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert words == {"type": "text", "text": "What?"}


def test_a_json_schema_is_sent_as_the_output_format(wire):
    schema = {"type": "object"}
    model(wire).generate(chat("Write JSON"), Params(json_schema=json.dumps(schema)))
    assert wire.bodies[0]["output_config"] == {"format": {"type": "json_schema", "schema": schema}}


def test_an_overloaded_server_is_asked_again(wire):
    wire.fail(529, times=2, headers={"retry-after-ms": "1"})
    assert model(wire).generate(chat("capital of the United States?"), Params())[0] == "Washington, D.C."
    wire.fail(429, times=1, headers={"retry-after-ms": "1"})
    with pytest.raises(anthropic.RateLimitError, match="planted"):
        model(wire, max_retries=0).generate(chat("Hi"), Params())


@pytest.mark.parametrize(
    "wanted", [{"regex": r"\d+"}, {"ebnf": 'root ::= "a"'}, {"dtype": "int"}, {"frequency_penalty": 1.0}, {"n": 2}]
)
def test_what_the_model_cannot_do_is_an_error_that_names_it(wire, wanted):
    with pytest.raises(ValueError, match=f"cannot serve {next(iter(wanted))}="):
        model(wire).generate(chat("Hi"), Params(**wanted))
    with pytest.raises(NotImplementedError, match="does not select"):
        model(wire).select(chat("Hi"), ["a", "b"])
    assert not wire.requests


def test_a_backend_closes_its_connections(wire):
    check_it_closes_its_connections(
        wire.url, lambda: model(wire), lambda it: it.generate(chat("Hi"), Params(max_new_tokens=4))
    )
