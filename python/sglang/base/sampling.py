"""SamplingParams: defaults, ranges and the checks, in one place.

Field names and meanings follow SGLang's `sampling_params`; the OpenAI routes translate into them.
"""

import math
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from sglang.base import limits
from sglang.base.errors import FieldError

GREEDY_BELOW = 1e-6  # a temperature under this is greedy: dividing by it would overflow float32 logits
SEED_BITS = 63
SHOWN_CHARS = 64  # of what a caller sent, in an error


Dtype = Literal["int", "float", "bool", "str"]
DTYPES: tuple[str, ...] = get_args(Dtype)


class SamplingParams(Struct, kw_only=True, frozen=True, omit_defaults=True, gc=False):
    """How one sequence is decoded. Built by `parse_sampling`; everything inside the process may trust it."""

    max_new_tokens: int = 16
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # the front draws one where the caller gave none: resumed sequences must not change
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_regex: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    n: int = 1
    regex: str | None = None
    json_schema: str | None = None
    ebnf: str | None = None
    choices: tuple[str, ...] = ()
    structural_tag: str | None = None
    dtype: Dtype | None = None
    strict: bool = True  # a schema's unknown keywords are errors; false: ignored
    compact_json: bool = False  # JSON without blanks, instead of as json.dumps writes it

    @property
    def constraint(self) -> str:
        """The name of the constraint, "" where the text is free."""
        return next((name for name in CONSTRAINTS if getattr(self, name) not in (None, ())), "")

    @property
    def stops_by_text(self) -> bool:
        """Its text must be read at every token to know whether it has ended."""
        return bool(self.stop or self.stop_regex)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def penalised(self) -> bool:
        return self.frequency_penalty != 0 or self.presence_penalty != 0 or self.repetition_penalty != 1


