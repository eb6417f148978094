"""Events are put together from parts that were encoded before: they must be what encoding the whole would give."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.base.messages import Finish
from sglang.server import openai_types as oai
from sglang.server.http import event
from sglang.server.native_types import Generated
from sglang.server.sequences import Result
from sglang.server.streams import Output, Request
from sglang.text import tokenizer as text

ODD = 'a "quoted" \\ back/slash \n\t\x00\x1f \u2028 日本語 👋 <|x|> %s {}'


@pytest.fixture
def steady(serving: Any) -> Iterator[Any]:
    """An event per token."""
    with serving(steady=True) as server:
        yield server


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_event_of_generate_is_the_whole_object_encoded(tokenizer: text.Tokenizer, data: st.DataObject) -> None:
    """Whatever the texts, however many tokens an output brings, takes back or skips."""
    index = data.draw(st.sampled_from([None, 0, 7]))
    request = Request(prompt="x", rid=data.draw(st.text(max_size=8)))
    fast, slow = (Result(request, tokenizer, False) for _ in range(2))
    said, tokens = "", []
    count = data.draw(st.integers(1, 8))
    for i in range(count):
        taken = data.draw(st.integers(0, len(tokens)))
        tokens = tokens[: len(tokens) - taken]
        new = data.draw(st.lists(st.integers(0, 10**6), min_size=taken, max_size=taken + 3))
        tokens = [*tokens, *new]
        delta = data.draw(st.text(max_size=6) | st.just(ODD))
        said += delta
        finish = data.draw(st.sampled_from([None, Finish("stop", "x")])) if i == count - 1 else None
        output = Output(
            request.rid, delta, said, new, tokens, [], [], finish, 5, 3 if i else 0, data.draw(st.floats(0, 1e6)),
            jumped=min(i, len(tokens)), first=i == 0,
        )  # fmt: skip
        whole = slow.add(output)
        if index is not None:
            whole.index = index
        assert fast.event(output, index) == event(whole)


@pytest.mark.parametrize("usage", [None, {"include_usage": True}])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("path", "kind"),
    [("/generate", Generated), ("/v1/completions", oai.Completion), ("/v1/chat/completions", oai.ChatChunk)],
)
def test_an_event_on_the_wire_decodes_and_encodes_to_itself(
    steady: Any, path: str, kind: type, n: int, usage: dict[str, bool] | None
) -> None:
    bodies = {
        "/generate": {"text": ODD, "sampling_params": {"n": n}},
        "/v1/completions": {"prompt": ODD, "n": n, "stream_options": usage, "max_tokens": 200},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": ODD}], "n": n, "stream_options": usage},
    }
    events = steady.post(path, bodies[path] | {"stream": True, "model": "\"m'"}).content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert len(events) > 10 * n
    for raw in events[:-2]:
        assert event(msgspec.json.decode(raw[6:], type=kind)) == raw + b"\n\n"
