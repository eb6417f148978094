"""Tokenizers from the metadata of GGUF files, against the tokenizers that they were written from."""

import io
import json
from pathlib import Path
from typing import Any

import packers
import pytest
import sentencepiece
import tiktoken
import tokenizers
import transformers
from safetensors.torch import load_file
from text_kinds import CORPUS

from sglang.base.config import DEMO_MODEL, ServerConfig
from sglang.base.errors import ConfigError
from sglang.launch import ThreadWorker
from sglang.offline import Engine
from sglang.text.gguf import COMPOSED, CUTS
from sglang.text.tokenizer import load

TEXTS = [
    *CORPUS, "", " ", "  two  blanks   ", "hello\n\nworld\t!", "12345 678", "The café's über-naïve señor; don't.",
    "日本語 🌍 Привет", "camelCase and HTTPServer's URLs//", "e\u0301", "a <|end|> b", "    if x:\n        y = 1\r\n",
    'say("no") _x -y+1 \'tis 漢字かな交じり文 1234567',
]  # fmt: skip


def saved(path: Path, keys: dict[str, Any]) -> Path:
    path.write_bytes(
        packers.gguf({"general.architecture": "llama"} | {f"tokenizer.{k}": v for k, v in keys.items()}, {})
    )
    return path


def pieces(path: Path, **options: Any) -> tuple[Path, sentencepiece.SentencePieceProcessor]:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=out, vocab_size=420, model_type="bpe", byte_fallback=True,
        num_threads=1, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False, **options,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    n = range(theirs.get_piece_size())
    user = options.get("user_defined_symbols", [])
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i)
        else 4 if theirs.id_to_piece(i) in user else 1 for i in n
    ]  # fmt: skip
    keys = {
        "ggml.model": "llama", "ggml.tokens": [theirs.id_to_piece(i) for i in n],
        "ggml.scores": [float(theirs.get_score(i)) for i in n], "ggml.token_type": kinds,
        "ggml.bos_token_id": theirs.bos_id(), "ggml.eos_token_id": theirs.eos_id(),
        "ggml.unknown_token_id": theirs.unk_id(), "ggml.add_space_prefix": options.get("add_dummy_prefix", True),
    }  # fmt: skip
    return saved(path / "model.gguf", keys), theirs


@pytest.mark.parametrize("dummy", [True, False])
def test_scored_pieces_mean_what_sentencepiece_says(dummy: bool, tmp_path: Path) -> None:
    own = {"user_defined_symbols": ["▁▁", "▁▁▁▁", "<start_of_turn>"]} if not dummy else {}
    path, theirs = pieces(tmp_path, add_dummy_prefix=dummy, **own)
    ours = load(str(path))
    assert ours.vocab_size == theirs.get_piece_size()
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id(), (theirs.eos_id(),))
    for text in [*TEXTS, *(["a<start_of_turn>  b    c"] if own else [])]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.encode(text) == [theirs.bos_id(), *ids]
        assert ours.decode(ids) == theirs.decode(ids)


def merged(path: Path, file: tokenizers.Tokenizer, pre: str, **more: Any) -> Path:
    return saved(path / "model.gguf", _keys(file, pre) | more)


def _keys(file: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    """As the converter writes a byte-level tokenizer."""
    model = json.loads(file.to_str())["model"]
    added = file.get_added_tokens_decoder()
    n = range(file.get_vocab_size())
    return {
        "ggml.model": "gpt2", "ggml.pre": pre, "ggml.tokens": [file.id_to_token(i) for i in n],
        "ggml.token_type": [(3 if added[i].special else 4) if i in added else 1 for i in n],
        "ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
    }  # fmt: skip


def trained(cut: Any, **options: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
    made.pre_tokenizer = cut
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([*CORPUS, *TEXTS] * 5, trainer)
    return made


@pytest.mark.parametrize("pre", ["gpt-2", "starcoder"])
def test_merges_mean_what_the_tokenizer_says(pre: str, tmp_path: Path) -> None:
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True), level]
    theirs = trained(level if pre == "gpt-2" else tokenizers.pre_tokenizers.Sequence(steps))
    end = theirs.token_to_id("<|end|>")
    ours = load(str(merged(tmp_path, theirs, pre, **{"ggml.eos_token_id": end})))
    assert ours.vocab_size == theirs.get_vocab_size() and ours.eos_ids == (end,) and ours.special_ids == {end}
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids, text
        assert ours.decode(ours.encode(text)) == text.replace("<|end|>", "")


