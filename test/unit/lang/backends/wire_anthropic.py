"""Anthropic's Messages API. Shapes: docs.anthropic.com, "Messages" and "Streaming messages"."""

import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from wire_openai import rendered
from wire_server import Json, WireServer, known, require

ALLOWED = {
    "model", "max_tokens", "messages", "system", "temperature", "top_p", "top_k", "stop_sequences", "stream",
    "metadata", "tools", "tool_choice", "thinking", "output_config",
}  # fmt: skip
KINDS = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}


def routes(server: WireServer) -> list[Route]:
    return [server.route("/v1/messages", messages, error)]


def error(status: int, message: str) -> Json:
    return {"type": "error", "error": {"type": KINDS.get(status, "api_error"), "message": message}}


def messages(server: WireServer, request: Request, body: Json) -> Response:
    # The SDK sends the key as x-api-key up to version 1, as a bearer token since 2.
    key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    require(key, "x-api-key header is required", 401)
    require(request.headers.get("anthropic-version"), "anthropic-version: header is required")
    known(body, ALLOWED)
    require(body.get("max_tokens", 0) >= 1, "max_tokens: Field required")
    require(body.get("messages"), "messages: at least one message is required")
    require(body["messages"][0]["role"] == "user", 'messages: first message must use the "user" role')
    for i, message in enumerate(body["messages"]):
        require(message["role"] in ("user", "assistant"), f"messages.{i}.role: Input should be 'user' or 'assistant'")
        require(message["content"], f"messages.{i}: all messages must have non-empty content")
        for part in message["content"] if isinstance(message["content"], list) else []:
            require(part["type"] in ("text", "image"), "no such content block")
            require(part.get("source", {"type": "base64"})["type"] == "base64", "no such source")
    last = body["messages"][-1]
    text_end = last["content"] if isinstance(last["content"], str) else ""
    require(
        last["role"] != "assistant" or text_end == text_end.rstrip(),
        "messages: final assistant content cannot end with trailing whitespace",
    )
    require(0 <= body.get("temperature", 1) <= 1, "temperature: range: 0..1")
    require(not {"temperature", "top_p"} <= set(body), "`temperature` and `top_p` cannot both be specified")
    require(body.get("top_k", 1) >= 1, "top_k: Input should be greater than 0")
    stop = body.get("stop_sequences", [])
    require(all(s.strip() for s in stop), "stop_sequences: each stop sequence must contain non-whitespace")
    system = [{"role": "system", "content": body["system"]}] if "system" in body else []
    prompt = rendered(system + body["messages"])
    result = server.model.generate(prompt, body["max_tokens"], stop)
    reason = "stop_sequence" if result.stop else {"stop": "end_turn", "length": "max_tokens"}[result.reason]
    ended = {"stop_reason": reason, "stop_sequence": result.stop}
    head: Json = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"]}
    used = {"input_tokens": result.prompt_tokens, "output_tokens": result.completion_tokens}
    if not body.get("stream"):
        return JSONResponse({**head, "content": [{"type": "text", "text": result.text}], **ended, "usage": used})
    none = {"stop_reason": None, "stop_sequence": None}
    first = {**head, "content": [], **none, "usage": {**used, "output_tokens": 1}}
    sent: list[Json] = [
        {"type": "message_start", "message": first},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in server.model.pieces(result)
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": result.completion_tokens}},
        {"type": "message_stop"},
    ]
    return server.stream([f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in sent])
