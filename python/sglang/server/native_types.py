"""The bodies of the native API, as Structs: what is not in them is not read."""

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

# A field that other servers know and this one cannot serve: null and false are harmless, all else is a 400.
Refused = Annotated[Any, Meta(extra_json_schema={"enum": [None, False], "description": "Not supported."})]
Triple = tuple[float | None, int, str | None]  # log-probability, token id, the token's text where asked for


class Segment(Struct, kw_only=True):
    """A part of a chain: exactly one of `text`, `gen` and `select`. The latter two are names, or null."""

    text: str | UnsetType = UNSET
    gen: str | UnsetType | None = UNSET
    sampling_params: dict[str, Any] | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    token_ids_logprob: list[int] | None = None
    return_text_in_logprobs: bool | None = None
    select: str | UnsetType | None = UNSET
    choices: list[str] | None = None
    method: str = "token_length_normalized"


class GenerateRequest(Struct, kw_only=True):
    segments: list[Segment] | None = None
    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any] | None] | None = None
    rid: str | list[str] | None = None
    parent: str | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int | list[int] | None] | None = None
    return_text_in_logprobs: bool | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    # Known elsewhere, refused here: their silence would change the answer.
    image_data: Refused = None
    video_data: Refused = None
    audio_data: Refused = None
    input_embeds: Refused = None
    lora_path: Refused = None
    session_params: Refused = None
    custom_logit_processor: Refused = None
    return_hidden_states: Refused = None


class FinishReason(Struct, kw_only=True, omit_defaults=True):
    type: str
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None
    status_code: int | None = None


class MetaInfo(Struct, kw_only=True):
    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_wo_jump_forward: int
    cached_tokens: int
    e2e_latency: float
    weight_version: str = "default"
    normalized_prompt_logprob: float | UnsetType | None = UNSET
    input_token_logprobs: list[Triple] | UnsetType = UNSET
    output_token_logprobs: list[Triple] | UnsetType = UNSET
    input_top_logprobs: list[list[Triple] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[Triple] | None] | UnsetType = UNSET
    input_token_ids_logprobs: list[list[Triple] | None] | UnsetType = UNSET
    output_token_ids_logprobs: list[list[Triple] | None] | UnsetType = UNSET


class Generated(Struct, kw_only=True):
    """`index`: in a stream of several sequences, which one this is."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | UnsetType = UNSET


class ChainPart(Struct, kw_only=True):
    """A `gen` or `select` of a chain. `segment`: in a stream, which of them it is, counted from 0."""

    name: str | None
    text: str
    decision: str | UnsetType = UNSET
    meta_info: Any  # of a gen MetaInfo, of a select what its choice method tells
    segment: int | UnsetType = UNSET


class ChainMeta(Struct, kw_only=True):
    """Of all of a chain; token counts are sums, a prompt token that several segments begin with counts once."""

    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_wo_jump_forward: int
    cached_tokens: int
    e2e_latency: float


class ChainAnswer(Struct, kw_only=True):
    """`text`: all that follows the first text."""

    text: str
    segments: list[ChainPart]
    meta_info: ChainMeta


class ModelInfo(Struct, kw_only=True):
    model_path: str
    tokenizer_path: str
    is_generation: bool = True
    preferred_sampling_params: dict[str, Any] | None = None
    weight_version: str = "default"
    has_image_understanding: bool = False
    has_audio_understanding: bool = False
    model_type: str
    architectures: list[str]
    max_model_len: int
    max_seq_length: int | None = None  # tokens of a text of which a vector is made; a longer one is cut
    segments: bool = True  # /generate takes chains


class AbortRequest(Struct, kw_only=True):
    rid: str = ""
    abort_all: bool = False


class Aborted(Struct):
    aborted: int


class TokenizeRequest(Struct, kw_only=True):
    prompt: str | list[str]
    add_special_tokens: bool = True
    model: str | None = None


class Tokenized(Struct):
    tokens: Sequence[int | list[int]]
    count: int | list[int]
    max_model_len: int


class DetokenizeRequest(Struct, kw_only=True):
    tokens: list[int | list[int]]
    skip_special_tokens: bool = True
    model: str | None = None


class Detokenized(Struct):
    text: str | list[str]
