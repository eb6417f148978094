import json

import jsonschema
import numpy as np
import pytest
from grammar_tokenizers import kind
from grammar_walks import sample

from sglang.base.errors import FieldError
from sglang.grammar import contextfree
from sglang.grammar.contextfree import ContextFreeCompiled, Engine
from sglang.grammar.rules import Illegal
from sglang.grammar.vocab import Vocabulary

TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(kind("gpt4").vocabulary)


def test_a_recursive_schema_is_obeyed(engine: Engine):
    compiled = ContextFreeCompiled(engine, contextfree.from_schema(TREE, True, True), "json_schema")
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(12):
        text, done = sample(compiled.cursor(), engine.vocabulary, rng, 150)
        if done:
            ended += 1
            jsonschema.validate(json.loads(text), TREE)
    assert ended


def test_blanks_are_as_json_dumps_writes_them(engine: Engine):
    for spaced, text in ((True, b'{"v": 1, "next": null}'), (False, b'{"v":1,"next":null}')):
        at = ContextFreeCompiled(engine, contextfree.from_schema(TREE, True, spaced), "json_schema").cursor()
        assert at.forced() == text[: text.index(b"1")]
        at.feed(text)
        assert at.finished
        with pytest.raises(Illegal):
            at.feed(b" ")


@pytest.mark.parametrize("grammar", ['root ::= "(" root* ")" | [0-9]', 'start: "(" start* ")" | /[0-9]/'])
def test_brackets_are_counted(engine: Engine, grammar: str):
    at = ContextFreeCompiled(engine, contextfree.from_grammar(grammar), "ebnf").cursor()
    vocabulary = engine.vocabulary
    allowed = vocabulary.unpack(at.mask())
    assert not allowed[list(vocabulary.eos_ids)].any()
    assert {vocabulary.bytes[t][:1] for t in np.flatnonzero(allowed)} == {b"(", *(b"%d" % i for i in range(10))}
    at.feed(b"((1)2(")
    other = at.fork()
    assert at.follows(b"))")
    assert not at.follows(b")))")
    at.feed(b"))")
    assert at.finished
    assert np.flatnonzero(vocabulary.unpack(at.mask())).tolist() == list(vocabulary.eos_ids)
    assert not other.accepting
    with pytest.raises(Illegal):
        other.advance(vocabulary.eos_ids[0])
    other.feed(b"3))")
    other.advance(vocabulary.eos_ids[0])
    assert other.finished


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (r'root ::= "\u00e9\x41\\u" [\u4e00-\u9fff\xe9]', "éA\\u日"),
        (r'root ::= "\U0001f600" [^\x41]', "😀B"),
        ('?start: sum\nsum: sum "+" one | one\n?one: /[0-9]/ | "(" sum ")"', "1+(2+3)"),
        ('start: "a ::= b"', "a ::= b"),
        ("# root ::= no\nroot ::= x-y\nx-y ::= 'b'".replace("'", '"'), "b"),
    ],
)
def test_grammars_may_be_written_in_either_way(engine: Engine, grammar: str, text: str):
    at = ContextFreeCompiled(engine, contextfree.from_grammar(grammar), "ebnf").cursor()
    at.feed(text.encode())
    assert at.accepting


def test_a_refused_token_changes_nothing(engine: Engine):
    at = ContextFreeCompiled(engine, contextfree.from_grammar('root ::= "a" "b"'), "ebnf").cursor()
    for token in (engine.vocabulary.bytes.index(b"b"), engine.vocabulary.eos_ids[0]):
        with pytest.raises(Illegal):
            at.advance(token)
    at.advance(engine.vocabulary.bytes.index(b"a"))
    assert at.forced() == b"b"


def test_a_mask_fits_the_number_of_logits():
    tokens = [bytes([b]) for b in range(256)] + [b"<eos>", b"<pad>"]
    for eos in ([256], []):
        vocabulary = Vocabulary(tokens, eos, [256, 257], size=300)
        at = ContextFreeCompiled(Engine(vocabulary), contextfree.from_grammar('root ::= "a"'), "ebnf").cursor()
        row = np.full(vocabulary.words, 0xFFFFFFFF, np.uint32)
        at.mask(row)
        assert np.flatnonzero(vocabulary.unpack(row)).tolist() == [ord("a")]
        at.feed(b"a")
        assert np.flatnonzero(vocabulary.unpack(at.mask())).tolist() == eos


def test_a_schema_without_a_finite_instance_fails_its_request_alone(engine: Engine):
    endless = {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
    }
    made = ContextFreeCompiled(engine, contextfree.from_schema(endless, True, True), "json_schema")
    token = engine.vocabulary.bytes.index(b"{")
    for step in (lambda at: at.feed(b"{"), lambda at: at.advance(token)):
        at = made.cursor()
        assert at.forced().startswith(b'{"n": {"n": ')
        with pytest.raises(RuntimeError, match=r"^the grammar failed: .*Too many items.*$") as error:
            step(at)
        assert "\n" not in str(error.value)


def test_a_schema_that_says_nothing_but_itself_fails_its_request_alone(engine: Engine):
    made = ContextFreeCompiled(engine, contextfree.from_schema({"anyOf": [{"$ref": "#"}]}, True, True), "json_schema")
    with pytest.raises(RuntimeError, match="the grammar failed: no text may come next"):
        made.cursor().mask()


@pytest.mark.parametrize("grammar", ["root ::= (", "start: x", "", "nonsense", 'root ::= "a" root2'])
def test_a_bad_grammar_is_refused(engine: Engine, grammar: str):
    with pytest.raises(FieldError, match="ebnf"):
        ContextFreeCompiled(engine, contextfree.from_grammar(grammar), "ebnf")


def test_an_unsupported_schema_is_refused_unless_ignored(engine: Engine):
    odd = {"type": "array", "items": True, "contains": {"type": "integer"}, "uniqueItems": True}
    with pytest.raises(FieldError, match="json_schema"):
        ContextFreeCompiled(engine, contextfree.from_schema(odd, True, True), "json_schema")
    ContextFreeCompiled(engine, contextfree.from_schema(odd, False, True), "json_schema")


@pytest.mark.parametrize("lark", [False, True])
def test_a_pattern_that_the_library_cannot_read_is_refused_by_what_it_cannot(engine: Engine, lark: bool):
    pattern = "^(?=.*a)b*$"
    schema = contextfree.from_schema({"type": "string", "pattern": pattern}, True, True)
    grammar = contextfree.from_grammar(f"start: /{pattern}/") if lark else schema
    with pytest.raises(FieldError, match="regex parse error: look-around"):
        ContextFreeCompiled(engine, grammar, "json_schema")
