"""OpenAI's completions and chat completions, and Azure's paths to them.

Shapes: the API reference of platform.openai.com (objects `text_completion`, `chat.completion`, `…chunk`, `error`).
"""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from wire_model import Generated, vocabulary
from wire_server import Json, WireServer, known, require

SHARED = {
    "model", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "user", "logprobs",
}  # fmt: skip
COMPLETION = SHARED | {"prompt", "echo", "suffix", "best_of"}
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice"}
KINDS = {400: "invalid_request_error", 401: "invalid_request_error", 429: "requests", 500: "server_error"}


def routes(server: WireServer) -> list[Route]:
    return [
        server.route(prefix + path, endpoint, error)
        for prefix in ("/v1", "/openai/deployments/{deployment}")
        for path, endpoint in (("/completions", completions), ("/chat/completions", chat))
    ]


def error(status: int, message: str) -> Json:
    return {"error": {"message": message, "type": KINDS.get(status, "server_error"), "param": None, "code": None}}


def sign_in(request: Request) -> None:
    if "deployment" in request.path_params:
        require(request.headers.get("api-key"), "Access denied due to invalid subscription key", 401)
        require(request.query_params.get("api-version"), "Resource not found", 404)
    else:
        require(request.headers.get("authorization", "").startswith("Bearer "), "You didn't provide an API key.", 401)


def check(body: Json, allowed: set[str]) -> None:
    known(body, allowed)
    require(body.get("model"), "you must provide a model parameter")
    require(0 <= body.get("temperature", 1) <= 2, "temperature is not in [0, 2]")
    require(0 <= body.get("top_p", 1) <= 1, "top_p is not in [0, 1]")
    stop = body.get("stop")
    require(not isinstance(stop, list) or 1 <= len(stop) <= 4, "'stop' must have 1 to 4 elements")
    require(stop != "", "'stop' must not be empty")
    require(len(body.get("logit_bias") or {}) <= 300, "logit_bias has more than 300 entries")
    require(all(int(i) < vocabulary().n_vocab for i in body.get("logit_bias") or {}), "logit_bias: no such token")
    require(all(-100 <= v <= 100 for v in (body.get("logit_bias") or {}).values()), "bias not in [-100, 100]")
    require(body.get("stream") or "stream_options" not in body, "'stream_options' is only allowed with 'stream'")


def generate(server: WireServer, body: Json, prompt: str, limit: int, top: int) -> Generated:
    stop = body.get("stop") or []
    bias = {int(i): float(v) for i, v in (body.get("logit_bias") or {}).items()}
    return server.model.generate(prompt, limit, [stop] if isinstance(stop, str) else stop, bias, top)


def usage(*results: Generated) -> Json:
    prompt, completion = (sum(r.prompt_tokens for r in results), sum(r.completion_tokens for r in results))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completions(server: WireServer, request: Request, body: Json) -> Response:
    sign_in(request)
    check(body, COMPLETION)
    require("gpt-4" not in body["model"] or "instruct" in body["model"], "This is a chat model.", 404)
    logprobs = body.get("logprobs")
    require(logprobs is None or 0 <= logprobs <= 5, "logprobs is not in [0, 5]")
    prompt = body["prompt"]
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        prompt = vocabulary().decode_bytes(prompt).decode("utf-8", "surrogateescape")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    prompts = [p for p in prompts for _ in range(body.get("n", 1))]
    results = [generate(server, body, p, body.get("max_tokens") or 16, logprobs or 0) for p in prompts]
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": body["model"]}

    def choice(index: int, text: str, result: Generated, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": scores(result), "finish_reason": reason}

    def scores(result: Generated) -> Json | None:
        if logprobs is None:
            return None
        offsets = [sum(len(t.text) for t in result.tokens[:i]) for i in range(len(result.tokens))]
        return {
            "tokens": [t.text for t in result.tokens],
            "token_logprobs": [t.logprob for t in result.tokens],
            "top_logprobs": [dict(list(t.top.items())[:logprobs]) for t in result.tokens] if logprobs else None,
            "text_offset": offsets,
        }

    if not body.get("stream"):
        choices = [choice(i, r.text, r, r.reason) for i, r in enumerate(results)]
        return JSONResponse({**head, "choices": choices, "usage": usage(*results)})
    chunks: list[Json] = []
    for i, result in enumerate(results):
        pieces = [{"index": i, "text": p, "logprobs": None, "finish_reason": None} for p in server.model.pieces(result)]
        chunks += [{**head, "choices": [piece]} for piece in pieces]
        chunks.append({**head, "choices": [choice(i, "", result, result.reason)]})
    return server.stream(events(chunks, head, body, usage(*results)))


def chat(server: WireServer, request: Request, body: Json) -> Response:
    sign_in(request)
    check(body, CHAT)
    require("instruct" not in body["model"], "This is not a chat model.", 404)
    require(body.get("messages"), "[] is too short - 'messages'")
    for message in body["messages"]:
        require(message["role"] in ("system", "developer", "user", "assistant"), f"{message['role']} is no role")
        require(message.get("content"), f"Invalid value for 'content': expected a string, got {message}")
        for part in message["content"] if isinstance(message["content"], list) else []:
            require(part["type"] in ("text", "image_url"), "no such part")
            url = part.get("image_url", {}).get("url", "data:image/jpeg;base64,AA")
            require(url.startswith(("data:image/", "https://")), "Invalid image URL")
    if body["model"].startswith("o"):  # reasoning models
        require("max_tokens" not in body, "Unsupported parameter: 'max_tokens', use 'max_completion_tokens' instead.")
        require(body.get("temperature", 1) == 1, "Unsupported value: 'temperature'")
    top = body.get("top_logprobs")
    require(top is None or (0 <= top <= 20 and body.get("logprobs") is True), "top_logprobs needs logprobs, 0 to 20")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 1024
    result = generate(server, body, rendered(body["messages"]), limit, top or 0)
    head: Json = {"id": "chatcmpl-1", "created": 1700000000, "model": body["model"], "system_fingerprint": "fp_1"}
    scores = None
    if body.get("logprobs"):
        scores = {
            "content": [
                {**shown(t.text, t.logprob), "top_logprobs": [shown(k, v) for k, v in list(t.top.items())[: top or 0]]}
                for t in result.tokens
            ],
            "refusal": None,
        }
    if not body.get("stream"):
        message = {"role": "assistant", "content": result.text, "refusal": None}
        choice = {"message": message, "logprobs": scores, "finish_reason": result.reason}
        choices = [{"index": i, **choice} for i in range(body.get("n", 1))]
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage(result)})
    deltas: list[tuple[Json, Json | None, str | None]] = [({"role": "assistant", "content": ""}, None, None)]
    for i, piece in enumerate(server.model.pieces(result)):
        deltas.append(({"content": piece}, scores and {"content": [scores["content"][i]]}, None))
    deltas.append(({}, None, result.reason))
    head["object"] = "chat.completion.chunk"
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": told, "finish_reason": reason}]}
        for delta, told, reason in deltas
    ]
    return server.stream(events(chunks, head, body, usage(result)))


def shown(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def rendered(messages: list[Json]) -> str:
    def text(content: Any) -> str:
        if isinstance(content, str):
            return content
        return "".join(part.get("text", "<image>") for part in content)

    return "".join(f"{m['role']}: {text(m['content'])}\n" for m in messages) + "assistant: "


def events(chunks: list[Json], head: Json, body: Json, counts: Json) -> list[str]:
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks = [*({**chunk, "usage": None} for chunk in chunks), {**head, "choices": [], "usage": counts}]
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
