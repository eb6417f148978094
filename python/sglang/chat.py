"""sglang chat: talk to a model in the terminal, as an OpenAI client of a running server or of an engine of its own."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sglang.base.config import ServerConfig, fail
from sglang.launch_server import Parser, read_flags, server_parser

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

HELP = """\
/clear         forget the conversation
/system TEXT   forget it, and begin with this system message
/help          this list
/exit          end (so does Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one."""
CONNECT_S = 10
REDRAW_S = 0.05  # reading Markdown anew for every token would take longer than the token
# Settings of a listening server: chat has none.
OF_HTTP = (
    "host", "port", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_keyfile_password", "log_level_http",
    "admin_api_key", "incremental_streaming_output",
)  # fmt: skip


class ChatError(Exception):
    """The server refused, failed, or is not there; the text says why."""


def main(argv: Sequence[str] | None = None, prog: str = "sglang chat") -> int:
    """Returns the exit code: 0, 1 (no answer to be had), 2 (wrong flags), 130 (Ctrl-C while reading a pipe)."""
    args, config = read(argv, prog)
    try:
        with client_of(args, config) as client:
            chat = Chat(client, model_of(client), sampling_of(args), args.system)
            if sys.stdin.isatty() and sys.stdout.isatty():
                talk(chat)
            else:
                answer_lines(chat)
            return 0
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read our answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def read(argv: Sequence[str] | None, prog: str) -> tuple[argparse.Namespace, ServerConfig]:
    """The flags of a chat, and those of the engine that it starts where there is no --url."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [MODEL | --url URL] [--flag VALUE ...]",
        description="Talk to a model in the terminal. Lines from a pipe are answered one by one.",
        epilog="Without --url an engine is started for MODEL, or for the demo model. It takes the flags of "
        "`sglang serve`, for example --dtype or --context-length.",
        allow_abbrev=False,
    )
    parser.add_argument("--url", help="a running server, as http://127.0.0.1:30000")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key, where it asks for one")
    parser.add_argument("--system", metavar="TEXT", help="system message to begin with")
    parser.add_argument(
        "--temperature", type=float, metavar="F", default=0.5, help="0: always the likeliest token (default: 0.5)"
    )
    parser.add_argument("--top-p", type=float, metavar="F", help="draw from the tokens that hold this probability")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (default: the end of the context)")
    parser.add_argument("--seed", type=int, metavar="N", help="makes answers repeatable")
    args, rest = parser.parse_known_args(argv)
    if args.url is not None:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if not args.url.startswith(("http://", "https://")):
            parser.error(f"--url must begin with http:// or https://, got {args.url!r}")
        return args, ServerConfig()
    if args.api_key is not None:
        parser.error("--api-key goes with --url: an engine of our own needs none")
    config = read_flags(server_parser(prog), rest)
    for name in OF_HTTP:
        if getattr(config, name) != getattr(ServerConfig(), name):
            parser.error(f"--{name.replace('_', '-')}: chat starts no HTTP server; `sglang serve` does")
    quiet = not any(word.startswith("--log-l") for word in rest)
    return args, dataclasses.replace(config, log_level="warning") if quiet else config


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    return {name: value for name, value in given.items() if value is not None}


@contextlib.contextmanager
def client_of(args: argparse.Namespace, config: ServerConfig) -> Iterator["httpx.Client"]:
    import httpx

    timeout = httpx.Timeout(None, connect=CONNECT_S)  # a long prompt on a CPU may take minutes
    if args.url is None:
        with own_server(config) as transport, httpx.Client(transport=transport, timeout=timeout) as client:
            client.base_url = "http://localhost/v1/"
            yield client
        return
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    base = args.url.rstrip("/").removesuffix("/v1") + "/v1/"
    with httpx.Client(base_url=base, timeout=timeout, headers=headers) as client:
        yield client


@contextlib.contextmanager
def own_server(config: ServerConfig) -> Iterator["httpx.HTTPTransport"]:
    """An engine of our own behind the server's own routes, on a socket in a folder that only we can enter."""
    import asyncio
    import logging
    import socket
    import tempfile

    import httpx
    import uvicorn

    from sglang.base.errors import ConfigError, WorkerDied
    from sglang.offline import Engine
    from sglang.server.app import build_app

    logging.basicConfig(level=config.log_level.upper(), format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel("WARNING")
    try:
        engine = Engine(config=config)
    except ConfigError as error:
        fail(error)
    except WorkerDied as error:
        raise ChatError(str(error)) from None
    with engine, tempfile.TemporaryDirectory(prefix="sglang-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/http")
        app = build_app(engine._front, engine.config)  # the routes of `sglang serve`, over the engine's own front
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None, log_level="error"))
        serving = asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), engine._loop)
        try:
            yield httpx.HTTPTransport(uds=f"{folder}/http")
        finally:
            server.should_exit = server.force_exit = True
            serving.result()


def model_of(client: "httpx.Client") -> str:
    """What the server serves. Raises ChatError where there is no such server."""
    import httpx

    try:
        answer = client.get("models")
    except httpx.HTTPError as error:
        raise ChatError(f"--url {client.base_url}: {error or type(error).__name__}; is the server running?") from None
    if not answer.is_success:
        raise ChatError(refusal(answer.status_code, answer.text))
    try:
        return answer.json()["data"][0]["id"]
    except (ValueError, LookupError, TypeError):
        raise ChatError(f"--url {client.base_url}: no OpenAI server answers there") from None


