"""ProgramState: the `s` of a program, for plain bodies and, with awaits, for async ones."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from sglang.lang.config import global_config
from sglang.lang.executor import Executor
from sglang.lang.ir import Fork, Image, Join, RoleBegin, RoleEnd, VarBegin, VarEnd, as_expr, parts

JOIN_MODES = ("gather_variable", "concate_and_append")


class State:
    """What a program can do to its state without waiting for anything."""

    def __init__(self, executor: Executor, role: str | None = None):
        self.stream_executor = executor
        self.ret_value: Any = None
        self._role = role  # the open one, as far as appended: a nested role fails where it is written

    def __iadd__(self, other: Any) -> Self:
        nodes = [*parts(as_expr(other))]
        for i, node in enumerate(nodes):
            match node:
                case RoleBegin(role):
                    assert self._role is None, f"{role} begins inside of {self._role}: roles cannot be nested"
                    self._role = role
                case RoleEnd(role):
                    assert self._role == role, f"{role} ends, but the open role is {self._role}"
                    self._role = None
                case Image(str() | Path() as path) if global_config.eager_fill_image:
                    nodes[i] = Image(Path(path).read_bytes())
                case _:
                    pass
        self.stream_executor.submit(*nodes)
        return self

    def __setitem__(self, name: str, value: Any) -> None:
        self.stream_executor.variables[name] = value

    def set_var(self, name: str, value: Any) -> None:
        self[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self.stream_executor.variables

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """What is appended inside becomes the variable `name`."""
        self += VarBegin(name)
        yield
        self += VarEnd(name)

    def system(self, expr: Any = None) -> AbstractContextManager[None] | None:
        return self._message("system", expr)

    def user(self, expr: Any = None) -> AbstractContextManager[None] | None:
        return self._message("user", expr)

    def assistant(self, expr: Any = None) -> AbstractContextManager[None] | None:
        return self._message("assistant", expr)

    def _message(self, role: str, expr: Any) -> AbstractContextManager[None] | None:
        """A whole message; without `expr` a context in which one is written."""
        if expr is None:
            return self._open(role)
        self += [RoleBegin(role), expr, RoleEnd(role)]
        return None

    @contextmanager
    def _open(self, role: str) -> Iterator[None]:
        self += RoleBegin(role)
        yield
        self += RoleEnd(role)

    def _fork(self, size: int, position_ids_offset: Sequence[int] | None) -> list[Self]:
        """Copies of this state as it is now. They need not be waited for."""
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"the size of a fork must be at least 1, got {size!r}")
        if position_ids_offset is not None and len(position_ids_offset) != size:
            raise ValueError(f"position_ids_offset must have {size} values, got {len(position_ids_offset)}")
        children = [self.stream_executor.child() for _ in range(size)]
        self.stream_executor.submit(Fork(children, position_ids_offset))
        return [type(self)(child, self._role) for child in children]

    def _stream(self, name: str | None) -> "_Pieces":
        return _Pieces(self.stream_executor, name)


class ProgramState(State):
    """The state of a plain program, and of every program that has been run. Reading waits."""

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def get_var(self, name: str) -> Any:
        """Waits for the variable. Raises KeyError where it is not set and will not be."""
        x = self.stream_executor
        outside = x.outside
        x.wait(lambda: x.readable(name, outside))
        return x.read(name)

    def get_meta_info(self, name: str) -> Any:
        """What the backend tells about the gen or select `name`, None where it tells nothing."""
        self.get_var(name)
        return self.stream_executor.meta_info.get(name)

    def sync(self) -> None:
        """Wait until all that has been appended is done."""
        self.stream_executor.sync()

    def text(self) -> str:
        """All text so far, the prompt included. Waits."""
        self.sync()
        return self.stream_executor.text_

    def messages(self) -> list[dict[str, Any]]:
        """The messages so far, [] in a program without roles. Waits."""
        self.sync()
        return [*self.stream_executor.messages_]

    def error(self) -> Exception | None:
        """What ended the generation early. Waits."""
        self.sync()
        return self.stream_executor.error_

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> "ProgramStateGroup":
        """`size` states that begin as copies of this one and go on at the same time. position_ids_offset is accepted
        for the sake of old programs and has no effect."""
        return ProgramStateGroup(self._fork(size, position_ids_offset), self)

    @contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator["ProgramState"]:
        """A copy to go on with; its new variables come back as lists of one."""
        group = self.fork(1, position_ids_offset)
        yield group[0]
        group.join()  # not where the body raised: that ends at once

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text as it comes, from the beginning of the prompt or of variable `var_name`. In a run that does not
        stream, all of it at once."""
        pieces = self._stream(var_name)
        while True:
            self.stream_executor.wait(pieces.ready)
            text, _ = pieces.take()
            if text:
                yield text
            elif pieces.over():
                pieces.end()
                return

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """As `text_iter`, for event loops; with return_meta_data pairs of text and the variable's meta info."""
        async for piece in _iterate(self._stream(var_name), return_meta_data):
            yield piece

    def __repr__(self) -> str:
        return f"ProgramState({self.text()})"


