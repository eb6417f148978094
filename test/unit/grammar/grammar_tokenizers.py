"""Small tokenizers of the kinds that models have, trained on text that is always there."""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sglang.grammar.vocab import Vocabulary
from sglang.text.pieces import Pieces, decoder_of

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Kind:
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    eos: int

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def spell(self, ids: list[int]) -> bytes:
        return b"".join(self.vocabulary.bytes[i] for i in ids)


def _lines() -> list[str]:
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    text = "".join(f.read_text("utf-8") for f in files)
    names = ["Hermione Granger", "Harry Potter", "Zoë Müller", "日本語", "naïve café"]
    records = [
        json.dumps(
            {"name": n, "house": "Gryffindor", "age": i, "length": i / 7}, indent=i % 5 or None, ensure_ascii=False
        )
        for i in range(200)
        for n in names
    ]
    return [*text.splitlines(keepends=True), *records]


def _byte_level(pattern: str | None, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    if ignore_merges:
        state = json.loads(tokenizer.to_str())
        vocab = state["model"]["vocab"]
        for word in ("Gryff", "length", "Ġtrain", "ouse", "rin", "names", "Ġstudents", "eath", "Harryx"):
            vocab.setdefault(word, len(vocab))
        state["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def _sentencepiece(unigram: bool) -> Tokenizer:
    if unigram:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=2000, special_tokens=["<eos>", "<unk>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(_lines()[-4000:], trainer)  # slow to train
        return tokenizer
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # only while training, so that words stay short
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>", "<eos>", *fallback], show_progress=False)
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: _byte_level(None),
    "gpt4": lambda: _byte_level(GPT4),
    "llama3": lambda: _byte_level(GPT4, ignore_merges=True),
    "llama2": lambda: _sentencepiece(False),
    "unigram": lambda: _sentencepiece(True),
}


@functools.cache
def kind(name: str) -> Kind:
    tokenizer = KINDS[name]()
    pieces = Pieces(decoder_of(tokenizer), tokenizer.decoder.decode)
    size = tokenizer.get_vocab_size()
    spelled = [pieces.spell(tokenizer.id_to_token(i)) for i in range(size)]
    eos = tokenizer.token_to_id("<eos>")
    special = [i for i in range(size) if tokenizer.id_to_token(i) in ("<eos>", "<unk>")]
    return Kind(tokenizer, Vocabulary(spelled, [eos], special), eos)