# Words of a text, as tiktoken cuts them with the published pattern.
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])  # fmt: skip
CL100K = "|".join([
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])  # fmt: skip


@pytest.mark.parametrize(("pre", "pattern"), [("gpt-4o", O200K), ("llama-bpe", CL100K)])
def test_texts_are_cut_as_by_the_pattern(pre: str, pattern: str, tmp_path: Path) -> None:
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), level]
    theirs = trained(tokenizers.pre_tokenizers.Sequence(whole))
    ours = load(str(merged(tmp_path, theirs, pre)))
    ranks = {bytes([b]): b for b in range(256)}
    words = tiktoken.Encoding("words", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text).ids, text
        assert words.decode(words.encode(text)) == text


def test_a_file_alone_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model in one file: the same chat, the same ids, the same answer."""
    theirs, folder = load(str(DEMO_MODEL)), Path(DEMO_MODEL)
    file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    cut = json.loads(file.to_str())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    monkeypatch.setitem(CUTS, "demo", cut)
    model = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    model["head_dim"] = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
    tensors = {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    keys = _keys(file, "demo") | {
        "ggml.eos_token_id": theirs.eos_ids[0],
        "ggml.eot_token_id": theirs.eos_ids[-1],
        "chat_template": config.get("chat_template") or (folder / "chat_template.jinja").read_text(),
    }
    raw, _ = packers.gguf_of(model, tensors, lambda n: "F16", {f"tokenizer.{k}": v for k, v in keys.items()})
    path = tmp_path / "demo.gguf"
    path.write_bytes(raw)
    ours = load(str(path))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert ours.render_chat(messages) == theirs.render_chat(messages)
    for text in [*TEXTS, ours.render_chat(messages)]:
        assert ours.encode(text) == theirs.encode(text)
    with Engine(model_path=str(path), device="cpu", dtype="float32", worker=ThreadWorker) as engine:
        answer = engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 4})
    assert answer["text"].startswith(" Paris")


def test_bos_is_added_where_the_file_or_its_kind_says(tmp_path: Path) -> None:
    theirs = trained(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    end = theirs.token_to_id("<|end|>")

    def first(pre: str, **more: bool) -> bool:
        ids = {"ggml.bos_token_id": end} | {f"ggml.{key}": value for key, value in more.items()}
        return load(str(merged(tmp_path, theirs, pre, **ids))).encode("hello")[0] == end

    assert first("llama-bpe") and not first("qwen2")
    assert not first("llama-bpe", add_bos_token=False) and first("qwen2", add_bos_token=True)
    ids = {"ggml.eos_token_id": end, "ggml.add_eos_token": True}
    assert load(str(merged(tmp_path, theirs, "gpt-2", **ids))).encode("hello")[-1] == end


def test_every_end_ends_and_the_folders_tokenizer_goes_before(tmp_path: Path) -> None:
    theirs = trained(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = merged(tmp_path, theirs, "gpt-2", **{"ggml.eos_token_id": 0, "ggml.eot_token_id": 5, "ggml.eom_token_id": 9})
    assert load(str(path)).eos_ids == (0, 5, 9)
    theirs.add_special_tokens(["<|more|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert load(str(path)).encode("<|more|>") == [theirs.token_to_id("<|more|>")]
    assert ServerConfig(model_path=str(path), device="cpu").resolve().tokenizer_path == str(path)
    assert ServerConfig(model_path="x.gguf", tokenizer_path="there", device="cpu").resolve().tokenizer_path == "there"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "it brings no tokenizer"),
        ({"ggml.model": "gpt2", "ggml.tokens": ["a"], "ggml.pre": "odd"}, "tokenizer.ggml.pre = 'odd' is not known"),
        ({"ggml.model": "t5", "ggml.tokens": ["a"]}, "tokenizer.ggml.model = 't5' is not known"),
        ({"ggml.model": "bert", "ggml.tokens": ["▁a", "▁a"]}, "a token occurs twice"),
        ({"ggml.model": "gpt2", "ggml.tokens": ["a"], "ggml.pre": "gpt-2"}, "not a readable tokenizer"),
        (
            {"ggml.model": "gpt2", "ggml.tokens": ["a", "b"], "ggml.pre": "gpt-2", "ggml.merges": ["a c"]},
            "not a readable tokenizer",
        ),
        (
            {"ggml.model": "llama", "ggml.tokens": ["a", "a"], "ggml.scores": [0.0, 0.0]},
            "a token occurs twice",
        ),
    ],
)
def test_what_cannot_be_read_is_named_and_what_to_do(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(saved(tmp_path / "x.gguf", keys)))
    assert words in str(caught.value) and "--tokenizer-path" in str(caught.value) and "\n" not in str(caught.value)


ENGLISH = (
    "the quick brown fox jumps over a lazy dog cafe naive un ##known ##s ##ing play it ' . , ! ? ( ) - 12 ##3 日 本"
)
VOCABULARIES = {
    "uncased": [*ENGLISH.split(), *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")],
    "cased": [*ENGLISH.split(), "The", "Café", "##É", *"abcdefghijklmnopqrstuvwxyzQ", "##a", "##n", "##ï", "##ve"],
    "accents": [*ENGLISH.split(), "über", "##é", *"abcdefghijklmnopqrstuvwxyz"],
}
WORDS = [
    *TEXTS, "The quick Brown fox, jumps over the café!", "playing unknowns 1233", "über-naïve Über", "日本[MASK] it's",
    "a" * 101, "[unused0] x [CLS] y",
]  # fmt: skip


@pytest.mark.parametrize("case", VOCABULARIES)
@pytest.mark.parametrize("named", [True, False])
def test_pieces_of_words_mean_what_berts_tokenizer_says(case: str, named: bool, tmp_path: Path) -> None:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*marks, "[unused0]", *VOCABULARIES[case]]))
    small = case != "cased"
    theirs = transformers.BertTokenizer(
        {token: i for i, token in enumerate(vocabulary)}, do_lower_case=small, strip_accents=small and case == "uncased"
    )
    kept = {*marks} if named else {*marks, "[unused0]"}  # the first converter kept all in brackets, and told no kinds
    keys: dict[str, Any] = {
        "ggml.model": "bert", "ggml.pre": "bert-bge",
        "ggml.tokens": [t if t in kept else t[2:] if t[:2] == "##" else f"▁{t}" for t in vocabulary],
        "ggml.token_type": [3 if t in marks else 1 for t in vocabulary],
    }  # fmt: skip
    if named:
        keys |= {"ggml.cls_token_id": 2, "ggml.seperator_token_id": 3, "ggml.unknown_token_id": 1}
    ours = load(str(saved(tmp_path / "model.gguf", keys)))
    assert ours.vocab_size == len(vocabulary)
    for text in WORDS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode("the dog plays")) == "the dog plays"


def same_as_llama_cpp(path: Path, texts: list[str]) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference here")
    ours, theirs = load(str(path)), llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in texts:
        expected = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ours.encode(text, add_special_tokens=False) == expected, text


@pytest.mark.parametrize("pre", CUTS)
def test_texts_are_cut_as_llama_cpp_cuts_them(pre: str, tmp_path: Path) -> None:
    file = trained(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    # It never composes characters, which the tokenizers of some models do.
    texts = [text for text in TEXTS if pre not in COMPOSED or text.isascii()]
    same_as_llama_cpp(merged(tmp_path, file, pre, **{"ggml.bos_token_id": 0, "ggml.eos_token_id": 0}), texts)


@pytest.mark.parametrize("dummy", [True, False])
def test_scored_pieces_are_joined_as_llama_cpp_joins_them(dummy: bool, tmp_path: Path) -> None:
    own = {} if dummy else {"user_defined_symbols": ["▁▁", "▁▁▁▁", "<start_of_turn>"]}
    path, _ = pieces(tmp_path, add_dummy_prefix=dummy, **own)
    same_as_llama_cpp(path, [*TEXTS, "a<start_of_turn>  b    c"])