class AsyncProgramState(State):
    """The state of an `async def` program: what would wait is awaited. `await s["answer"]`."""

    async def __getitem__(self, name: str) -> Any:
        return await self.get_var(name)

    async def get_var(self, name: str) -> Any:
        x = self.stream_executor
        outside = x.outside
        await x.wait_async(lambda: x.readable(name, outside))
        return x.read(name)

    async def get_meta_info(self, name: str) -> Any:
        await self.get_var(name)
        return self.stream_executor.meta_info.get(name)

    async def sync(self) -> None:
        await self.stream_executor.sync_async()

    async def text(self) -> str:
        await self.sync()
        return self.stream_executor.text_

    async def messages(self) -> list[dict[str, Any]]:
        await self.sync()
        return [*self.stream_executor.messages_]

    async def error(self) -> Exception | None:
        await self.sync()
        return self.stream_executor.error_

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> "AsyncProgramStateGroup":
        return AsyncProgramStateGroup(self._fork(size, position_ids_offset), self)

    @asynccontextmanager
    async def copy(self, position_ids_offset: Sequence[int] | None = None) -> AsyncIterator["AsyncProgramState"]:
        group = self.fork(1, position_ids_offset)
        yield group[0]
        await group.join()

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        async for piece in _iterate(self._stream(var_name), return_meta_data):
            yield piece


class _Pieces:
    """What has come of a text or a variable since it was last taken."""

    def __init__(self, executor: Executor, name: str | None):
        self._x = executor
        self._name = name
        self._outside = executor.outside
        self._at = 0

    def _now(self) -> tuple[str, Any]:
        if self._name is None:
            return self._x.text_, None
        return self._x.partial.get(self._name, ("", None))

    def over(self) -> bool:
        """Nothing more can come."""
        x = self._x
        if x.error_ is not None:
            return True
        if self._name is not None:
            return x.readable(self._name, self._outside)
        return x.started and x.settled and not (self._outside and x.run.open)

    def ready(self) -> bool:
        return self.over() or (self._x.run.stream and len(self._now()[0]) > self._at)

    def take(self) -> tuple[str, Any]:
        """What is new, "" where nothing is. A variable that a gen has not made is given as it is."""
        text, meta = self._now()
        if not text and self._name in self._x.variables:
            text = str(self._x.variables[self._name])
        start, self._at = self._at, max(self._at, len(text))
        return text[start:], meta

    def end(self) -> None:
        """A body that raised where nobody could see it raises here; so does a variable that nobody has made."""
        run = self._x.run
        if run.stream and run.body_error is not None:
            raise run.body_error
        if self._name is not None and self._x.error_ is None:
            self._x.read(self._name)


async def _iterate(pieces: _Pieces, with_meta: bool) -> AsyncIterator[Any]:
    while True:
        await pieces._x.wait_async(pieces.ready)
        text, meta = pieces.take()
        if text:
            yield (text, meta) if with_meta else text
        elif pieces.over():
            pieces.end()
            return


S = TypeVar("S", bound=State)


class Group(Generic[S]):
    """The states of a fork, in order."""

    def __init__(self, states: Sequence[S], parent: S):
        self.states = [*states]
        self._parent = parent

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: int) -> S:
        return self.states[i]

    def __setitem__(self, i: int, state: S) -> None:
        """For `forks[i] += ...`, which appends and then puts the state back."""
        if state is not self.states[i]:
            raise TypeError(f"state {i} of a fork cannot be replaced, only appended to")

    def __iter__(self) -> Iterator[S]:
        return iter(self.states)

    def __iadd__(self, other: Any | Callable[[int], Any]) -> Self:
        """The same for all, or f(i) for state i, or one of a list for each."""
        if callable(other):
            items = [other(i) for i in range(len(self.states))]
        elif isinstance(other, list | tuple):
            if len(other) != len(self.states):
                raise ValueError(f"a fork of {len(self.states)} needs as many expressions, got {len(other)}")
            items = list(other)
        else:
            items = [other] * len(self.states)
        for state, item in zip(self.states, items, strict=True):
            state += item
        return self

    def _join(self, mode: str) -> Executor:
        """Make the parent wait for the states and take what they have found; they end."""
        if mode not in JOIN_MODES:
            raise ValueError(f"Invalid join mode: {mode!r}; it must be one of {', '.join(JOIN_MODES)}")
        for state in self.states:
            state.stream_executor.end()
        children = [state.stream_executor for state in self.states]
        self._parent.stream_executor.submit(Join(children, mode))  # type: ignore[arg-type]  # checked above
        return self._parent.stream_executor


class ProgramStateGroup(Group[ProgramState]):
    def join(self, mode: str = "gather_variable") -> None:
        """Wait for all. gather_variable: each variable set since the fork becomes a list in the parent.
        concate_and_append: each one's text since the fork is appended to the parent's."""
        self._join(mode).sync()


class AsyncProgramStateGroup(Group[AsyncProgramState]):
    async def join(self, mode: str = "gather_variable") -> None:
        await self._join(mode).sync_async()
