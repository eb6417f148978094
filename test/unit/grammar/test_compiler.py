import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from grammar_patterns import CHARACTER

from sglang.base.errors import FieldError
from sglang.grammar import compiler as compiling
from sglang.grammar import contextfree
from sglang.grammar.compiler import TRIES, WHOLE, Compiler
from sglang.grammar.contextfree import ContextFreeCompiled
from sglang.grammar.prepare import NICE, Child, prepare
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Rules
from sglang.grammar.vocab import Vocabulary

PATIENCE_S = 250.0  # of tests: a child computes with what others leave, which on a busy machine is little
VOCABULARY = Vocabulary([bytes([b]) for b in range(256)] + [b"<eos>"], [256])


@pytest.fixture(params=[True, False], ids=["child", "thread"])
def compiler(request: pytest.FixtureRequest) -> Iterator[Compiler]:
    made = patient(Compiler(VOCABULARY, separate=request.param))
    yield made
    made.close()


def patient(compiler: Compiler) -> Compiler:
    for child in children(compiler):
        child._patience_s = PATIENCE_S
    return compiler


def children(compiler: Compiler) -> list[Child]:
    return [lane.child for lane in compiler._lanes if lane.child is not None]


def accepts(compiler: Compiler, rules: Rules, text: bytes) -> bool:
    cursor = compiler.compile(rules).cursor()
    if not cursor.follows(text):
        return False
    cursor.feed(text)
    return cursor.accepting


