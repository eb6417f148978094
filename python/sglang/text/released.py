"""Tokenizers whose makers left no tokenizer.json but a file of SentencePiece or tiktoken, and Python code to read it:
the file is turned into what `tokenizers` computes, and no code of a model folder runs.
"""

import base64
import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from sglang.base.errors import ConfigError
from sglang.base.messages import Side
from sglang.text.engines import FastEngine

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
GLM = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
Names = dict[int, str]  # special tokens that the model file itself does not have


@dataclass(frozen=True)
class Kind:
    """file: where its words are. after: special tokens whose ids follow the file's last. before: what texts begin with.

    digits: of a number that stay together, in files of tiktoken; None: SentencePiece.
    """

    file: str
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    digits: str | None = None
    nfc: bool = False


# By tokenizer_class of tokenizer_config.json.
KINDS = {
    "QWenTokenizer": Kind("qwen.tiktoken", tuple(QWEN), digits="", nfc=True),
    "ChatGLMTokenizer": Kind("tokenizer.model", tuple(GLM), ("[gMASK]", "<sop>")),
    "ChatGLM4Tokenizer": Kind("tokenizer.model", (), ("[gMASK]", "<sop>"), "{1,3}"),
    "InternLM2Tokenizer": Kind("tokenizer.model", (), ("<s>",)),
    "InternLM2TokenizerFast": Kind("tokenizer.model", (), ("<s>",)),
    "": Kind("tokenizer.model"),  # Grok-1 as it was published: a SentencePiece file and no word about it
}


class Glm(FastEngine):
    """ChatGLM's chats are written with a special token called "sop", which is a part of many words."""

    def encode(self, text: str, add_special_tokens: bool, most: int | None = None, side: Side = "right") -> list[int]:
        return super().encode(text.replace("[gMASK]sop", "[gMASK]<sop>", 1), add_special_tokens, most, side)


def open_released(folder: Path, config: dict[str, Any]) -> FastEngine | None:
    """The tokenizer of a folder without a tokenizer.json; None where it is of no kind known here.

    config: tokenizer_config.json. Raises ConfigError for a file that is not what it is called.
    """
    kind = KINDS.get(config.get("tokenizer_class") or "")
    if kind is None or not (folder / kind.file).is_file():
        return None
    names = {int(id): token["content"] for id, token in (config.get("added_tokens_decoder") or {}).items()}
    file = folder / kind.file
    try:
        raw = sentencepiece(file, kind, names) if kind.digits is None else tiktoken(file, kind, names)
    except (ValueError, IndexError, KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a readable tokenizer ({error})") from None
    before = [token for token in kind.before if raw.token_to_id(token) is not None]
    if config.get("add_bos_token", True) and before:
        begin_with(raw, before)
    return (Glm if "sop" in str(kind.after) else FastEngine)(raw)


def begin_with(raw: Tokenizer, before: list[str], after: list[str] | None = None) -> None:
    """What texts begin and end with, where special tokens are asked for."""
    ends = after or []
    ids: Any = [(token, raw.token_to_id(token)) for token in {*before, *ends}]
    raw.post_processor = TemplateProcessing(single=[*before, "$A", *ends], special_tokens=ids)


def special(raw: Tokenizer, names: Names) -> Tokenizer:
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for _, name in sorted(names.items())])
    for id, name in names.items():
        if raw.token_to_id(name) != id:
            raise ValueError(f"special token {name} should be {id}, would be {raw.token_to_id(name)}")
    return raw


# tiktoken: a line of base64 and a rank for each token; what comes together is what has the lowest rank.


