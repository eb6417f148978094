"""A `/generate` body -> the sequences it asks for; what they gain -> the objects it is answered with."""

from typing import Any

from sglang.base import limits
from sglang.base.errors import FieldError
from sglang.base.messages import Finish, Logprobs, Score
from sglang.base.sampling import parse_sampling
from sglang.server.expand import check_count, id_lists, names, parent_name, sample, spread
from sglang.server.http import MARK, encode, event, template
from sglang.server.native_types import FinishReason, Generated, GenerateRequest, MetaInfo, Triple
from sglang.server.streams import Output, Request
from sglang.text.tokenizer import Tokenizer

NOT_SUPPORTED = (
    "image_data",
    "video_data",
    "audio_data",
    "input_embeds",
    "lora_path",
    "session_params",
    "custom_logit_processor",
    "return_hidden_states",
)


def parse(body: GenerateRequest, interval: int) -> tuple[list[Request], bool]:
    """The sequences of a body, prompt by prompt, the n samples of each together; and whether the answer is one object.

    Raises FieldError.
    """
    for name in NOT_SUPPORTED:
        if getattr(body, name):
            raise FieldError(name, f"{name} is not supported by this server")
    if (body.text is None) == (body.input_ids is None):
        raise FieldError("text", "Either text or input_ids should be provided.")
    prompts: list[str | list[int]]
    if body.text is not None:
        source, single = "text", isinstance(body.text, str)
        prompts = [body.text] if isinstance(body.text, str) else [*body.text]
    else:
        source = "input_ids"
        lists, single = id_lists(source, body.input_ids or [])
        prompts = [*lists]
    count = len(prompts)
    check_count(source, count, count)
    if isinstance(body.sampling_params, list):
        raw = spread("sampling_params", body.sampling_params, count, None)
        paths = [f"sampling_params[{i}]" for i in range(count)]
        params = [parse_sampling(p, path) for p, path in zip(raw, paths, strict=True)]
    else:
        paths = ["sampling_params"] * count
        params = [parse_sampling(body.sampling_params)] * count
    total = sum(p.n for p in params)
    check_count(source, count, total)
    wanted = [
        logprobs_of(*fields)
        for fields in zip(
            spread("return_logprob", body.return_logprob, count, False),
            spread("logprob_start_len", body.logprob_start_len, count, -1),
            spread("top_logprobs_num", body.top_logprobs_num, count, 0),
            _id_choices(body.token_ids_logprob, count),
            strict=True,
        )
    ]
    rids, parent = names(body.rid, [p.n for p in params]), parent_name(body.parent)
    requests = [
        Request(
            prompt=prompts[i],
            sampling=sample(params[i], k),
            logprobs=wanted[i],
            rid=rids[i][k],
            group=body.rid if isinstance(body.rid, str) else (body.rid[i] if body.rid else ""),
            parent=parent,
            interval=interval if body.stream else 0,
            namespace=body.cache_salt or body.extra_key or "",
            source=source,
            constraint=f"{paths[i]}.{params[i].constraint}",
            stop_regex=f"{paths[i]}.stop_regex",
        )
        for i in range(count)
        for k in range(params[i].n)
    ]
    return requests, single and total == 1


def _id_choices(value: list[int | list[int] | None] | None, count: int) -> list[list[int]]:
    if not value or all(isinstance(i, int) for i in value):
        return [value or []] * count  # pyright: ignore[reportReturnType]
    if any(isinstance(i, int) for i in value):
        raise FieldError("token_ids_logprob", "token_ids_logprob must be a list of ids or of lists, not a mixture")
    return [ids or [] for ids in spread("token_ids_logprob", value, count, None)]  # pyright: ignore[reportReturnType]


def logprobs_of(on: bool, start: int, top: int, ids: list[int]) -> Logprobs | None:
    if start < -1:
        raise FieldError("logprob_start_len", f"logprob_start_len must be -1 (none of the prompt) or more, got {start}")
    if not 0 <= top <= limits.TOP_LOGPROBS:
        raise FieldError("top_logprobs_num", f"top_logprobs_num must be in [0, {limits.TOP_LOGPROBS}], got {top}")
    if len(ids) > limits.TOKEN_IDS_LOGPROB:
        raise FieldError("token_ids_logprob", f"token_ids_logprob may hold at most {limits.TOKEN_IDS_LOGPROB} ids")
    return Logprobs(start, top, tuple(ids)) if on else None


