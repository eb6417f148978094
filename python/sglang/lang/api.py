"""The primitives of the language: what programs append to their state, and what holds for the whole process."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, overload

from sglang.base.choices import Method, token_length_normalized
from sglang.lang.backends.base import BaseBackend
from sglang.lang.config import global_config
from sglang.lang.ir import (
    Expr,
    ExprList,
    Gen,
    Image,
    RoleBegin,
    RoleEnd,
    Select,
    Video,
    as_expr,
    check_regex,
    dtype_name,
    overrides,
    parts,
    schema_text,
)
from sglang.lang.program import SglFunction, resolve

log = logging.getLogger("sglang.lang")

# How models mark what they think before they answer.
THINKING: dict[str, tuple[str, str]] = {
    "deepseek-r1": ("<think>", "</think>"),
    "deepseek-v3": ("<think>", "</think>"),
    "qwen3": ("<think>", "</think>"),
    "qwen3-thinking": ("<think>", "</think>"),
    "glm45": ("<think>", "</think>"),
    "step3": ("<think>", "</think>"),
    "kimi": ("◁think▷", "◁/think▷"),
}


@overload
def function(
    func: Callable[..., Any], num_api_spec_tokens: int | None = None, fuse: bool | None = None
) -> SglFunction: ...


@overload
def function(
    func: None = None, num_api_spec_tokens: int | None = None, fuse: bool | None = None
) -> Callable[[Callable[..., Any]], SglFunction]: ...


def function(
    func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None, fuse: bool | None = None
) -> SglFunction | Callable[[Callable[..., Any]], SglFunction]:
    """Decorator: a Python function, plain or async, whose first parameter is `s`, becomes a program.

    num_api_spec_tokens: ask an API model for so many tokens at a time and serve several gens from them.
    fuse: whether gens that are not read in between travel as one request; None: as global_config.enable_fusion.
    """
    if func is not None:
        return SglFunction(func, num_api_spec_tokens=num_api_spec_tokens, fuse=fuse)
    return lambda func: SglFunction(func, num_api_spec_tokens=num_api_spec_tokens, fuse=fuse)


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: Method | None = None,
    regex: str | None = None,
    json_schema: Any = None,
    ebnf: str | None = None,
) -> Expr:
    """The model goes on. The text becomes variable `name`; what is None comes from the run.

    choices: one of these is chosen instead (see `select`). dtype: int, float, bool or str; the variable is the text of
    such a value. regex, json_schema, ebnf: the text matches it; a schema is its text, a dict, or a pydantic model; a
    grammar is EBNF or Lark. What a backend cannot do of these is an error of that gen.
    """
    if choices is not None:
        return select(name, choices, 0.0, choices_method or token_length_normalized)
    check_regex(regex)
    kind = dtype_name(dtype)
    if kind is not None and regex is not None:
        log.warning("gen(%r): both dtype and regex are given, dtype is used", name)
        regex = None
    given = {
        "max_new_tokens": max_tokens,
        "min_new_tokens": min_tokens,
        "n": n,
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "stop_regex": stop_regex,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "ignore_eos": ignore_eos,
        "return_logprob": return_logprob,
        "logprob_start_len": logprob_start_len,
        "top_logprobs_num": top_logprobs_num,
        "return_text_in_logprobs": return_text_in_logprobs,
        "dtype": kind,
        "regex": regex,
        "json_schema": schema_text(json_schema),
        "ebnf": ebnf,
    }
    return Gen(name, overrides(given))


def gen_int(name: str | None = None, max_tokens: int | None = None, **kwargs: Any) -> Expr:
    """`gen` of an integer, as text."""
    return _typed("int", name, max_tokens, kwargs)


def gen_string(name: str | None = None, max_tokens: int | None = None, **kwargs: Any) -> Expr:
    """`gen` of a quoted string."""
    return _typed("str", name, max_tokens, kwargs)


def _typed(dtype: str, name: str | None, max_tokens: int | None, kwargs: dict[str, Any]) -> Expr:
    for fixed in ("dtype", "choices", "choices_method", "regex", "json_schema", "ebnf"):
        if fixed in kwargs:
            raise TypeError(f"gen_{dtype} takes no {fixed}; use gen")
    return gen(name, max_tokens, dtype=dtype, **kwargs)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: Method = token_length_normalized,
) -> Expr:
    """One of `choices`, by their log-probabilities after the text so far, is appended and becomes variable `name`."""
    assert choices is not None, "select needs choices"
    assert len(choices) > 0, "choices must not be empty"
    listed = not isinstance(choices, str) and all(isinstance(choice, str) for choice in choices)
    assert listed, f"choices must be a list of strings, got {choices!r}"
    assert temperature <= 1e-5, f"the temperature of a select must be 0, got {temperature}"
    return Select(name, list(choices), temperature, choices_method)


def image(expr: Any) -> Expr:
    """An image: a path, encoded bytes, or a PIL image."""
    return Image(expr)


def video(path: str, num_frames: int) -> Expr:
    """`num_frames` frames, evenly spaced over the file."""
    return Video(path, num_frames)


def system(expr: Any = None) -> ExprList:
    return _role("system", expr)


def user(expr: Any = None) -> ExprList:
    return _role("user", expr)


def assistant(expr: Any = None) -> ExprList:
    return _role("assistant", expr)


def _role(role: str, expr: Any) -> ExprList:
    inner = [] if expr is None else parts(as_expr(expr))
    return ExprList([RoleBegin(role), *inner, RoleEnd(role)])


def system_begin() -> Expr:
    return RoleBegin("system")


def system_end() -> Expr:
    return RoleEnd("system")


def user_begin() -> Expr:
    return RoleBegin("user")


def user_end() -> Expr:
    return RoleEnd("user")


def assistant_begin() -> Expr:
    return RoleBegin("assistant")


def assistant_end() -> Expr:
    return RoleEnd("assistant")


def separate_reasoning(expr: Any, model_type: str) -> Expr:
    """`expr`, whose gens put what the model thinks into `<name>_reasoning_content` and keep the answer."""
    if model_type not in THINKING:
        raise ValueError(f"model_type must be one of {', '.join(THINKING)}, got {model_type!r}")
    marks = THINKING[model_type]
    nodes = parts(as_expr(expr))
    return ExprList([Gen(n.name, n.sampling, marks) if isinstance(n, Gen) else n for n in nodes])


def set_default_backend(backend: Any) -> None:
    """Who answers programs that are run without `backend=`: a backend, a Runtime or an Engine."""
    global_config.default_backend = backend


def flush_cache(backend: Any = None) -> bool:
    """Empty the backend's prefix cache. False where it has none, or there is no backend."""
    found = _found(backend)
    return bool(found.flush_cache()) if found is not None else False


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """Settings and state of the backend's server, None where there is none."""
    found = _found(backend)
    return found.get_server_info() if found is not None else None


get_server_args = get_server_info  # its older name


def _found(backend: Any) -> BaseBackend | None:
    backend = backend or global_config.default_backend
    return resolve(backend) if backend is not None else None
