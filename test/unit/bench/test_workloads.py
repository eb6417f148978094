"""benchmark/workloads.py sends what the figures of other engines were measured with, and reads what comes."""

import asyncio
import hashlib
import json

import pytest
import workloads
from workloads import Node, Options, Row, build, summary

from sglang.bench.client import Client

FULL = Options("http://127.0.0.1:1")


def flat(nodes: list[Node]) -> list[object]:
    return [(n.prompt, n.out, n.at, flat(n.then)) for n in nodes]


@pytest.mark.parametrize(
    ("name", "requests", "digest"),
    [
        ("A1", 1, "6f8e7c41d080"),
        ("C", 512, "e6332cc9acdc"),
        ("E", 64, "33ba38af7e93"),
        ("F", 128, "519191bb1f2c"),
        ("G", 128, "adebd8518c64"),
        ("I24", 511, "35b3c6c24883"),
    ],
)
def test_a_workload_never_changes(name: str, requests: int, digest: str):
    nodes = build(name, FULL)
    assert len(nodes) == requests
    assert hashlib.sha256(repr(flat(nodes)).encode()).hexdigest()[:12] == digest


def test_a_tree_shares_its_prompts():
    tops = build("F", FULL)
    assert sum(1 + len(top.then) for top in tops) == 640
    assert all(leaf.prompt[: len(top.prompt)] == top.prompt for top in tops for leaf in top.then)
    assert tops[0].prompt[:1024] == tops[3].prompt[:1024] != tops[4].prompt[:1024]


def test_a_scale_shrinks_lengths_and_counts_and_keeps_ids_in_the_vocabulary():
    nodes = build("D", Options("http://x", scale=0.05, vocab=100))
    assert len(nodes) == 26
    assert {len(n.prompt) for n in nodes} == {102 + 8}
    assert max(max(n.prompt) for n in nodes) < 100


def test_figures():
    a = Row(3, sent=1.0, end=1.4, times=[1.1, 1.2, 1.4], n_in=5, n_out=3, cached=2)
    b = Row(3, sent=1.0, end=2.0, times=[1.5], n_in=5, n_out=1)
    found = summary([a, b, Row(3, sent=1.0, end=1.1, error="HTTP 503")])
    assert found["requests"] == 3
    assert (found["errors"], found["first_error"]) == (1, "HTTP 503")
    assert found["wall_s"] == 1.0
    assert found["output_tok_s"] == 4.0
    assert found["ttft_ms_p50"] == pytest.approx(300)
    assert found["itl_ms_p50"] == pytest.approx(150)
    assert found["other_length"] == 1


def reply(status: str, *events: object) -> bytes:
    body = b"".join(b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n" for e in events)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        (
            reply(
                "200 OK",
                {"choices": [{"text": "a"}]},
                {"choices": [{"text": "b", "finish_reason": "length"}]},
                {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
                b"[DONE]",
            ),
            [("ab", 2, ""), ("ab", 2, "")],
        ),
        (reply("503 Busy", {"error": "full"}), [("", 0, "HTTP 503")]),
        (reply("200 OK", {"choices": [{"text": "a"}]}), [("", 0, "stream: ")]),
        (b"", [("", 0, "Lost")]),
        (None, [("", 0, "not done in time")]),
    ],
)
def test_a_request_and_what_follows_it(answer: bytes | None, rows: list[tuple[str, int, str]]):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                if answer is not None:
                    writer.write(answer)
                if not answer:
                    await asyncio.sleep(0 if answer is not None else 100)
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def run() -> list[Row]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        node = Node([1, 2], 2, then=[Node([1, 2, 3], 2)])
        workloads.encode([node], FULL, client, False)
        found: list[Row] = []
        ask = asyncio.ensure_future(workloads._ask(client, node, workloads.time.perf_counter(), True, found))
        await asyncio.wait([ask], timeout=0.5 if answer is None else 100)
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)
        client.close()
        server.close()
        return found

    found = asyncio.run(run())
    assert [(row.text, row.n_out) for row in found] == [(text, n) for text, n, _ in rows]
    errors = zip([row.error for row in found], [error for *_, error in rows], strict=True)
    assert all(got.startswith(wanted) if wanted else not got for got, wanted in errors)
