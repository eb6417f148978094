"""Runtime: a server of one's own, in a child process, for the life of a program."""

import atexit
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from sglang.base.config import ServerConfig, spell
from sglang.lang import loop
from sglang.lang.backends.runtime_endpoint import RuntimeEndpoint

_STOP_S = 10.0  # that a server gets to end by itself
_FIELDS = {f.name for f in dataclasses.fields(ServerConfig)}


class Runtime:
    """Starts a server on a free port and waits until it answers. Ends with `shutdown`, or with the program.

    flags: fields of ServerConfig, as for the command line (`--tp-size 2` is tp_size=2). launch_timeout in seconds.
    Raises TypeError for an unknown flag, RuntimeError where the server does not start.
    """

    def __init__(
        self,
        log_level: str = "error",
        model_overide_args: dict[str, Any] | None = None,
        launch_timeout: float = 300.0,
        **flags: Any,
    ):
        if unknown := [name for name in flags if name not in _FIELDS]:
            raise TypeError(f"Runtime has no argument {unknown[0]}; known: {', '.join(sorted(_FIELDS))}")
        if model_overide_args:
            flags["json_model_override_args"] = json.dumps(model_overide_args)
        flags["port"] = _free_port(flags.get("host", "127.0.0.1"), flags.get("port"))
        flags["log_level"] = log_level
        self.server_args = ServerConfig(**flags)
        scheme = "https" if self.server_args.ssl_certfile else "http"
        host = self.server_args.host if self.server_args.host != "0.0.0.0" else "127.0.0.1"
        self.url = f"{scheme}://{host}:{self.server_args.port}"
        self.generate_url = self.url + "/generate"
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", *_command_line(flags)],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is ours; we end the server, with all it has started
        )
        self.pid: int | None = self._process.pid
        atexit.register(self.shutdown)
        try:
            self._wait(launch_timeout)
            self.endpoint = RuntimeEndpoint(self.url, api_key=self.server_args.api_key, verify=self._verify)
        except BaseException:
            self.shutdown()
            raise

    @property
    def _verify(self) -> bool:
        return self.server_args.ssl_certfile is None  # a certificate of our own on this machine

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            if (code := self._process.poll()) is not None:
                raise RuntimeError(
                    f"Initialization failed: the server ended with code {code}; its last words are above"
                )
            try:
                if httpx.get(self.url + "/health", timeout=5, verify=self._verify, headers=self._headers).is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"Initialization failed: no answer from the server within {timeout_s:g} s")
            time.sleep(0.05)

    @property
    def _headers(self) -> dict[str, str]:
        key = self.server_args.api_key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def shutdown(self) -> None:
        """End the server and all its processes. Safe to call twice."""
        if self.pid is None:
            return
        self.pid = None
        atexit.unregister(self.shutdown)
        self._signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        finally:
            self._signal(signal.SIGKILL)  # also those that outlived the first process
            self._process.wait()

    def _signal(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, what)

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if getattr(self, "pid", None) is not None:
            self.shutdown()

    def get_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.endpoint.model_info["tokenizer_path"])

    def cache_prefix(self, prefix: str) -> None:
        """Have the server compute `prefix` now."""
        self.endpoint.cache_prefix(prefix)

    def generate(
        self,
        prompt: str | list[str],
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        return_logprob: bool | list[bool] | None = None,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
    ) -> str:
        """The answer of `/generate`, as JSON text."""
        body = {
            "text": prompt,
            "sampling_params": sampling_params,
            "return_logprob": return_logprob,
            "logprob_start_len": logprob_start_len,
            "top_logprobs_num": top_logprobs_num,
        }
        return json.dumps(self._request({name: value for name, value in body.items() if value is not None}))

    def encode(self, prompt: str | list[str]) -> str:
        """The answer of `/encode`, as JSON text: the vectors of a server that was started with is_embedding=True."""
        return self.endpoint._ask("POST", "/encode", {"text": prompt}, timeout_s=None).text

    async def async_generate(self, prompt: str, sampling_params: dict[str, Any] | None = None) -> AsyncIterator[str]:
        """What is new in the text, as it comes."""
        async with (
            httpx.AsyncClient(timeout=None, headers=self._headers, verify=self._verify) as client,
            client.stream(
                "POST",
                self.generate_url,
                json={"text": prompt, "sampling_params": sampling_params or {}, "stream": True},
            ) as answer,
        ):
            if answer.status_code != 200:
                raise RuntimeError(f"{self.generate_url}: {answer.status_code} {(await answer.aread()).decode()}")
            said = 0
            async for line in answer.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    raise RuntimeError(line[5:].strip())
                if len(event["text"]) > said:
                    yield event["text"][said:]
                    said = len(event["text"])

    add_request = async_generate  # its older name

    def _request(self, body: dict[str, Any]) -> Any:
        return loop.run(self.endpoint._post(body))


def _command_line(flags: dict[str, Any]) -> list[str]:
    defaults = {f.name: f.default for f in dataclasses.fields(ServerConfig)}
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value is False or value == defaults[name]:
            continue
        words += [spell(name)] if value is True else [spell(name), str(value)]
    return words


def _free_port(host: str, wanted: int | None) -> int:
    """`wanted`, or a port that nobody uses now."""
    if wanted is not None:
        return wanted
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]
