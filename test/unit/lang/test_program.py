"""Who runs programs: batches, arguments, the module's own functions."""

import json
import re
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from lang_doubles import HANG_S, Scripted

import sglang as sgl
from sglang.lang.ir import SglSamplingParams

PACKAGE_ROOT = Path(__file__).parents[3] / "python"


@sgl.function
def qa(s: Any, question: str, end: str = "\n") -> None:
    s += "Q: " + question + end + sgl.gen("answer")


def test_a_batch_keeps_the_order_of_its_items() -> None:
    backend = Scripted(meet=33)
    states = qa.run_batch([{"question": "x" * i} for i in range(300)], backend=backend, max_new_tokens=3)
    assert [state["answer"] for state in states] == [f"<{4 + i}>" for i in range(300)]
    assert backend.params[0].max_new_tokens == 3
    assert backend.most > 32


@pytest.mark.parametrize("threads", [1, 7])
def test_num_threads_is_how_many_programs_are_under_way(threads: int) -> None:
    backend = Scripted(delay=0.001, meet=threads)
    states = qa.run_batch([("a",), ["b", "."], {"question": "c"}] * 20, backend=backend, num_threads=threads)
    assert [state.text()[:5] for state in states[:3]] == ["Q: a\n", "Q: b.", "Q: c\n"]
    assert backend.most == threads


def test_a_batch_as_a_generator_and_an_empty_one() -> None:
    states = qa.run_batch([(str(i),) for i in range(500)], backend=Scripted(), generator_style=True)
    assert sorted(int(state.text()[3:].split()[0]) for state in states) == list(range(500))
    assert qa.run_batch([]) == []


def test_arguments_that_do_not_fit_are_refused_before_anything_runs() -> None:
    backend = Scripted()
    for item in ({"quesion": "x"}, {}, ("a", "b", "c")):
        with pytest.raises(TypeError, match=r"item 1: .*mismatch the signature"):
            qa.run_batch([("fine",), item], backend=backend)
    with pytest.raises(TypeError, match="max_tokens"):
        qa.run_batch([("fine",)], backend=backend, max_tokens=3)
    assert backend.asked == []


def test_one_failed_item_of_a_hundred_keeps_its_error() -> None:
    def script(text: str, params: SglSamplingParams) -> str:
        if "Q: 42" in text:
            raise RuntimeError("500 broken")
        return "ok"

    @sgl.function
    def reads(s: Any, question: int) -> str:
        s += f"Q: {question}\n" + sgl.gen("answer")
        return s["answer"]

    for program in (qa.bind(end="!"), reads):
        states = program.run_batch([(str(i),) for i in range(100)], backend=Scripted(script))
        assert [i for i, state in enumerate(states) if state.error() is not None] == [42]
        error = states[42].error()
        assert "500 broken" in str(error)
        shown = "".join(traceback.format_exception(error))
        assert 'sgl.gen("answer")' in shown, "the program's line"
        assert states[41]["answer"] == "ok"


def test_an_exception_of_one_body_ends_the_batch_with_its_line() -> None:
    @sgl.function
    def program(s: Any, i: int) -> None:
        s += sgl.gen("a")
        if i == 5:
            raise ZeroDivisionError("mine")

    backend = Scripted(delay=10 * HANG_S)
    with pytest.raises(ZeroDivisionError) as caught:
        program.run_batch([(i,) for i in range(2000)], backend=backend)
    assert 'raise ZeroDivisionError("mine")' in "".join(traceback.format_exception(caught.value))
    assert len(backend.asked) < 2000


def test_a_body_that_calls_exit_ends_its_run_and_no_other() -> None:
    @sgl.function
    def plain(s: Any) -> None:
        s += sgl.gen("a")
        sys.exit(4)

    @sgl.function
    async def awaiting(s: Any) -> None:
        s += sgl.gen("a")
        await s["a"]
        sys.exit(4)

    for program in (plain, awaiting):
        for call in (program.run, lambda backend, p=program: p.run_batch([{}, {}], backend=backend)):
            raised: list[BaseException] = []

            def work(call: Any = call, raised: list[BaseException] = raised) -> None:
                try:
                    call(backend=Scripted())
                except SystemExit as error:
                    raised.append(error)

            calling = threading.Thread(target=work, daemon=True)
            calling.start()
            calling.join(HANG_S)
            assert raised, "it hangs"
            assert "sys.exit(4)" in "".join(traceback.format_exception(raised[0]))
    assert qa.run("x", backend=Scripted())["answer"] == "<5>"


def test_batches_inside_of_batches() -> None:
    @sgl.function
    def outer(s: Any, i: int) -> int:
        inner = qa.run_batch([(str(k),) for k in range(3)], backend=Scripted(delay=0.001))
        return len([state["answer"] for state in inner])

    states = outer.run_batch([(i,) for i in range(120)], backend=Scripted(), num_threads=4)
    assert [state.ret_value for state in states] == [3] * 120


