import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from grammar_patterns import CHARACTER

from sglang.base.errors import FieldError
from sglang.grammar.compiler import LANES, Compiler, Job
from sglang.grammar.contextfree import ContextFreeCompiled
from sglang.grammar.regular import RegularCompiled
from sglang.grammar.rules import Compiled, Rules
from sglang.grammar.vocab import Vocabulary

PATIENCE_S = 250.0  # of tests: a child computes with what others leave, which on a busy machine is little
VOCABULARY = Vocabulary([bytes([b]) for b in range(256)] + [b"<eos>"], [256])


@pytest.fixture(params=[True, False], ids=["child", "thread"])
def compiler(request: pytest.FixtureRequest) -> Iterator[Compiler]:
    made = patient(Compiler(VOCABULARY, separate=request.param))
    yield made
    made.close()


def patient(compiler: Compiler) -> Compiler:
    for lane in compiler._lanes:
        lane.child._patience_s = PATIENCE_S
    return compiler


def process(compiler: Compiler, lane: int = 0) -> "subprocess.Popen[bytes]":
    found = compiler._lanes[lane].child._process
    assert found is not None
    return found


@contextlib.contextmanager
def halted(compiler: Compiler) -> Iterator[None]:
    """Nothing gets on in the first lane."""
    pid = process(compiler).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def begun(compiler: Compiler, rules: Rules) -> "Future[Compiled]":
    future = compiler.submit(rules)
    while not compiler._lanes[0]._jobs.empty():
        time.sleep(0.001)
    return future


def hostile(i: int) -> Rules:
    return Rules("regex", f"(a|b)*a(a|b){{20}}{i}")


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


def test_what_nobody_waits_for_is_not_compiled():
    compiler = patient(Compiler(VOCABULARY))
    first, second, third = (Rules("regex", c) for c in "abc")
    with halted(compiler):
        runs = begun(compiler, first)
        dropped, saved = compiler.submit(second), compiler.submit(third)
        for rules in (first, second, third, Rules("regex", "unknown")):
            compiler.drop(rules)
        assert compiler.submit(third) is saved
    saved.result(PATIENCE_S)
    assert dropped.cancelled()
    assert compiler.submit(first) is runs, "what had begun is remembered"
    assert compiler.submit(second) is not dropped
    assert accepts(compiler, second, b"b")
    compiler.close()


def test_what_gives_way_is_not_begun_again_where_nobody_waits_for_it():
    compiler = patient(Compiler(VOCABULARY))
    with halted(compiler):
        left = begun(compiler, hostile(0))
        compiler.drop(hostile(0))
        honest = compiler.submit(Rules("regex", "a"))
    honest.result(PATIENCE_S)
    with contextlib.suppress(BaseException):
        left.result(PATIENCE_S)
    assert left.cancelled()
    assert compiler._lanes[1].child._process is None
    compiler.close()


def test_what_is_quick_does_not_wait_for_what_is_not():
    compiler = patient(Compiler(VOCABULARY))
    fields = [{f"{name} {i}": {"type": "string", "maxLength": 16} for i in range(20)} for name in ("field", "part")]
    large, behind_all = (
        Rules("json_schema", json.dumps({"type": "object", "properties": of, "required": [*of]})) for of in fields
    )
    too_large = Rules("json_schema", json.dumps({"type": "string", "maxLength": 20_000}))
    apart = [{"type": "object", "properties": {"t": {"const": i}}, "required": ["t"]} for i in range(180)]
    uncounted = Rules("json_schema", json.dumps({"oneOf": apart}))
    order: list[Rules] = []
    futures: dict[Rules, Future[Compiled]] = {}
    with halted(compiler):
        slow = hostile(1), hostile(2), uncounted, too_large
        for rules in (hostile(0), large, *slow, behind_all, Rules("regex", "[a-z]{3,10}@[a-z]{3,10}")):
            futures[rules] = begun(compiler, rules) if not futures else compiler.submit(rules)
            futures[rules].add_done_callback(lambda _, rules=rules: order.append(rules))
    for i in range(3):
        with pytest.raises(FieldError, match="too large an automaton"):
            futures[hostile(i)].result(PATIENCE_S)
    assert isinstance(futures[too_large].result(PATIENCE_S), ContextFreeCompiled)
    assert "@" in order[0].text
    assert order[1] == large
    # While all before it have their slices, the last lane may be done with one of the hostile ones.
    assert order.index(behind_all) < sorted(order.index(hostile(i)) for i in range(3))[1]
    processes = [process(compiler, lane) for lane in range(len(LANES))]
    compiler.close()
    assert all(one.returncode is not None for one in processes)


