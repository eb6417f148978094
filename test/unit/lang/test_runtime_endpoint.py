"""What RuntimeEndpoint says over the wire, and what it makes of the answers."""

import json
import traceback
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from wire_generate import Answer, Wire, reply, serve

import sglang as sgl
from sglang.lang.backends import runtime_endpoint
from sglang.lang.backends.runtime import Runtime, _command_line


@sgl.function
def two(s: Any, **kwargs: Any) -> None:
    s += "Q" + sgl.gen("a", **kwargs) + "R" + sgl.gen("b")


@sgl.function
def one(s: Any, kwargs: dict[str, Any]) -> None:
    s += "Q" + sgl.gen("a", **kwargs)


def body_of(**kwargs: Any) -> dict[str, Any]:
    with serve(Wire(lambda body: reply())) as wire:
        state = one.run(kwargs, backend=sgl.RuntimeEndpoint(wire.url))
        assert state.error() is None
        return wire.bodies[0]


def test_a_gen_is_a_generate_request_with_every_default_said() -> None:
    assert body_of() == {
        "text": "Q",
        "sampling_params": {
            "max_new_tokens": 128,
            "stop": ["<|eot_id|>"],
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
        },
    }


def test_what_is_set_is_sent() -> None:
    body = body_of(
        max_tokens=3, min_tokens=1, stop=["a", "b"], stop_token_ids=[7], stop_regex="b+", temperature=0, top_p=0.5,
        top_k=3, min_p=0.1, frequency_penalty=1, presence_penalty=-1, ignore_eos=True, regex="a+", return_logprob=True,
        logprob_start_len=2, top_logprobs_num=4, return_text_in_logprobs=True,
    )  # fmt: skip
    assert body == {
        "text": "Q",
        "return_logprob": True,
        "logprob_start_len": 2,
        "top_logprobs_num": 4,
        "return_text_in_logprobs": True,
        "sampling_params": {
            "max_new_tokens": 3,
            "min_new_tokens": 1,
            "stop": ["a", "b", "<|eot_id|>"],
            "stop_token_ids": [7],
            "stop_regex": ["b+"],
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "frequency_penalty": 1,
            "presence_penalty": -1,
            "ignore_eos": True,
            "regex": "a+",
        },
    }


@pytest.mark.parametrize(
    ("dtype", "regex", "stop"),
    [
        (int, r"([-+]?[0-9]+)[ \n]*", ["<|eot_id|>", " ", "\n"]),
        ("float", r"([-+]?[0-9]*\.?[0-9]+)[ \n]*", ["<|eot_id|>", " ", "\n"]),
        (bool, r"((True|False))[ \n]*", ["<|eot_id|>", " ", "\n"]),
        (str, r"\"[\w\d\s]*\"", ["<|eot_id|>"]),
    ],
)
def test_a_type_is_a_pattern(dtype: Any, regex: str, stop: list[str]) -> None:
    params = body_of(dtype=dtype)["sampling_params"]
    assert (params["regex"], params["stop"]) == (regex, stop)
    assert "dtype" not in params


def test_a_grammar_is_sent_as_it_is() -> None:
    grammar = 'root ::= "yes" | "no"'
    assert body_of(ebnf=grammar)["sampling_params"]["ebnf"] == grammar


class Point(BaseModel):
    x: int


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ('{"type": "integer"}', {"type": "integer"}),
        ({"type": "integer"}, {"type": "integer"}),
        (Point, Point.model_json_schema()),
        (TypeAdapter(Point), Point.model_json_schema()),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
    ],
)
def test_a_schema_is_text_a_dict_or_a_type(given: Any, sent: dict[str, Any]) -> None:
    assert json.loads(body_of(json_schema=given)["sampling_params"]["json_schema"]) == sent


