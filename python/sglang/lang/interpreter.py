"""How a program's nodes become text: a flow that asks for what it needs and is sent the answer.

No threads, no clocks and no I/O in here. `execute` is a generator over a `Transcript`; whoever drives it
(`executor.py`, or a test with a few lines) answers its asks.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from sglang.base.choices import METHODS
from sglang.lang import media
from sglang.lang.backends.base import Meta, NotFused, Segment
from sglang.lang.ir import (
    Expr,
    Fork,
    Gen,
    Image,
    Join,
    RoleBegin,
    RoleEnd,
    Select,
    SglSamplingParams,
    Text,
    VarBegin,
    VarEnd,
    Video,
    thoughts_of,
)
from sglang.lang.transcript import Transcript

CHAIN = 128  # gens and selects in one request
SPEC_TRIES = 3
_BUILT_IN = tuple(METHODS.values())


@dataclass(slots=True)
class Event:
    """A piece of an answer. text: of output `index` of the request so far, whole; done: that is all of it."""

    index: int
    text: str | list[str]
    meta: Meta | None
    done: bool


@dataclass(slots=True)
class Generate:
    params: SglSamplingParams


@dataclass(slots=True)
class Choose:
    node: Select


@dataclass(slots=True)
class Chain:
    segments: list[Segment]
    outputs: int


@dataclass(slots=True)
class Prefill:
    text: str


@dataclass(slots=True)
class Work:
    """Call `function`, which blocks, and send its result."""

    function: Callable[[], Any]


@dataclass(slots=True)
class Until:
    """Go on when each of these has nothing left to do."""

    children: Sequence["Transcript"]


@dataclass(slots=True)
class More:
    """Go on when there is a further node; patient: or when nobody wants to wait for more of the chain."""

    patient: bool = False


@dataclass(slots=True)
class Next:
    """Go on with the next Event of the request that runs."""


Ask = Generate | Choose | Chain | Prefill | Work | Until | More | Next
Flow = Generator[Ask, Any, None]
MORE, HOLD, NEXT = More(), More(patient=True), Next()


@dataclass(slots=True)
class ChainGen:
    name: str | None
    params: SglSamplingParams


def execute(s: Transcript) -> Flow:
    """Do the pending nodes of `s`, in order, for ever."""
    while True:
        while not s.pending:
            yield MORE
        node = s.pending[0][0]
        match node:
            case RoleBegin("assistant") if s.num_api_spec_tokens and s.backend.spec == "chat":
                yield from _speculate_chat(s)
                continue
            case Gen() | Select():
                yield from _answer(s)
                continue
            case Image(source):
                s.add_image((yield Work(lambda source=source: media.encode_image(source))))
                s.backend.fill_image(s)
            case Video(path, frames):
                s.add_image((yield Work(lambda path=path, frames=frames: media.encode_video(path, frames))))
                s.backend.fill_image(s)
            case Fork(children, offset):
                if len(children) > 1 and s.text_ and not s.backend.shares_prefixes:
                    yield Prefill(s.text_)
                for child in children:
                    s.branch(child)
                s.backend.fork_program(s, list(children), offset)
            case Join(children, mode):
                yield Until(children)
                for i, child in enumerate(children):
                    if child.error_ is not None:
                        raise RuntimeError(f"fork {i} failed: {child.error_}") from child.error_
                if mode == "gather_variable":
                    s.gather(children)
                else:
                    s.concatenate(children)
            case _:
                s.simple(node)
        s.done()


def fusable(node: Expr) -> bool:
    """Whether `node` may go on a chain."""
    match node:
        case Gen(sampling=sampling, thinking=thinking):
            return sampling.get("n", 1) == 1 and thinking is None
        case Select(choices=choices, method=method):
            return method in _BUILT_IN and all(choices)
        case Text() | RoleBegin() | RoleEnd() | VarBegin() | VarEnd():
            return True
        case _:
            return False


def _answer(s: Transcript) -> Flow:
    """The gen or select at the head of what is pending, and those after it that can go along."""
    may_fuse = s.fuse and s.backend.fuses and not s.images_ and s.sampling.n == 1 and fusable(s.pending[0][0])
    while may_fuse:
        chain, full = _chain(s)
        if full or s.hurried:
            if chain.outputs > 1 or isinstance(s.pending[0][0], Select):
                try:
                    yield from _follow(s, chain)
                    return
                except NotFused:
                    s.fuse = False
            break
        yield HOLD
    node = s.pending[0][0]
    if isinstance(node, Select):
        event: Event = yield Choose(node)
        assert isinstance(event.text, str)
        s.append(event.text)
        s.bind(node.name, event.text, event.meta)
    else:
        assert isinstance(node, Gen)
        params = s.params(node)
        speculates = s.num_api_spec_tokens and s.backend.spec == "completion"
        if speculates and params.stop and not params.stop_regex and not params.dtype and params.n == 1:
            yield from _speculate(s, node, params)
        else:
            s.spare = ""
            yield from _read(s, node, 0, (yield Generate(params)))
    s.done()


def _chain(s: Transcript) -> tuple[Chain, bool]:
    """What is pending as segments, up to its last gen or select; and whether nothing more can join it."""
    segments: list[Segment] = []
    text, outputs, full = "", 0, False
    role, roles = s.cur_role, [{"role": m["role"]} for m in s.messages_]
    for node, *_ in s.pending:
        if not fusable(node) or outputs == CHAIN:
            full = True
            break
        match node:
            case Text(value):
                text += value
            case RoleBegin(name):
                if (default := s.default_system(name, roles)) is not None:
                    before, after = s.chat_template.get_prefix_and_suffix("system", roles)
                    text += before + default + after
                    roles.append({"role": "system"})
                text += s.chat_template.get_prefix_and_suffix(name, roles)[0]
                role = name
            case RoleEnd(name):
                text += s.chat_template.get_prefix_and_suffix(name, roles)[1]
                roles.append({"role": role or name})
            case Gen() | Select():
                if text:
                    segments.append(Text(text))
                segments.append(ChainGen(node.name, s.params(node)) if isinstance(node, Gen) else node)
                text, outputs = "", outputs + 1
    return Chain(segments, outputs), full


def _follow(s: Transcript, chain: Chain) -> Flow:
    """Do the chain's nodes with the values as they come."""
    event: Event = yield chain
    index = 0
    while index < chain.outputs:
        node = s.pending[0][0]
        match node:
            case Gen() | Select():
                yield from _read(s, node, index, event)
                index += 1
                if index < chain.outputs:
                    event = yield NEXT
            case _:
                s.simple(node)
        s.done()


