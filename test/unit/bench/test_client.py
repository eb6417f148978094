"""The HTTP client against servers that write replies in every way the protocol allows, over real sockets."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sglang.bench.apis import PATHS, Job, Options, Record, Style, body, reader
from sglang.bench.client import Client, Events, Lost
from sglang.bench.load import send_all

OPTIONS = Options("m", True, True, True, {})
OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def server(*replies: list[bytes], log: list[bytes] | None = None) -> AsyncIterator[str]:
    """Answers the i-th request with the pieces of the i-th reply; b"" in it closes the connection."""
    left = list(replies)

    async def answer(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await source.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await source.readexactly(length)
                if log is not None:
                    log.append(head + body)
                for piece in left.pop(0):
                    if not piece:
                        sink.close()
                        return
                    sink.write(piece)
                    await sink.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            sink.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def fetch(client: Client, body: bytes = b"{}") -> tuple[int, bytes]:
    parts: list[bytes] = []
    head = await client.send(client.encode("/x", body), lambda data, now: parts.append(data))
    return head.status, b"".join(parts)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"he", b"llo"),
        OK + b"Transfer-Encoding: Chunked\r\n\r\n" + chunked(b"hello", end=b"0\r\nX-Sum: 1\r\n\r\n"),
        OK + b"transfer-encoding: chunked\r\n\r\n5;name=value\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_a_body_is_whole_however_it_is_cut(reply: bytes, size: int):
    pieces = [reply[i : i + size] for i in range(0, len(reply), size)]
    async with server(pieces, pieces) as url:
        client = Client(url)
        assert await fetch(client) == (200, b"hello")
        assert await fetch(client) == (200, b"hello"), "the connection can be used again"
        client.close()


async def test_a_body_without_a_length_ends_with_the_connection():
    async with server([OK + b"\r\n", b"hello", b""], [OK + b"content-length: 0\r\n\r\n"]) as url:
        client = Client(url)
        assert await fetch(client) == (200, b"hello")
        assert await fetch(client) == (200, b"")
        client.close()


async def test_requests_name_the_host_the_path_and_the_key():
    log: list[bytes] = []
    async with server([OK + b"content-length: 0\r\n\r\n"], log=log) as url:
        client = Client(url + "/prefix/", {"Authorization": "Bearer k"})
        await fetch(client, b'{"a": 1}')
        client.close()
    head, _, body = log[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /prefix/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Bearer k" in head
    assert body == b'{"a": 1}'


async def test_a_connection_that_the_server_gave_up_is_opened_again():
    ok = OK + b"content-length: 2\r\n\r\nok"
    async with server([ok], [b""], [ok]) as url:
        client = Client(url)
        assert await fetch(client) == (200, b"ok")
        assert await fetch(client) == (200, b"ok"), "the second reply never began, so it was asked again"
        client.close()


@pytest.mark.parametrize(
    "reply",
    [
        [b""],
        [OK + b"content-length: 9\r\n\r\nhalf", b""],
        [OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", b""],
        [b"SSH-2.0-OpenSSH_9.6\r\n\r\n"],
        [OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n"],
    ],
)
async def test_half_a_reply_is_an_error(reply: list[bytes]):
    async with server(reply) as url:
        client = Client(url)
        with pytest.raises(Lost):
            await fetch(client)
        client.close()


def test_an_address_that_is_none_is_refused():
    for url in ("localhost:30000", "ftp://x", "http://"):
        with pytest.raises(ValueError, match="http"):
            Client(url)


def feed(stream: bytes, size: int) -> tuple[list[bytes], bool]:
    found: list[bytes] = []
    events = Events(lambda data, now: found.append(data))
    for i in range(0, len(stream), size):
        events.feed(stream[i : i + size], 0.0)
    return found, events.done


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_found_however_they_are_cut(size: int):
    stream = b': hello\n\ndata: {"a": "x"}\n\nevent: y\ndata: {"b": 2}\nid: 1\n\ndata:{"c": 3}\r\n\r\ndata: [DONE]\n\n'
    assert feed(stream, size) == ([b'{"a": "x"}', b'{"b": 2}', b'{"c": 3}'], True)


def completion(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TEXT = completion(choices=[{"index": 0, "text": "a", "finish_reason": None}])
USAGE = completion(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2,
                                      "prompt_tokens_details": {"cached_tokens": 1}})  # fmt: skip
DONE = b"data: [DONE]\n\n"
STREAM = OK + b"transfer-encoding: chunked\r\n\r\n"


async def one(*pieces: bytes, style: Style = "completions", options: Options = OPTIONS) -> Record:
    async with server(list(pieces)) as url:
        client = Client(url)
        [record] = await send_all(client, style, [Job("x", 3, 2)], options)
        client.close()
        return record


async def test_a_stream_becomes_a_record():
    record = await one(STREAM, chunked(TEXT, end=b""), chunked(TEXT, USAGE, DONE))
    assert not record.error
    assert (record.input_tokens, record.output_tokens, record.cached_tokens, record.text) == (3, 2, 1, "aa")
    assert len(record.times) == 2
    assert record.sent <= record.times[0] <= record.times[1] <= record.end


async def test_a_chats_opening_event_is_no_token():
    deltas = [{"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": "!"}, {}]
    events = [completion(choices=[{"index": 0, "delta": delta}]) for delta in deltas]
    record = await one(STREAM, chunked(*events, USAGE, DONE), style="chat")
    assert (len(record.times), record.text) == (2, "Hi!")


async def test_native_events_count_by_their_tokens():
    def event(text: str, count: int, finish: object = None) -> bytes:
        meta = {"prompt_tokens": 3, "completion_tokens": count, "finish_reason": finish}
        return completion(text=text, meta_info=meta)

    events = [event("a", 1), event("a", 1), event("abc", 3, {"type": "length"})]
    record = await one(STREAM, chunked(*events, DONE), style="native")
    assert (len(record.times), record.output_tokens, record.text) == (2, 3, "abc")


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([STREAM + chunked(TEXT, completion(error={"message": "out of memory", "code": 500}), DONE)], "out of memory"),
        ([STREAM + chunked(TEXT, USAGE)], r"before \[DONE\]"),
        ([STREAM + chunked(TEXT, DONE)], "usage"),
        ([STREAM + chunked(b"data: {oops}\n\n", DONE)], "cannot be read"),
        ([b'HTTP/1.1 400 Bad\r\ncontent-length: 33\r\n\r\n{"error": {"message": "too long"}}'[:-1]], "HTTP 400"),
        ([b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull"], "HTTP 503: full"),
        ([b'HTTP/1.1 422 No\r\ncontent-length: 17\r\n\r\n{"detail": "nah"}'], "HTTP 422: nah"),
        ([b""], "closed the connection"),
    ],
)
async def test_what_goes_wrong_is_the_records_error(pieces: list[bytes], says: str):
    assert re.search(says, (await one(*pieces)).error)


async def test_no_server_is_an_error_of_each_request():
    client = Client("http://127.0.0.1:1")
    records = await send_all(client, "native", [Job("x", 1, 1)] * 3, OPTIONS)
    assert all("onnect" in record.error for record in records)


async def test_no_more_requests_are_under_way_than_allowed():
    running = most = 0
    full = asyncio.Event()  # as many are under way as may be: until then nobody is answered

    async def answer(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        nonlocal running, most
        while True:
            try:
                await source.readuntil(b'"stream": true')
            except asyncio.IncompleteReadError:
                sink.close()
                return
            running += 1
            most = max(most, running)
            if running == 4:
                full.set()
            await asyncio.wait_for(full.wait(), 60)
            await asyncio.sleep(0.002)  # one more would come by now
            running -= 1
            sink.write(STREAM + chunked(TEXT, USAGE, DONE))

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    ended: list[object] = []
    records = await send_all(client, "completions", [Job("x", 3, 2)] * 30, OPTIONS, most=4, ended=ended.append)
    client.close()
    listener.close()
    assert most == 4
    assert len(ended) == len(records) == 30
    assert not any(record.error for record in records)


@pytest.mark.parametrize("style", PATHS)
def test_what_an_event_has_more_is_no_error(style: Style):
    record = Record(Job("x", 1, 1))
    event = b'{"new": 1, "choices": [], "meta_info": {"prompt_tokens": 2, "x": 1}, "usage": {"prompt_tokens": 2}}'
    reader(style, record, OPTIONS)(event, 0.0)
    assert (record.input_tokens, record.error) == (2, "")


def test_extra_fields_are_merged_into_the_request():
    options = OPTIONS._replace(extra={"sampling_params": {"temperature": 1}, "priority": 3})
    made = body("native", Job([5], 1, 7), options)
    assert made["sampling_params"] == {"temperature": 1, "max_new_tokens": 7, "ignore_eos": True}
    assert (made["input_ids"], made["priority"]) == ([5], 3)
