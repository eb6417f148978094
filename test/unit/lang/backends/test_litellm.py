"""The LiteLLM backend, through LiteLLM's own client, against a server that speaks OpenAI's format."""

import importlib.util
import os

import pytest
from api_state import State, chat, text
from wire_server import WireServer

from sglang.lang.ir import SglSamplingParams as Params

if importlib.util.find_spec("litellm") is None:
    pytest.skip("the SDK is an extra: sglang[litellm]", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:::litellm"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]


@pytest.fixture
def model(wire: WireServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch a list of prices
    from sglang.lang.backends.litellm import LiteLLM

    def make(**more) -> LiteLLM:
        return LiteLLM("openai/gpt-4o", api_key="k", base_url=wire.url + "/v1", **more)

    return make


def streamed(backend, state: State, params: Params) -> tuple[list[str], dict]:
    pieces = list(backend.generate_stream(state, params))
    return [piece for piece, _ in pieces if piece], pieces[-1][1]


def test_a_chat_is_answered_whole_and_in_pieces(wire, model):
    backend = model(default_headers={"x-team": "blue"})
    state = chat("two local attractions?", system="You are a helpful assistant.")
    whole, told = backend.generate(state, Params(max_new_tokens=99, temperature=0.5, stop=("3.",)))
    assert whole == "1. The White House\n2. The Lincoln Memorial"
    body = wire.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("gpt-4o", 99, 0.5, ["3."])
    assert wire.requests[0].headers["x-team"] == "blue"
    pieces, meta = streamed(backend, state, Params())
    assert "".join(pieces) == whole and len(pieces) > 3
    assert meta["completion_tokens"] == told["completion_tokens"]
    assert backend.token_usage.completion_tokens == 2 * told["completion_tokens"]


def test_a_text_without_roles_is_the_users_message(wire, model):
    answer, _ = model().generate(text("The capital of France is"), Params(stop=("\n",)))
    assert answer == " Paris."
    assert wire.bodies[0]["messages"] == [{"role": "user", "content": "The capital of France is"}]


def test_a_rate_limited_request_is_repeated(wire, model):
    wire.fail(429, headers={"retry-after-ms": "1"})
    assert model().generate(chat("capital of the United States?"), Params())[0] == "Washington, D.C."


def test_what_it_cannot_do_is_an_error_that_names_it(wire, model):
    for name, wanted in (("regex", r"\d+"), ("ebnf", 'root ::= "a"')):
        with pytest.raises(ValueError, match=f"cannot serve {name}="):
            model().generate(chat("Hi"), Params(**{name: wanted}))
    with pytest.raises(NotImplementedError, match="cannot select"):
        model().select(chat("Hi"), ["a", "b"])
    assert not wire.requests
