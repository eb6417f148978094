"""How `select` picks, by its formulas."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.base.choices import (
    METHODS,
    ChoicesDecision,
    choice_tokens,
    decide,
    greedy_token_selection,
    needs_unconditional,
    token_length_normalized,
    unconditional_likelihood_normalized,
)


def rows(*values: list[float | None]) -> Any:
    return [[(lp, 10 * i + k, None) for k, lp in enumerate(row)] for i, row in enumerate(values)]


def test_the_mean_per_token_decides_not_the_sum() -> None:
    decision = decide(token_length_normalized, ["short", "long"], rows([-2.0], [-1.0, -1.0, -1.0]))
    assert decision.decision == "long"
    assert decision.meta_info is not None
    assert decision.meta_info["normalized_prompt_logprobs"] == [-2.0, -1.0]
    assert decision.meta_info["input_token_logprobs"][0] == [(-2.0, 0, None)]
    assert decision.meta_info["output_token_logprobs"] == [[], []]


def test_a_token_with_no_value_does_not_count() -> None:
    assert decide(token_length_normalized, ["a", "b"], rows([None, -3.0], [-2.0])).decision == "b"


def test_greedy_goes_token_by_token() -> None:
    given_rows = rows([-1.0, -9.0], [-2.0, -0.1], [-1.0, -3.0])
    decision = decide(greedy_token_selection, ["a", "b", "c"], given_rows)
    assert decision.decision == "c"
    assert decide(token_length_normalized, ["a", "b", "c"], given_rows).decision == "b"


def test_greedy_goes_on_with_the_mean_of_a_row_that_has_ended() -> None:
    decision = decide(greedy_token_selection, ["a", "ab"], rows([-1.0], [-1.0, -0.5]))
    assert decision.decision == "ab"
    assert decision.meta_info is not None
    assert decision.meta_info["greedy_logprob_matrix"] == [[-1.0, -1.0], [-1.0, -0.5]]
    assert decide(greedy_token_selection, ["x", "y"], rows([-1.0], [-1.0])).decision == "x"


def test_the_same_beginning_computed_twice_decides_nothing() -> None:
    first = [[(-1.0, 7, None), (-3.0, 8, None)], [(-1.0 + 1e-6, 7, None), (-2.0, 9, None)]]
    second = [[(-1.0 + 1e-6, 7, None), (-3.0, 8, None)], [(-1.0, 7, None), (-2.0, 9, None)]]
    for given_rows in (first, second):
        assert decide(greedy_token_selection, ["worse", "better"], given_rows).decision == "better"
    others = [[(-1.0, 7, None), (-3.0, 8, None)], [(-1.0 + 1e-6, 5, None), (-9.0, 9, None)]]
    assert decide(greedy_token_selection, ["worse", "better"], others).decision == "better", "tokens of their own"


def test_what_is_likely_anyway_does_not_win() -> None:
    given_rows, alone = rows([-1.0, -1.0], [-2.0, -2.0]), rows([None, -0.5], [None, -5.0])
    decision = decide(unconditional_likelihood_normalized, ["common", "rare"], given_rows, alone=alone)
    assert decision.decision == "rare"
    assert decision.meta_info is not None
    assert decision.meta_info["normalized_unconditional_prompt_logprobs"] == [-0.75, 0.5]
    assert decision.meta_info["unconditional_token_logprobs"] == alone
    assert needs_unconditional(unconditional_likelihood_normalized)
    assert not needs_unconditional(token_length_normalized)
    with pytest.raises(ValueError, match="unconditional_token_logprobs"):
        decide(unconditional_likelihood_normalized, ["a"], rows([-1.0]))


def test_a_method_of_the_users_own() -> None:
    def last(*, choices: list[str], **_: Any) -> ChoicesDecision:
        return ChoicesDecision(choices[-1], {"mine": 1})

    assert decide(last, ["a", "b"], rows([-1.0], [-9.0])) == ChoicesDecision("b", {"mine": 1})
    with pytest.raises(ValueError, match="must pick one of"):
        decide(lambda **_: ChoicesDecision("c"), ["a", "b"], rows([-1.0], [-9.0]))
    with pytest.raises(ValueError, match="one row"):
        decide(last, ["a", "b"], rows([-1.0]))


# Tokens of "a b" + " c", the last token of the prompt first scored.
@pytest.mark.parametrize(
    ("prefix", "length", "tokens", "total", "kept"),
    [
        ("to be", 2, [(None, 1, "to"), (-1.0, 2, " be"), (-2.0, 3, " or")], 3, [3]),  # the boundary held
        ("to be", 2, [(-1.0, 2, " be"), (-2.0, 3, " or")], 3, [3]),  # fewer positions were sent
        ("to be", 2, [(None, 1, "to"), (-1.0, 9, " bet"), (-2.0, 4, "a")], 3, [9, 4]),  # " be" + "ta" merged
        ("to be", 2, [(None, 1, "to"), (-1.0, 9, " beta")], 2, [9]),  # all of the choice is in the merged token
        ("", 0, [(None, 5, "or"), (-1.0, 6, " not")], 2, [5, 6]),
    ],
)
def test_the_scored_tokens_are_those_that_reach_beyond_the_prefix(
    prefix: str, length: int, tokens: Any, total: int, kept: list[int]
) -> None:
    assert [token for _, token, _ in choice_tokens(prefix, length, tokens, total)] == kept


@given(st.lists(st.lists(st.floats(-50, 0), min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_formulas_agree_with_numpy(values: list[list[float]]) -> None:
    choices = [str(i) for i in range(len(values))]
    given_rows = rows(*values)
    means = [np.mean(row) for row in values]
    picked = int(decide(token_length_normalized, choices, given_rows).decision)
    assert means[picked] == pytest.approx(max(means))
    alone: Any = [[(None if k == 0 else -1.0, 0, None) for k in range(len(row))] for row in values]
    gains = [(sum(row) + len(row) - 1) / len(row) for row in values]
    picked = int(decide(unconditional_likelihood_normalized, choices, given_rows, alone=alone).decision)
    assert gains[picked] == pytest.approx(max(gains))
    assert int(decide(METHODS["greedy_token_selection"], choices, given_rows).decision) in {
        i for i, row in enumerate(values) if row[0] == max(other[0] for other in values)
    }
