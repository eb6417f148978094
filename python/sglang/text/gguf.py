"""The tokenizer that a GGUF file brings in its metadata, as what `tokenizers` computes."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sglang.base.errors import ConfigError
from sglang.base.gguf import header
from sglang.text.engines import FastEngine
from sglang.text.released import CONTROL, GPT4, UNKNOWN, USER_DEFINED, begin_with, pieces_of, special

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _cased(short: str, digits: str) -> str:
    """Words end where a small letter is followed by a capital one."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{short}|{before}{_UPPER}+{_LOWER}*{short}"
    return words + r"|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


LLAMA3, QWEN2 = GPT4.format(digits="{1,3}"), GPT4.format(digits="")
_HAN = "[一-龥\u0800-一가-\ud7ff]+"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_AFTER_MARK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_WORDS = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> how a text is cut before its pieces are joined: a pattern, or several that cut one after
# another; "": GPT-2's; "digits": that, and every digit by itself.
CUTS: dict[str, str | tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4"), ""),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _cased(_SHORT, "{1,3}")),
    "seed-coder": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"),
    "deepseek-v3": (r"\p{N}{1,3}", _CJK, f"{_AFTER_MARK}|{_WORDS}"),
    "tekken": _cased("", ""),
}
WHOLE = {"llama-bpe", "llama3", "llama-v3", "tekken"}  # a word that is a piece is not cut, whatever its merges
COMPOSED = {"qwen2", "deepseek-r1-qwen"}  # characters are, first (NFC)
BEGUN = {"llama-bpe", "llama3", "llama-v3"}  # by BOS, where the file does not say
ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message to a tool


def open_gguf(path: Path) -> tuple[FastEngine, dict[str, Any], dict[str, list[int]]]:
    """The tokenizer, what tokenizer_config.json would say, and bos and eos ids. Raises ConfigError."""
    keys = {k.removeprefix("tokenizer."): v for k, v in header(path).keys.items() if k.startswith("tokenizer.")}
    tokens, kinds = keys.get("ggml.tokens"), keys.get("ggml.token_type")
    kind, pre = keys.get("ggml.model"), keys.get("ggml.pre", "default")
    beside = "put the model's tokenizer.json beside it, or name its folder with --tokenizer-path"
    if not isinstance(tokens, list) or not isinstance(kind, str):
        raise ConfigError(f"{path.name}: it brings no tokenizer; {beside}")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(tokens) else [1] * len(tokens)
    try:
        match kind:
            case "llama":
                scores = keys["ggml.scores"]
                pieces = list(zip(tokens, scores, kinds, strict=True))
                raw = pieces_of(pieces, {}, None, bool(keys.get("ggml.add_space_prefix", True)), False, True)
            case "bert":
                raw = _words(tokens, kinds)
            case "gpt2" if pre in CUTS:
                raw = _merged(tokens, kinds, keys["ggml.merges"], pre)
            case "gpt2":
                raise ConfigError(f"{path.name}: tokenizer.ggml.pre = {pre!r} is not known; {beside}")
            case _:
                raise ConfigError(f"{path.name}: tokenizer.ggml.model = {kind!r} is not known; {beside}")
        if len(set(tokens)) != len(tokens):
            raise ValueError("a token occurs twice")
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{path.name}: not a readable tokenizer ({error}); {beside}") from None
    given = {name: keys.get(f"ggml.{name}_token_id") for name in ("bos", *ENDS)}
    given["unk"] = keys.get("ggml.unknown_token_id")
    if kind == "bert":  # seperator: as llama.cpp spells it
        given |= {"bos": raw.token_to_id("[CLS]"), "eos": keys.get("ggml.seperator_token_id", raw.token_to_id("[SEP]"))}
    ids = {name: id for name, id in given.items() if isinstance(id, int) and 0 <= id < len(tokens)}
    named = {f"{name}_token": tokens[id] for name, id in ids.items()}
    begun = keys.get("ggml.add_bos_token", kind in ("llama", "bert") or pre in BEGUN)
    before = [named["bos_token"]] if begun and "bos" in ids else []
    after = [named["eos_token"]] if keys.get("ggml.add_eos_token", kind == "bert") and "eos" in ids else []
    if before or after:
        begin_with(raw, before, after)
    config = {name: token for name, token in named.items() if name in ("bos_token", "eos_token", "unk_token")}
    if "chat_template" in keys:
        config["chat_template"] = keys["chat_template"]
    known = {"bos": [ids["bos"]] if "bos" in ids else [], "eos": [ids[end] for end in ENDS if end in ids]}
    return FastEngine(raw), config, known


def _words(tokens: list[str], kinds: list[int]) -> Tokenizer:
    """BERT's pieces of words. In a file "▁" marks those that begin a word, where BERT marks the others with "##"."""
    whole = [
        k in (UNKNOWN, CONTROL) or (t[:1] == "[" and t[-1:] == "]" != t) for t, k in zip(tokens, kinds, strict=True)
    ]
    vocab = [t if w else t[1:] if t[:1] == "▁" else f"##{t}" for t, w in zip(tokens, whole, strict=True)]
    raw = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    # The file does not say whether case and accents matter. Where they do, its words have some.
    letters = {c for token, w in zip(vocab, whole, strict=True) if not w for c in token}
    small = not any(c.isupper() for c in letters)
    raw.normalizer = normalizers.BertNormalizer(lowercase=small, strip_accents=small and letters.isdisjoint("äöüéèàñç"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return special(raw, {i: token for i, (token, k) in enumerate(zip(tokens, kinds, strict=True)) if k == CONTROL})


def _merged(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> Tokenizer:
    """Byte-level pieces, joined in the order of `merges`: left and right with a blank between."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre in WHOLE))
    if pre in COMPOSED:
        raw.normalizer = normalizers.NFC()
    cut = CUTS[pre]
    if cut in ("", "digits"):
        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut else []
        steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        cuts = (cut,) if isinstance(cut, str) else cut
        steps = [pre_tokenizers.Split(Regex(one), "isolated") for one in cuts]
        steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    raw.pre_tokenizer = pre_tokenizers.Sequence(steps)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED])
    return special(raw, {i: token for i, (token, k) in enumerate(zip(tokens, kinds, strict=True)) if k == CONTROL})