CONSTRAINTS = ("regex", "json_schema", "ebnf", "choices", "structural_tag", "dtype")
LISTS = ("stop", "stop_regex", "stop_token_ids", "choices")  # of which a single one may stand alone
AS_JSON = ("json_schema", "structural_tag")  # may be sent as objects
# name -> (lowest, highest, lowest is excluded); None = unbounded
RANGES: dict[str, tuple[float | None, float | None, bool]] = {
    "max_new_tokens": (0, limits.MAX_NEW_TOKENS, False),
    "min_new_tokens": (0, limits.MAX_NEW_TOKENS, False),
    "temperature": (0, None, False),
    "top_p": (0, 1, True),
    "min_p": (0, 1, False),
    "frequency_penalty": (-2, 2, False),
    "presence_penalty": (-2, 2, False),
    "repetition_penalty": (0, 2, True),
    "n": (1, limits.N, False),
    "seed": (0, 2**SEED_BITS - 1, False),
}
ALIASES = {
    "sampling_seed": "seed",
    "min_tokens": "min_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}
KNOWN = frozenset(SamplingParams.__struct_fields__)
UNSUPPORTED = ("custom_params", "stream_interval")  # known to SGLang, not built here yet


def parse_sampling(raw: Any, path: str = "sampling_params") -> SamplingParams:
    """A caller's dict -> checked SamplingParams. None stands for the default, of a key or of the whole.

    Raises FieldError naming the key as the caller wrote it (under `path`, which may be empty), its range and the
    value got.
    """
    if raw is None:
        return SamplingParams()
    if not isinstance(raw, dict):
        raise FieldError(path, f"{path} must be an object, got {type(raw).__name__}")
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}  # field -> path of the key it came from
    for key, value in raw.items():
        if value is None:
            continue
        if key in UNSUPPORTED:
            raise FieldError(_at(path, key), f"{_at(path, key)} is not supported by this server")
        name = ALIASES.get(key, key)
        if name not in KNOWN:
            at = _at(path, str(key)[:SHOWN_CHARS])
            raise FieldError(at, f"unknown key {at}; known keys: {', '.join(sorted(KNOWN | set(ALIASES)))}")
        if name in spelled:
            raise FieldError(_at(path, key), f"{_at(path, key)} and {spelled[name]} are the same: send one of them")
        if name in LISTS and isinstance(value, str | int) and value is not True:
            value = [value]
        if name == "choices" and value == []:  # as () it would mean that the text is free
            raise FieldError(_at(path, key), f"{_at(path, key)} must hold at least one string")
        if name == "dtype" and isinstance(value, str) and value not in DTYPES:
            raise FieldError(_at(path, key), f"{_at(path, key)} must be one of {', '.join(DTYPES)}, got {_show(value)}")
        if name in AS_JSON and isinstance(value, dict | bool):
            value = msgspec.json.encode(value).decode()
        values[name] = value
        spelled[name] = _at(path, key)
    for name, value in values.items():
        _check_range(name, value, spelled[name])
    try:
        params = msgspec.convert(values, SamplingParams, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        field, text = _locate(str(error), spelled)
        raise FieldError(field, f"{field}: {text}") from None
    _check_lists(params, path, spelled)
    return params


def check_sampling(params: SamplingParams, path: str = "sampling_params") -> SamplingParams:
    """The same checks for parameters built in Python. Returns `params`."""
    for name in SamplingParams.__struct_fields__:
        value = getattr(params, name)
        if value is not None:
            _check_range(name, value, _at(path, name))
    _check_lists(params, path, {})
    return params


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _check_range(name: str, value: Any, field: str) -> None:
    if name == "top_k":
        if isinstance(value, int) and value != -1 and not 1 <= value < 2**31:
            raise FieldError(field, f"{field} must be -1 (off) or in [1, 2^31), got {_show(value)}")
        return
    if name not in RANGES or isinstance(value, bool) or not isinstance(value, int | float):
        return  # a wrong type is msgspec's to name
    low, high, open_low = RANGES[name]
    bad = isinstance(value, float) and not math.isfinite(value)
    bad = bad or (low is not None and (value <= low if open_low else value < low))
    bad = bad or (high is not None and value > high)
    if bad:
        left = "(" if open_low else "["
        span = f"{left}{low}, {high}]" if high is not None else f"{left}{low}, inf)"
        raise FieldError(field, f"{field} must be in {span}, got {_show(value)}")


def _show(value: int | float | str) -> str:
    """A value as text; not a number of thousands of digits, which Python refuses to write."""
    if isinstance(value, str):
        return repr(value[:SHOWN_CHARS])
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return str(value)


def _check_lists(p: SamplingParams, path: str, spelled: dict[str, str]) -> None:
    def fail(name: str, text: str) -> None:
        field = spelled.get(name, _at(path, name))
        raise FieldError(field, f"{field} {text}")

    if p.min_new_tokens > p.max_new_tokens:
        fail("min_new_tokens", f"must be in [0, max_new_tokens = {p.max_new_tokens}], got {p.min_new_tokens}")
    if len(p.stop) > limits.STOP_STRINGS:
        fail("stop", f"may hold at most {limits.STOP_STRINGS} strings, got {len(p.stop)}")
    for text in p.stop:
        if not 0 < len(text) <= limits.STOP_STRING_CHARS:
            fail("stop", f"strings must have 1 to {limits.STOP_STRING_CHARS} characters, got {len(text)}")
    if len(p.stop_regex) > limits.STOP_STRINGS:
        fail("stop_regex", f"may hold at most {limits.STOP_STRINGS} patterns, got {len(p.stop_regex)}")
    if (size := sum(map(len, p.stop_regex))) > limits.STOP_REGEX_CHARS:
        fail("stop_regex", f"may hold at most {limits.STOP_REGEX_CHARS} characters in all, got {size}")
    if len(p.stop_token_ids) > limits.STOP_TOKEN_IDS:
        fail("stop_token_ids", f"may hold at most {limits.STOP_TOKEN_IDS} ids, got {len(p.stop_token_ids)}")
    if any(not 0 <= i < 2**31 for i in p.stop_token_ids):
        fail("stop_token_ids", "must be token ids >= 0")
    if len(p.logit_bias) > limits.LOGIT_BIAS:
        fail("logit_bias", f"may hold at most {limits.LOGIT_BIAS} entries, got {len(p.logit_bias)}")
    for token, bias in p.logit_bias.items():
        if not 0 <= token < 2**31:
            fail("logit_bias", f"keys must be token ids >= 0, got {token}")
        if not -100 <= bias <= 100:  # NaN fails too
            fail("logit_bias", f"values must be in [-100, 100], got {bias}")
    if len(p.choices) > limits.CHOICES or sum(map(len, p.choices)) > limits.GRAMMAR_CHARS:
        fail("choices", f"may hold at most {limits.CHOICES} strings of {limits.GRAMMAR_CHARS} characters in all")
    held = [name for name in CONSTRAINTS if getattr(p, name) not in (None, ())]
    if len(held) > 1:
        fail(held[1], f"cannot be combined with {held[0]}: at most one constraint a request")
    for name in ("regex", "json_schema", "ebnf", "structural_tag"):
        if len(getattr(p, name) or "") > limits.GRAMMAR_CHARS:
            fail(name, f"may have at most {limits.GRAMMAR_CHARS} characters")


def _locate(text: str, spelled: dict[str, str]) -> tuple[str, str]:
    """msgspec's 'Expected `int`, got `str` - at `$.top_k[0]`' -> (path of top_k + '[0]', 'Expected int, got str')."""
    message, _, where = text.partition(" - at ")
    path = where.replace("`", "").replace("key in ", "").removeprefix("$.")
    name, rest = [*path.split("[", 1), ""][:2]
    return spelled.get(name, name) + (f"[{rest}" if rest else ""), message.replace("`", "")
