"""Signals while many streams are under way: every stream is ended in words, and the process in time."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import HANG_S

pytestmark = pytest.mark.e2e
STREAMS = 50
DRAIN_S = 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_streams_under_way_end_with_a_reason_within_the_drain_limit(start_server: Any, sent: signal.Signals) -> None:
    def to_the_end(s: socket.socket) -> bytes:
        heard = b""
        while more := s.recv(1 << 16):
            heard = heard[-4000:] + more
        s.close()
        return heard

    with start_server("--drain-timeout", str(DRAIN_S)) as server, ThreadPoolExecutor(STREAMS) as readers:
        params = {"max_new_tokens": 900, "ignore_eos": True, "stop": ["never said"]}
        content = json.dumps({"text": "x", "stream": True, "sampling_params": params}).encode()
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
        clients = []
        for _ in range(STREAMS):
            s = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=HANG_S)
            s.sendall(head + content)
            clients.append(s)
        for s in clients:
            assert s.recv(12) == b"HTTP/1.1 200"
        server.process.send_signal(sent)
        answers = [*readers.map(to_the_end, clients)]  # side by side: a server that stops waits for nobody for long
        assert any(b"the server is shutting down" in heard for heard in answers), "all of them were waited for"
        for heard in answers:
            assert heard.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert b"the server is shutting down" in heard or b'"finish_reason":{"type"' in heard
        assert server.process.wait(HANG_S) == 0