def test_what_is_alone_is_not_interrupted():
    compiler = patient(Compiler(VOCABULARY))
    with pytest.raises(FieldError, match="too large"):
        compiler.compile(hostile(0))
    assert accepts(compiler, Rules("regex", "a{20000}"), b"a" * 20_000)
    assert [lane.child._process is None for lane in compiler._lanes] == [False, True, True]
    compiler.close()


def test_a_grammar_that_the_library_reads_for_long_goes_to_the_last_lane(monkeypatch: pytest.MonkeyPatch):
    compiler = patient(Compiler(VOCABULARY))
    seen: list[Job | None] = []
    put = compiler._lanes[-1].put
    monkeypatch.setattr(compiler._lanes[-1], "put", lambda job: [seen.append(job), put(job)])
    for size, is_last in ((3, False), (1500, True)):
        rules = "".join(f'r{i}: "w{i}" start?\n' for i in range(size))
        text = f"start: {' | '.join(f'r{i}' for i in range(size))}\n{rules}"
        assert accepts(compiler, Rules("ebnf", text), b"w1w2")
        assert len(seen) == is_last
    assert compiler._lanes[-1].child._process is None, "it was prepared in the first"
    compiler.close()


def test_closing_does_not_wait_for_what_has_not_begun():
    compiler = patient(Compiler(VOCABULARY))
    with halted(compiler):
        begun(compiler, Rules("regex", "a"))
        futures = [compiler.submit(hostile(i)) for i in range(20)]
        closing = threading.Thread(target=compiler.close)
        closing.start()
        while compiler._known[hostile(19)].wanted:
            time.sleep(0.001)
    closing.join(PATIENCE_S)
    assert all(future.cancelled() for future in futures)


def test_answers_arrive_whole_where_python_is_unbuffered(monkeypatch: pytest.MonkeyPatch):
    """Signals cut unbuffered writes short."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    compiler = patient(Compiler(VOCABULARY))
    for i in range(4):
        compiler.submit(Rules("regex", f"a{{9000}}{i}")).result(60)
        assert accepts(compiler, Rules("regex", f"a{{9000}}{i}"), b"a" * 9000 + b"%d" % i)
    compiler.close()


def test_a_compilation_that_takes_too_long_is_killed_and_the_next_one_served():
    compiler = Compiler(VOCABULARY, timeout_s=0.0)
    for _ in range(2):
        with pytest.raises(FieldError, match="more than 0 s") as error:
            compiler.compile(Rules("regex", "a{30000}"))
        assert error.value.status == 400
    child = compiler._lanes[0].child
    child._timeout_s = child._patience_s = PATIENCE_S
    assert accepts(compiler, Rules("regex", "a{300}"), b"a" * 300)
    compiler.close()


def test_computing_for_too_long_ends_the_child_before_patience_does():
    compiler = patient(Compiler(VOCABULARY, timeout_s=0.02))
    ended = process(compiler)
    with pytest.raises(FieldError, match=r"more than 0\.02 s"):
        compiler.compile(Rules("regex", "(.*a.*){20}b(.?c){30}"))
    assert ended.returncode == -signal.SIGPROF
    compiler.close()


def test_a_child_computes_only_what_others_leave():
    compiler = patient(Compiler(VOCABULARY))
    compiler.compile(Rules("regex", "a"))
    nice = os.getpriority(os.PRIO_PROCESS, process(compiler).pid)
    assert nice == min(19, os.getpriority(os.PRIO_PROCESS, 0) + LANES[0].nice)
    compiler.close()
    # What the kernel gives for each step of nice is a fifth less: 1024 for none.
    assert sum(1024 / 1.25**slice.nice for slice in LANES) < 1024 / 5


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
    process(compiler).kill()
    process(compiler).wait()
    with pytest.raises(FieldError):
        compiler.compile(Rules("regex", "b"))
    assert accepts(compiler, Rules("regex", "b"), b"b")
    compiler.close()