class Result:
    """The answer of one sequence so far: outputs in, the whole object out. Its text and lists are cumulative, or with
    `deltas` what the output added.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, with_text: bool, deltas: bool = False):
        self._wanted = request.logprobs
        self._deltas = deltas
        self._text = tokenizer.token_text if with_text else None
        self._before = _Scores()
        self._after = _Scores()
        self._around: list[bytes] = []  # of an event, the parts that stay
        self._cached = -1
        self._said = b""  # the text so far as JSON, without quotes
        self._ids = b""  # so are the tokens, without brackets
        self._known = 0  # how many of them

    def add(self, output: Output) -> Generated:
        meta = MetaInfo(
            id=output.rid,
            finish_reason=finish_reason(output.finish, len(output.tokens)),
            prompt_tokens=output.prompt_tokens,
            completion_tokens=len(output.tokens),
            completion_tokens_wo_jump_forward=len(output.tokens) - output.jumped,
            cached_tokens=output.cached_tokens,
            e2e_latency=output.latency_s,
        )
        if self._deltas:
            self._before, self._after = _Scores(), _Scores()
        if self._wanted is not None:
            self._score(meta, self._wanted, output)
        if self._deltas:
            return Generated(text=output.delta, output_ids=output.new, meta_info=meta)
        return Generated(text=output.text, output_ids=output.tokens, meta_info=meta)

    def event(self, output: Output, index: int | None) -> bytes:
        """The event of an output; `index`: which sequence of several this is.

        Nothing is written twice: text and ids so far are kept as JSON, and so is what stands around them.
        """
        if output.finish is not None or self._wanted is not None or self._deltas:
            return event(self._numbered(self.add(output), index))
        if output.first or output.cached_tokens != self._cached:
            self._cached = output.cached_tokens
            marked: Any = MARK
            meta = MetaInfo(
                id=output.rid,
                finish_reason=None,
                prompt_tokens=output.prompt_tokens,
                completion_tokens=marked,
                completion_tokens_wo_jump_forward=marked,
                cached_tokens=output.cached_tokens,
                e2e_latency=marked,
            )
            self._around = template(self._numbered(Generated(text=marked, output_ids=marked, meta_info=meta), index))
        count = len(output.tokens)
        new = output.new
        if self._known + len(new) != count:  # some were taken back
            self._ids = b""
            new = output.tokens
        self._known = count
        ids = b"%d" % new[0] if len(new) == 1 else encode(new)[1:-1]
        self._ids = self._ids + b"," + ids if self._ids and ids else self._ids + ids
        self._said += encode(output.delta)[1:-1]
        before, between, after_ids, middle, after_counts, end = self._around
        return b'%b"%b"%b[%b]%b%d%b%d%b%b%b' % (
            before, self._said, between, self._ids, after_ids, count, middle, count - output.jumped, after_counts,
            encode(output.latency_s), end,
        )  # fmt: skip

    @staticmethod
    def _numbered(answer: Generated, index: int | None) -> Generated:
        if index is not None:
            answer.index = index
        return answer

    def _score(self, meta: MetaInfo, wanted: Logprobs, output: Output) -> None:
        before, after = self._before, self._after
        self._file(before, output.prompt_scores)
        self._file(after, output.scores)
        known = [logprob for logprob, _, _ in before.tokens if logprob is not None]
        meta.normalized_prompt_logprob = sum(known) / len(known) if known else None
        meta.input_token_logprobs, meta.output_token_logprobs = before.tokens, after.tokens
        if wanted.top:
            meta.input_top_logprobs, meta.output_top_logprobs = before.top, after.top
        if wanted.ids:
            meta.input_token_ids_logprobs, meta.output_token_ids_logprobs = before.ids, after.ids

    def _file(self, into: "_Scores", scores: list[Score]) -> None:
        for score in scores:
            into.tokens.append(self._triple(score.token, score.logprob))
            into.top.append([self._triple(*pair) for pair in score.top] or None)
            into.ids.append([self._triple(*pair) for pair in score.ids] or None)

    def _triple(self, token: int, logprob: float | None) -> Triple:
        return (logprob, token, None if self._text is None else self._text(token))


class _Scores:
    """Triples in the shape of the answer, one per position."""

    def __init__(self) -> None:
        self.tokens: list[Triple] = []
        self.top: list[list[Triple] | None] = []
        self.ids: list[list[Triple] | None] = []


def finish_reason(finish: Finish | None, length: int) -> FinishReason | None:
    match finish:
        case None:
            return None
        case Finish(type="length"):
            return FinishReason(type="length", length=length)
        case Finish(type="stop"):
            return FinishReason(type="stop", matched=finish.matched)
        case _:
            return FinishReason(type="abort", message=finish.message, status_code=finish.status or None)
