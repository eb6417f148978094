"""sglang: a programming language for language models, and the engine that runs them.

Every public name is imported when it is first used: `import sglang` costs nothing but this file.
Start with docs/frontend.md for programs, docs/quick_start.md for the server.
"""

# ruff: noqa: F401 - what type checkers read of the names below
from importlib import import_module
from typing import TYPE_CHECKING, Any

_PLACES = {
    "sglang.lang.api": (
        "assistant", "assistant_begin", "assistant_end", "flush_cache", "function", "gen", "gen_int", "gen_string",
        "get_server_args", "get_server_info", "image", "select", "separate_reasoning", "set_default_backend",
        "system", "system_begin", "system_end", "user", "user_begin", "user_end", "video",
    ),
    "sglang.lang.config": ("global_config",),
    "sglang.lang.explain": ("explain",),
    "sglang.lang.program": ("SglFunction",),
    "sglang.lang.state": ("ProgramState",),
    "sglang.lang.backends.base": ("AsyncBackend", "BaseBackend"),
    "sglang.lang.backends.runtime_endpoint": ("RuntimeEndpoint",),
    "sglang.lang.backends.runtime": ("Runtime",),
    "sglang.lang.backends.openai": ("OpenAI",),
    "sglang.lang.backends.anthropic": ("Anthropic",),
    "sglang.lang.backends.crusoe": ("Crusoe",),
    "sglang.lang.backends.vertexai": ("VertexAI",),
    "sglang.lang.backends.litellm": ("LiteLLM",),
    "sglang.base.choices": (
        "ChoicesDecision", "greedy_token_selection", "token_length_normalized", "unconditional_likelihood_normalized",
    ),
    "sglang.base.config": ("ServerConfig",),
    "sglang.offline": ("Engine",),
}  # fmt: skip
_WHERE = {name: (place, name) for place, names in _PLACES.items() for name in names}
_WHERE["ServerArgs"] = ("sglang.base.config", "ServerConfig")  # its name elsewhere

__all__ = [*sorted(_WHERE), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("sglang")
        except PackageNotFoundError:  # run from a source tree that was never installed
            value = "0"
    elif name in _WHERE:
        place, attribute = _WHERE[name]
        value = getattr(import_module(place), attribute)
    else:
        raise AttributeError(f"module 'sglang' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from sglang.base.choices import (
        ChoicesDecision,
        greedy_token_selection,
        token_length_normalized,
        unconditional_likelihood_normalized,
    )
    from sglang.base.config import ServerConfig
    from sglang.base.config import ServerConfig as ServerArgs
    from sglang.lang.api import (
        assistant,
        assistant_begin,
        assistant_end,
        flush_cache,
        function,
        gen,
        gen_int,
        gen_string,
        get_server_args,
        get_server_info,
        image,
        select,
        separate_reasoning,
        set_default_backend,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
        video,
    )
    from sglang.lang.backends.anthropic import Anthropic
    from sglang.lang.backends.base import AsyncBackend, BaseBackend
    from sglang.lang.backends.crusoe import Crusoe
    from sglang.lang.backends.litellm import LiteLLM
    from sglang.lang.backends.openai import OpenAI
    from sglang.lang.backends.runtime import Runtime
    from sglang.lang.backends.runtime_endpoint import RuntimeEndpoint
    from sglang.lang.backends.vertexai import VertexAI
    from sglang.lang.config import global_config
    from sglang.lang.explain import explain
    from sglang.lang.program import SglFunction
    from sglang.lang.state import ProgramState
    from sglang.offline import Engine

    __version__: str
