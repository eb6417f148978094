"""What a program consists of: the nodes that `s += ...` takes, and the record of how to sample.

A node says what is to happen, never how or where; the interpreter, the tracer and the printer all read the same nodes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from sglang.base.choices import Method, token_length_normalized

REGEX_INT = r"[-+]?[0-9]+"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""
REGEX_STRING = REGEX_STR  # its older name

Dtype = Literal["int", "float", "bool", "str"]
DTYPES: dict[str, str] = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}


@dataclass(frozen=True, slots=True)
class SglSamplingParams:
    """How one `gen` is decoded, complete: defaults, then the run's arguments, then the gen's own, then the template's
    stop strings. This is what a backend is handed."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    ignore_eos: bool = False
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None
    dtype: Dtype | None = None
    regex: str | None = None
    json_schema: str | None = None
    ebnf: str | None = None

    def but(self, overrides: dict[str, Any]) -> "SglSamplingParams":
        """With `overrides` (of fields) in place of what it has."""
        return replace(self, **overrides) if overrides else self


SAMPLING_NAMES = frozenset(f.name for f in fields(SglSamplingParams))
_TUPLES = ("stop", "stop_token_ids", "stop_regex")


def overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Sampling arguments as a program spells them -> those that are set. A single stop becomes a tuple of one.

    Raises TypeError for a name that is not a field of SglSamplingParams.
    """
    result: dict[str, Any] = {}
    for name, value in given.items():
        if name not in SAMPLING_NAMES:
            raise TypeError(f"{name} is not a sampling argument; known: {', '.join(sorted(SAMPLING_NAMES))}")
        if value is None:
            continue
        if name in _TUPLES:
            value = (value,) if isinstance(value, str | int) else tuple(value)
        result[name] = value
    return result


class Expr:
    """Anything a program appends. `+` with an expression or a string makes an ExprList."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        # f"{gen('x')}" would put the text of the node into the prompt, and generate nothing.
        raise TypeError(f"a {type(self).__name__.lower()} cannot stand in an f-string or format(): append it with +")

    def __add__(self, other: "Expr | str") -> "ExprList":
        if isinstance(other, str):
            other = Text(other)
        if not isinstance(other, Expr):
            return NotImplemented
        return ExprList([*parts(self), *parts(other)])

    def __radd__(self, other: str) -> "ExprList":
        if not isinstance(other, str):
            return NotImplemented
        return ExprList([Text(other), *parts(self)])


class ExprList(Expr):
    """Expressions one after another, flat."""

    __slots__ = ("items",)

    def __init__(self, items: list[Expr]):
        self.items = items

    def __repr__(self) -> str:
        return f"ExprList({self.items})"


@dataclass(slots=True)
class Text(Expr):
    value: str


@dataclass(slots=True)
class Gen(Expr):
    """The model continues the text. sampling: what this gen sets, the rest comes from the run.

    thinking: the marks around what the model thinks before it answers; it goes to another variable and not into the
    text.
    """

    name: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    thinking: tuple[str, str] | None = None


@dataclass(slots=True)
class Select(Expr):
    """The likeliest of `choices` is appended, as `method` (see base/choices.py) measures it."""

    name: str | None
    choices: list[str]
    temperature: float = 0.0
    method: Method = token_length_normalized


@dataclass(slots=True)
class Image(Expr):
    """A path, encoded bytes, or a PIL image."""

    source: Any


@dataclass(slots=True)
class Video(Expr):
    """`frames` pictures, evenly spaced over the file."""

    path: str
    frames: int


@dataclass(slots=True)
class RoleBegin(Expr):
    role: str


@dataclass(slots=True)
class RoleEnd(Expr):
    role: str


@dataclass(slots=True)
class VarBegin(Expr):
    name: str


@dataclass(slots=True)
class VarEnd(Expr):
    name: str


@dataclass(slots=True)
class Fork(Expr):
    """The states that begin as copies of this one. They are in `children`, in order."""

    children: Sequence[Any]
    position_ids_offset: Sequence[int] | None = None


@dataclass(slots=True)
class Join(Expr):
    children: Sequence[Any]
    mode: Literal["gather_variable", "concate_and_append"]


def thoughts_of(name: str) -> str:
    """The variable for what the model thinks before it answers with `name`."""
    return f"{name}_reasoning_content"


def sets(node: Expr) -> tuple[str, ...]:
    """The variables that `node` sets."""
    match node:
        case Gen(str(name), thinking=tuple()):
            return name, thoughts_of(name)
        case Gen(str(name)) | Select(str(name)) | VarEnd(name):
            return (name,)
        case _:
            return ()


def parts(expr: Expr) -> Iterator[Expr]:
    """The nodes of an expression, in order."""
    if isinstance(expr, ExprList):
        yield from expr.items
    else:
        yield expr


def as_expr(value: Any) -> Expr:
    """What a program may append: a string, an expression, a list of these. Raises ValueError."""
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, Expr):
        return value
    if isinstance(value, list | tuple):
        return ExprList([node for item in value for node in parts(as_expr(item))])
    if value is None:
        raise ValueError("cannot append None: a program appends strings and expressions (does a function not return?)")
    raise ValueError(f"cannot append {type(value).__name__}: a program appends strings and expressions; use str(...)")


def check_regex(pattern: str | None) -> None:
    """A malformed pattern fails where it is written (re.error), not in the server."""
    if pattern is not None:
        re.compile(pattern)


def schema_text(schema: Any) -> str | None:
    """What programs give as `json_schema` -> its JSON.

    A schema as text or dict, a pydantic model class, a pydantic TypeAdapter, or another type that pydantic knows (a
    dataclass, `list[int]`). Raises TypeError for what is none of these.
    """
    if schema is None or isinstance(schema, str):
        return schema
    if isinstance(schema, dict | bool):
        return json.dumps(schema)
    for method in ("model_json_schema", "json_schema", "schema"):  # a model, a TypeAdapter, a model of pydantic 1
        if (describe := getattr(schema, method, None)) is not None:
            return json.dumps(describe())
    try:
        from pydantic import TypeAdapter
    except ModuleNotFoundError:
        raise TypeError(f"json_schema={schema!r}: types other than models need pydantic") from None
    try:
        return json.dumps(TypeAdapter(schema).json_schema())
    except Exception as error:
        raise TypeError(f"json_schema must be a schema or a type that has one, got {schema!r}: {error}") from None


def dtype_name(dtype: Any) -> Dtype | None:
    """int or "int" -> "int". Raises ValueError."""
    if dtype is None:
        return None
    name = dtype.__name__ if isinstance(dtype, type) else dtype
    for known in get_args(Dtype):
        if name == known:
            return known
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
