"""What a state has come to, and what is still to be done. Others decide when (`interpreter.py`)."""

import uuid
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from sglang.base.chat import ChatTemplate
from sglang.lang import media
from sglang.lang.backends.base import BaseBackend, Meta
from sglang.lang.ir import Expr, Gen, RoleBegin, RoleEnd, SglSamplingParams, Text, VarBegin, VarEnd

Where = tuple[FrameType, int, int]  # the program's frame, instruction and line that appended a node


class Outcome(NamedTuple):
    value: str | list[str]
    meta: Meta | None
    seconds: float


class Transcript:
    """What a state has come to: its text, messages, images, variables; and the nodes that are still to be done.

    `text_`, `messages_`, `images_`, `cur_role`, `open_text` are what backends read (`backends/base.py`).
    """

    def __init__(
        self,
        backend: BaseBackend,
        template: ChatTemplate,
        sampling: SglSamplingParams,
        fuse: bool = True,
        num_api_spec_tokens: int | None = None,
    ):
        self.backend = backend
        self.chat_template = template
        self.sampling = sampling
        self.fuse = fuse
        self.num_api_spec_tokens = num_api_spec_tokens
        self.text_ = ""
        self.messages_: list[dict[str, Any]] = []
        self.images_: list[str] = []
        self.cur_role: str | None = None
        self.variables: dict[str, Any] = {}
        self.meta_info: dict[str | None, Meta | None] = {}
        self.partial: dict[str | None, tuple[str, Meta | None]] = {}  # what is being generated, for streams
        self.pending: deque[tuple[Expr, Where | None, int]] = deque()  # node, its line, its number in the run
        self.promised: dict[str, int] = {}  # variables that pending nodes will set
        self.history: list[Expr] = []  # what has been done
        self.outcomes: dict[int, Outcome] = {}  # what gens and selects came to, by their place in the history
        self.submitted = 0
        self.executed = 0
        self.awaited = 0  # the program waits for nodes up to this one
        self.error_: Exception | None = None
        self._role_start = 0
        self._role_images: list[tuple[int, str]] = []  # where in the text, data URL
        self._scopes: dict[str, int] = {}
        self.spare = ""  # what an API model has said ahead of the program
        self.inherited: frozenset[str] = frozenset()
        self.expected: frozenset[str] = frozenset()  # variables that its parent was promised when it was forked
        self.fork_start = (0, 0, 0)  # lengths of text, messages, images when it was forked
        self.rid = ""  # of the request that is under way or was the last, here or where it was forked from
        self.parent = ""  # of the one before

    @property
    def open_text(self) -> str:
        return self.text_[self._role_start :] if self.cur_role is not None else ""

    @property
    def settled(self) -> bool:
        return self.error_ is not None or self.executed == self.submitted

    @property
    def hurried(self) -> bool:
        """Whether the node at the head must not wait for others to go along."""
        return True

    def params(self, gen: Gen) -> SglSamplingParams:
        params = self.sampling.but(gen.sampling)
        if self.chat_template.stop_str:
            params = params.but({"stop": (*params.stop, *self.chat_template.stop_str)})
        return params

    def append(self, text: str) -> None:
        self.text_ += text
        if self.spare:
            self.spare = self.spare.removeprefix(text) if self.spare.startswith(text) else ""

    def bind(self, name: str | None, value: str | list[str], meta: Meta | None) -> None:
        """The gen or select at the head has come to `value`."""
        self.outcomes[self.executed] = Outcome(value, meta, self.lap())
        self.meta_info[name] = meta
        self.partial[name] = (value if isinstance(value, str) else value[0], meta)
        if name is not None:
            self.keep(name, value)

    def lap(self) -> float:
        """Seconds since the last lap or request; whoever drives the flow has a clock."""
        return 0.0

    def keep(self, name: str, value: Any) -> None:
        """A variable that was promised is there."""
        self.variables[name] = value
        left = self.promised.get(name, 0) - 1
        if left > 0:
            self.promised[name] = left
        else:
            self.promised.pop(name, None)

    def default_system(self, role: str, before: Sequence[Any]) -> str | None:
        """The template's own system message, where `role` is the first to speak and another."""
        return None if before or role == "system" else self.chat_template.default_system_prompt

    def simple(self, node: Expr) -> None:
        """Do what needs nobody's answer."""
        match node:
            case Text(value):
                self.append(value)
            case RoleBegin(role):
                assert self.cur_role is None, f"{role} begins inside of {self.cur_role}: roles cannot be nested"
                if (default := self.default_system(role, self.messages_)) is not None:
                    for part in (RoleBegin("system"), Text(default), RoleEnd("system")):
                        self.simple(part)
                self.append(self.chat_template.get_prefix_and_suffix(role, self.messages_)[0])
                self.cur_role, self._role_start, self._role_images = role, len(self.text_), []
            case RoleEnd(role):
                assert self.cur_role == role, f"{role} ends inside of {self.cur_role}"
                content, suffix = self._content(), self.chat_template.get_prefix_and_suffix(role, self.messages_)[1]
                self.spare = ""  # what a model adds after its message is not a part of the next one
                self.append(suffix)
                self.messages_.append({"role": role, "content": content})
                self.cur_role = None
            case VarBegin(name):
                self._scopes[name] = len(self.text_)
            case VarEnd(name):
                self.keep(name, self.text_[self._scopes.pop(name) :])
            case _:
                raise AssertionError(node)

    def _content(self) -> str | list[dict[str, Any]]:
        """The open message: its text, or its texts and images in their order."""
        if not self._role_images:
            return self.open_text.lstrip()
        content: list[dict[str, Any]] = []
        start = self._role_start
        for at, url in (*self._role_images, (len(self.text_), None)):
            if text := self.text_[start:at]:
                content.append({"type": "text", "text": text if content else text.lstrip()})
            if url is not None:
                content.append({"type": "image_url", "image_url": {"url": url}})
                start = at + len(self.chat_template.image_token)
        return [part for part in content if part.get("text") != ""]

    def add_image(self, data: str) -> None:
        self.images_.append(data)
        self._role_images.append((len(self.text_), media.data_url(data)))
        self.append(self.chat_template.image_token)

    def done(self) -> None:
        node = self.pending.popleft()[0]
        self.history.append(node)
        self.executed += 1

    def foresee(self, child: "Transcript") -> None:
        """`child` is to be a copy of what this state comes to by the nodes that are pending now. It has the variables
        that are there already; what is set here later it does not see."""
        child.expected = self.expected.union(self.promised)
        child.variables = {name: value for name, value in self.variables.items() if name not in child.expected}
        child.inherited = child.expected.union(child.variables)

    def branch(self, child: "Transcript") -> None:
        """Let `child`, which was foreseen, begin: with all but meta info and what is still to be done."""
        child.text_, child.messages_, child.images_ = self.text_, [*self.messages_], [*self.images_]
        child.cur_role, child._role_start, child._role_images = self.cur_role, self._role_start, [*self._role_images]
        child._scopes = dict(self._scopes)
        came = {name: self.variables[name] for name in child.expected if name in self.variables}
        child.variables = came | child.variables
        child.expected = frozenset()
        child.fork_start = (len(self.text_), len(self.messages_), len(self.images_))
        self.rid = child.rid = self.rid or uuid.uuid4().hex

    def gather(self, children: Sequence["Transcript"]) -> None:
        """Each variable that children have set since the fork becomes a list, in child order."""
        found: dict[str, list[Any]] = {}
        for child in children:
            for name, value in child.variables.items():
                if name not in child.inherited:
                    found.setdefault(name, []).append(value)
        self.variables.update(found)

    def concatenate(self, children: Sequence["Transcript"]) -> None:
        """What each child has said since the fork follows, in child order."""
        for child in children:
            text, messages, images = child.fork_start
            self.append(child.text_[text:])
            self.messages_ += child.messages_[messages:]
            self.images_ += child.images_[images:]
