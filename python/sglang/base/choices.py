"""How `select` picks: from the log-probabilities of its choices to one of them.

Who computes the log-probabilities is not known here: a backend of the language over HTTP, or the server itself for a
program's chain. Both hand the rows to `decide`, so a choice does not depend on where it was made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Triple = tuple[float | None, int, str | None]  # log-probability, token id, the token's text where asked for
Rows = Sequence[Sequence[Triple]]  # [choices][tokens of that choice]
NOISE = 0.1  # of a log-probability that is computed twice, in bf16 and in batches of different shape


@dataclass
class ChoicesDecision:
    """What a choice method returns: the choice, and what the program finds under `get_meta_info`."""

    decision: str
    meta_info: dict[str, Any] | None = None


Method = Callable[..., ChoicesDecision]
"""method(*, choices, normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs,
unconditional_token_logprobs=None); with an attribute `requires_unconditional_logprobs` that is true the last one is
filled: one row per choice, for the same tokens with no prefix."""


def token_length_normalized(
    *,
    choices: Sequence[str],
    normalized_prompt_logprobs: Sequence[float],
    input_token_logprobs: Rows,
    output_token_logprobs: Rows,
    unconditional_token_logprobs: Rows | None = None,
) -> ChoicesDecision:
    """The choice whose tokens have the highest mean log-probability; the first of equals."""
    meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
    return ChoicesDecision(choices[_highest(normalized_prompt_logprobs)], meta)


def greedy_token_selection(
    *,
    choices: Sequence[str],
    normalized_prompt_logprobs: Sequence[float],
    input_token_logprobs: Rows,
    output_token_logprobs: Rows,
    unconditional_token_logprobs: Rows | None = None,
) -> ChoicesDecision:
    """The choice that wins token by token: of those still in the race only the best at each position stay.

    A choice that has run out of tokens goes on with its own mean, so that none wins or loses by its length. The first
    of those that are never told apart.
    """
    rows = _alike(input_token_logprobs)
    width = max(map(len, rows))
    matrix = [row + [sum(row) / len(row) if row else 0.0] * (width - len(row)) for row in rows]
    left = list(range(len(choices)))
    for column in range(width):
        best = max(matrix[i][column] for i in left)
        left = [i for i in left if matrix[i][column] == best]
        if len(left) == 1:
            break
    meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
    return ChoicesDecision(choices[left[0]], {**meta, "greedy_logprob_matrix": matrix})


def _alike(rows: Rows) -> list[list[float]]:
    """Log-probabilities by row, where a beginning that rows share has the same ones: computed twice, the same tokens
    come out a few bits apart, and nobody may win by these."""
    seen: dict[tuple[int, ...], float] = {}
    values: list[list[float]] = []
    for row in rows:
        values.append([])
        for i, (lp, *_) in enumerate(row):
            own = 0.0 if lp is None else lp
            first = seen.setdefault(tuple(token for _, token, _ in row[: i + 1]), own)
            values[-1].append(first if abs(first - own) < NOISE else own)
    return values


def unconditional_likelihood_normalized(
    *,
    choices: Sequence[str],
    normalized_prompt_logprobs: Sequence[float],
    input_token_logprobs: Rows,
    output_token_logprobs: Rows,
    unconditional_token_logprobs: Rows | None = None,
) -> ChoicesDecision:
    """The choice that the prompt makes likelier by most: mean of log p(token | prompt) - log p(token | no prompt).

    Nothing stands before a choice's first token without a prompt: its unconditional value counts as 0.
    """
    if unconditional_token_logprobs is None:
        raise ValueError("unconditional_likelihood_normalized needs unconditional_token_logprobs")
    scores: list[float] = []
    for given, alone in zip(input_token_logprobs, unconditional_token_logprobs, strict=True):
        gains = [(lp or 0.0) - (base or 0.0) for (lp, *_), (base, *_) in zip(given, alone, strict=True)]
        scores.append(_mean(gains))
    meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
    meta["unconditional_token_logprobs"] = unconditional_token_logprobs
    meta["normalized_unconditional_prompt_logprobs"] = scores
    return ChoicesDecision(choices[_highest(scores)], meta)


unconditional_likelihood_normalized.requires_unconditional_logprobs = True  # type: ignore[attr-defined]  # a mark

METHODS: dict[str, Method] = {
    "token_length_normalized": token_length_normalized,
    "greedy_token_selection": greedy_token_selection,
    "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
}


def needs_unconditional(method: Method) -> bool:
    return bool(getattr(method, "requires_unconditional_logprobs", False))


def choice_tokens(prefix: str, prefix_tokens: int, tokens: Sequence[Triple], total: int) -> list[Triple]:
    """The tokens of prefix + choice that are scored.

    tokens: the last ones of the `total` tokens of prefix + choice, with texts, the log-probability of each given all
    before it. Scored are those from the prefix's last token on (it may have merged with the choice's beginning: the
    token is "healed"); where it has not, the prefix ends with its text and it is left out.
    """
    scored = list(tokens[max(0, prefix_tokens - 1 - (total - len(tokens))) :])
    if total - len(scored) == prefix_tokens - 1 and len(scored) > 1:
        text = scored[0][2]
        if text is not None and prefix.endswith(text):
            scored = scored[1:]
    return scored


def decide(
    method: Method, choices: Sequence[str], given: Rows, after: Rows | None = None, alone: Rows | None = None
) -> ChoicesDecision:
    """The decision of `method`, built in or a user's own.

    given: rows of `choice_tokens`. after: what was generated behind each choice (nothing, as a rule). alone: the same
    tokens with nothing before them, where `needs_unconditional(method)`.
    """
    if not choices or len(choices) != len(given):
        raise ValueError(f"choices must be one row of log-probabilities each, got {len(choices)} and {len(given)} rows")
    decision = method(
        choices=choices,
        normalized_prompt_logprobs=[_mean([lp for lp, *_ in row if lp is not None]) for row in given],
        input_token_logprobs=given,
        output_token_logprobs=after if after is not None else [[] for _ in choices],
        unconditional_token_logprobs=alone,
    )
    if decision.decision not in choices:
        raise ValueError(f"a choice method must pick one of {list(choices)}, got {decision.decision!r}")
    return decision


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _highest(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _meta(normalized: Sequence[float], given: Rows, after: Rows) -> dict[str, Any]:
    return {
        "normalized_prompt_logprobs": list(normalized),
        "input_token_logprobs": [list(row) for row in given],
        "output_token_logprobs": [list(row) for row in after],
    }
