import json
import os
import signal
import time
from collections.abc import Iterator

import pytest
from grammar_patterns import CHARACTER

from sglang.base.errors import FieldError
from sglang.grammar.compiler import CHILD_NICE, Compiler
from sglang.grammar.contextfree import ContextFreeCompiled
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
    if compiler._child is not None:
        compiler._child._patience_s = PATIENCE_S
    return compiler


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
    assert compiler._child is not None
    compiler._child._timeout_s = compiler._child._patience_s = PATIENCE_S
    assert accepts(compiler, Rules("regex", "a{300}"), b"a" * 300)
    compiler.close()


def test_computing_for_too_long_ends_the_child_before_patience_does():
    compiler = patient(Compiler(VOCABULARY, timeout_s=0.02))
    assert compiler._child is not None
    process = compiler._child._process
    assert process is not None
    with pytest.raises(FieldError, match=r"more than 0\.02 s"):
        compiler.compile(Rules("regex", "(.*a.*){20}b(.?c){30}"))
    assert process.returncode == -signal.SIGPROF
    compiler.close()


def test_the_child_computes_only_what_others_leave():
    compiler = patient(Compiler(VOCABULARY))
    compiler.compile(Rules("regex", "a"))
    assert compiler._child is not None
    assert compiler._child._process is not None
    nice = os.getpriority(os.PRIO_PROCESS, compiler._child._process.pid)
    assert nice == min(19, os.getpriority(os.PRIO_PROCESS, 0) + CHILD_NICE)
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
    assert compiler._child is not None
    assert compiler._child._process is not None
    compiler._child._process.kill()
    compiler._child._process.wait()
    with pytest.raises(FieldError):
        compiler.compile(Rules("regex", "b"))
    assert accepts(compiler, Rules("regex", "b"), b"b")
    compiler.close()
