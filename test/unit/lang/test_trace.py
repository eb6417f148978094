"""A program's graph, and its constant beginning."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lang_doubles import Scripted

import sglang as sgl


class Silent(Scripted):
    """Fails when it is asked anything."""

    async def async_generate(self, s: Any, sampling_params: Any) -> Any:
        raise AssertionError("tracing asked the backend")


@sgl.function
def program(s: Any, topic: str, style: str = "short") -> None:
    s += sgl.system("You know all.")
    s += sgl.user("About " + topic)
    with s.assistant():  # type: ignore[union-attr]  # without an argument a context
        s += sgl.gen("a", max_tokens=5) + "!"
    forks = s.fork(2)
    forks += lambda i: f"part {i}: " + sgl.gen("p")
    forks.join()
    s += sgl.select("c", ["x", "y"])
    s += forks[0]["p"]
    if s["c"] == "x":
        s += "never seen"


def test_the_graph_goes_as_far_as_nothing_is_looked_at() -> None:
    graph = program.trace(backend=Silent())
    assert graph.ended is not None and "not known" in graph.ended
    lines = str(graph).splitlines()
    assert lines[0] == "program program"
    assert "  gen a max_new_tokens=5" in lines
    assert "  fork 2" in lines and sum("gen p" in line for line in lines) == 2
    assert "  select c of ['x', 'y'] by token_length_normalized" in lines
    assert "never seen" not in str(graph)


def test_arguments_that_are_given_are_known() -> None:
    assert "text 'About mice'" in str(program.trace(backend=Silent(), topic="mice"))
    assert "argument topic" in str(program.trace(backend=Silent()))
    with pytest.raises(TypeError, match="nothing"):
        program.trace(nothing=1)


def test_the_prefix_is_the_constant_beginning() -> None:
    backend = Silent(template="chatml")
    assert program.trace(backend=backend).prefix() == (
        "<|im_start|>system\nYou know all.<|im_end|>\n<|im_start|>user\nAbout "
    )
    program.cache(backend)
    program.bind(topic="mice").cache(backend)
    assert backend.prefixes[1] == backend.prefixes[0] + "mice<|im_end|>\n<|im_start|>assistant\n"


def test_the_prefix_has_the_templates_own_system_message() -> None:
    @sgl.function
    def chat(s: Any, q: str) -> None:
        s += sgl.user(q)

    assert chat.trace(backend=Silent(template="qwen")).prefix() == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    )


def test_formatting_an_argument_ends_the_prefix() -> None:
    @sgl.function
    def formats(s: Any, q: str) -> None:
        s += "constant "
        s += f"{q}"

    assert formats.trace(backend=Silent()).prefix() == "constant "


@pytest.mark.parametrize(
    "look", [str, len, bool, int, list, lambda q: q > 1, lambda q: q == "a", lambda q: q.upper(), lambda q: q["k"]]
)
def test_looking_at_what_is_not_known_is_a_type_error(look: Any) -> None:
    seen = []

    @sgl.function
    def looks(s: Any, q: Any) -> None:
        try:
            look(q)
        except TypeError as error:
            seen.append(str(error))
            raise

    assert looks.trace(backend=Silent()).ended
    assert "not known" in seen[0]


def test_async_and_nested_programs_are_traced_too() -> None:
    @sgl.function
    def inner(s: Any, q: str) -> None:
        s += "inner " + q + sgl.gen("x")

    @sgl.function
    async def outer(s: Any) -> None:
        s += "outer" + sgl.gen("a")
        value = await s["a"]
        s += inner(q=value)["x"]
        s += "end"

    text = str(outer.trace(backend=Silent()))
    assert "text 'inner '" in text and "text 'end'" in text and "..." not in text


def test_explain_prints_and_draws(tmp_path: Path) -> None:
    def answer(text: str, params: Any) -> str:
        return "<b> & co"

    plan = sgl.explain(program, plot=tmp_path / "plan.svg")
    assert "fork 2" in str(plan)
    assert "gen p" in "".join(ElementTree.parse(tmp_path / "plan.svg").getroot().itertext())
    done = sgl.explain(program.run("mice", backend=Scripted(answer)))
    assert "gen a max_new_tokens=5 -> '<b> & co'  [prompt " in str(done)
    assert "└─ [1]" in str(done)
    assert ElementTree.fromstring(done._repr_svg_()) is not None
