"""The documentation's programs, as users write them, over a real server with the demo model."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import ENDLESS, FAR, HANG_S

import sglang as sgl

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def backend(served: Any) -> Iterator[sgl.RuntimeEndpoint]:
    endpoint = sgl.RuntimeEndpoint(served.url)
    sgl.set_default_backend(endpoint)
    yield endpoint
    sgl.set_default_backend(None)


@pytest.fixture(params=[True, False], ids=["fused", "one by one"])
def fused(request: pytest.FixtureRequest, backend: sgl.RuntimeEndpoint) -> Iterator[bool]:
    """Each program with chains as one request, and without."""
    backend.fusion = request.param
    yield request.param
    backend.fusion = True


def test_the_server_takes_chains_and_tells_its_template(backend: sgl.RuntimeEndpoint) -> None:
    assert backend.fuses
    assert backend.get_chat_template().role_prefix_and_suffix["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert sgl.get_server_args()["max_total_num_tokens"] == 40000  # type: ignore[index]  # there is a backend
    assert backend.get_model_name()


def test_multi_turn_question(fused: bool) -> None:
    from sglang import assistant, function, gen, system, user

    @function
    def multi_turn_question(s, question_1, question_2):
        s += system("You are a helpful assistant.")
        s += user(question_1)
        s += assistant(gen("answer_1", max_tokens=256))
        s += user(question_2)
        s += assistant(gen("answer_2", max_tokens=256))

    state = multi_turn_question.run(
        question_1="What is the capital of the United States?",
        question_2="List two local attractions.",
        temperature=0,
    )
    roles = [m["role"] for m in state.messages()]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert "Washington" in state["answer_1"]
    assert state["answer_2"] == state.messages()[-1]["content"]
    assert "1." in state["answer_2"]


@sgl.function
def tool_use(s, question):
    s += "To answer this question: " + question + ". "
    s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search engine"]) + ". "

    if s["tool"] == "calculator":
        s += "The math expression is" + sgl.gen("expression")
    elif s["tool"] == "search engine":
        s += "The key word to search is" + sgl.gen("word")


def test_tool_use(fused: bool) -> None:
    state = tool_use.run("What is 12 + 7", temperature=0, max_new_tokens=16)
    assert state["tool"] == "calculator"
    assert "12 + 7" in state["expression"]
    state = tool_use.run("Who is the president of France", temperature=0, max_new_tokens=16)
    assert state["tool"] == "search engine"
    assert "expression" not in state
    meta = state.get_meta_info("tool")
    assert len(meta["normalized_prompt_logprobs"]) == len(meta["input_token_logprobs"]) == 2


@sgl.function
def tip_suggestion(s):
    s += (
        "Here are two tips for staying healthy: "
        "1. Balanced Diet. 2. Regular Exercise.\n\n"
    )  # fmt: skip

    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=256, stop="\n\n")

    s += "Tip 1:" + forks[0]["detailed_tip"] + "\n"
    s += "Tip 2:" + forks[1]["detailed_tip"] + "\n"
    s += "In summary" + sgl.gen("summary")


def test_tip_suggestion(fused: bool) -> None:
    state = tip_suggestion.run(temperature=0, max_new_tokens=32)
    assert state.error() is None
    text = state.text()
    assert text.startswith("Here are two tips") and "Tip 1:" in text and text.endswith("In summary" + state["summary"])


def test_constrained_decoding(fused: bool) -> None:
    @sgl.function
    def regular_expression_gen(s):
        s += "Q: What is the IP address of the Google DNS servers?\n"
        s += "A: " + sgl.gen(
            "answer",
            temperature=0,
            regex=r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)",
        )

    answer = regular_expression_gen.run()["answer"]
    assert re.fullmatch(r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)", answer)


character_regex = (
    r"""\{\n"""
    + r"""    "name": "[\w\d\s]{1,16}",\n"""
    + r"""    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n"""
    + r"""    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n"""
    + r"""    "occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)",\n"""
    + r"""    "wand": \{\n"""
    + r"""        "wood": "[\w\d\s]{1,16}",\n"""
    + r"""        "core": "[\w\d\s]{1,16}",\n"""
    + r"""        "length": [0-9]{1,2}\.[0-9]{0,2}\n"""
    + r"""    \},\n"""
    + r"""    "alive": "(Alive|Deceased)",\n"""
    + r"""    "patronus": "[\w\d\s]{1,16}",\n"""
    + r"""    "bogart": "[\w\d\s]{1,16}"\n"""
    + r"""\}"""
)


@sgl.function
def character_gen(s, name):
    s += name + " is a character in Harry Potter. Please fill in the following information about this character.\n"
    s += sgl.gen("json_output", max_tokens=256, regex=character_regex)


def test_json_decoding(fused: bool) -> None:
    output = character_gen.run("Harry Potter", temperature=0)["json_output"]
    assert re.fullmatch(character_regex, output)
    assert json.loads(output)["house"] == "Gryffindor"


@sgl.function
def text_qa(s, question):
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n")


def test_batching(fused: bool) -> None:
    states = text_qa.run_batch(
        [
            {"question": "What is the capital of the United Kingdom?"},
            {"question": "What is the capital of France?"},
            {"question": "What is the capital of Japan?"},
        ],
        progress_bar=True,
        temperature=0,
    )
    for state, city in zip(states, ["London", "Paris", "Tokyo"], strict=True):
        assert city in state["answer"]
        assert "\n" not in state["answer"]


def test_streaming(fused: bool) -> None:
    state = text_qa.run(question="What is the capital of France?", temperature=0, stream=True)
    pieces = list(state.text_iter())
    assert "".join(pieces) == state.text()
    assert "Paris" in "".join(pieces)

    @sgl.function
    def story(s):
        s += "Once upon a time, " + sgl.gen("rest", max_tokens=400, ignore_eos=True)

    state = story.run(temperature=0, stream=True)
    pieces = list(state.text_iter("rest"))
    assert "".join(pieces) == state["rest"]
    assert len(pieces) > 2, "how many tokens come together nobody knows, but not all of so many"


def test_types(fused: bool) -> None:
    @sgl.function
    def numbers(s):
        s += "Q: What is 3 + 4?\nA: " + sgl.gen_int("sum", max_tokens=8) + "\n"
        s += "Pi is about " + sgl.gen("pi", dtype=float, max_tokens=8) + "."
        s += " That is " + sgl.gen("so", dtype=bool, max_tokens=8) + ", in a word: "
        s += sgl.gen_string("word", max_tokens=24)

    state = numbers.run(temperature=0)
    assert state.error() is None
    assert int(state["sum"]) == 7
    assert float(state["pi"])
    assert state["so"].strip() in ("True", "False")
    assert state["word"].startswith('"')


def test_all_methods_of_choice_and_a_custom_one(fused: bool) -> None:
    def longest(*, choices, **_):
        return sgl.ChoicesDecision(max(choices, key=len), {"mine": True})

    @sgl.function
    def choose(s, method):
        s += "The capital of France is" + sgl.gen("city", choices=[" Berlin", " Paris", " Constantinople"],
                                                  choices_method=method) + "."  # fmt: skip

    for method in (
        sgl.token_length_normalized,
        sgl.greedy_token_selection,
        sgl.unconditional_likelihood_normalized,
    ):
        assert choose.run(method)["city"] == " Paris", method
    assert choose.run(longest).get_meta_info("city") == {"mine": True}
    assert choose.run(longest).text() == "The capital of France is Constantinople."


def test_an_empty_choice_and_two_that_are_the_same(fused: bool) -> None:
    @sgl.function
    def choose(s, choices):
        s += "The capital of France is" + sgl.select("c", choices) + "."

    assert choose.run([" Berlin", " Paris", " Paris"])["c"] == " Paris"
    assert choose.run(["", " Berlin"])["c"] in ("", " Berlin")


def test_fusion_changes_no_output(start_server: Any) -> None:
    @sgl.function
    def chain(s, place):
        s += sgl.user(f"Tell me about {place}.")
        s += sgl.assistant("It lies in" + sgl.gen("where", max_tokens=6) + ". Is it large? "
                           + sgl.select("large", ["Yes", "No", "Somewhat"]) + "!")  # fmt: skip
        s += sgl.user("And a number?")
        s += sgl.assistant(sgl.gen("n", dtype=int, max_tokens=5) + " " + sgl.gen("end", max_tokens=12, stop=[".", "é"]))

    with start_server() as server:
        own = sgl.RuntimeEndpoint(server.url)
        for place in ("Japan", "the moon", "Grüße", "a b  c", "日本"):
            states = {}
            for own.fusion in (True, False):
                for stream in (True, False):
                    state = chain.run(place, temperature=0, stream=stream, backend=own)
                    assert state.error() is None
                    states[own.fusion, stream] = state.text()
            assert len(set(states.values())) == 1, states
            own.flush_cache()


def test_logprobs_and_cot_decoding(fused: bool) -> None:
    @sgl.function
    def cot(s):
        s += "Q: What is the capital of Spain?\nA:" + sgl.gen(
            "step", max_tokens=1, return_logprob=True, top_logprobs_num=5, return_text_in_logprobs=True
        )
        s += sgl.gen("rest", max_tokens=4)

    meta = cot.run(temperature=0).get_meta_info("step")
    assert len(meta["output_top_logprobs"][0]) == 5
    assert meta["output_token_logprobs"][0][2] == meta["output_top_logprobs"][0][0][2]


def test_a_gen_ends_where_a_pattern_matches(fused: bool) -> None:
    @sgl.function
    def capitals(s):
        for country in ("France", "Japan"):
            s += f"Q: What is the capital of {country}?\nA:" + sgl.gen(country, stop_regex=[r"[.,]", r"\n\w"]) + ".\n"

    state = capitals.run(temperature=0)
    for country, city in (("France", "Paris"), ("Japan", "Tokyo")):
        assert city in state[country]
        assert not re.search(r"[.,]|\n\w", state[country])
        assert re.fullmatch(r"[.,]|\n\w", state.get_meta_info(country)["finish_reason"]["matched"])
    streamed = capitals.run(temperature=0, stream=True)
    assert "".join(streamed.text_iter("Japan")) == state["Japan"]

    @sgl.function
    def wrong(s):
        s += "Q" + sgl.gen("a", stop_regex="(")

    assert "stop_regex is not a regular expression" in str(wrong.run(temperature=0).error())


def test_async_programs_and_iterators(backend: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    async def ask(s, country):
        s += f"Q: What is the capital of {country}?\nA:" + sgl.gen("answer", stop="\n", max_tokens=12)
        answer = await s["answer"]
        s += f"\nQ: Where is{answer}?\nA:" + sgl.gen("where", stop="\n", max_tokens=12)
        return answer

    async def main():
        states = await asyncio.gather(*(ask.run_async(c, temperature=0) for c in ("France", "Japan", "Italy")))
        state = text_qa.run("What is the capital of Italy?", stream=True, temperature=0)
        pieces = [piece async for piece in state.text_async_iter("answer")]
        return [state.ret_value for state in states], "".join(pieces)

    answers, streamed = asyncio.run(main())
    for found, city in zip([*answers, streamed], ["Paris", "Tokyo", "Rome", "Rome"], strict=True):
        assert city in found


def test_parallel_samples_and_n(fused: bool) -> None:
    @sgl.function
    def samples(s, question, num_forks):
        s += "Q: " + question + "\nA:"
        forks = s.fork(num_forks)
        forks += sgl.gen("reason", stop="\n", max_tokens=16)
        forks.join()
        s += sgl.gen("several", n=2, max_tokens=4)

    state = samples.run("What is your name?", 5, temperature=1.0)
    assert len(state["reason"]) == 5
    assert len(state["several"]) == 2
    assert state.text().endswith(state["several"][0])


def test_a_refused_request_shows_the_servers_words_and_the_programs_line(fused: bool) -> None:
    @sgl.function
    def wrong(s):
        s += "Q" + sgl.gen("fine", max_tokens=2)
        s += sgl.gen("a", top_p=7)
        s += sgl.gen("b")

    state = wrong.run()
    error = state.error()
    assert isinstance(error, RuntimeError)
    assert "top_p" in str(error) and "400" in str(error)
    shown = "".join(traceback.format_exception(error))
    assert 'sgl.gen("a", top_p=7)' in shown
    assert state["fine"]
    with pytest.raises(KeyError, match="top_p"):
        state["b"]


def test_one_bad_item_of_a_hundred(fused: bool) -> None:
    @sgl.function
    def item(s, i):
        s += f"{i}" + sgl.gen("a", max_tokens=1, temperature=-1 if i == 42 else 0)

    states = item.run_batch([(i,) for i in range(100)])
    assert [i for i, state in enumerate(states) if state.error()] == [42]


def test_ctrl_c_in_a_batch_frees_the_server(served: Any, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(f"""
import sglang as sgl

