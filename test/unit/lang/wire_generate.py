"""A small HTTP server that speaks `/generate` as older servers do, and keeps what it was sent."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any] | list[Any]  # status and JSON, or the events of a stream


@dataclass
class Wire:
    """answer: of a `/generate` body. info: of /get_model_info."""

    answer: Callable[[dict[str, Any]], Answer]
    info: dict[str, Any] = field(default_factory=lambda: {"model_path": "a/llama-3-8b-instruct"})
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def reply(text: str = "hi", **meta: Any) -> tuple[int, Any]:
    return 200, {"text": text, "meta_info": {"prompt_tokens": 5, "completion_tokens": 1, **meta}}


@contextmanager
def serve(wire: Wire) -> Iterator[Wire]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._note()
            if self.path == "/get_model_info":
                self._send(200, wire.info)
            else:
                self._send(200, {"path": self.path})

        def do_POST(self) -> None:
            self._note()
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            if self.path != "/generate":
                self._send(200, {})
                return
            wire.bodies.append(body)
            answer = wire.answer(body)
            if isinstance(answer, tuple):
                self._send(*answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for event in answer:
                data = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {data}\n\n".encode())

        def _note(self) -> None:
            wire.paths.append(self.path)
            wire.headers.append(dict(self.headers))

        def _send(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    wire.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
