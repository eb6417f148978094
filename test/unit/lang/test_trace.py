"""A program's graph, and its constant beginning."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lang_doubles import Scripted

import sglang as sgl
from sglang.lang.explain import main as explain_main


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
    assert "  select c of ['x', 'y']" in lines
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


def test_nothing_is_run_while_a_program_is_traced() -> None:
    @sgl.function
    def inner(s: Any, q: str, end: str = ".") -> str:
        s += "inner " + q + end + sgl.gen("x")
        return "returned"

    @sgl.function
    def outer(s: Any) -> None:
        s += inner("called", temperature=0)["x"]
        s += inner.run("run", "!", backend=backend, max_new_tokens=3).ret_value
        for state in inner.run_batch([("item 1",), {"q": "item 2"}], backend=backend, num_threads=2):
            s += state["x"]
        s += "end"

    @sgl.function
    async def awaiting(s: Any) -> None:
        state = await inner.run_async("awaited", backend=backend)
        async with s.copy() as c:
            c += state["x"]
        s += "end"

    backend = Scripted()
    for program, said in (
        (outer, ["inner called.", "inner run!", "'returned'", "inner item 1.", "inner item 2.", "'end'"]),
        (awaiting, ["inner awaited.", "join gather_variable", "'end'"]),
    ):
        text = str(program.trace(backend=Silent()))
        assert all(word in text for word in said) and "..." not in text, text
    assert backend.requests == []


def letters(text: str, params: Any) -> str:
    return "<b> & co"


def words(svg: str) -> list[str]:
    """What a drawing says, without its tooltips."""
    root = ElementTree.fromstring(svg)
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_explain_prints_and_draws_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = sgl.explain(program, plot=tmp_path / "plan.svg")
    assert capsys.readouterr().out == f"{plan}\n"
    assert str(plan).splitlines()[0] == "program program" and "  fork 2" in str(plan).splitlines()
    drawn = words((tmp_path / "plan.svg").read_text())
    assert drawn == words(plan._repr_svg_())
    assert drawn[0] == "program program" and drawn.count("gen p") == 2 and "join gather_variable" in drawn


def test_explain_tells_what_each_answer_of_a_run_was_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    class Costly(Scripted):
        async def async_generate(self, s: Any, sampling_params: Any) -> Any:
            text, _ = await super().async_generate(s, sampling_params)
            n = len(self.requests)
            return f"{text} {n}", {"prompt_tokens": 60, "cached_tokens": 40, "completion_tokens": n, "e2e_latency": n}

    @sgl.function
    def loop(s: Any) -> None:
        for _ in range(2):
            s += sgl.gen("same")

    done = sgl.explain(loop.run(backend=Costly(letters)))
    assert capsys.readouterr().out == f"{done}\n"
    assert str(done).splitlines() == [
        "run of loop",
        "  gen same -> '<b> & co 1'  [40 cached, 20 computed, 1 generated, 1.000 s]",
        "  gen same -> '<b> & co 2'  [40 cached, 20 computed, 2 generated, 2.000 s]",
    ]
    assert "40 cached, 20 computed, 2 generated, 2.000 s" in words(done._repr_svg_())
    colors = [r.get("fill") for r in ElementTree.fromstring(done._repr_svg_()).iter("{http://www.w3.org/2000/svg}rect")]
    assert [colors.count(color) for color in ("#9fc5e8", "#0b5394", "#38761d")] == [3, 3, 3]  # each answer, the legend


def test_explain_measures_what_the_backend_does_not_tell_and_shows_where_a_run_ended() -> None:
    @sgl.function
    def forks(s: Any) -> None:
        group = s.fork(2)
        group += sgl.gen("p")
        group.join()
        s += sgl.gen("bad")

    class Two(Scripted):
        async def async_generate(self, s: Any, sampling_params: Any) -> Any:
            if len(self.requests) == 2:
                raise RuntimeError("broken")
            return await super().async_generate(s, sampling_params)

    lines = str(sgl.explain(forks.run(backend=Two(letters, delay=0.05)))).splitlines()
    assert lines[1:3] == ["  fork 2", "  ├─ [0]"] and lines[4] == "  └─ [1]"
    for line in (lines[3], lines[5], lines[6]):  # a gen of each state, the join
        seconds = float(line.rpartition(" s]")[0].split()[-1].lstrip("["))
        assert 0.04 < seconds < 100, line  # seconds, whatever else the machine does
    assert lines[-1] == "  ... RuntimeError: broken"


def test_explain_from_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import sglang as sgl\n@sgl.function\ndef tell(s, topic):\n    s += 'On ' + topic + sgl.gen('a')\n"
        "if __name__ == '__main__':\n    raise SystemExit('it was run')\n"
    )
    assert explain_main([f"{file}:tell", "topic=mice", "--plot", str(tmp_path / "a.svg")]) == 0
    assert capsys.readouterr().out == "program tell\n  text 'On mice'\n  gen a\n"
    assert words((tmp_path / "a.svg").read_text())[-1] == "gen a"
    for bad, says in (
        ([f"{file}:tel"], "programs there: tell"),
        ([f"{tmp_path}/no.py:tell"], "no file"),
        ([f"{file}:tell", "mice"], "ARGUMENT=VALUE"),
        ([f"{file}:tell", "topics=mice"], "topics"),
    ):
        with pytest.raises(SystemExit) as caught:
            explain_main(bad)
        assert caught.value.code == 2 and says in capsys.readouterr().err
