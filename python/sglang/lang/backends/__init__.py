"""Who answers a program: one file per provider behind the interface of `base.py`.

They know their provider's API and the state they are shown; not how programs run (`lang/interpreter.py`).
Start with `base.py`.
"""

import sys
from importlib import import_module

_ELSEWHERE = {"base_backend": "base"} | {
    name: name for name in ("anthropic", "crusoe", "litellm", "openai", "runtime_endpoint", "vertexai")
}


def known_as(package: str) -> None:
    """Let these modules be imported from `package` too: the same modules, so that classes stay the same."""
    for name, place in _ELSEWHERE.items():
        module = import_module(f"{__name__}.{place}")
        sys.modules[f"{package}.{name}"] = module
        setattr(sys.modules[package], name, module)
