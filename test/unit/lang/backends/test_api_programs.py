"""Whole programs on API models, over the wire: those of the project's description (on local ones they are run by
test/e2e/test_seed_programs.py), and what the documentation says of speculation and errors."""

import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import seed_programs
from PIL import Image
from wire_model import vocabulary
from wire_server import WireServer

import sglang as sgl


@pytest.fixture
def api(wire: WireServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    """The vendors are where their SDKs' environment variables say: here."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", wire.url + "/v1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", wire.url)
    yield wire
    sgl.global_config.default_backend = None


@pytest.fixture
def feature(tmp_path) -> Callable[[str, str], Any]:
    """feature(heading, name): what the block below that heading calls so."""
    return lambda heading, name: seed_programs.feature(heading, tmp_path)[name]


def instruct() -> sgl.OpenAI:
    return sgl.OpenAI("gpt-3.5-turbo-instruct", tokenizer=vocabulary())


def anthropic() -> sgl.Anthropic:
    pytest.importorskip("anthropic", reason="the SDK is an extra: sglang[anthropic]")
    return sgl.Anthropic("claude-3-haiku-20240307")


class TestSeed:
    def test_the_multi_turn_question(self, api, tmp_path, capsys):
        seed_programs.run(seed_programs.programs()["Using OpenAI Models"], tmp_path)
        assert capsys.readouterr().out == (
            "system : You are a helpful assistant.\n"
            "user : What is the capital of the United States?\n"
            "assistant : Washington, D.C.\n"
            "user : List two local attractions.\n"
            "assistant : 1. The White House\n2. The Lincoln Memorial\n"
            "Washington, D.C.\n"
        )
        assert [m["role"] for m in api.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
        assert [body["max_tokens"] for body in api.bodies] == [256, 256]

    def test_the_multi_turn_question_on_anthropic(self, api, tmp_path):
        program = seed_programs.run(seed_programs.programs()["Using OpenAI Models"], tmp_path)["multi_turn_question"]
        state = program.run(
            "What is the capital of the United States?", "List two local attractions.", backend=anthropic()
        )
        assert state["answer_2"] == "1. The White House\n2. The Lincoln Memorial"
        assert state.messages()[0] == {"role": "system", "content": "You are a helpful assistant."}

    @pytest.mark.parametrize("tool, name", [("calculator", "expression"), ("search engine", "word")])
    def test_tool_use(self, api, feature, tool, name):
        api.model.answers |= {"I need to use a ": tool, "expression is": " 7 + 8", "search is": " Paris"}
        state = feature("Control Flow", "tool_use").run("What is 7 + 8?", backend=instruct())
        assert state["tool"] == tool
        assert state[name] == {"expression": " 7 + 8", "word": " Paris"}[name]

    def test_tips_in_parallel(self, api, feature):
        api.model.answers |= {
            "expand tip 1 into a paragraph:\n": "Eat well.\n\nX",
            "expand tip 2 into a paragraph:\n": "Move.\n\nX",
            "In summary": ", live well.",
        }
        text = feature("Parallelism", "tip_suggestion").run(backend=instruct()).text()
        assert text.endswith("Tip 1:Eat well.\nTip 2:Move.\nIn summary, live well.")

    def test_an_image_for_a_chat_model(self, api, feature, tmp_path):
        image = tmp_path / "cat.jpg"
        image.write_bytes(b"\xff\xd8\xff\xe0 a picture")
        api.model.answers["What is this?"] = "A cat."
        image_qa = feature(seed_programs.UNCLOSED, "image_qa")
        state = image_qa.run(str(image), "What is this?", backend=sgl.OpenAI("gpt-4o"))
        assert state["answer"] == "A cat."
        assert [part["type"] for part in api.bodies[0]["messages"][0]["content"]] == ["image_url", "text"]

    @pytest.mark.parametrize(
        "heading, name, arguments",
        [("Constrained Decoding", "regular_expression_gen", ()), ("JSON Decoding", "character_gen", ("Harry Potter",))],
    )
    def test_a_regex_is_refused_at_its_line(self, api, feature, heading, name, arguments):
        state = feature(heading, name).run(*arguments, backend=instruct())
        error = state.error()
        assert isinstance(error, ValueError) and "regex" in str(error) and "sgl.Runtime" in str(error)
        assert not api.requests

    def test_a_batch_in_order(self, api, feature):
        api.model.answers |= {
            "United Kingdom?\nA:": " London\nQ",
            "France?\nA:": " Paris\nQ",
            "Japan?\nA:": " Tokyo\nQ",
        }
        sgl.set_default_backend(instruct())
        assert [state["answer"] for state in feature("Batching", "states")] == [" London", " Paris", " Tokyo"]

    def test_a_stream(self, api, feature, capsys):
        api.model.answers["France?\nA:"] = " Paris it is, on the river Seine\nQ"
        sgl.set_default_backend(instruct())
        assert feature("Streaming", "state")["answer"] == " Paris it is, on the river Seine"
        assert capsys.readouterr().out == "Q: What is the capital of France?\nA: Paris it is, on the river Seine"
        assert api.bodies[0]["stream"] is True and api.bodies[0]["temperature"] == 0.1


class TestSpeculation:
    CARD = "Name: Ada\nBirthday: 1815\nJob: mathematician\n\nName: Bob"

    def test_one_completion_serves_several_gens(self, api):
        @sgl.function(num_api_spec_tokens=64)
        def card(s):
            s += "Write a card.\n"
            s += "Name:" + sgl.gen("name", stop="\n") + "\nBirthday:" + sgl.gen("birthday", stop="\n")
            s += "\nJob:" + sgl.gen("job", stop="\n") + "\n"

        api.model.answers["Write a card.\n"] = self.CARD
        state = card.run(backend=instruct())
        assert (state["name"], state["birthday"], state["job"]) == (" Ada", " 1815", " mathematician")
        (body,) = api.bodies
        assert "stop" not in body and body["max_tokens"] >= 64

    def test_one_chat_answer_is_matched_against_the_message(self, api):
        @sgl.function(num_api_spec_tokens=64)
        def card(s):
            s += sgl.system("You write cards.") + sgl.user("Write a card.")
            s += sgl.assistant(
                "Name:" + sgl.gen("name", stop="\n") + "\nBirthday:" + sgl.gen("birthday", stop="\n")
                + "\nJob:" + sgl.gen("job", stop="\n")
            )  # fmt: skip

        api.model.answers["Write a card."] = self.CARD
        state = card.run(backend=sgl.OpenAI("gpt-4o"))
        assert state.error() is None
        assert [state[name].strip() for name in ("name", "birthday", "job")] == ["Ada", "1815", "mathematician"]
        assert len(api.requests) == 1

    def test_without_it_the_error_says_that_there_is_it(self, api):
        @sgl.function
        def card(s):
            s += sgl.user("Write a card.") + sgl.assistant("Name:" + sgl.gen("name", stop="\n"))

        assert "num_api_spec_tokens" in str(card.run(backend=sgl.OpenAI("gpt-4o")).error())


def test_typed_values_on_a_completion_model(api):
    @sgl.function
    def facts(s):
        s += "The number of hours in a day is " + sgl.gen_int("hours") + ".\n"
        s += "Her name is " + sgl.gen_string("name") + "."

    api.model.answers |= {
        "in a day is ": "24 hours",
        "Her name is ": '"Ada" they say',
        'Her name is "': 'Ada" they say',
    }
    state = facts.run(backend=instruct())
    assert (state["hours"], state["name"]) == ("24", '"Ada"')
    assert state.text() == 'The number of hours in a day is 24.\nHer name is "Ada".'


@pytest.mark.parametrize(
    "module, extra, make",
    [
        ("openai", "openai", lambda: sgl.OpenAI("gpt-4o")),
        ("anthropic", "anthropic", lambda: sgl.Anthropic("claude-3")),
        ("google", "vertexai", lambda: sgl.VertexAI("gemini-2.5-flash")),
        ("litellm", "litellm", lambda: sgl.LiteLLM("openai/gpt-4o")),
    ],
)
def test_a_missing_sdk_is_named_with_its_extra(monkeypatch, module, extra, make):
    monkeypatch.setitem(sys.modules, module, None)  # what an import of an absent package finds
    with pytest.raises(ImportError, match=rf"sglang\[{extra}\]"):
        make()


def test_crusoe_is_openai_elsewhere(api, monkeypatch):
    monkeypatch.delenv("CRUSOE_API_KEY", raising=False)
    with pytest.raises(ValueError, match="CRUSOE_API_KEY"):
        sgl.Crusoe("meta-llama/Llama-3.3-70B-Instruct")
    monkeypatch.setenv("CRUSOE_API_KEY", "c-test")
    assert "crusoecloud" in str(sgl.Crusoe("m").client.base_url)

    @sgl.function
    def answer(s):
        s += sgl.user("capital of the United States?") + sgl.assistant(sgl.gen("answer"))

    state = answer.run(backend=sgl.Crusoe("meta-llama/Llama-3.3-70B-Instruct", base_url=api.url + "/v1"))
    assert state["answer"] == "Washington, D.C."
    assert api.requests[0].headers["authorization"] == "Bearer c-test"


def test_one_item_of_a_batch_fails_alone(api):
    @sgl.function
    def answer(s, question, n):
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer", top_k=n))

    states = answer.run_batch(
        [{"question": "capital of the United States?", "n": n} for n in (-1, 5, -1)], backend=sgl.OpenAI("gpt-4o")
    )
    assert [state.error() is None for state in states] == [True, False, True]
    assert states[2]["answer"] == "Washington, D.C."


@pytest.mark.parametrize("make", [lambda: sgl.OpenAI("gpt-4o"), lambda: sgl.OpenAI("gpt-3.5-turbo-instruct")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_is_refused_at_the_line_that_asked(api, make, stream):
    @sgl.function
    def answer(s):
        s += sgl.user("Paris?") + sgl.assistant_begin()
        s += sgl.gen("answer", ebnf='root ::= "yes" | "no"')

    error = answer.run(backend=make(), stream=stream).error()
    assert "cannot serve ebnf=" in str(error)
    assert 'sgl.gen("answer", ebnf=' in "".join(traceback.format_exception(error))
    assert not api.requests


API_MODELS = {
    "openai": lambda: sgl.OpenAI("gpt-4o"),
    "completion": lambda: sgl.OpenAI("gpt-3.5-turbo-instruct"),
    "anthropic": lambda: sgl.Anthropic("claude-3"),
    "litellm": lambda: sgl.LiteLLM("openai/gpt-4o"),
}


@pytest.mark.parametrize("name", API_MODELS)
@pytest.mark.parametrize("choices", [None, ["red", "blue"]])
def test_a_video_is_refused_and_never_a_picture_of_its_beginning(api, tmp_path, name, choices):
    pytest.importorskip(name if name in ("anthropic", "litellm") else "openai")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])

    @sgl.function
    def watch(s):
        s += sgl.user(sgl.video(str(tmp_path / "moving.gif"), 2) + "What colour?")
        s += sgl.assistant(sgl.gen("colour", choices=choices))

    error = watch.run(backend=API_MODELS[name]()).error()
    assert isinstance(error, ValueError | NotImplementedError)
    assert "s += sgl.assistant(sgl.gen(" in "".join(traceback.format_exception(error))
    assert not api.requests


@pytest.mark.parametrize("name", ["anthropic", "litellm"])
def test_a_picture_in_a_text_without_roles_is_sent(api, name):
    pytest.importorskip(name)

    @sgl.function
    def look(s):
        s += sgl.image(Image.new("RGB", (8, 8), "red")) + "The capital of France is"
        s += sgl.gen("answer", stop="\n")

    assert look.run(backend=API_MODELS[name]()).error() is None
    picture, words = api.requests[0].body["messages"][0]["content"]
    assert picture["type"] in ("image", "image_url")
    assert words == {"type": "text", "text": "The capital of France is"}


def test_hundreds_of_chats_at_a_time(api):
    @sgl.function
    def answer(s, i):
        s += sgl.user(f"{i}: What is the capital of the United States?") + sgl.assistant(sgl.gen("answer"))

    backend = sgl.OpenAI("gpt-4o")
    states = answer.run_batch([{"i": i} for i in range(200)], backend=backend)
    assert {state["answer"] for state in states} == {"Washington, D.C."}
    assert backend.token_usage.completion_tokens == 200 * states[0].get_meta_info("answer")["completion_tokens"]


def test_select_and_forks_on_a_chat_model(api):
    @sgl.function
    def judge(s, essay):
        s += sgl.user(f"Read: {essay}")
        s += sgl.assistant(sgl.gen("read"))
        forks = s.fork(2)
        for fork, dimension in zip(forks, ("clarity", "depth"), strict=True):
            fork += sgl.user(f"How is its {dimension}?") + sgl.assistant(sgl.select("grade", ["good", "bad"]))
        s += sgl.user("Both: " + " and ".join(fork["grade"] for fork in forks)) + sgl.assistant(sgl.gen("last"))

    api.model.answers |= {
        "Read: X": "Done.", "How is its clarity?": "A", "How is its depth?": "B", "Both: good and bad": "So-so."
    }  # fmt: skip
    state = judge.run("X", backend=sgl.OpenAI("gpt-4o"))
    assert state["last"] == "So-so."


def test_an_anthropic_stream_of_one_variable(api):
    @sgl.function
    def answer(s):
        s += sgl.system("Be brief.") + sgl.user("two local attractions?") + sgl.assistant(sgl.gen("answer"))

    pieces = answer.run(stream=True, backend=anthropic()).text_iter("answer")
    assert "".join(pieces) == "1. The White House\n2. The Lincoln Memorial"
    assert api.bodies[0]["stream"] is True