def test_the_common_prefix_is_sent_once_and_first() -> None:
    @sgl.function
    def few_shot(s: Any, q: str) -> None:
        s += sgl.system("x" * 70)
        s += sgl.user("Q: " + q)
        s += sgl.assistant(sgl.gen("a"))

    backend = Scripted(template="chatml")
    few_shot.run_batch([("a",), ("b",)], backend=backend)
    assert backend.prefixes == ["<|im_start|>system\n" + "x" * 70 + "<|im_end|>\n<|im_start|>user\nQ: "]
    qa.run_batch([("a",), ("b",)], backend=backend)  # its common prefix is short
    few_shot.run_batch([("a",)], backend=backend)
    assert len(backend.prefixes) == 1


def test_bind_and_defaults() -> None:
    bound = qa.bind(question="q")
    assert bound.run(backend=Scripted()).text() == "Q: q\n<5>"
    assert bound.bind(end=".").run(backend=Scripted()).text() == "Q: q.<5>"
    assert sgl.function(qa.func, num_api_spec_tokens=5).bind(end="x").num_api_spec_tokens == 5
    with pytest.raises(TypeError, match="nothing"):
        qa.bind(nothing=1)
    with pytest.raises(TypeError):
        qa.run(backend=Scripted())
    with pytest.raises(AssertionError, match="must be called s"):
        sgl.function(lambda state: None)


def test_positional_values_fill_what_is_not_bound() -> None:
    @sgl.function
    def program(s: Any, a: str, b: str = "b", *more: str, c: str = "c", **named: str) -> None:
        s += " ".join([a, b, *more, c, *(f"{name}={value}" for name, value in named.items())])

    @sgl.function
    def few(s: Any, a: str, b: str, *, c: str = "c") -> None:
        s += a + b + c

    backend = Scripted()
    assert program.run("1", "2", "3", "4", c="5", d="6", backend=backend).text() == "1 2 3 4 5 d=6"
    states = program.run_batch([("1", "2", "3"), ["1"], "1", {"a": "1", "d": "6"}], backend=backend)
    assert [state.text() for state in states] == ["1 2 3 c", "1 b c", "1 b c", "1 b c d=6"]
    assert program.bind(d="6").run("1", backend=backend).text() == "1 b c d=6"
    bound = few.bind(a="1")
    assert bound.run("2", backend=backend).text() == bound.run_batch([("2",)], backend=backend)[0].text() == "12c"
    assert bound.run("2", a="3", backend=backend).text() == "32c"
    for wrong in (("1", "2", "3"), ("1",)):
        with pytest.raises(TypeError, match="mismatch the signature"):
            few.run(*wrong, backend=backend, stream=True)


PLAIN = """
@sgl.function
def program(s, i):
    s += sgl.gen("a")
    s["a"]
"""
NEVER_READ = """
@sgl.function
def program(s, i):
    s += sgl.gen("a")
"""
ASYNC = """
@sgl.function
async def program(s, i):
    s += sgl.gen("a")
    await s["a"]
"""
ITEMS = "[(i,) for i in range(2000)], backend=backend"


@pytest.mark.parametrize(
    ("program", "call", "asked"),
    [
        (PLAIN, f"program.run_batch({ITEMS}, num_threads=100)", 100),
        (NEVER_READ, f"program.run_batch({ITEMS})", 200),
        (ASYNC, f"program.run_batch({ITEMS})", 200),
        (PLAIN, f"program.run_batch({ITEMS}, num_threads=1)", 1),
        (NEVER_READ, f"list(program.run_batch({ITEMS}, generator_style=True))", 100),
        (PLAIN, "program.run(0, backend=backend)", 1),
        (ASYNC, "program.run(0, backend=backend)", 1),
        (NEVER_READ, "program.run(0, backend=backend).text()", 1),
    ],
    ids=["a hundred", "never read", "async", "one by one", "a generator", "a run", "an async run", "a read"],
)
def test_ctrl_c_ends_it_at_once_and_shows_the_line(program: str, call: str, asked: int, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(f"""
import os, signal, sys, threading, time
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(PACKAGE_ROOT)!r}]
import sglang as sgl
from lang_doubles import Scripted
{program}
backend = Scripted(delay=600)
def interrupt():
    while len(backend.asked) < {asked}:
        time.sleep(0.01)
    print(time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
{call}
""")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=200)
    assert time.time() - float(done.stdout) < HANG_S
    assert "KeyboardInterrupt" in done.stderr and f"    {call}\n" in done.stderr
    assert "Error in stream_executor" not in done.stderr
    assert done.returncode != 0


def test_a_program_in_flight_is_not_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.lang.loop.STUCK_S", 1.0)  # where others compute, a thread may not move for a moment
    most = 0

    def script(text: str, params: SglSamplingParams) -> str:
        nonlocal most
        most = max(most, threading.active_count())
        return "x"

    qa.run_batch([(str(i),) for i in range(1500)], backend=Scripted(script, delay=0.05), num_threads=1500)
    assert most < 200


