"""The bodies of the OpenAI routes, as Structs. Fields that OpenAI has and that change nothing here are not listed:
they are ignored, as OpenAI ignores what it does not know. Defaults of None mean the sampling default.
"""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from sglang.server.native_types import Refused


class StreamOptions(Struct, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Struct, kw_only=True):
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None  # beside json_object, as some servers have it
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's spelling of constraints."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


class SamplingFields(Struct, kw_only=True):
    """What both routes share."""

    model: str = "default"
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    # Extensions of this server
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | bool | None = None
    ebnf: str | None = None
    choices: list[str] | None = None
    structural_tag: str | dict[str, Any] | None = None
    dtype: str | None = None
    strict: bool | None = None
    compact_json: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    rid: str | list[str] | None = None
    parent: str | None = None
    cache_salt: str | None = None
    # Known elsewhere, refused here: their silence would change the answer.
    lora_path: Refused = None
    session_params: Refused = None
    custom_logit_processor: Refused = None
    return_hidden_states: Refused = None
    guided_whitespace_pattern: Refused = None


class CompletionRequest(SamplingFields, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class ImageURL(Struct, kw_only=True):
    url: str
    detail: str | None = None


class Part(Struct, kw_only=True):
    """A part of a message. Only `text` can be served yet."""

    type: str
    text: str | None = None


class CalledFunction(Struct, kw_only=True):
    """`arguments` is always written, empty ones too: clients add up what the pieces of a stream bring."""

    name: str | UnsetType | None = UNSET
    arguments: str | dict[str, Any] = ""


class ToolCall(Struct, kw_only=True, omit_defaults=True):
    """A call, or in a stream a piece of one: then only the first piece has id, type and name."""

    id: str | None = None
    index: int | None = None
    type: str | None = None
    function: CalledFunction


class Message(Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(Struct, kw_only=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"] = "function"
    function: Function


class FunctionName(Struct, kw_only=True):
    name: str


class NamedTool(Struct, kw_only=True):
    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Struct, kw_only=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolChoice(Struct, kw_only=True):
    """One function, or several of those in `tools`."""

    type: Literal["function", "allowed_tools"] = "function"
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class ChatRequest(SamplingFields, kw_only=True):
    messages: list[Message] | str
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    # Known elsewhere, refused here: their silence would change the answer.
    input_ids: Refused = None
    functions: Refused = None
    function_call: Refused = None
    audio: Refused = None


class PromptDetails(Struct):
    cached_tokens: int


class Usage(Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Metadata(Struct):
    weight_version: str = "default"


class CompletionLogprobs(Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: int | str | None = None


class Completion(Struct, kw_only=True):
    """A whole answer, or a chunk of a stream (then `usage` comes only where asked for)."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    metadata: Metadata | UnsetType = UNSET


class TopLogprob(Struct, kw_only=True):
    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Struct, kw_only=True):
    token: str
    bytes: list[int]
    logprob: float | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]


class ChatMessage(Struct, kw_only=True):
    role: str = "assistant"
    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    matched_stop: int | str | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    metadata: Metadata = field(default_factory=Metadata)


class Delta(Struct, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChunkChoice(Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: int | str | None = None


class ChatChunk(Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "sglang"
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(Struct, kw_only=True):
    object: str = "list"
    data: list[ModelCard]
