"""Tokenizers trained on the spot, one of each kind that models have, and ids that try them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from sglang.text.engines import FastEngine
from sglang.text.templates import FileTemplate
from sglang.text.tokenizer import Tokenizer

CORPUS = [
    "the capital of France is Paris and the capital of Japan is Tokyo",
    "def f(x):\n    return x + 1\n\n\n# a comment",
    "naïve café Grüße, 日本語 の テスト, 👋🏽 🌍 👨‍👩‍👧 Привет мир",
    "one two three four five six seven eight nine ten  eleven   twelve",
]
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def byte_level() -> Raw:
    """As GPT-2, Llama 3, Qwen."""
    raw = Raw(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    raw.add_tokens(["日本 go", "<tool>"])  # added, not special; the first is outside the byte alphabet
    return raw


def _sentencepiece(decoder: Any, normalizer: Any) -> Raw:
    raw = Raw(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", *SPECIAL, *BYTES], show_progress=False, limit_alphabet=60
    )
    raw.train_from_iterator([s.replace(" ", "▁") for s in CORPUS * 4], trainer)
    # Byte tokens are ordinary words of the vocabulary, as in a converted sentencepiece model.
    saved = json.loads(raw.to_str())
    saved["added_tokens"] = [t for t in saved["added_tokens"] if t["content"] not in BYTES]
    raw = Raw.from_str(json.dumps(saved))
    raw.decoder = decoder
    return raw


def llama() -> Raw:
    """As Llama 2 and Mistral: a blank before the first word, taken off again."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return _sentencepiece(
        decoders.Sequence(steps), normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )


def gemma() -> Raw:
    """No blank is put anywhere."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _sentencepiece(decoders.Sequence(steps), normalizers.Replace(" ", "▁"))


def metaspace() -> Raw:
    """As T5 and XLM: a unigram model, no byte fallback."""
    raw = Raw(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    return raw


def word_piece() -> Raw:
    """As BERT."""
    raw = Raw(models.WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    raw.train_from_iterator(CORPUS * 4, trainer)
    return raw


def words() -> Raw:
    """No decoder at all: tokens are joined with blanks."""
    raw = Raw(models.WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>", *SPECIAL], show_progress=False))
    return raw


def end_of_word() -> Raw:
    """As CLIP: a blank after each word but the last, so a token's text does depend on what follows."""
    raw = Raw(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL], end_of_word_suffix="</w>", show_progress=False
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    return raw


MAKERS: dict[str, Callable[[], Raw]] = {
    m.__name__: m for m in (byte_level, llama, gemma, metaspace, word_piece, words, end_of_word)
}
LOCAL = ["byte_level", "llama", "gemma", "metaspace", "word_piece", "words"]


@cache
def raw_of(kind: str) -> Raw:
    return MAKERS[kind]()


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    template = FileTemplate(
        {"name": "t", "system": "", "user": "U", "assistant": "A", "sep_style": "CHATML", "stop_str": ""}, "t"
    )
    return Tokenizer(FastEngine(raw_of(kind)), template, {"bos_token": "<s>", "eos_token": "</s>"})


def save(folder: Path, kind: str, **config: Any) -> Path:
    """A model folder with this tokenizer and what `config` adds to its tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    raw_of(kind).save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(known), "utf-8")
    return folder


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Ids of texts, and ids that no text has: any tokens in any order, unknown ones too, bytes cut anywhere."""
    raw = raw_of(kind)
    size = raw.get_vocab_size()
    byte_ids = [i for b in BYTES if (i := raw.token_to_id(b)) is not None]
    texts = st.one_of(st.text(max_size=12), st.sampled_from(CORPUS), st.text(alphabet="日本é👋🏽🌍 \n", max_size=8))
    runs = [texts.map(lambda text: raw.encode(text).ids), st.lists(st.integers(0, size + 5), max_size=8)]
    if byte_ids:
        runs.append(st.lists(st.sampled_from(byte_ids), max_size=6))
    return st.lists(st.one_of(runs), max_size=4).map(lambda parts: [id for part in parts for id in part])


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """`ids` in pushes of these sizes, the rest in one."""
    parts: list[list[int]] = []
    for size in sizes:
        parts.append(ids[:size])
        ids = ids[size:]
    return [*parts, ids]


SIZES = st.lists(st.integers(0, 3), max_size=60)
