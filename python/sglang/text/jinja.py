"""Hugging Face chat templates: Jinja in a sandbox, bounded in what it may write and how long it may take.

The templates come with models and from the server's owner, never from a client; what a client sends is data in them.
Variables and filters are those transformers gives them.
"""

import json
import math
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sglang.base.errors import ConfigError, FieldError

OUTPUT_CHARS = 1 << 24  # a template that writes more is not one
RENDER_S = 5.0  # 4096 messages take well under one


class _TooMuch(Exception):
    pass


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an answer for training; to a prompt it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Looks at the clock wherever a template calls or looks up something, which any long loop does."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.clock = threading.local()  # .deadline of the render in this thread
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        del self.globals["lipsum"]

    def _tick(self) -> None:
        if time.monotonic() > getattr(self.clock, "deadline", math.inf):
            raise _TooMuch("took too long")

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._tick()
        return super().call(*args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._tick()
        return super().getitem(obj, argument)


class JinjaTemplate:
    """`special`: the tokens a template may name (bos_token, eos_token …). `render_s`: seconds a render may take."""

    stop: tuple[str, ...] = ()
    complete = True

    def __init__(self, source: str, special: dict[str, str], render_s: float = RENDER_S):
        self.source = source
        self._special = special
        self._render_s = render_s
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
            self.tools = "tools" in meta.find_undeclared_variables(self._environment.parse(source))
        except TemplateError as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from None

    def render(
        self, messages: Sequence[dict[str, Any]], reply: bool, tools: list[Any] | None, extra: dict[str, Any]
    ) -> str:
        known = {"documents": None, **extra, **self._special}  # a client's variables change none of ours
        known |= {"messages": list(messages), "tools": tools, "add_generation_prompt": reply}
        parts: list[str] = []
        size = 0
        self._environment.clock.deadline = time.monotonic() + self._render_s
        try:
            for part in self._template.generate(known):
                parts.append(part)
                size += len(part)
                if size > OUTPUT_CHARS:
                    raise _TooMuch(f"wrote more than {OUTPUT_CHARS} characters")
        except Exception as error:  # a template is data, and so is whatever it trips over in the messages
            raise FieldError("messages", f"the chat template refuses these messages: {error}") from None
        finally:
            self._environment.clock.deadline = math.inf
        return "".join(parts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