@sgl.function
def program(s, i):
    s += "Count: " + str(i) + sgl.gen("a", max_tokens=1000, ignore_eos=True)

program.run_batch([(i,) for i in range(200)], backend=sgl.RuntimeEndpoint({served.url!r}))
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(file)], stderr=subprocess.PIPE, text=True, env=environment)

    def running() -> float:
        return served.metric("sglang:num_running_reqs") + served.metric("sglang:num_queue_reqs")

    until(lambda: running() > 8)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANG_S)
    assert "KeyboardInterrupt" in said and "program.run_batch(" in said
    until(lambda: running() == 0)


def until(ready: Callable[[], bool], timeout_s: float = HANG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_select_is_one_request_that_computes_the_prompt_once(backend: sgl.RuntimeEndpoint) -> None:
    """All choices and the prompt before them in as many steps as the prompt alone takes."""

    @sgl.function
    def choose(s, n):
        s += (
            "The sea is blue and the sky is blue too. " * 20
            + "It is"
            + sgl.select("c", [f" {i} days" for i in range(n)])
        )

    def counts() -> dict[str, int]:
        return backend.get_server_info()["internal_states"][0]

    for n in (1, 8):
        sgl.flush_cache()
        before = counts()
        meta = choose.run(n).get_meta_info("c")
        assert len(meta["normalized_prompt_logprobs"]) == n
        after = counts()
        computed = meta["prompt_tokens"] - meta["cached_tokens"]
        assert computed < meta["prompt_tokens"] / n + 6 * n, (n, meta)
        assert after["steps"] - before["steps"] <= 2, (n, before, after)


def test_the_shared_prefix_of_forks_comes_from_the_cache(backend: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    def judge(s, essay):
        s += "Please judge this essay: " + essay + "\n"
        forks = s.fork(3)
        forks += lambda i: f"Dimension {i}: " + sgl.gen("judgment", max_tokens=4)
        forks.join()

    sgl.flush_cache()
    state = judge.run("The sea is blue and the sky is blue too. " * 30, temperature=0)
    forks = next(node for node in state.stream_executor.history if type(node).__name__ == "Fork")
    metas = [child.meta_info["judgment"] for child in forks.children]
    prompt = sum(meta["prompt_tokens"] for meta in metas)
    computed = prompt - sum(meta["cached_tokens"] for meta in metas)
    shared = min(meta["prompt_tokens"] for meta in metas)
    assert computed < shared + 60, metas
    assert "cached" in str(sgl.explain(state))


def test_a_wrong_address_and_a_wrong_key_say_so(start_server: Any) -> None:
    with pytest.raises(RuntimeError, match="no server answers"):
        sgl.RuntimeEndpoint("http://127.0.0.1:9")
    with start_server("--api-key", "k3y", *FAR) as server:
        with pytest.raises(RuntimeError, match="401"):
            sgl.RuntimeEndpoint(server.url)
        endpoint = sgl.RuntimeEndpoint(server.url, api_key="k3y")
        assert text_qa.run("What is the capital of France?", temperature=0, backend=endpoint)["answer"] == " Paris."
        state = text_qa.run("What?", backend=endpoint, stop="never", **ENDLESS)
        server.process.kill()
        assert state.error() is not None  # it ends, with the reason


def test_a_runtime_starts_answers_and_leaves_nothing_behind() -> None:
    runtime = sgl.Runtime(max_total_tokens=8000)
    try:
        assert text_qa.run("What is the capital of France?", temperature=0, backend=runtime)["answer"] == " Paris."
        answer = json.loads(runtime.generate("The capital of France is", {"max_new_tokens": 4, "temperature": 0}))
        assert "Paris" in answer["text"]

        async def pieces():
            return [p async for p in runtime.add_request("The capital of France is", {"max_new_tokens": 4})]

        assert "".join(asyncio.run(pieces()))
        assert sgl.flush_cache(runtime) is True
    finally:
        runtime.shutdown()
        runtime.shutdown()
    with pytest.raises(httpx.HTTPError):
        httpx.get(runtime.url + "/health", timeout=2)
    with pytest.raises(TypeError, match="tp_sise"):
        sgl.Runtime(tp_sise=2)


def test_a_runtime_that_cannot_start_says_so_soon() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="Initialization failed"):
        sgl.Runtime(model_path="/does/not/exist", launch_timeout=10 * HANG_S)
    assert time.monotonic() - began < 2 * HANG_S


def test_an_engine_is_a_backend() -> None:
    with sgl.Engine(max_total_tokens=8000, log_level="error") as engine:
        state = text_qa.run("What is the capital of France?", temperature=0, backend=engine)
        assert state["answer"] == " Paris."
        state = tool_use.run("What is 12 + 7", temperature=0, max_new_tokens=16, backend=engine)
        assert state["tool"] == "calculator"

        @sgl.function
        def wrong(s):
            s += "Q" + sgl.gen("fine", max_tokens=2)
            s += sgl.gen("a", top_p=7)

        for stream in (False, True):
            state = wrong.run(backend=engine, stream=stream)
            assert 'sgl.gen("a", top_p=7)' in "".join(traceback.format_exception(state.error()))
            assert state["fine"]
        streamed = text_qa.run("What is the capital of Japan?", temperature=0, backend=engine, stream=True)
        assert "Tokyo" in "".join(streamed.text_iter("answer"))
