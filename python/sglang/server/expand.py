"""One body, several sequences: prompts times samples, values given once or per prompt, and the ids they go by."""

from typing import Any, TypeVar, cast

import msgspec

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.base.sampling import SEED_BITS, SamplingParams

T = TypeVar("T")


def check_count(field: str, prompts: int, sequences: int) -> None:
    if prompts < 1:
        raise FieldError(field, f"{field} must hold at least one prompt")
    if sequences > limits.BATCH:
        raise FieldError(field, f"{field} (times n) may make at most {limits.BATCH} sequences, got {sequences}")


def sample(params: SamplingParams, k: int) -> SamplingParams:
    """The parameters of sample `k` of n: a seed that was given counts up, so that samples differ."""
    if params.n == 1:
        return params
    seed = None if params.seed is None else (params.seed + k) % (1 << SEED_BITS)
    return msgspec.structs.replace(params, n=1, seed=seed)


def are_ids(values: list[Any]) -> bool:
    """Whether a list of JSON holds whole numbers alone: a sum tells it in a tenth of the time of a look at each."""
    try:
        sum(values)
    except TypeError:
        return False
    return True


def id_lists(field: str, ids: list[int | list[int]]) -> tuple[list[list[int]], bool]:
    """[1, 2] -> ([[1, 2]], True); [[1], [2]] -> ([[1], [2]], False)."""
    if are_ids(ids):
        return [ids], True  # pyright: ignore[reportReturnType]  # every element is a number
    if set(map(type, ids)) != {list}:
        raise FieldError(field, f"{field} must be a list of token ids, or a list of such lists, not a mixture")
    return ids, False  # pyright: ignore[reportReturnType]


def spread(field: str, value: T | list[T] | None, count: int, default: T) -> list[T]:
    """One value per prompt: a list must have as many; None is the default."""
    if not isinstance(value, list):
        return [default if value is None else value] * count
    values = cast(list[T], value)
    if len(values) != count:
        raise FieldError(field, f"{field} must be one value or a list of {count} (one per prompt), got {len(values)}")
    return values


def names(rid: str | list[str] | None, samples: list[int]) -> list[list[str]]:
    """Ids by prompt and sample: a list names the prompts, one string is counted on (rid_0, rid_1, …); "" = unnamed."""
    given = [rid] if isinstance(rid, str) else rid or []
    if any(not 0 < len(r) <= limits.RID_CHARS for r in given):
        raise FieldError("rid", f"rid must have 1 to {limits.RID_CHARS} characters")
    if len(set(given)) != len(given):
        raise FieldError("rid", "rid must not name two prompts alike")
    if isinstance(rid, str):
        total, number = sum(samples), iter(range(sum(samples)))
        return [[rid if total == 1 else f"{rid}_{next(number)}" for _ in range(n)] for n in samples]
    per_prompt = spread("rid", rid, len(samples), "")
    return [
        [name if n == 1 or not name else f"{name}_{k}" for k in range(n)]
        for name, n in zip(per_prompt, samples, strict=True)
    ]


def parent_name(parent: str | None) -> str:
    """The request that a body continues; "" = none."""
    if parent is not None and not 0 < len(parent) <= limits.RID_CHARS:
        raise FieldError("parent", f"parent must have 1 to {limits.RID_CHARS} characters")
    return parent or ""
