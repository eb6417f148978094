"""How programs run: text, variables, roles, forks, chains, errors. Over a scripted backend, without a model."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from lang_doubles import HANG_S, Scripted

import sglang as sgl
from sglang.lang.backends.base import BaseBackend
from sglang.lang.ir import SglSamplingParams


def letters(text: str, params: SglSamplingParams) -> str:
    return "abc"


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + HANG_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_text_and_variables_follow_one_another() -> None:
    @sgl.function
    def program(s: Any, q: str, end: str = "!") -> str:
        s += "Q: " + q + "\n" + sgl.gen("a", 4) + end
        s += [" and ", sgl.gen("b")]
        return s["a"] + s["b"]

    state = program.run("why", backend=Scripted())
    assert state.text() == "Q: why\n<7>! and <16>"
    assert (state["a"], state.get_var("b"), state.ret_value) == ("<7>", "<16>", "<7><16>")
    assert state.get_meta_info("b") == {"prompt_tokens": 16}
    assert "a" in state and "c" not in state
    assert state.messages() == []
    assert state.error() is None


def test_sampling_is_default_then_run_then_gen_then_template() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a")
        s += sgl.gen("b", max_tokens=3, stop="x", temperature=0.5, dtype=int)

    backend = Scripted(template="llama-3-instruct")
    mine = ["y"]
    program.run(backend=backend, max_new_tokens=7, stop=mine, top_p=0.9).sync()
    a, b = backend.params
    assert (a.max_new_tokens, a.stop, a.top_p, a.temperature) == (7, ("y", "<|eot_id|>"), 0.9, 1.0)
    assert (b.max_new_tokens, b.stop, b.top_p, b.temperature, b.dtype) == (3, ("x", "<|eot_id|>"), 0.9, 0.5, "int")
    assert mine == ["y"]


def test_two_gens_of_one_state_are_in_order_those_of_forks_at_the_same_time() -> None:
    backend = Scripted(delay=0.02)

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a") + sgl.gen("b")
        s.sync()
        assert backend.most == 1
        backend.meet = 3
        forks = s.fork(3)
        forks += sgl.gen("c")
        forks.join()

    program.run(backend=backend).sync()
    assert backend.most == 3


@pytest.mark.parametrize("chains", [False, True])
def test_roles_make_messages(chains: bool) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Be brief.")
        s += sgl.user("One?")
        s += sgl.assistant(" " + sgl.gen("a") + ".")
        with s.user():
            s += "Two?"
        s += sgl.assistant_begin()
        s += sgl.gen("b")
        s += sgl.assistant_end()
        s.user("Three?")

    state = program.run(backend=Scripted(letters, chains=chains, template="chatml"))
    assert state.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "abc."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "abc"},
        {"role": "user", "content": "Three?"},
    ]
    chat = [("system", "Be brief."), ("user", "One?"), ("assistant", " abc."), ("user", "Two?"), ("assistant", "abc")]
    whole = [*chat, ("user", "Three?")]
    assert state.text() == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in whole)


@pytest.mark.parametrize("chains", [False, True])
def test_a_template_brings_its_system_message_and_llama_2_its_own_rule(chains: bool) -> None:
    @sgl.function
    def chat(s: Any, system: str | None) -> None:
        if system:
            s += sgl.system(system)
        s += sgl.user("Hi")
        s += sgl.assistant(sgl.gen("a"))
        s += sgl.user("Ho")
        s += sgl.assistant(sgl.gen("b"))

    qwen = Scripted(letters, chains=chains, template="qwen")
    assert chat.run(None, backend=qwen).messages()[0]["content"] == "You are a helpful assistant."
    assert qwen.asked[1].startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi")
    llama = Scripted(letters, chains=chains, template="llama-2-chat")
    text = chat.run("S", backend=llama).text()
    assert text == "[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST]abc </s><s>[INST] Ho [/INST]abc </s><s>"
    assert llama.asked[1] == text.removesuffix("abc </s><s>")


def test_a_nested_role_fails_where_it_is_written() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user_begin()
        s += sgl.assistant("no")

    with pytest.raises(AssertionError, match="nested") as caught:
        program.run(backend=Scripted())
    assert 's += sgl.assistant("no")' in "".join(traceback.format_exception(caught.value))


def test_forks_gather_their_variables_into_lists() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "root " + sgl.gen("r")
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += f" branch {i} " + sgl.gen("x")
            assert f["r"] == s["r"]
        assert len(forks) == 2
        assert forks[0]["x"].startswith("<")
        forks.join()
        s += " end"

    state = program.run(backend=Scripted())
    assert state.text() == "root <5> end"
    assert state["x"] == ["<18>", "<18>"]
    assert state["r"] == "<5>"


def test_forks_take_one_expression_a_function_or_a_list() -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        forks += "a"
        forks += lambda i: str(i)
        forks += ["x", sgl.gen("v")]
        forks.join("concate_and_append")

    assert program.run(backend=Scripted()).text() == "a0xa1<2>"


def test_joining_in_an_unknown_way_or_twice_is_refused() -> None:
    @sgl.function
    def program(s: Any, mode: str) -> None:
        forks = s.fork(2)
        forks.join(mode)
        forks += "more"

    with pytest.raises(ValueError, match="Invalid join mode"):
        program.run("sum", backend=Scripted())
    with pytest.raises(RuntimeError, match="joined"):
        program.run("gather_variable", backend=Scripted())
    with pytest.raises(ValueError, match="as many"):
        sgl.function(lambda s: s.fork(2).__iadd__(["a"])).run(backend=Scripted())


def test_forks_in_forks() -> None:
    @sgl.function
    def tree(s: Any) -> None:
        s += "0"
        outer = s.fork(2)
        for f in outer:
            f += sgl.gen("a")
            inner = f.fork(2)
            inner += sgl.gen("b")
            inner.join()
        outer.join()

    state = tree.run(backend=Scripted(letters))
    assert state["a"] == ["abc", "abc"]
    assert state["b"] == [["abc", "abc"], ["abc", "abc"]]


def test_a_copy_and_a_scope() -> None:
    @sgl.function
    def program(s: Any) -> None:
        with s.copy() as c:
            c += sgl.gen("x")
        with s.var_scope("both"):
            s += "a" + sgl.gen("y")
        s["z"] = 3

    state = program.run(backend=Scripted(letters, chains=True))
    assert (state["x"], state["both"], state["z"], state.text()) == (["abc"], "aabc", 3, "aabc")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_exception_inside_of_a_copy_does_not_wait_for_what_it_asked(asynchronous: bool) -> None:
    @sgl.function
    def plain(s: Any) -> None:
        with s.copy() as c:
            c += sgl.gen("x")
            raise ZeroDivisionError("mine")

    @sgl.function
    async def awaiting(s: Any) -> None:
        async with s.copy() as c:
            c += sgl.gen("x")
            raise ZeroDivisionError("mine")

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="mine"):
        (awaiting if asynchronous else plain).run(backend=Scripted(delay=10 * HANG_S))
    assert time.monotonic() - began < HANG_S


def test_a_fork_has_the_variables_of_its_moment_and_its_own_at_once() -> None:
    go = threading.Event()

    class Waiting(Scripted):
        async def _answer(self, text: str, params: SglSamplingParams) -> str:
            began = time.monotonic()
            while not go.is_set() and time.monotonic() - began < HANG_S:
                await asyncio.sleep(0.001)
            go.set()
            return await super()._answer(text, params)

    @sgl.function
    def program(s: Any) -> tuple[Any, ...]:
        s["k"] = "before"
        s += "x" + sgl.gen("a")
        forks = s.fork(2)
        s["k"] = s["late"] = "after"
        forks[0]["mine"] = 1
        at_once = forks[0]["k"], forks[0]["mine"]
        assert not go.is_set(), "neither needs the gen"
        go.set()
        forks[1]["k"] = "own"
        inner = forks[1].fork(1)
        seen = forks[0]["a"], inner[0]["a"], inner[0]["k"], "late" in forks[0], forks[1]["k"]
        forks.join()
        return *at_once, *seen, s["mine"], s["k"]

    result = program.run(backend=Waiting(letters)).ret_value
    assert result == ("before", 1, "abc", "abc", "own", False, "own", [1], "after")


def test_a_state_of_a_fork_is_appended_to_by_its_number() -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        forks[0] += "a" + sgl.gen("x")
        forks[1] += "b" + sgl.gen("x")
        forks.join()
        with pytest.raises(TypeError, match="cannot be replaced"):
            forks[0] = s

    assert program.run(backend=Scripted(lambda text, _: text)).get_var("x") == ["a", "b"]
    assert "join gather_variable" in str(program.trace(backend=Scripted()))


def test_messages_are_those_of_the_moment() -> None:
    @sgl.function
    def program(s: Any) -> int:
        s += sgl.user("a")
        so_far = s.messages()
        s += sgl.user("b")
        s.sync()
        return len(so_far)

    assert program.run(backend=Scripted()).ret_value == 1


def test_a_variable_set_twice_is_read_after_the_gen_before() -> None:
    @sgl.function
    def loop(s: Any) -> list[str]:
        seen = []
        for _ in range(3):
            s += "." + sgl.gen("x")
            seen.append(s["x"])
        return seen

    assert loop.run(backend=Scripted(chains=True)).ret_value == ["<1>", "<5>", "<9>"]


def test_a_variable_that_nobody_makes_fails_at_the_line_that_reads_it() -> None:
    @sgl.function
    def program(s: Any) -> str:
        s += sgl.gen("answer")
        return s["anwser"]

    with pytest.raises(KeyError, match="answer") as caught:
        program.run(backend=Scripted())
    assert 's["anwser"]' in "".join(traceback.format_exception(caught.value))


def failing(text: str, params: SglSamplingParams) -> str:
    if "bad" in text:
        raise RuntimeError('503 {"error": "broken"}')
    return "ok"


@pytest.mark.parametrize("chains", [False, True])
def test_a_failed_gen_ends_the_state_and_names_its_line(chains: bool, caplog: pytest.LogCaptureFixture) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "good " + sgl.gen("a")
        s.sync()
        s += "bad " + sgl.gen("lost", 5)
        s += "never"

    state = program.run(backend=Scripted(failing, chains=chains))
    error = state.error()
    assert isinstance(error, RuntimeError) and "broken" in str(error)
    assert 'sgl.gen("lost", 5)' in "".join(traceback.format_exception(error))
    assert state.text() == "good okbad "
    assert state["a"] == "ok"
    with pytest.raises(KeyError, match="lost") as caught:
        state["lost"]
    assert caught.value.__cause__ is error
    line = program.func.__code__.co_firstlineno + 4
    assert f'Error in stream_executor: RuntimeError: 503 {{"error": "broken"}} ({__file__}, line {line})' in caplog.text
    assert list(state.text_iter("lost")) == []


def test_an_exception_of_the_body_is_raised_and_drops_what_runs() -> None:
    backend = Scripted(delay=10 * HANG_S)

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a")
        assert eventually(lambda: backend.running == 1)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        program.run(backend=backend)
    assert eventually(lambda: backend.dropped == 1)


def test_a_backend_that_calls_exit_ends_the_state_and_no_other() -> None:
    class Exits(BaseBackend):
        def generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[str, Any]:
            raise SystemExit(3)

    class ExitsOnTheLoop(Scripted):
        async def async_generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[str, Any]:
            raise SystemExit(3)

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a")

    for backend in (Exits(), ExitsOnTheLoop()):
        state = program.run(backend=backend)
        asking = threading.Thread(target=state.sync, daemon=True)
        asking.start()
        asking.join(HANG_S)
        assert not asking.is_alive(), "it hangs"
        assert "SystemExit(3)" in str(state.error())
        assert 's += sgl.gen("a")' in "".join(traceback.format_exception(state.error()))
    assert program.run(backend=Scripted())["a"] == "<0>"


def test_a_failed_fork_fails_the_join_and_nothing_hangs() -> None:
    @sgl.function
    def program(s: Any) -> str:
        forks = s.fork(3)
        forks += lambda i: ("bad" if i == 1 else "fine") + sgl.gen("x")
        forks.join()
        return s["x"]

    with pytest.raises(KeyError) as caught:
        program.run(backend=Scripted(failing))
    assert "fork 1 failed" in str(caught.value.__cause__)


def test_a_fork_of_a_state_that_failed_has_failed() -> None:
    @sgl.function
    def program(s: Any) -> str:
        s += "bad" + sgl.gen("x")
        return s.fork(2)[1]["x"]

    with pytest.raises(KeyError, match="broken"):
        program.run(backend=Scripted(failing))


@pytest.mark.parametrize("batch", [False, True])
def test_a_fork_that_is_never_joined_holds_nothing_up(batch: bool) -> None:
    class SlowForks(Scripted):
        async def async_generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[Any, Any]:
            if "fork" in s.text_:
                await asyncio.sleep(10 * HANG_S)
            return await super().async_generate(s, sampling_params)

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a")
        for fork in s.fork(5):
            fork += "fork" + sgl.gen("x")
        s += "end" + sgl.gen("b")

    began = time.monotonic()
    if batch:
        states = program.run_batch([{}] * 20, backend=SlowForks())
    else:
        states = [program.run(backend=SlowForks())]
    assert {state.text() for state in states} == {"<0>end<6>"}
    assert time.monotonic() - began < HANG_S


def test_what_cannot_be_appended_is_refused() -> None:
    for value in (None, 3, b"x", ["a", 3]):
        with pytest.raises(ValueError, match="cannot append"):
            sgl.function(lambda s, value=value: s.__iadd__(value)).run(backend=Scripted())
    with pytest.raises(ValueError, match="cannot append"):
        sgl.function(lambda s: s.fork(2).__iadd__(3)).run(backend=Scripted())


@pytest.mark.usefixtures("patient")
def test_a_chain_is_one_request_and_changes_nothing() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Hi" + sgl.gen("a") + "there")
        with s.var_scope("scope"):
            s += "x" + sgl.gen("b", choices=["one", "three"]) + "y" + sgl.gen("c")
        s += "z"

    plain, fused, refused = (Scripted(chains=chains) for chains in (False, True, "refused"))
    states = [program.run(backend=backend) for backend in (plain, fused, refused)]
    texts = {state.text() for state in states}
    assert len(texts) == 1
    for state in states:
        assert [state[name] for name in ("a", "b", "c", "scope")] == [states[0][n] for n in ("a", "b", "c", "scope")]
        assert state.messages() == states[0].messages()
    assert (plain.requests, fused.requests) == (["generate", "select", "generate"], ["chain"])
    assert refused.requests == ["chain", "generate", "select", "generate"]


@pytest.mark.usefixtures("patient")
def test_reading_splits_a_chain_and_the_switches_turn_it_off() -> None:
    def body(s: Any) -> None:
        s += "1" + sgl.gen("a")
        s += "2" + sgl.gen("b")
        assert s["b"]
        s += "3" + sgl.gen("c")

    backend = Scripted(chains=True)
    sgl.function(body).run(backend=backend).sync()
    assert backend.requests == ["chain", "generate"]
    backend = Scripted(chains=True)
    sgl.function(body, fuse=False).run(backend=backend).sync()
    assert backend.requests == ["generate"] * 3


def test_a_slow_body_does_not_hold_its_gens_back() -> None:
    backend = Scripted(chains=True)

    @sgl.function
    def program(s: Any) -> bool:
        s += sgl.gen("a")
        return eventually(lambda: bool(backend.asked))

    assert program.run(backend=backend).ret_value is True


@pytest.mark.usefixtures("patient")
def test_a_custom_method_is_not_part_of_a_chain() -> None:
    def method(**kwargs: Any) -> Any: ...

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a") + sgl.gen("b") + sgl.select("c", ["x", "yy"], choices_method=method) + sgl.gen("d")

    backend = Scripted(chains=True)
    program.run(backend=backend).sync()
    assert backend.requests == ["chain", "select", "generate"]


def test_a_backend_with_blocking_methods_only() -> None:
    class Mine(BaseBackend):
        def generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[str, Any]:
            return f"{threading.current_thread().name != 'MainThread'}", None

        def generate_stream(self, s: Any, sampling_params: SglSamplingParams) -> Any:
            yield "a", None
            yield "b", {"n": 2}

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a")

    assert program.run(backend=Mine())["a"] == "True"
    assert "".join(program.run(backend=Mine(), stream=True).text_iter("a")) == "ab"
    with pytest.raises(AssertionError, match="specify a backend"):
        program.run()


@pytest.mark.parametrize("chains", [False, True])
def test_a_stream_has_the_text_and_each_variable(chains: bool) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q: " + sgl.gen("a") + "; " + sgl.gen("b")

    backend = Scripted(letters, chains=chains)
    state = program.run(backend=backend, stream=True)
    assert "".join(state.text_iter()) == "Q: abc; abc"
    assert "".join(state.text_iter("b")) == "abc"
    plain = program.run(backend=backend)
    assert list(plain.text_iter()) == ["Q: abc; abc"]
    assert list(plain.text_iter("a")) == ["abc"]


def test_a_stream_of_a_body_that_raises_ends_with_that() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a" + sgl.gen("x")
        raise ZeroDivisionError("mine")

    async def pieces(state: Any) -> list[str]:
        return [piece async for piece in state.text_async_iter()]

    for read in (lambda state: list(state.text_iter()), lambda state: asyncio.run(pieces(state))):
        state = program.run(backend=Scripted(delay=0.01), stream=True)
        for _ in ("while it runs", "and after it"):
            with pytest.raises(ZeroDivisionError, match="mine"):
                read(state)
        assert isinstance(state.error(), ZeroDivisionError)


@pytest.mark.parametrize("stream", [False, True])
def test_to_iterate_over_a_variable_that_nobody_makes_is_an_error(stream: bool) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a") + sgl.gen("b")

    def fail(text: str, params: SglSamplingParams) -> str:
        raise RuntimeError("planted")

    state = program.run(backend=Scripted(letters), stream=stream)
    with pytest.raises(KeyError, match="no variable is called 'c'; so far there are: 'a', 'b'"):
        list(state.text_iter("c"))
    failed = program.run(backend=Scripted(fail), stream=stream)
    assert list(failed.text_iter("a")) == [], "the stream of a state that failed ends"


def test_a_stream_waits_for_variables_that_the_body_has_not_reached() -> None:
    go = threading.Event()

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a")
        assert go.wait(HANG_S)
        s += sgl.gen("b")

    state = program.run(backend=Scripted(letters), stream=True)
    assert state["a"] == "abc"
    threading.Timer(0.02, go.set).start()
    assert state["b"] == "abc"
    with pytest.raises(KeyError):
        state["c"]


async def test_streams_on_an_event_loop() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.gen("a")

    state = program.run(backend=Scripted(letters), stream=True)
    assert "".join([piece async for piece in state.text_async_iter()]) == "Qabc"
    state = await program.run_async(backend=Scripted(letters), stream=True)
    pairs = [pair async for pair in state.text_async_iter("a", return_meta_data=True)]
    assert "".join(text for text, _ in pairs) == "abc"
    assert pairs[-1][1] == {"completion_tokens": 3}


async def test_async_programs_await_their_variables() -> None:
    @sgl.function
    async def program(s: Any, n: int) -> Any:
        s += f"{n}" + sgl.gen("a")
        value = await s["a"]
        forks = s.fork(2)
        forks += "f" + sgl.gen("x")
        await forks.join()
        async with s.copy() as c:
            c += sgl.gen("y")
        return value, await s["x"], await s.text(), await s["y"]

    state = await program.run_async(3, backend=Scripted())
    assert state.ret_value == ("<1>", ["<5>", "<5>"], "3<1>", ["<4>"])
    states = await asyncio.gather(*(program.run_async(i, backend=Scripted(delay=0.01)) for i in range(50)))
    assert [state["a"] for state in states] == ["<1>"] * 10 + ["<2>"] * 40


def test_an_async_program_runs_from_plain_code_and_in_batches() -> None:
    @sgl.function
    async def program(s: Any, n: int) -> str:
        s += f"{n}" + sgl.gen("a")
        return await s["a"]

    assert program.run(5, backend=Scripted()).ret_value == "<1>"
    states = program.run_batch([(i,) for i in range(30)], backend=Scripted(delay=0.01))
    assert [state.text() for state in states] == [f"{i}<{len(str(i))}>" for i in range(30)]
    state = program.run(7, backend=Scripted(letters), stream=True)
    assert "".join(state.text_iter()) == "7abc"


def test_blocking_inside_an_async_program_is_an_error_not_a_deadlock() -> None:
    @sgl.function
    def inner(s: Any) -> None:
        s += sgl.gen("a")

    @sgl.function
    async def outer(s: Any) -> None:
        inner.run(backend=Scripted())

    with pytest.raises(RuntimeError, match="run_async"):
        outer.run(backend=Scripted())


def test_context_variables_and_nested_programs() -> None:
    @sgl.function
    def inner(s: Any, q: str) -> None:
        s += q + sgl.gen("x")

    @sgl.function
    def outer(s: Any) -> str:
        s += sgl.gen("a")
        return inner(q=s["a"])["x"]

    sgl.set_default_backend(Scripted())
    try:
        assert outer().ret_value == "<3>"
    finally:
        sgl.set_default_backend(None)


def test_thinking_goes_to_a_variable_of_its_own() -> None:
    def script(text: str, params: SglSamplingParams) -> str:
        return "<think>hmm</think>\n\nParis"

    @sgl.function
    def program(s: Any) -> None:
        s += "Q" + sgl.separate_reasoning(sgl.gen("a"), model_type="qwen3") + "."

    for stream in (False, True):
        state = program.run(backend=Scripted(script), stream=stream)
        assert (state["a_reasoning_content"], state["a"], state.text()) == ("hmm", "Paris", "QParis.")


def test_what_was_thought_is_waited_for() -> None:
    @sgl.function
    def program(s: Any) -> str:
        s += "Q" + sgl.separate_reasoning(sgl.gen("a"), model_type="qwen3")
        return s["a_reasoning_content"]

    assert program.run(backend=Scripted(lambda *_: "<think>hmm</think>so", delay=0.05)).ret_value == "hmm"


def test_a_completion_model_says_more_than_one_gen_needs() -> None:
    def script(text: str, params: SglSamplingParams) -> str:
        return "Ann\nAge: 7\nJob: cook\n"

    @sgl.function(num_api_spec_tokens=64)
    def program(s: Any) -> None:
        s += "Name: " + sgl.gen("name", stop="\n") + "\nAge: " + sgl.gen("age", stop="\n")
        s += "\nJob: " + sgl.gen("job", stop="\n")

    backend = Scripted(script, spec="completion")
    state = program.run(backend=backend)
    assert (state["name"], state["age"], state["job"]) == ("Ann", "7", "cook")
    assert backend.requests == ["generate"]
    assert (backend.params[0].max_new_tokens, backend.params[0].stop) == (128, ())


def test_a_pattern_to_stop_at_is_not_speculated() -> None:
    """What is left of another answer is not searched for it: the backend hears of it, and refuses it."""

    @sgl.function(num_api_spec_tokens=64)
    def program(s: Any) -> None:
        s += "Name: " + sgl.gen("name", stop="\n") + "\nAge: " + sgl.gen("age", stop="\n", stop_regex=r"\d")

    backend = Scripted(lambda *_: "Ann\nAge: 7\nJob: cook\n", spec="completion")
    program.run(backend=backend).sync()
    assert [(params.stop, params.stop_regex) for params in backend.params] == [((), ()), (("\n",), (r"\d",))]


@pytest.mark.parametrize("spec", ["completion", "chat"])
def test_several_answers_are_not_speculated(spec: str) -> None:
    class Several(Scripted):
        async def async_generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[Any, Any]:
            assert (sampling_params.n, sampling_params.stop) == (2, ("\n",))
            return ["a", "b"], {}

    @sgl.function(num_api_spec_tokens=64)
    def program(s: Any) -> None:
        s += sgl.user("Who?") + sgl.assistant(sgl.gen("x", n=2, stop="\n"))

    state = program.run(backend=Several(spec=spec))
    if spec == "completion":
        assert state["x"] == ["a", "b"]
    else:
        assert "n must be 1, got 2" in str(state.error())


def test_a_chat_model_writes_a_message_that_is_matched_to_its_gens() -> None:
    answers = iter(["no idea", "Name: Ann\nAge: 7"])

    def script(text: str, params: SglSamplingParams) -> str:
        return next(answers)

    @sgl.function(num_api_spec_tokens=64)
    def program(s: Any) -> None:
        s += sgl.user("Who?")
        s += sgl.assistant("Name: " + sgl.gen("name", stop="\n") + "\nAge: " + sgl.gen("age"))

    backend = Scripted(script, spec="chat")
    state = program.run(backend=backend)
    assert (state["name"], state["age"]) == ("Ann", "7")
    assert backend.requests == ["generate"] * 2
    assert backend.params[0].max_new_tokens == 64
    assert state.messages()[1]["content"] == "Name: Ann\nAge: 7"
    with pytest.raises(AssertionError, match="stream"):
        program.run(backend=backend, stream=True)


def test_reading_inside_of_a_speculated_message_is_an_error() -> None:
    @sgl.function(num_api_spec_tokens=64)
    def program(s: Any) -> None:
        s += sgl.assistant_begin()
        s += sgl.gen("a", stop="\n")
        s["a"]

    with pytest.raises(KeyError, match="message ends"):
        program.run(backend=Scripted(spec="chat"))


def open_message(s: Any) -> None:
    s += sgl.assistant_begin() + sgl.gen("a", stop="\n")


def never_ended(s: Any) -> None:
    open_message(s)


def never_ended_in_forks(s: Any) -> None:
    forks = s.fork(2)
    for f in forks:
        open_message(f)
    forks.join()


def forked_before_its_end(s: Any) -> None:
    open_message(s)
    forks = s.fork(2)
    forks[0] += sgl.gen("b", stop="\n")
    forks[0]["b"]


@pytest.mark.parametrize("body", [never_ended, never_ended_in_forks, forked_before_its_end])
def test_a_speculated_message_that_does_not_end_holds_nothing_up(body: Any) -> None:
    program = sgl.function(body, num_api_spec_tokens=64)
    ended = threading.Event()
    errors: list[Any] = []

    def batch() -> None:
        states = program.run_batch([{}, {}], backend=Scripted(spec="chat"))
        errors.extend(state.error() for state in states)
        ended.set()

    threading.Thread(target=batch, daemon=True).start()
    assert ended.wait(HANG_S), "it hangs"
    for error in errors:
        assert "message ends before" in str(error)
        assert "s += sgl.assistant_begin() + sgl.gen(" in "".join(traceback.format_exception(error))
