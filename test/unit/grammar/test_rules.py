import msgspec
import pytest

from sglang.base.errors import FieldError
from sglang.base.sampling import SamplingParams
from sglang.grammar.rules import TYPES, Rules


def test_a_request_has_at_most_one_kind_of_rules():
    assert Rules.of(SamplingParams()) is None
    assert Rules.of(SamplingParams(regex="a")) == Rules("regex", "a")
    assert Rules.of(SamplingParams(regex="")) == Rules("regex", "")
    assert Rules.of(SamplingParams(json_schema="{}")) == Rules("json_schema", "{}")
    assert Rules.of(SamplingParams(ebnf="x")) == Rules("ebnf", "x")
    assert Rules.of(SamplingParams(choices=("a", "b"))) == Rules("choices", choices=("a", "b"))


def test_types_of_programs_are_patterns():
    assert Rules.of_type("int") == Rules("regex", TYPES["int"])
    with pytest.raises(FieldError, match="int, float, bool, str"):
        Rules.of_type("list")


def test_rules_are_keys_and_travel():
    rules = Rules("json_schema", "{}", strict=False)
    assert {rules: 1}[Rules("json_schema", "{}", strict=False)] == 1
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rules), type=Rules) == rules