def test_keys_are_bearer_tokens_and_templates_come_by_name_by_info_or_by_path() -> None:
    with serve(Wire(lambda body: reply())) as wire:
        endpoint = sgl.RuntimeEndpoint(wire.url + "/", api_key="k3y")
        assert endpoint.get_chat_template().name == "llama-3-instruct"
        one.run({}, backend=endpoint).sync()
        assert {headers.get("Authorization") or headers.get("authorization") for headers in wire.headers} == {
            "Bearer k3y"
        }
        assert sgl.RuntimeEndpoint(wire.url, chat_template_name="gemma-it").get_chat_template().name == "gemma-it"
        wire.info = {"model_path": "x", "chat_template": "vicuna_v1.1"}
        assert sgl.RuntimeEndpoint(wire.url).get_chat_template().name == "vicuna_v1.1"
        assert endpoint.flush_cache() is True
        assert endpoint.get_server_info() == {"path": "/get_server_info"}
        assert endpoint.get_model_name() == "a/llama-3-8b-instruct"


@pytest.mark.parametrize("shares", [False, True])
def test_a_prefix_is_computed_when_it_is_asked_for_and_sent_ahead_where_it_is_not_shared(shares: bool) -> None:
    @sgl.function
    def program(s: Any, q: str) -> None:
        s += "x" * 70 + q
        forks = s.fork(2)
        forks.join()

    def ahead(text: str) -> dict[str, Any]:
        return {"text": text, "sampling_params": {"max_new_tokens": 0}}

    with serve(Wire(lambda body: reply(), info={"model_path": "a", "segments": shares})) as wire:
        endpoint = sgl.RuntimeEndpoint(wire.url)
        program.cache(endpoint)
        endpoint.cache_prefix("mine")
        assert wire.bodies == [ahead("x" * 70), ahead("mine")]
        wire.bodies.clear()
        program.run("q", backend=endpoint).sync()
        assert wire.bodies == ([] if shares else [ahead("x" * 70 + "q")])
        wire.bodies.clear()
        program.run_batch([("a",), ("b",)], backend=endpoint)
        assert wire.bodies[:1] == ([] if shares else [ahead("x" * 70)])


@pytest.mark.usefixtures("patient")
def test_chains_go_to_servers_that_know_them_only() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "segments" not in body:
            return reply()
        parts = [{"name": name, "text": name, "meta_info": {"of": name}} for name in ("a", "b")]
        return 200, {"text": "aRb", "segments": parts, "meta_info": {}}

    with serve(Wire(answer)) as wire:
        assert two.run(backend=sgl.RuntimeEndpoint(wire.url)).text() == "QhiRhi"
        wire.info = {**wire.info, "segments": True}
        state = two.run(backend=sgl.RuntimeEndpoint(wire.url))
        assert state.text() == "QaRb"
        assert state.get_meta_info("b") == {"of": "b"}
        segments = wire.bodies[-1]["segments"]
        assert [list(segment) for segment in segments] == [
            ["text"], ["gen", "sampling_params"], ["text"], ["gen", "sampling_params"],
        ]  # fmt: skip
        assert segments[0]["text"] == "Q"
        assert two.run(backend=sgl.RuntimeEndpoint(wire.url, fusion=False)).text() == "QhiRhi"


@pytest.mark.usefixtures("patient")
def test_a_server_that_claims_chains_and_refuses_them_is_asked_one_by_one() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "segments" in body:
            return 400, {"error": {"message": "text is missing", "param": "text"}}
        return reply()

    with serve(Wire(answer, {"model_path": "x", "segments": True})) as wire:
        endpoint = sgl.RuntimeEndpoint(wire.url)
        for _ in range(2):
            assert two.run(backend=endpoint).text() == "QhiRhi"
        assert sum("segments" in body for body in wire.bodies) == 1


