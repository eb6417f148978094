"""Doubles of this folder: a tokenizer trained on the spot, and a worker that answers by a script."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sglang.base.link import Link
from sglang.base.messages import (
    Abort,
    Failed,
    Finish,
    Flush,
    Flushed,
    FromWorker,
    Piece,
    Ready,
    Score,
    Stats,
    Step,
    Stop,
    Submit,
    ToWorker,
)

HANG_S = 60.0  # what takes longer hangs: a busy machine may keep a thread waiting for seconds
CONTEXT = 512
VOCAB = 400  # rows of the model's embedding: more than the tokenizer has, as in most checkpoints
EOS = 1
CORPUS = [
    "the capital of France is Paris and the capital of Japan is Tokyo",
    "one two three four five six seven eight nine ten",
    "a long time ago in a galaxy far, far away",
    "日本語 naïve café Grüße 👋 🌍 Привет",
]
TEMPLATE = (
    "<s>{% if messages[-1]['role'] == 'system' %}{{ raise_exception('a user must have the last word') }}{% endif %}"
    "{% if mood %}mood: {{ mood }}\n{% endif %}"
    "{% if reasoning_effort %}effort: {{ reasoning_effort }}\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(folder: Path) -> Path:
    """A byte-level BPE with a beginning-of-text token, an end token and a chat template, as checkpoint files."""
    import json

    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    raw.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def eventually(condition: Callable[[], bool], timeout_s: float = HANG_S) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return condition()


Script = Callable[[Submit], list[int]]


def echo(submit: Submit) -> list[int]:
    """The prompt again, without its first token (the beginning of text), then the end."""
    return [*submit.tokens[1:], EOS]


@dataclass
class EchoWorker:
    """A worker's protocol without a model: each step gives every open sequence its next token of the script.

    `step_s`: pause after a step. `settled`: returns when what was sent has been dealt with; a step waits for that.
    `queue`: how many sequences it holds before it answers 503. Aborted ids are in `aborted`, every Submit in
    `submits`.
    """

    link: Link[ToWorker, FromWorker]
    script: Script = echo
    step_s: float = 0.0
    settled: Callable[[], None] | None = None
    queue: int = 10**9
    chunk: int = 1  # tokens a step
    sampling: dict[str, float] = field(default_factory=dict)  # of the model's own generation config
    submits: list[Submit] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        self._open: dict[int, tuple[Submit, list[int], int]] = {}
        self._known: dict[tuple[int, ...], int] = {}  # prompts that came before: all but the last token is cached
        self._cached: dict[int, int] = {}
        self._stats = Stats(total_tokens=10_000)
        self._waited: list[float] = []  # of sequences that nobody was told of
        self._last_words: str | None = None
        self._paused = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def running(self) -> int:
        return len(self._open)

    @property
    def steps(self) -> int:
        return self._stats.steps

    def start(self) -> "EchoWorker":
        self._thread.start()
        return self

    def die(self, reason: str) -> None:
        self._last_words = reason

    def pause(self) -> None:
        """Take messages, give no tokens."""
        self._paused.set()

    def go_on(self) -> None:
        self._paused.clear()

    def join(self) -> None:
        self._thread.join(HANG_S)

    def _serve(self) -> None:
        self.link.send(
            Ready(
                "llama", "LlamaForCausalLM", "float32", "cpu", VOCAB, CONTEXT, 10_000, 1, 64, 1, 4, 8, 0.1, (EOS,),
                self.sampling,
            )
        )  # fmt: skip
        while True:
            for message in self.link.receive(0.001 if not self._open or self._paused.is_set() else 0.0):
                match message:
                    case Submit():
                        self._take(message)
                    case Abort():
                        self.aborted.append(message.id)
                        self._open.pop(message.id, None)
                    case Flush():
                        self.link.send(Flushed(message.ticket, not self._open))
                    case Stop():
                        self.stopped = True
                        return
                    case _:
                        raise AssertionError(message)
            if self._last_words is not None:
                self.link.send(Failed(self._last_words))
                return
            if self._open and not self._paused.is_set():
                if self.settled is not None:
                    self.settled()
                pieces = [self._next(id) for id in list(self._open)]
                self._stats.steps += 1
                self._stats.generated_tokens += sum(len(p.tokens) for p in pieces)
                self._stats.running = len(self._open)
                self.link.send(Step(pieces, self._stats, self._waited))
                self._waited = []
                if self.step_s:
                    time.sleep(self.step_s)

    def _take(self, submit: Submit) -> None:
        self.submits.append(submit)
        refusal = None
        if len(submit.tokens) >= CONTEXT:
            refusal = Finish("abort", message=f"The input ({len(submit.tokens)} tokens) is too long", status=400)
        elif len(self._open) >= self.queue:
            refusal = Finish("abort", message="the queue is full", status=503)
        if refusal is not None:
            self.link.send(Step([Piece(submit.id, [], refusal)], self._stats))
            return
        known = self._known.get(tuple(submit.tokens), 0)
        self._known[tuple(submit.tokens)] = len(submit.tokens) - 1
        self._open[submit.id] = (submit, self.script(submit), 0)
        self._cached[submit.id] = known
        self._stats.prompt_tokens += len(submit.tokens)
        self._waited.append(0.25)

    def _next(self, id: int) -> Piece:
        submit, script, at = self._open[id]
        limit = submit.sampling.max_new_tokens
        tokens = script[at : min(at + self.chunk, limit)]
        if EOS in tokens and not submit.sampling.ignore_eos:
            tokens = tokens[: tokens.index(EOS) + 1]
        stops = () if submit.sampling.ignore_eos else (EOS, *submit.sampling.stop_token_ids)
        at += len(tokens)
        finish = None
        if tokens and tokens[-1] in stops:
            finish = Finish("stop", tokens[-1])
        elif at >= limit or at >= len(script):
            finish = Finish("length")
        if finish is None:
            self._open[id] = (submit, script, at)
        else:
            del self._open[id]
        piece = Piece(id, tokens, finish, cached_tokens=self._cached.pop(id, 0))
        if (wanted := submit.logprobs) is not None:
            piece.scores = [self._score(t, wanted.top, wanted.ids) for t in tokens]
            if at == len(tokens) and wanted.start >= 0:
                piece.prompt_scores = [
                    self._score(t, wanted.top, wanted.ids) if i else Score(t, None) for i, t in enumerate(submit.tokens)
                ][wanted.start :]
        return piece

    def _score(self, token: int, top: int, ids: tuple[int, ...]) -> Score:
        """-token / 100 for every token: a number that a test can tell."""
        best = [(token, -token / 100), *((t, -t / 100) for t in range(2, 2 + top) if t != token)]
        return Score(token, -token / 100, best[:top], [(i, -i / 100) for i in ids])
