"""Files of SentencePiece and tiktoken, read by us, against the libraries that define them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from text_kinds import CORPUS

from sglang.base.errors import ConfigError
from sglang.text.released import GPT4, QWEN
from sglang.text.tokenizer import Tokenizer, load

TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two  blanks   ",
    "hello\n\nworld\t!",
    "12345 678",
    "The café's über-naïve señor; don't.",
    "日本語 🌍 Привет",
    "soprano sop eop",
    "Ａｂｃ ﬁne e\u0301",
]


def piece_file(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Train tokenizer.model on the corpus."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=out,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def opened(folder: Path, kind: str, **config: Any) -> Tokenizer:
    if kind:
        more = {"auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **more, **config}))
    return load(str(folder))


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("dummy", [True, False])
@pytest.mark.parametrize("tidy", [True, False])
def test_a_sentencepiece_file_means_what_sentencepiece_says(rule: str, dummy: bool, tidy: bool, tmp_path: Path) -> None:
    theirs = piece_file(tmp_path, normalization_rule_name=rule, add_dummy_prefix=dummy, remove_extra_whitespaces=tidy)
    ours = opened(tmp_path, "")
    assert ours.vocab_size == theirs.get_piece_size()
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids)


def test_chatglm_begins_with_its_two_tokens_and_knows_its_roles(tmp_path: Path) -> None:
    theirs = piece_file(tmp_path, normalization_rule_name="identity", remove_extra_whitespaces=False)
    ours, n = opened(tmp_path, "ChatGLMTokenizer"), theirs.get_piece_size()
    assert ours.vocab_size == n + 9
    assert ours.encode("soprano sop") == [n + 1, n + 3, *theirs.encode("soprano sop")]
    chat = ours.encode("[gMASK]sop<|user|>\n hello<|assistant|>", add_special_tokens=False)
    assert chat == [n + 1, n + 3, n + 6, *theirs.encode("\n hello"), n + 7]
    assert ours.decode(chat) == "\n hello" and n + 6 in ours.special_ids


def test_internlm2_renames_spare_tokens_of_its_file(tmp_path: Path) -> None:
    theirs = piece_file(tmp_path, user_defined_symbols=["[UNUSED_TOKEN_146]", "keep me"])
    spare = theirs.piece_to_id("[UNUSED_TOKEN_146]")
    names = {str(spare): {"content": "<|im_start|>", "special": True}, "1": {"content": "<s>", "special": True}}
    ours = opened(tmp_path, "InternLM2Tokenizer", added_tokens_decoder=names, bos_token="<s>")
    assert ours.encode("<|im_start|>user") == [1, spare, *theirs.encode("user")]
    assert ours.encode("a keep me", add_special_tokens=False).count(theirs.piece_to_id("keep me")) == 1
    assert ours.bos_id == 1


def rank_file(file: Path) -> dict[bytes, int]:
    """Train a vocabulary by tiktoken's own teaching code, and write it as its files are."""
    from tiktoken._educational import bpe_train

    ranks = bpe_train("\n".join(CORPUS * 3), 330, GPT4.format(digits=""), visualise=None)
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return ranks


@pytest.mark.parametrize(("kind", "name", "digits"), [
    ("QWenTokenizer", "qwen.tiktoken", ""), ("ChatGLM4Tokenizer", "tokenizer.model", "{1,3}"),
])  # fmt: skip
def test_a_tiktoken_file_means_what_tiktoken_says(kind: str, name: str, digits: str, tmp_path: Path) -> None:
    ranks = rank_file(tmp_path / name)
    first = len(ranks)
    glm = {first: "<|endoftext|>", first + 1: "[gMASK]", first + 2: "<sop>", first + 3: "<|user|>"}
    special = {name: first + i for i, name in enumerate(QWEN)} if not digits else {v: k for k, v in glm.items()}
    theirs = tiktoken.Encoding("own", pat_str=GPT4.format(digits=digits), mergeable_ranks=ranks, special_tokens=special)
    names = {"added_tokens_decoder": {str(i): {"content": t, "special": True} for i, t in glm.items()}}
    ours = opened(tmp_path, kind, **(names if digits else {}))
    assert ours.vocab_size == theirs.n_vocab
    for text in TEXTS[:-1]:  # the last has a character that Qwen composes before it cuts
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.decode(ids) == text
    if digits:
        assert ours.encode("a<|user|>b") == [first + 1, first + 2, *theirs.encode("a"), first + 3, *theirs.encode("b")]
    else:
        assert ours.encode("<|im_start|>é e\u0301") == [first + 1, *theirs.encode("é é")]


def test_a_broken_file_and_an_unknown_class_say_what_helps(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match=r"tokenizer\.model: not a readable tokenizer"):
        opened(tmp_path, "ChatGLMTokenizer")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs"}))
    with pytest.raises(ConfigError, match="--trust-remote-code"):
        opened(tmp_path, "TheirTokenizer")
