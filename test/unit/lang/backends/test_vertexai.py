"""The Gemini backend against a server that speaks Vertex AI's REST format."""

import json

import pytest
from api_state import State, chat, text
from open_connections import check_it_closes_its_connections
from wire_server import WireServer

from sglang.lang.ir import SglSamplingParams as Params

pytest.importorskip("google.genai", reason="the SDK is an extra: sglang[vertexai]")

from google.genai.errors import ClientError  # after the skip
from google.oauth2.credentials import Credentials

from sglang.lang.backends.vertexai import VertexAI

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK's own


@pytest.fixture
def model(wire: WireServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GCP_PROJECT_ID", "acme")
    monkeypatch.setenv("GCP_LOCATION", "europe-west1")

    def make(safety_settings=None, attempts: int = 3) -> VertexAI:
        options = {"base_url": wire.url, "retry_options": {"attempts": attempts, "initial_delay": 0.01, "jitter": 0}}
        return VertexAI("gemini-2.5-flash", safety_settings, credentials=Credentials("token"), http_options=options)

    return make


def streamed(backend, state: State, params: Params) -> tuple[list[str], dict]:
    pieces = list(backend.generate_stream(state, params))
    return [piece for piece, _ in pieces if piece], pieces[-1][1]


def test_a_chat_is_contents_and_a_system_instruction(wire, model):
    state = chat("Hi", "Hello", "What is the capital of the United States?", system="You are a helpful assistant.")
    answer, meta = model().generate(state, Params(max_new_tokens=64))
    assert answer == "Washington, D.C."
    assert wire.bodies[0]["systemInstruction"]["parts"] == [{"text": "You are a helpful assistant."}]
    assert [turn["role"] for turn in wire.bodies[0]["contents"]] == ["user", "model", "user"]
    assert "/projects/acme/locations/europe-west1/publishers/google/models/gemini-2.5-flash:" in wire.requests[0].path
    assert meta["finish_reason"] == {"type": "stop"} and meta["prompt_tokens"] > 0


def test_arguments_are_sent(wire, model):
    params = Params(max_new_tokens=9, stop=("\n",), temperature=0.5, top_p=0.9, top_k=7, presence_penalty=0.5)
    model({"HARM_CATEGORY_HATE_SPEECH": "BLOCK_NONE"}).generate(chat("Hi"), params)
    assert wire.bodies[0]["generationConfig"] == {
        "maxOutputTokens": 9, "stopSequences": ["\n"], "temperature": 0.5, "topP": 0.9, "topK": 7,
        "presencePenalty": 0.5,
    }  # fmt: skip
    assert wire.bodies[0]["safetySettings"] == [{"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}]


def test_a_stream_brings_the_same_text_in_pieces(wire, model):
    backend = model()
    whole, told = backend.generate(chat("two local attractions?"), Params())
    pieces, meta = streamed(backend, chat("two local attractions?"), Params())
    assert "".join(pieces) == whole and len(pieces) > 5
    assert meta == told
    assert backend.token_usage.completion_tokens == 2 * told["completion_tokens"]


def test_a_stream_that_breaks_is_an_error(wire, model):
    wire.cut_streams_after = 3
    with pytest.raises(Exception, match=r"(?i)stream|peer|payload|connection"):
        streamed(model(), chat("two local attractions?"), Params())


def test_a_text_without_roles_is_split_at_its_images(wire, model):
    answer, _ = model().generate(text("The capital of France is"), Params(stop=("\n",)))
    assert answer == " Paris."
    state = State("<image>What is it? And this <image>?", images_=["/9j/AAAA", "iVBORw0KGgo="])
    model().generate(state, Params())
    first, before, second, after = wire.bodies[1]["contents"][0]["parts"]
    assert (before, after) == ({"text": "What is it? And this "}, {"text": "?"})
    assert set(first["inlineData"].values()) == {"_9j_AAAA", "image/jpeg"}  # base64 for URLs, as the SDK writes it
    assert set(second["inlineData"].values()) == {"iVBORw0KGgo=", "image/png"}


def test_a_video_is_refused(wire, model):
    for state in (chat("x"), text("<image>x")):
        state.images_ = ["video:iVBORw0KGgo="]
        with pytest.raises(ValueError, match="takes no video"):
            model().generate(state, Params())
    assert not wire.requests


def test_images_in_a_message(wire, model):
    state = chat("x")
    url = {"url": "data:image/jpeg;base64,/9j/AAAA"}
    state.messages_[0]["content"] = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}]
    model().generate(state, Params())
    assert [set(part) for part in wire.bodies[0]["contents"][0]["parts"]] == [{"inlineData"}, {"text"}]


def test_a_json_schema_is_sent_as_the_response_schema(wire, model):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    model().generate(chat("Write JSON"), Params(json_schema=json.dumps(schema)))
    assert wire.bodies[0]["generationConfig"]["responseJsonSchema"] == schema
    assert wire.bodies[0]["generationConfig"]["responseMimeType"] == "application/json"


def test_a_rate_limited_request_is_repeated(wire, model):
    wire.fail(429, times=2)
    assert model().generate(chat("capital of the United States?"), Params())[0] == "Washington, D.C."
    wire.fail(429, times=2)
    with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED"):
        model(attempts=1).generate(chat("Hi"), Params())


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_answer_is_an_error_with_its_reason(wire, model, stream):
    wire.model.answers["Boo"] = "SAFETY"
    wire.blocked = "Boo"
    with pytest.raises(RuntimeError, match=r"gave no answer.*SAFETY"):
        if stream:
            streamed(model(), chat("Boo"), Params())
        else:
            model().generate(chat("Boo"), Params())


@pytest.mark.parametrize(
    "wanted", [{"regex": r"\d+"}, {"ebnf": 'root ::= "a"'}, {"dtype": "int"}, {"min_p": 0.5}, {"n": 2}]
)
def test_what_the_model_cannot_do_is_an_error_that_names_it(wire, model, wanted):
    with pytest.raises(ValueError, match=f"cannot serve {next(iter(wanted))}="):
        model().generate(chat("Hi"), Params(**wanted))
    with pytest.raises(NotImplementedError, match="does not select"):
        model().select(chat("Hi"), ["a", "b"])
    assert not wire.requests


def test_without_a_project_the_constructor_says_so(monkeypatch):
    monkeypatch.delenv("GCP_PROJECT_ID", raising=False)
    with pytest.raises(ValueError, match="GCP_PROJECT_ID"):
        VertexAI("gemini-2.5-flash")


def test_a_backend_closes_its_connections(wire, model):
    check_it_closes_its_connections(wire.url, model, lambda it: it.generate(chat("Hi"), Params(max_new_tokens=4)))
