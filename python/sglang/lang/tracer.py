"""A program's graph without running it: its body is called with placeholders and a state that only takes notes.

What the body does with a value that is not known (format it, compare it, loop over it) raises a TypeError, and the
graph ends there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import BoundArguments
from typing import TYPE_CHECKING, Any, Self

from sglang.base.chat import ChatTemplate
from sglang.base.choices import token_length_normalized
from sglang.lang.drawing import Step, lines, svg
from sglang.lang.ir import (
    Expr,
    Gen,
    Image,
    RoleBegin,
    RoleEnd,
    Select,
    Text,
    VarBegin,
    VarEnd,
    Video,
    as_expr,
    parts,
    sets,
)

if TYPE_CHECKING:
    from sglang.lang.program import SglFunction

_current: ContextVar["TraceState | None"] = ContextVar("tracing", default=None)


class Unknown(Expr):
    """An argument, or a value that is yet to be generated. May be appended; to look at it raises TypeError."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"Unknown({self.name})"

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"the value of {self.name} is not known while the program is traced")

    __str__ = __format__ = __bool__ = __len__ = __iter__ = __int__ = __float__ = __index__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __getitem__ = __call__ = _refuse
    __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__  # type: ignore[assignment]  # equality is refused, identity is not

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def __await__(self) -> Iterator[Any]:
        yield from ()
        return self  # type: ignore[return-value]  # what an async program gets from await s["x"]


class ForkNode(Expr):
    """A fork in a graph, with the graphs of its states."""

    __slots__ = ("states",)

    def __init__(self, states: list["TraceState"]):
        self.states = states


class JoinNode(Expr):
    __slots__ = ("mode",)

    def __init__(self, mode: str):
        self.mode = mode


class CallNode(Expr):
    """Another program, with a state of its own."""

    __slots__ = ("trace",)

    def __init__(self, trace: "Trace"):
        self.trace = trace


class TraceState:
    """Stands for `s`."""

    def __init__(self) -> None:
        self.nodes: list[Expr] = []
        self.variables: dict[str, Any] = {}
        self.ret_value: Any = None

    def __iadd__(self, other: Any) -> Self:
        for node in parts(as_expr(other)):
            self.nodes.append(node)
            for name in sets(node):
                self.variables[name] = Unknown(name)
        return self

    def __getitem__(self, name: str) -> Any:
        if name not in self.variables:
            raise KeyError(f"no variable is called {name!r}; known: {', '.join(self.variables) or 'none'}")
        return self.variables[name]

    get_var = __getitem__

    def __setitem__(self, name: str, value: Any) -> None:
        self.variables[name] = value

    set_var = __setitem__

    def __contains__(self, name: str) -> bool:
        return name in self.variables

    def get_meta_info(self, name: str) -> Any:
        return Unknown(f"the meta info of {name}")

    def text(self) -> Any:
        return Unknown("the text")

    def messages(self) -> Any:
        return Unknown("the messages")

    def error(self) -> Any:
        return Unknown("the error")

    def sync(self) -> Any:
        return Unknown("nothing")

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> "TraceGroup":
        states = [TraceState() for _ in range(size)]
        for state in states:
            state.variables = dict(self.variables)
        self.nodes.append(ForkNode(states))
        return TraceGroup(states, self)

    def text_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> Any:
        return Unknown("the text")

    text_async_iter = text_iter

    def copy(self, position_ids_offset: Sequence[int] | None = None) -> "_Copy":
        return _Copy(self.fork(1, position_ids_offset))

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        self += VarBegin(name)
        yield
        self += VarEnd(name)

    def system(self, expr: Any = None) -> Any:
        return self._message("system", expr)

    def user(self, expr: Any = None) -> Any:
        return self._message("user", expr)

    def assistant(self, expr: Any = None) -> Any:
        return self._message("assistant", expr)

    def _message(self, role: str, expr: Any) -> Any:
        if expr is None:
            return self._open(role)
        self += [RoleBegin(role), expr, RoleEnd(role)]
        return None

    @contextmanager
    def _open(self, role: str) -> Iterator[None]:
        self += RoleBegin(role)
        yield
        self += RoleEnd(role)


class _Copy:
    """For `with` and for `async with`."""

    def __init__(self, group: "TraceGroup"):
        self._group = group

    def __enter__(self) -> TraceState:
        return self._group[0]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._group.join()

    async def __aenter__(self) -> TraceState:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.__exit__(kind)


