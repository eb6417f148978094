"""What the wire-format servers have for a model: texts by script, tokens and scores by a real vocabulary."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tiktoken

DEMO = Path(__file__).parents[4] / "python/sglang/assets/demo/tokenizer.json"
END = 0  # <|endoftext|> in the demo vocabulary
SURE = 30.0  # how far the scripted token is above all others, in logits


@functools.cache
def vocabulary() -> tiktoken.Encoding:
    """The demo model's byte-level vocabulary as tiktoken has it: what OpenAI's are, and needs no download."""
    raw = json.loads(DEMO.read_text())
    unicode_to_byte = _gpt2_bytes()
    special = {token["content"]: token["id"] for token in raw["added_tokens"]}
    ranks = {
        bytes(unicode_to_byte[c] for c in text): i for text, i in raw["model"]["vocab"].items() if text not in special
    }
    pattern = raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    return tiktoken.Encoding("demo", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def _gpt2_bytes() -> dict[str, int]:
    """The printable stand-ins of byte-level vocabularies, backwards."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def shown(encoding: tiktoken.Encoding, token: int) -> str:
    """How the completions API writes a token in logprobs: text, or its bytes where they are no text."""
    raw = encoding.decode_single_token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass(frozen=True)
class Token:
    text: str
    logprob: float
    top: dict[str, float]  # the likeliest tokens, best first


@dataclass(frozen=True)
class Generated:
    text: str
    tokens: list[Token]
    reason: str  # "stop" or "length"
    stop: str | None  # the stop string that ended it
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Scripted:
    """A model that says what it was told to.

    answers: what follows a prompt: of the keys that occur in it, the one that ends last, or the longer of two.
    likes: logits for tokens at the first step, by text, where nothing is scripted (to steer a select).
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = " I do not know."
    likes: Mapping[str, float] = field(default_factory=dict)

    def answer(self, prompt: str) -> list[int]:
        """The tokens that follow: of the scripted answer, what the prompt does not already say."""
        found = [(prompt.rfind(key) + len(key), len(key), key) for key in self.answers if key in prompt]
        end, _, key = max(found, default=(len(prompt), 0, None))
        script = vocabulary().encode_ordinary(self.otherwise if key is None else self.answers[key])
        said = prompt[end:].encode("utf-8", "surrogateescape")
        for i in range(len(script) + 1):
            if vocabulary().decode_bytes(script[:i]) == said:
                return script[i:]
        return script

    def generate(
        self,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str] = (),
        bias: Mapping[int, float] | None = None,
        top: int = 1,
    ) -> Generated:
        """Greedy. bias: logits to add, by token id."""
        encoding = vocabulary()
        script = self.answer(prompt)
        said: list[int] = []
        tokens: list[Token] = []
        text, reason, hit = "", "length", None
        while len(said) < max_tokens:
            logits = np.zeros(encoding.n_vocab)
            for like, value in self.likes.items():
                logits[encoding.encode_ordinary(like)[0]] += value
            if said == script[: len(said)]:
                logits[script[len(said)] if len(said) < len(script) else END] += SURE
            else:
                logits[END] += SURE / 2
            for i, value in (bias or {}).items():
                logits[i] += value
            logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            best = int(np.argmax(logprobs))
            if best == END:
                reason = "stop"
                break
            said.append(best)
            order = np.argsort(-logprobs, kind="stable")[: max(top, 1)]
            likeliest = {shown(encoding, int(i)): float(logprobs[i]) for i in order}
            tokens.append(Token(shown(encoding, best), float(logprobs[best]), likeliest))
            text = encoding.decode(said)
            ends = [(text.find(s), s) for s in stop if s in text]
            if ends:
                at, hit = min(ends)
                text, reason = text[:at], "stop"
                break
        return Generated(text, tokens, reason, hit, len(encoding.encode(prompt, disallowed_special=())), len(said))

    def pieces(self, generated: Generated) -> list[str]:
        """The text as a stream brings it: token by token, without what the stop string took."""
        pieces, left = [], generated.text
        for token in generated.tokens:
            piece = left[: len(token.text)]
            left = left[len(piece) :]
            if piece:
                pieces.append(piece)
        return pieces
