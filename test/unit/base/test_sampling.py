"""What a caller may ask of decoding: every field's range, every refusal by name."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.base.sampling import ALIASES, RANGES, UNSUPPORTED, SamplingParams, check_sampling, parse_sampling

HUGE = 10**400  # no float holds it
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from([HUGE, -HUGE])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
KEYS = [*(f.name for f in msgspec.structs.fields(SamplingParams)), *ALIASES, *UNSUPPORTED, "nonsense"]


def refused(raw: Any, path: str = "sampling_params") -> FieldError:
    with pytest.raises(FieldError) as caught:
        parse_sampling(raw, path)
    return caught.value


@settings(max_examples=500, deadline=None)
@given(st.one_of(JSON, st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3)))
def test_anything_is_either_parsed_or_refused_by_name_in_few_words(raw: Any) -> None:
    try:
        params = parse_sampling(raw)
    except FieldError as error:
        assert error.status == 400
        assert error.field.startswith("sampling_params")
        assert len(str(error)) < 600
    else:
        assert check_sampling(params) is params, "what was parsed is legal"
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
        assert again == params, "and travels"


def test_nothing_and_nulls_mean_the_defaults() -> None:
    nulls = {f.name: None for f in msgspec.structs.fields(SamplingParams)} | dict.fromkeys(UNSUPPORTED)
    assert parse_sampling(None) == parse_sampling({}) == parse_sampling(nulls) == SamplingParams()


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_range_is_kept_at_both_ends(name: str) -> None:
    low, high, open_low = RANGES[name]
    whole = msgspec.structs.fields(SamplingParams)[[f.name for f in msgspec.structs.fields(SamplingParams)].index(name)]
    step: int | float = 1e-9 if whole.type is float else 1
    base = {"max_new_tokens": limits.MAX_NEW_TOKENS} if name == "min_new_tokens" else {}
    assert low is not None
    good = [low + step if open_low else low] + ([] if high is None else [high])
    bad = [low if open_low else low - step, -HUGE] + ([HUGE] if high is None else [high + max(step, 1e-6), HUGE])
    for value in good:
        assert getattr(parse_sampling({**base, name: value}), name) == value
    for value in bad:
        error = refused({**base, name: value})
        assert error.field == f"sampling_params.{name}"
    if whole.type is float:
        for value in (math.nan, math.inf, -math.inf):
            assert f"got {value}" in str(refused({name: value}))


@pytest.mark.parametrize("value", [-1, 1, 2**31 - 1])
def test_top_k_is_off_or_at_least_one(value: int) -> None:
    assert parse_sampling({"top_k": value}).top_k == value


@pytest.mark.parametrize("value", [0, -2, 2**31, HUGE, 1.5, True, "3"])
def test_other_values_of_top_k_are_refused(value: Any) -> None:
    assert refused({"top_k": value}).field == "sampling_params.top_k"


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        ([], "sampling_params", "must be an object, got list"),
        ({"temperature": "hot"}, "sampling_params.temperature", "Expected float, got str"),
        ({"temperature": -0.5}, "sampling_params.temperature", "must be in [0, inf), got -0.5"),
        ({"max_tokens": -1}, "sampling_params.max_tokens", "must be in [0, 16777216], got -1"),
        ({"max_tokens": 5, "min_tokens": 6}, "sampling_params.min_tokens", "max_new_tokens = 5], got 6"),
        ({"max_tokens": 5, "max_new_tokens": 5}, "sampling_params.max_new_tokens", "send one of them"),
        ({"n": True}, "sampling_params.n", "Expected int, got bool"),
        ({"stop": [1]}, "sampling_params.stop[0]", "Expected str, got int"),
        ({"stop": ""}, "sampling_params.stop", "1 to 512 characters, got 0"),
        ({"stop": "x" * 513}, "sampling_params.stop", "got 513"),
        ({"stop": ["x"] * 33}, "sampling_params.stop", "at most 32 strings, got 33"),
        ({"stop_token_ids": [1] * 257}, "sampling_params.stop_token_ids", "at most 256 ids, got 257"),
        ({"stop_token_ids": [-1]}, "sampling_params.stop_token_ids", "token ids >= 0"),
        ({"stop_token_ids": [HUGE]}, "sampling_params.stop_token_ids", "token ids >= 0"),
        ({"logit_bias": {"x": 1}}, "sampling_params.logit_bias", "Expected int, got str"),
        ({"logit_bias": {"-1": 1}}, "sampling_params.logit_bias", "token ids >= 0, got -1"),
        ({"logit_bias": {"1": 101}}, "sampling_params.logit_bias", "[-100, 100], got 101"),
        ({"logit_bias": {"1": math.nan}}, "sampling_params.logit_bias", "got nan"),
        ({"logit_bias": {str(i): 1 for i in range(4097)}}, "sampling_params.logit_bias", "at most 4096 entries"),
        ({"regex": "a", "ebnf": "b"}, "sampling_params.ebnf", "cannot be combined with regex"),
        ({"choices": ["a"], "json_schema": "{}"}, "sampling_params.choices", "cannot be combined with json_schema"),
        ({"regex": "a" * (limits.GRAMMAR_CHARS + 1)}, "sampling_params.regex", "at most"),
        ({"choices": []}, "sampling_params.choices", "at least one string"),
        ({"dtype": "list"}, "sampling_params.dtype", "one of int, float, bool, str, got 'list'"),
        ({"choices": ["a"] * 1025}, "sampling_params.choices", "at most 1024 strings"),
        ({"choices": ["a" * (limits.GRAMMAR_CHARS + 1)]}, "sampling_params.choices", "characters in all"),
        ({"stop_regex": 5}, "sampling_params.stop_regex[0]", "Expected str, got int"),
        ({"stop_regex": ["a"] * 33}, "sampling_params.stop_regex", "at most 32 patterns, got 33"),
        (
            {"stop_regex": ["a" * 256, "b" * 257]},
            "sampling_params.stop_regex",
            "at most 512 characters in all, got 513",
        ),
        ({"nonsense": 1}, "sampling_params.nonsense", "known keys: choices, compact_json"),
    ],
)
def test_a_refusal_names_the_key_as_written_and_what_is_allowed(raw: Any, field: str, says: str) -> None:
    error = refused(raw)
    assert error.field == field
    assert says in str(error)


def test_keys_are_named_under_the_path_of_the_caller() -> None:
    assert refused({"top_p": 0}, "").field == "top_p"
    assert refused({"top_p": 0}, "sampling_params[3]").field == "sampling_params[3].top_p"


def test_one_string_or_id_is_a_list_of_one() -> None:
    params = parse_sampling({"stop": "a", "stop_regex": "b+", "stop_token_ids": 7})
    assert (params.stop, params.stop_regex, params.stop_token_ids) == (("a",), ("b+",), (7,))


@pytest.mark.parametrize(("key", "name"), sorted(ALIASES.items()))
def test_other_spellings_are_heard(key: str, name: str) -> None:
    assert getattr(parse_sampling({key: 3}), name) == 3


def test_token_ids_of_a_bias_may_be_strings_as_json_has_them() -> None:
    assert parse_sampling({"logit_bias": {"5": 1}}) == parse_sampling({"logit_bias": {5: 1.0}})


@pytest.mark.parametrize(
    ("params", "greedy"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 9e-7}, True),
        ({"temperature": 1e-6}, False),
        ({"top_k": 1}, True),
        ({}, False),
    ],
)
def test_what_counts_as_greedy(params: dict[str, Any], greedy: bool) -> None:
    assert parse_sampling(params).greedy is greedy


def test_what_counts_as_penalised() -> None:
    assert not SamplingParams().penalised
    for name, value in (("frequency_penalty", 0.1), ("presence_penalty", -0.1), ("repetition_penalty", 1.1)):
        assert parse_sampling({name: value}).penalised


def test_parameters_built_in_python_are_checked_the_same_way() -> None:
    for bad in (SamplingParams(top_p=0.0), SamplingParams(stop=("",)), SamplingParams(min_new_tokens=17)):
        with pytest.raises(FieldError):
            check_sampling(bad)


def test_a_number_with_more_digits_than_python_writes_is_refused_like_another() -> None:
    for name in ("max_new_tokens", "top_k", "temperature", "seed"):
        assert refused({name: -(10**5000)}).field == f"sampling_params.{name}"