def test_each_kind_of_rules_is_compiled(compiler: Compiler):
    number = json.dumps({"type": "integer"})
    tag = json.dumps({"structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "."}], "triggers": ["<n>"]})
    for rules, good, bad in (
        (Rules("regex", "a+"), b"aa", b"b"),
        (Rules("choices", choices=("yes", "no")), b"no", b"maybe"),
        (Rules("json_schema", number), b"-12", b"1.5"),
        (Rules("json_schema", "{}"), b'{"a": [1, null]}', b"[}"),
        (Rules("json_schema", "true"), b'{"a": [1, null]}', b"[}"),
        (Rules("json_schema", '{"type":"array","items":{"$ref":"#"}}'), b"[[], [[]]]", b"[1]"),
        (Rules("ebnf", 'root ::= "a" root "b" | "c"'), b"aacbb", b"aacb"),
        (Rules("structural_tag", tag), b"x<n>12.", b"<n>a."),
        (Rules("structural_tag", tag.replace('"type": "integer"', '"type": "array"')), b"x<n>[[], 1].", b"<n>a."),
        (Rules.of_type("bool"), b"True", b"true"),
    ):
        assert accepts(compiler, rules, good), rules
        assert not accepts(compiler, rules, bad), rules


def test_equal_rules_share_one_compilation(compiler: Compiler):
    futures = [compiler.submit(Rules("regex", CHARACTER)) for _ in range(5)]
    assert len(set(map(id, futures))) == 1
    assert compiler.compile(Rules("regex", CHARACTER)) is futures[0].result()


def test_a_refusal_is_an_answer_and_is_remembered(compiler: Compiler):
    for _ in range(2):
        with pytest.raises(FieldError, match="too large an automaton") as error:
            compiler.compile(Rules("regex", "(a|b)*a(a|b){25}"))
        assert (error.value.field, error.value.status) == ("regex", 400)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        with pytest.raises(FieldError):
            compiler.compile(Rules("regex", "(a|b)*a(a|b){25}"))
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1
    assert accepts(compiler, Rules("regex", "a"), b"a")


def test_what_is_too_large_for_an_automaton_goes_to_the_library(compiler: Compiler):
    compiled = compiler.compile(Rules("json_schema", json.dumps({"type": "string", "maxLength": 20_000})))
    assert isinstance(compiled, ContextFreeCompiled)
    assert isinstance(compiler.compile(Rules("json_schema", '{"type": "string", "maxLength": 20}')), RegularCompiled)


def test_a_recursive_oneof_is_checked_before_it_is_taken_as_anyof(compiler: Compiler):
    def tree(first: object) -> Rules:
        tagged = {"type": "object", "properties": {"t": first, "n": {"$ref": "#"}}, "required": ["t", "n"]}
        leaf = {"type": "object", "properties": {"t": {"const": "leaf"}}, "required": ["t"]}
        return Rules("json_schema", json.dumps({"oneOf": [tagged, leaf]}))

    assert accepts(compiler, tree({"const": "node"}), b'{"t": "node", "n": {"t": "leaf"}}')
    with pytest.raises(FieldError, match="may both hold"):
        compiler.compile(tree({"type": "string"}))


def test_the_oldest_is_forgotten_and_compiled_again():
    compiler = Compiler(VOCABULARY, separate=False, entries=2)
    first = compiler.compile(Rules("regex", "a"))
    assert compiler.compile(Rules("regex", "a")) is first
    for pattern in ("b", "c", "d"):
        compiler.compile(Rules("regex", pattern))
    assert compiler.compile(Rules("regex", "a")) is not first
    compiler.close()


def test_memory_is_bounded_too():
    compiler = Compiler(VOCABULARY, separate=False, cache_bytes=1)
    first = compiler.compile(Rules("regex", "a"))
    compiler.compile(Rules("regex", "b"))
    assert compiler.compile(Rules("regex", "a")) is not first
    compiler.close()


def test_a_compilation_that_takes_too_long_is_killed_and_the_next_one_served():
    compiler = Compiler(VOCABULARY, timeout_s=0.0)
    for _ in range(2):
        with pytest.raises(FieldError, match="more than 0 s") as error:
            compiler.compile(Rules("regex", "a{30000}"))
        assert error.value.status == 400
    for child in children(compiler):
        child._timeout_s = child._patience_s = PATIENCE_S
    assert accepts(compiler, Rules("regex", "a{300}"), b"a" * 300)
    compiler.close()


def test_computing_for_too_long_ends_the_child_before_patience_does(monkeypatch: pytest.MonkeyPatch):
    ended: list[int] = []
    stop = Child.stop

    def noted(self: Child) -> None:
        process = self._process
        stop(self)
        if process is not None:
            ended.append(process.returncode)

    monkeypatch.setattr(Child, "stop", noted)
    compiler = patient(Compiler(VOCABULARY, timeout_s=0.02))
    with pytest.raises(FieldError, match=r"more than 0\.02 s"):
        compiler.compile(Rules("regex", "(.*a.*){20}b(.?c){30}"))
    assert ended == [-signal.SIGPROF]
    compiler.close()


def test_the_child_computes_only_what_others_leave():
    compiler = patient(Compiler(VOCABULARY))
    compiler.compile(Rules("regex", "a"))
    process = children(compiler)[0]._process
    assert process is not None
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    compiler.close()


def test_what_holds_the_interpreter_is_made_before_anything_is_asked():
    compiler = patient(Compiler(VOCABULARY))
    compiler.rehearse()
    engine = compiler._engine
    assert engine is not None
    assert "_texts" in vars(VOCABULARY)
    compiled = compiler.compile(Rules("ebnf", 'root ::= "a" root "b" | "ab"'))
    assert isinstance(compiled, ContextFreeCompiled)
    assert compiled.engine is engine
    compiler.close()


def test_a_child_that_died_is_replaced():
    compiler = patient(Compiler(VOCABULARY))
    assert accepts(compiler, Rules("regex", "a"), b"a")
    process = children(compiler)[0]._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(FieldError):
        compiler.compile(Rules("regex", "b"))
    assert accepts(compiler, Rules("regex", "b"), b"b")
    compiler.close()


HOSTILE = [Rules("regex", f"({letter}|b)*{letter}({letter}|b){{25}}") for letter in "acdef"]


def test_a_short_one_does_not_wait_for_long_ones():
    compiler = patient(Compiler(VOCABULARY))
    long = [compiler.submit(rules) for rules in HOSTILE]
    assert accepts(compiler, Rules("regex", "a+"), b"aa")
    assert not long[-1].done()
    for future in long:
        with pytest.raises(FieldError, match="too large an automaton"):
            future.result()
    compiler.close()


def test_a_short_one_does_not_wait_for_the_library(monkeypatch: pytest.MonkeyPatch):
    may_end = threading.Event()

    class Slow(ContextFreeCompiled):
        def __init__(self, *given: object):
            assert may_end.wait(PATIENCE_S)
            super().__init__(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(contextfree, "ContextFreeCompiled", Slow)
    compiler = patient(Compiler(VOCABULARY))
    slow = [compiler.submit(Rules("ebnf", f'root ::= "{letter}" root "b" | "c"')) for letter in "ad"]
    assert accepts(compiler, Rules("regex", "a+"), b"aa")
    assert not any(future.done() for future in slow)
    may_end.set()
    assert all(future.result(PATIENCE_S) for future in slow)
    compiler.close()


def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What children are asked: the texts, and with how many steps."""
    asked: list[tuple[str, int]] = []
    ask = Child.prepare

    def asks(self: Child, rules: Rules, steps: int) -> object:
        asked.append((rules.text, steps))
        return ask(self, rules, steps)

    monkeypatch.setattr(Child, "prepare", asks)
    return asked


def test_what_needs_more_steps_is_tried_again_and_long_texts_have_all_of_them_at_once(monkeypatch: pytest.MonkeyPatch):
    asked = noted(monkeypatch)
    compiler = patient(Compiler(VOCABULARY))
    text = HOSTILE[0].text
    with pytest.raises(FieldError, match="too large an automaton"):
        compiler.compile(HOSTILE[0])
    assert asked == [(text, steps) for steps in TRIES]
    many = Rules("choices", choices=tuple(f"number {i}" for i in range(5000)))
    assert accepts(compiler, many, b"number 4711")
    assert asked[3:] == [("", TRIES[WHOLE])]
    large = Rules("json_schema", json.dumps({"type": "string", "maxLength": 20_000}))
    assert isinstance(compiler.compile(large), ContextFreeCompiled)
    assert [steps for _, steps in asked[4:]] == list(TRIES), "the library is for what all steps do not suffice for"
    compiler.close()


def test_what_nobody_waits_for_is_not_compiled(monkeypatch: pytest.MonkeyPatch):
    began, may_end = threading.Event(), threading.Event()
    asked: list[str] = []

    def slow(rules: Rules) -> object:
        asked.append(rules.text)
        began.set()
        assert may_end.wait(PATIENCE_S)
        return prepare(rules)

    monkeypatch.setattr(compiling, "prepare", slow)
    compiler = Compiler(VOCABULARY, separate=False)
    first, second, third = (compiler.submit(Rules("regex", text)) for text in "abc")
    assert began.wait(PATIENCE_S)
    for text in "ab":
        compiler.drop(Rules("regex", text))
    assert second.cancelled()
    assert not first.cancelled(), "it is under way"
    again = compiler.submit(Rules("regex", "b"))
    assert again is not second
    may_end.set()
    for future in (first, third, again):
        assert future.result(PATIENCE_S)
    assert asked == ["a", "c", "b"]
    compiler.drop(Rules("regex", "a"))
    assert compiler.submit(Rules("regex", "a")) is first, "what is compiled stays"
    compiler.close()


def test_closing_does_not_wait_for_what_waits(monkeypatch: pytest.MonkeyPatch):
    asked = noted(monkeypatch)
    compiler = patient(Compiler(VOCABULARY))
    futures = [compiler.submit(rules) for rules in HOSTILE]
    compiler.close()
    assert futures[-1].cancelled()
    assert len(asked) < len(HOSTILE) * len(TRIES)