@pytest.mark.usefixtures("patient")
def test_a_bad_gen_of_a_chain_fails_at_its_own_line_and_those_before_it_do_not() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "segments" in body:
            return 400, {"error": {"message": "too big", "param": "segments[3].sampling_params.top_p"}}
        if body["sampling_params"]["top_p"] > 1:
            return 400, {"error": {"message": "too big", "param": "sampling_params.top_p"}}
        return reply()

    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.gen("a")
        s += "R" + sgl.gen("b", top_p=7)
        s += "never"

    with serve(Wire(answer, {"model_path": "x", "segments": True})) as wire:
        endpoint = sgl.RuntimeEndpoint(wire.url)
        state = program.run(backend=endpoint)
        assert (state["a"], state.text()) == ("hi", "QhiR")
        assert 'sgl.gen("b", top_p=7)' in "".join(traceback.format_exception(state.error()))
        assert two.run(backend=endpoint).text() == "QhiRhi"
        assert sum("segments" in body for body in wire.bodies) == 2, "the next program is a chain again"


def test_an_error_answer_is_raised_with_its_json() -> None:
    with serve(Wire(lambda body: (503, {"error": {"message": "queue full", "code": 503}}))) as wire:
        error = one.run({}, backend=sgl.RuntimeEndpoint(wire.url)).error()
        assert isinstance(error, RuntimeError)
        assert '503 {"error": {"message": "queue full", "code": 503}}' in str(error)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"text": "a", "meta_info": {}}, {"error": {"message": "died"}}], "died"),
        ([{"text": "a", "meta_info": {}}], "broke off"),
    ],
)
def test_a_stream_that_fails_ends_the_state(events: list[Any], message: str) -> None:
    with serve(Wire(lambda body: events)) as wire:
        state = one.run({}, backend=sgl.RuntimeEndpoint(wire.url), stream=True)
        assert "".join(state.text_iter()) == "Qa"
        assert message in str(state.error())


def test_a_stream_is_what_is_new_in_each_event() -> None:
    events = [{"text": text, "meta_info": {"n": len(text)}} for text in ("a", "ab", "abc")]
    with serve(Wire(lambda body: [*events, "[DONE]"])) as wire:
        state = one.run({}, backend=sgl.RuntimeEndpoint(wire.url), stream=True)
        assert "".join(state.text_iter("a")) == "abc"
        assert state.get_meta_info("a") == {"n": 3}
        assert wire.bodies[0]["stream"] is True


def test_a_select_asks_for_the_prompts_length_then_for_all_choices_at_once() -> None:
    rows = {
        "Q no": [[-1.0, 1, "Q"], [-5.0, 2, " no"]],
        "Q yes": [[-1.0, 1, "Q"], [-2.0, 3, " ye"], [-1.0, 4, "s"]],
    }

    def answer(body: dict[str, Any]) -> Answer:
        if body["text"] == "Q":
            return reply("", prompt_tokens=1)
        metas = [
            {"prompt_tokens": len(rows[t]), "input_token_logprobs": rows[t], "output_token_logprobs": []}
            for t in body["text"]
        ]
        return 200, [{"text": "", "meta_info": meta} for meta in metas]

    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.select("c", [" no", " yes"]) + "."

    with serve(Wire(answer)) as wire:
        state = program.run(backend=sgl.RuntimeEndpoint(wire.url))
        assert state.text() == "Q yes."
        assert state.get_meta_info("c")["normalized_prompt_logprobs"] == [-5.0, -1.5]
        first, second = wire.bodies
        assert first == {"text": "Q", "sampling_params": {"max_new_tokens": 0, "temperature": 0}}
        assert second["text"] == ["Q no", "Q yes"]
        assert (second["logprob_start_len"], second["return_text_in_logprobs"]) == (0, True)


def test_two_images_are_refused_one_is_sent() -> None:
    @sgl.function
    def program(s: Any, images: list[bytes]) -> None:
        for image in images:
            s += sgl.user(sgl.image(image) + "What is it?")
        s += sgl.assistant(sgl.gen("a"))

    with serve(Wire(lambda body: reply())) as wire:
        endpoint = sgl.RuntimeEndpoint(wire.url)
        state = program.run([b"\x89PNG"], backend=endpoint)
        assert state.error() is None
        assert wire.bodies[0]["image_data"] == "iVBORw=="
        assert "<|image|>What is it?" in wire.bodies[0]["text"]
        assert state.messages()[0]["content"] == [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
            {"type": "text", "text": "What is it?"},
        ]
        error = program.run([b"1", b"2"], backend=endpoint).error()
        assert isinstance(error, AssertionError) and "Only support one image." in str(error)