def refusal(status: int, body: str) -> str:
    """The message of an error answer."""
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return f"HTTP {status}: {body[:200]}"


@dataclass
class Chat:
    """A conversation so far. `tokens` and `seconds`: of the last answer, from question to end."""

    client: "httpx.Client"
    model: str
    sampling: dict[str, Any]
    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def answer(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer to `text`. What came of it is remembered, also where it was stopped half way.

        A question that got no answer is forgotten. Raises ChatError.
        """
        self.messages.append({"role": "user", "content": text})
        came = ""
        try:
            for piece in self._stream():
                came += piece
                yield piece
        finally:
            if came:
                self.messages.append({"role": "assistant", "content": came})
            else:
                self.messages.pop()

    def _stream(self) -> Iterator[str]:
        import httpx

        body = {"model": self.model, "messages": self.messages, "stream": True, **self.sampling}
        body["stream_options"] = {"include_usage": True}
        began = time.monotonic()
        self.tokens, self.seconds = 0, 0.0
        try:
            with self.client.stream("POST", "chat/completions", json=body) as answer:
                if not answer.is_success:
                    raise ChatError(refusal(answer.status_code, answer.read().decode(errors="replace")))
                for line in answer.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise ChatError(event["error"]["message"])
                    if usage := event.get("usage"):
                        self.tokens, self.seconds = usage["completion_tokens"], time.monotonic() - began
                    for choice in event["choices"]:
                        if text := choice["delta"].get("content"):
                            yield text
        except httpx.HTTPError as error:
            raise ChatError(f"the server went away: {error or type(error).__name__}") from None


def command(chat: Chat, line: str) -> str | None:
    """What a /command answers; None where `line` is none. Raises EOFError for /exit."""
    word, _, rest = line.strip().partition(" ")
    match word, rest.strip():
        case (("/exit" | "/quit" | "/bye"), ""):
            raise EOFError
        case (("/help" | "/?"), ""):
            return HELP
        case "/clear", "":
            chat.clear()
            return "The conversation is forgotten."
        case "/system", text:
            chat.system = text or None
            chat.clear()
            return "A new conversation" + (" with this system message." if text else " without a system message.")
    return None


def answer_lines(chat: Chat) -> None:
    """One turn for each line of standard input; answers alone on standard output."""
    for line in sys.stdin:
        try:
            said = command(chat, line)
        except EOFError:
            return
        if said is not None:
            print(said, file=sys.stderr)
        elif line.strip():
            for piece in chat.answer(line.strip()):
                print(piece, end="", flush=True)
            print(flush=True)


def talk(chat: Chat) -> None:
    """The conversation at a terminal."""
    from rich.console import Console

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() gets a history and its keys
    console = Console(highlight=False)
    console.print(chat.model, style="bold", markup=False, end="  ")
    console.print("/help tells the rest", style="dim")
    while True:
        try:
            line = ask(console)
            said = command(chat, line)
            if said is None and line.startswith("/") and " " not in line.strip() and "/" not in line.strip()[1:]:
                said = f"{line.strip()} is not a command\n{HELP}"
            if said is not None:
                console.print(said, style="dim", markup=False)
            elif line.strip():
                show(console, chat, line.strip())
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n[dim]Ctrl-D or /exit ends[/dim]")
        except ChatError as error:
            console.print(f"error: {error}", style="red", markup=False)


def interrupt(*_: object) -> None:
    """Ctrl-C, once a turn: who presses it twice means the answer, not the clean-up after it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def ask(console: "Console") -> str:
    """A line from the keyboard, or several joined by a backslash at their ends."""
    console.print()
    signal.signal(signal.SIGINT, interrupt)
    line = input("> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input(". ")
    return line


def show(console: "Console", chat: Chat, text: str) -> None:
    """An answer as it comes, as Markdown: finished blocks for good, the one being written redrawn. Ctrl-C stops it."""
    from rich.live import Live
    from rich.markdown import Markdown

    console.print()
    rest, stopped, drawn = "", False, 0.0
    try:
        with (
            Live(console=console, auto_refresh=False, transient=True) as live,
            contextlib.closing(chat.answer(text)) as pieces,
        ):
            for piece in pieces:
                rest += piece
                if cut := settled(rest):
                    live.update("", refresh=True)
                    console.print(Markdown(rest[:cut]), "")
                    rest = rest[cut:]
                if time.monotonic() - drawn > REDRAW_S:
                    live.update(Markdown(rest), refresh=True)
                    drawn = time.monotonic()
    except KeyboardInterrupt:
        stopped = True
    finally:  # also what came before an error
        if rest.strip():
            console.print(Markdown(rest))
    if stopped:
        console.print("[dim](stopped)[/dim]")
    elif chat.tokens:
        console.print(f"[dim]{chat.tokens} tokens, {chat.tokens / chat.seconds:.0f} a second[/dim]")


def settled(text: str) -> int:
    """How much of Markdown that is still growing will look the same whatever follows: its closed blocks."""
    cut, fenced, at = 0, False, 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and not line.strip() and line.endswith("\n") and text[:at].strip():
            cut = at
    return cut