def _read(s: Transcript, node: Gen | Select, index: int, event: Event) -> Flow:
    """Append output `index` while it comes; the last event of it has `done`."""
    shown = ""
    thinking = node.thinking if isinstance(node, Gen) else None
    while True:
        if event.index != index:
            raise RuntimeError(f"the answer to {node.name!r} came out of order: {event.index} instead of {index}")
        text = event.text if isinstance(event.text, str) else event.text[0]
        if thinking is not None:
            thought, text = split_thinking(text, thinking, event.done)
            if event.done and node.name is not None:
                s.keep(thoughts_of(node.name), thought)
        s.append(text[len(shown) :])
        shown = text
        if event.done:
            value = event.text if isinstance(event.text, list) else text
            s.bind(node.name, value, event.meta)
            return
        s.partial[node.name] = (text, event.meta)
        event = yield NEXT


def split_thinking(text: str, marks: tuple[str, str], done: bool) -> tuple[str, str]:
    """What the model thought and what it answers. The begin mark may be missing: some templates write it."""
    begin, end = marks
    thought, found, answer = text.partition(end)
    if found:
        return thought.removeprefix(begin).strip(), answer.lstrip()
    if begin in text or (not done and begin.startswith(text)):
        return text.partition(begin)[2].strip(), ""
    return ("", text) if done else (text, "")


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str] | None:
    """`text` before and from the earliest stop, None where there is none."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(found)], text[min(found) :]) if found else None


def _speculate(s: Transcript, node: Gen, params: SglSamplingParams) -> Flow:
    """A gen of a completion model: from what the model has said already, or with one request that says more."""
    value, meta = _cut(s.spare, params.stop), None
    if value is None:
        most = max(params.max_new_tokens, s.num_api_spec_tokens or 0)
        event: Event = yield Generate(params.but({"max_new_tokens": most, "stop": ()}))
        while not event.done:
            event = yield NEXT
        assert isinstance(event.text, str)
        value, meta = _cut(event.text, params.stop) or (event.text, ""), event.meta
    s.spare = ""
    s.append(value[0])
    s.spare = value[1]
    s.bind(node.name, value[0], meta)


def _speculate_chat(s: Transcript) -> Flow:
    """An assistant message of a chat model: one request, whose text is matched against the message's pattern."""
    while not any(isinstance(node, RoleEnd) for node, *_ in s.pending):
        if s.executed < s.awaited:
            raise RuntimeError(
                "with num_api_spec_tokens an assistant message ends before one of its variables is read, its state is "
                "forked or joined, or the program ends: nothing is asked before"
            )
        yield MORE
    nodes = [node for node, *_ in s.pending]
    nodes = nodes[1 : next(i for i, node in enumerate(nodes) if isinstance(node, RoleEnd))]
    if bad := [node for node in nodes if not isinstance(node, Text | Gen | VarBegin | VarEnd)]:
        raise RuntimeError(f"num_api_spec_tokens: {type(bad[0]).__name__} cannot stand in an assistant message")
    gens = [node for node in nodes if isinstance(node, Gen)]
    s.simple(s.pending[0][0])
    s.done()
    values: list[str] = []
    meta: Meta | None = None
    if gens:
        ignored = {"stop": (), "max_new_tokens": s.num_api_spec_tokens}
        params = [s.params(gen) for gen in gens]
        if any(p.but(ignored) != params[0].but(ignored) for p in params):
            raise RuntimeError("num_api_spec_tokens: the gens of one assistant message must sample alike")
        if params[0].n != 1:
            raise RuntimeError(f"num_api_spec_tokens: n must be 1, got {params[0].n}")
        if any(not s.sampling.but(gen.sampling).stop for gen in gens[:-1]):
            raise RuntimeError("num_api_spec_tokens: every gen but the last of an assistant message needs a stop")
        found, text = None, ""
        for _ in range(SPEC_TRIES):
            event: Event = yield Generate(params[-1].but(ignored))
            while not event.done:
                event = yield NEXT
            text, meta = event.text if isinstance(event.text, str) else event.text[0], event.meta
            if (found := _match(s, nodes, text)) is not None:
                break
        if found is None:
            raise RuntimeError(f"num_api_spec_tokens: {SPEC_TRIES} answers did not fit the message; the last: {text!r}")
        values = found
    for node in nodes:
        if isinstance(node, Gen):
            value = values.pop(0)
            s.append(value)
            s.bind(node.name, value, meta)
        else:
            s.simple(node)
        s.done()


def _match(s: Transcript, nodes: Sequence[Expr], text: str) -> list[str] | None:
    """The values of the gens in `nodes`, whose texts stand between them in `text`; None where they do not."""
    values: list[str] = []
    rest, first = text, True
    for i, node in enumerate(nodes):
        match node:
            case Text(value):
                if first:
                    rest, value = rest.lstrip(), value.lstrip()
                if not rest.startswith(value):
                    return None
                rest = rest[len(value) :]
                first = False
            case Gen():
                parts = _cut(rest, s.params(node).stop)
                if parts is None:
                    if any(isinstance(later, Text | Gen) for later in nodes[i + 1 :]):
                        return None
                    parts = (rest, "")
                values.append(parts[0])
                rest, first = parts[1], False
    return values