def tiktoken(file: Path, kind: Kind, names: Names) -> Tokenizer:
    lines = [line.split() for line in file.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    spelled = {token: "".join(_LETTERS[b] for b in token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [_halves(token, rank, ranks) for token, rank in sorted(ranks.items(), key=lambda pair: pair[1])]
    pairs = [(spelled[pair[0]], spelled[pair[1]]) for pair in merges if pair is not None]
    raw = Tokenizer(models.BPE(vocab, pairs, ignore_merges=True))
    if kind.nfc:
        raw.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(GPT4.format(digits=kind.digits)), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    first = max(ranks.values()) + 1
    return special(raw, names or {first + i: name for i, name in enumerate(kind.after)})


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that become this one, found by doing what made it with lower ranks only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        lowest = min(joined)
        if lowest >= rank:
            return None  # no text leads to it, but the whole word does
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _letters() -> list[str]:
    """Byte -> the visible character that stands for it in byte-level vocabularies (GPT-2)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


_LETTERS = _letters()

# SentencePiece: a protobuf message (sentencepiece_model.proto); the numbers below are those of its fields.

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def sentencepiece(file: Path, kind: Kind, names: Names) -> Tokenizer:
    message = list(_fields(file.read_bytes()))
    pieces = [_piece(value) for number, value in message if number == 1 and isinstance(value, bytes)]
    trainer = _message(message, 2)
    rules = _message(message, 3)
    if not pieces or trainer.get(3, 1) != 2:
        raise ValueError("no SentencePiece model of type BPE")
    names = {len(pieces) + i: name for i, name in enumerate(kind.after)} | names
    dummy, tidy, escaped = (bool(rules.get(number, 1)) for number in (3, 4, 5))
    return pieces_of(pieces, names, rules.get(2), dummy, tidy, escaped)


def pieces_of(
    pieces: list[tuple[str, float, int]],
    names: Names,
    charsmap: bytes | None,
    dummy: bool,
    tidy: bool,
    escaped: bool,
) -> Tokenizer:
    """pieces: text, score and type of each id. charsmap: of normalisation. dummy: a blank before each text.

    tidy: of several blanks one is left, and none at the ends. escaped: blanks are ▁ in pieces.
    """
    names = {i: text for i, (text, _, type) in enumerate(pieces) if type == CONTROL} | names
    words = [names.get(i, text) for i, (text, _, _) in enumerate(pieces)]
    fallback = any(type == BYTE for _, _, type in pieces)
    unknown = next((words[i] for i, (_, _, type) in enumerate(pieces) if type == UNKNOWN), None)
    vocab = {word: i for i, word in enumerate(words)}
    merges = _merges({text: (score, i) for i, (text, score, type) in enumerate(pieces) if type == NORMAL})
    raw = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if tidy:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if dummy else []
    steps += [normalizers.Replace(" ", "▁")] if escaped else []
    raw.normalizer = normalizers.Sequence(steps)
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence(back + ([decoders.Strip(" ", 1, 0)] if dummy else []))
    own = [text for text, _, type in pieces if type == USER_DEFINED and text not in names.values()]
    # A run of blanks that is a piece is found as pieces write it; a dummy blank would be put before it too.
    raw.add_tokens([AddedToken(text, normalized="▁" in text and not dummy) for text in own])
    return special(raw, names)


def _merges(scores: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """Pairs in the order in which they come together: the piece with the best score first."""
    found = [
        (-score, i, word[:cut], word[cut:])
        for word, (score, i) in scores.items()
        for cut in range(1, len(word))
        if word[:cut] in scores and word[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _piece(data: bytes) -> tuple[str, float, int]:
    found = dict(_fields(data))
    text, score = found[1], found.get(2, b"\0\0\0\0")
    assert isinstance(text, bytes) and isinstance(score, bytes)
    return text.decode(), struct.unpack("<f", score)[0], int(found.get(3, NORMAL))


def _message(fields: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    return dict(_fields(next((value for n, value in fields if n == number), b"")))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message; fixed-width numbers come as their bytes. Raises IndexError, ValueError."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"not a protobuf message (wire type {wire})")
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        if at + size > len(data):
            raise IndexError("the file is cut off")
        yield number, data[at : at + size]
        at += size
