"""Gemini on Vertex AI, as the google-genai SDK calls it. Shapes: the REST reference of `publishers.models`."""

import itertools
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from wire_server import Json, WireServer, known, require

MODEL = "/v1beta1/projects/{project}/locations/{location}/publishers/google/models/{model}"
STATES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}
BODY = {"contents", "systemInstruction", "generationConfig", "safetySettings"}
CONFIG = {
    "temperature", "topP", "topK", "maxOutputTokens", "stopSequences", "candidateCount", "frequencyPenalty",
    "presencePenalty", "responseMimeType", "responseJsonSchema",
}  # fmt: skip


def routes(server: WireServer) -> list[Route]:
    methods = (":generateContent", ":streamGenerateContent")
    return [
        *(server.route(MODEL + method, generate, error) for method in methods),
        Route("/token", token, methods=["POST"]),
    ]


async def token(request: Request) -> Response:
    """Google's OAuth: a token for a signed statement of who one is."""
    return JSONResponse({"access_token": "token", "token_type": "Bearer", "expires_in": 3600})


def error(status: int, message: str) -> Json:
    return {"error": {"code": status, "message": message, "status": STATES.get(status, "INTERNAL")}}


def generate(server: WireServer, request: Request, body: Json) -> Response:
    require(request.headers.get("authorization", "").startswith("Bearer "), "Request is missing a credential", 401)
    known(body, BODY)
    config = body.get("generationConfig", {})
    known(config, CONFIG)
    require(0 <= config.get("temperature", 1) <= 2, "temperature must be in the range [0.0, 2.0]")
    require(config.get("topK", 1) >= 1, "topK must be positive")
    require(len(config.get("stopSequences", [])) <= 5, "at most 5 stop sequences")
    require(config.get("candidateCount", 1) == 1, "one candidate")
    require(body.get("contents"), "contents is not specified")
    roles = [content.get("role") for content in body["contents"]]
    require(all(role in ("user", "model") for role in roles), "Please use a valid role: user, model.")
    require(roles[-1] == "user", "the last turn must be the user's")
    require(all(a != b for a, b in itertools.pairwise(roles)), "turns must alternate")
    prompt = "".join(f"{c['role']}: {''.join(map(shown, c['parts']))}\n" for c in body["contents"]) + "model: "
    result = server.model.generate(prompt, config.get("maxOutputTokens", 1024), config.get("stopSequences", []))

    def answer(text: str, ended: bool) -> Json:
        candidate: Json = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        if not ended:
            return {"candidates": [candidate], "modelVersion": request.path_params["model"]}
        candidate["finishReason"] = {"stop": "STOP", "length": "MAX_TOKENS"}[result.reason]
        counts = {"promptTokenCount": result.prompt_tokens, "candidatesTokenCount": result.completion_tokens}
        counts["totalTokenCount"] = sum(counts.values())
        return {"candidates": [candidate], "usageMetadata": counts, "modelVersion": request.path_params["model"]}

    hit = server.blocked is not None and server.blocked in prompt
    blocked: Json = {"candidates": [{"finishReason": "SAFETY", "index": 0}], "usageMetadata": {"promptTokenCount": 1}}
    if request.url.path.endswith(":generateContent"):
        return JSONResponse(blocked if hit else answer(result.text, True))
    require(request.query_params.get("alt") == "sse", "the stream is asked for as server-sent events")
    if hit:
        return server.stream([f"data: {json.dumps(blocked)}\r\n\r\n"])
    pieces = server.model.pieces(result) or [""]
    return server.stream([f"data: {json.dumps(answer(p, i == len(pieces) - 1))}\r\n\r\n" for i, p in enumerate(pieces)])


def shown(part: Json) -> str:
    data = part.get("inlineData", {})
    kind = data.get("mimeType") or data.get("mime_type", "")  # protobuf's JSON takes both spellings
    require("text" in part or kind.startswith("image/"), f"an empty part: {part}")
    return part.get("text", "<image>")