def test_verbosity_prints_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    sgl.global_config.verbosity = 2
    try:
        qa.run("x", backend=Scripted())
    finally:
        sgl.global_config.verbosity = 0
    assert capsys.readouterr().out == "Q: x\n<5>\n"


def test_importing_sglang_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import sglang; assert not [m for m in sys.modules if "
        "m.split('.')[0] in ('torch', 'transformers', 'openai', 'httpx', 'numpy', 'tqdm')];"
        "sglang.function; sglang.OpenAI; sglang.Anthropic; sglang.VertexAI; sglang.LiteLLM; sglang.RuntimeEndpoint;"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'openai', 'litellm')];"
        "assert isinstance(sglang.__version__, str); [getattr(sglang, n) for n in sglang.__all__ if n != 'Engine']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(PACKAGE_ROOT)}, timeout=200)


def test_what_programs_import_under_other_names_is_the_same() -> None:
    from sglang.backend.anthropic import Anthropic
    from sglang.backend.runtime_endpoint import RuntimeEndpoint
    from sglang.lang.backend.base_backend import BaseBackend
    from sglang.lang.backend.openai import OpenAI

    from sglang.lang.chat_template import get_chat_template, get_chat_template_by_model_path
    from sglang.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR, REGEX_STRING, SglSamplingParams
    from sglang.srt.constrained import build_regex_from_object
    from sglang.srt.hf_transformers_utils import get_tokenizer

    assert (Anthropic, RuntimeEndpoint, BaseBackend, OpenAI) == (
        sgl.Anthropic, sgl.RuntimeEndpoint, sgl.BaseBackend, sgl.OpenAI,
    )  # fmt: skip
    assert sgl.ServerArgs is sgl.ServerConfig
    chat = [{"role": "user", "content": "Hi"}]
    assert get_chat_template("chatml").get_prompt(chat) == "<|im_start|>user\nHi<|im_end|>\n"
    assert get_chat_template_by_model_path("x/vicuna-7b").name == "vicuna_v1.1"
    values = [
        (REGEX_INT, "-12"),
        (REGEX_FLOAT, "3.5"),
        (REGEX_BOOL, "True"),
        (REGEX_STR, '"a b"'),
        (REGEX_STRING, '""'),
    ]
    assert all(re.fullmatch(pattern, text) for pattern, text in values)
    assert SglSamplingParams().max_new_tokens == 128
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for given in (schema, json.dumps(schema)):
        assert re.fullmatch(build_regex_from_object(given), '{"n": 7}')
    tokenizer = get_tokenizer(str(PACKAGE_ROOT / "sglang/assets/demo"))
    assert tokenizer.decode(tokenizer("Paris")["input_ids"]) == "Paris"


def test_functions_of_the_module_take_the_default_backend_or_none() -> None:
    assert sgl.flush_cache() is False
    assert sgl.get_server_args() is None

    class Holder:
        endpoint = Scripted()

    assert sgl.get_server_info(Holder()) is None
    assert qa.run("x", backend=Holder())["answer"] == "<5>"
    with pytest.raises(TypeError, match="BaseBackend"):
        qa.run("x", backend=object())


def test_an_argument_that_is_called_like_a_sampling_argument_is_the_programs_own() -> None:
    @sgl.function
    def program(s: Any, n: int = 1, temperature: float = 0.5) -> None:
        s += f"{n} {temperature} " + sgl.gen("a")

    assert program.run(n=3, temperature=0.25, max_new_tokens=7, backend=Scripted()).text() == "3 0.25 <7>"


def test_primitives_refuse_what_makes_no_sense() -> None:
    with pytest.raises(AssertionError):
        sgl.select("x")
    with pytest.raises(AssertionError, match="temperature"):
        sgl.select("x", ["a"], temperature=0.7)
    with pytest.raises(AssertionError, match="list of strings"):
        sgl.gen("x", choices="abc")
    with pytest.raises(TypeError, match="f-string"):
        f"so: {sgl.gen('x')}"  # the mistake itself
    with pytest.raises(ValueError, match="dtype"):
        sgl.gen("x", dtype=dict)
    with pytest.raises(TypeError, match="json_schema must be a schema"):
        sgl.gen("x", json_schema=5)
    with pytest.raises(Exception, match="unterminated"):
        sgl.gen("x", regex="(")
    with pytest.raises(TypeError):
        sgl.gen("x", 5, "stop by position")  # type: ignore[misc]
    with pytest.raises(TypeError, match="regex"):
        sgl.gen_int("x", regex="1")
    with pytest.raises(TypeError, match="ebnf"):
        sgl.gen_string("x", ebnf='root ::= "a"')


def test_a_long_body_of_constants_is_quick() -> None:
    @sgl.function
    def program(s: Any) -> None:
        for _ in range(20_000):
            s += "x"

    began = time.monotonic()
    assert len(program.run(backend=Scripted()).text()) == 20_000
    assert time.monotonic() - began < HANG_S