class TraceGroup:
    def __init__(self, states: list[TraceState], parent: TraceState):
        self.states = states
        self._parent = parent

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: int) -> TraceState:
        return self.states[i]

    def __setitem__(self, i: int, state: TraceState) -> None:
        """For `forks[i] += ...`."""
        assert state is self.states[i]

    def __iter__(self) -> Iterator[TraceState]:
        return iter(self.states)

    def __iadd__(self, other: Any) -> Self:
        for i, state in enumerate(self.states):
            state += other(i) if callable(other) else other[i] if isinstance(other, list | tuple) else other
        return self

    def join(self, mode: str = "gather_variable") -> Any:
        self._parent.nodes.append(JoinNode(mode))
        if mode == "gather_variable":
            for state in self.states:
                for name, value in state.variables.items():
                    self._parent.variables.setdefault(name, value)
        return Unknown("nothing")


class Trace:
    """A program's graph: `nodes`, in order; a fork's states have their own. ended: why the rest is not known."""

    def __init__(self, name: str, state: TraceState, template: ChatTemplate, ended: str | None):
        self.name = name
        self.state = state
        self.template = template
        self.ended = ended

    @property
    def nodes(self) -> list[Expr]:
        return self.state.nodes

    def prefix(self) -> str:
        """The constant text that every run of the program begins with, roles written."""
        text, history = "", []
        for node in self.nodes:
            match node:
                case Text(value):
                    text += value
                case RoleBegin(role):
                    if not history and role != "system" and self.template.default_system_prompt is not None:
                        before, after = self.template.get_prefix_and_suffix("system", history)
                        text += before + self.template.default_system_prompt + after
                        history.append({"role": "system"})
                    text += self.template.get_prefix_and_suffix(role, history)[0]
                case RoleEnd(role):
                    text += self.template.get_prefix_and_suffix(role, history)[1]
                    history.append({"role": role})
                case VarBegin() | VarEnd():
                    pass
                case _:
                    break
        return text

    def steps(self) -> list[Step]:
        found = _steps(self.state)
        return [*found, Step(f"... {self.ended}")] if self.ended else found

    def print_graph_dfs(self) -> None:
        print(self)

    def __str__(self) -> str:
        return "\n".join([f"program {self.name}", *(f"  {line}" for line in lines(self.steps()))])

    def _repr_svg_(self) -> str:
        return svg(f"program {self.name}", self.steps())


def tracing() -> bool:
    return _current.get() is not None


def nested(program: "SglFunction", arguments: BoundArguments) -> TraceState:
    """Called inside of a program that is traced."""
    outer = _current.get()
    assert outer is not None
    found = trace(program, arguments.args[1:], arguments.kwargs, None)
    outer.nodes.append(CallNode(found))
    return found.state


def trace(program: "SglFunction", args: Sequence[Any], kwargs: dict[str, Any], template: ChatTemplate | None) -> Trace:
    from sglang.base.chat import get_chat_template

    state = TraceState()
    ended = None
    token = _current.set(state)
    try:
        result = program.func(state, *args, **kwargs)
        state.ret_value = _step(result) if program.is_async else result
    except Exception as error:  # the body has met what is not known, or does not stand being run without a model
        ended = f"{type(error).__name__}: {error}"
    finally:
        _current.reset(token)
    return Trace(program.__name__, state, template or get_chat_template("default"), ended)


def _step(body: Any) -> Any:
    """Run an async body as far as it goes without an event loop: awaits on the traced state do not wait."""
    try:
        body.send(None)
    except StopIteration as end:
        return end.value
    body.close()
    raise TypeError("the program waits for something that is not known while it is traced")


def _steps(state: TraceState) -> list[Step]:
    steps = []
    for node in state.nodes:
        match node:
            case ForkNode(states=states):
                steps.append(Step(f"fork {len(states)}", branches=[_steps(child) for child in states]))
            case JoinNode(mode=mode):
                steps.append(Step(f"join {mode}", joins=True))
            case CallNode(trace=inner):
                steps.append(Step(f"program {inner.name}", branches=[inner.steps()]))
            case _:
                steps.append(Step(describe(node), asks=isinstance(node, Gen | Select)))
    return steps


def describe(node: Expr) -> str:
    """A node in a line."""
    match node:
        case Text(value):
            return f"text {_short(value)}"
        case Unknown(name=name):
            return f"argument {name}"
        case Gen(name, sampling):
            settings = "".join(f" {key}={value!r}" for key, value in sampling.items())
            return f"gen {name or '-'}{settings}"
        case Select(name, choices, _, method):
            by = "" if method is token_length_normalized else f" by {getattr(method, '__name__', method)}"
            return f"select {name or '-'} of {choices}{by}"
        case Image():
            return "image"
        case Video(path, frames):
            return f"video {path} ({frames} frames)"
        case RoleBegin(role):
            return f"{role} begins"
        case RoleEnd(role):
            return f"{role} ends"
        case VarBegin(name):
            return f"variable {name} begins"
        case VarEnd(name):
            return f"variable {name} ends"
        case _:
            return type(node).__name__


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