def test_an_image_that_is_not_there_fails_the_state() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.image("/no/such/file.png") + sgl.gen("a")

    with serve(Wire(lambda body: reply())) as wire:
        assert isinstance(program.run(backend=sgl.RuntimeEndpoint(wire.url)).error(), FileNotFoundError)


def test_many_programs_share_few_connections() -> None:
    with serve(Wire(lambda body: reply())) as wire:
        states = one.run_batch([({},)] * 500, backend=sgl.RuntimeEndpoint(wire.url), num_threads=400)
        assert [state["a"] for state in states] == ["hi"] * 500


def test_a_runtimes_flags() -> None:
    assert _command_line({"tp_size": 2, "disable_radix_cache": True, "log_requests": False, "model_path": "m"}) == [
        "--tp-size", "2", "--disable-radix-cache", "--model-path", "m",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="no argument nothing"):
        Runtime(nothing=1)


@pytest.mark.usefixtures("patient")
def test_a_request_names_the_one_that_its_text_comes_from() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q"
        first = s.fork(2)
        first += lambda i: f"{i}" + sgl.gen("a")
        first.join("concate_and_append")
        s += sgl.gen("b")
        s["b"]
        second = s.fork(2)
        second += lambda i: f"{i}" + sgl.gen("c") + "," + sgl.select("d", ["x", "y"])
        second.join()
        s += sgl.gen("e")

    def answer(body: dict[str, Any]) -> Answer:
        if "segments" not in body:
            return reply()
        parts = [{"name": name, "text": "x", "meta_info": {}} for name in ("c", "d")]
        return 200, {"text": "x,x", "segments": parts, "meta_info": {}}

    with serve(Wire(answer, {"model_path": "x", "segments": True})) as wire:
        program.run(backend=sgl.RuntimeEndpoint(wire.url)).sync()
        bodies = wire.bodies
        assert len({body["rid"] for body in bodies}) == 6
        one, two, b, three, four, e = bodies  # of two at once in any order
        assert one["parent"] == two["parent"] not in {body["rid"] for body in bodies}, "nobody was asked for that text"
        assert b["parent"] == one["parent"], "so is the text before b the parent's"
        assert three["parent"] == four["parent"] == b["rid"]
        assert "segments" in three
        assert e["parent"] == b["rid"]


@pytest.mark.usefixtures("patient")
def test_what_a_chain_came_from_stays_its_parent_when_it_is_asked_one_by_one() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.gen("a")
        s["a"]
        s += "R" + sgl.gen("b") + "S" + sgl.gen("c", top_p=7)

    def answer(body: dict[str, Any]) -> Answer:
        return (400, {"error": {"message": "no", "param": "segments[3]"}}) if "segments" in body else reply()

    with serve(Wire(answer, {"model_path": "x", "segments": True})) as wire:
        program.run(backend=sgl.RuntimeEndpoint(wire.url)).sync()
        a, chain, b, c = wire.bodies
        assert "segments" in chain
        assert chain["parent"] == b["parent"] == a["rid"]
        assert c["parent"] == b["rid"]


def test_programs_that_have_begun_come_before_others_where_connections_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.gen("a")
        s["a"]
        s += "R" + sgl.gen("b")

    monkeypatch.setattr(runtime_endpoint, "CONNECTIONS", 1)
    with serve(Wire(lambda body: reply(), {"model_path": "x", "segments": True})) as wire:
        program.run_batch([()] * 20, backend=sgl.RuntimeEndpoint(wire.url), num_threads=20)
        open_at_most, begun = 0, set()
        for body in wire.bodies:
            begun.symmetric_difference_update({body.get("parent", body["rid"])})
            open_at_most = max(open_at_most, len(begun))
        assert len(wire.bodies) == 40
        assert open_at_most < 10, "20 where each waits its turn anew"
