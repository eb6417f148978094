"""The two libraries that cut text into tokens, behind one face: `tokenizers` for nearly all models, transformers for
the rest (Python tokenizers that a model folder brings). The latter is imported only when asked for: it takes a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Sequential
from tokenizers.processors import TemplateProcessing

from sglang.base.errors import ConfigError, FieldError
from sglang.base.messages import Side
from sglang.text.pieces import Pieces, decoder_of, is_local


class Engine(Protocol):
    vocab_size: int
    special_ids: frozenset[int]
    pieces: Pieces | None  # None: what a token stands for depends on its neighbours

    def encode(self, text: str, add_special_tokens: bool, most: int | None = None, side: Side = "right") -> list[int]:
        """most: ids, the special ones among them, for which the text is cut off on `side`."""
        ...

    def make_lower(self) -> None:
        """From now on texts have no capitals."""
        ...

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int], skip_special: bool, spaces_between_special: bool) -> str: ...

    def token(self, id: int) -> str | None:
        """As the vocabulary spells it."""
        ...

    def id(self, token: str) -> int | None: ...


class FastEngine:
    """A tokenizer.json. Whole texts are encoded, so its own padding and truncation are off."""

    def __init__(self, fast: tokenizers.Tokenizer):
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self.vocab_size = fast.get_vocab_size(with_added_tokens=True)
        self.special_ids = frozenset(i for i, t in fast.get_added_tokens_decoder().items() if t.special)
        decoder = decoder_of(fast)
        decode = None if fast.decoder is None else fast.decoder.decode
        self.pieces = Pieces(decoder, decode) if is_local(decoder) else None

    def encode(self, text: str, add_special_tokens: bool, most: int | None = None, side: Side = "right") -> list[int]:
        try:
            if most is None:
                return self._fast.encode(text, add_special_tokens=add_special_tokens).ids
            [found] = self._fast.encode_batch_fast([text], add_special_tokens=False)
            special = self._fast.num_special_tokens_to_add(False) if add_special_tokens else 0
            if most >= special:  # else transformers cuts nothing
                found.truncate(most - special, direction=side)
            return self._fast.post_process(found, add_special_tokens=add_special_tokens).ids
        except TypeError:  # the library's word for half a surrogate pair, which Python strings can hold
            raise FieldError("prompt", "the text is not valid Unicode: it cannot be written as UTF-8") from None

    def make_lower(self) -> None:
        own = self._fast.normalizer
        steps = [] if own is None else [*own] if isinstance(own, Sequential) else [own]
        if not any(isinstance(step, Lowercase) for step in steps):
            self._fast.normalizer = Sequential([Lowercase(), *steps])

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [e.ids for e in self._fast.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)]

    def decode(self, ids: Sequence[int], skip_special: bool, spaces_between_special: bool) -> str:
        return self._fast.decode(list(ids), skip_special_tokens=skip_special)  # it never puts spaces between any

    def token(self, id: int) -> str | None:
        return self._fast.id_to_token(id)

    def id(self, token: str) -> int | None:
        return self._fast.token_to_id(token)

    def frame(self, bos: str | None, eos: str | None, config: dict[str, Any]) -> None:
        """Heed `add_bos_token` and `add_eos_token` of tokenizer_config.json where tokenizer.json does otherwise.

        Checkpoints of the Llama tokenizer class (DeepSeek's, say) leave tokenizer.json without a BOS and rely on this:
        their class obeyed these keys up to transformers 4. Other classes never did, but code that a folder brings does
        (gte-Qwen2 ends every text).
        """
        if config.get("tokenizer_class") not in ("LlamaTokenizer", "LlamaTokenizerFast") and "auto_map" not in config:
            return
        around = self.encode("", True)
        wanted: list[str] = []
        differs = False
        for key, token in (("add_bos_token", bos), ("add_eos_token", eos)):
            has = token is not None and self.id(token) in around
            wants = config[key] and token is not None if isinstance(config.get(key), bool) else has
            differs |= wants != has
            wanted.append(token if wants and token is not None else "")
        if differs and len(around) <= 2:
            single = [wanted[0], "$A", wanted[1]]
            special = [(t, i) for t in wanted if t and (i := self.id(t)) is not None]
            self._fast.post_processor = TemplateProcessing(single=[s for s in single if s], special_tokens=special)


class PythonEngine:
    """A tokenizer of transformers that exists in Python only."""

    pieces: Pieces | None = None

    def __init__(self, loaded: Any):  # Any: whatever class the model folder brings
        self._loaded = loaded
        self.vocab_size: int = len(loaded)
        self.special_ids: frozenset[int] = frozenset(loaded.all_special_ids)

    def encode(self, text: str, add_special_tokens: bool, most: int | None = None, side: Side = "right") -> list[int]:
        if most is not None:
            self._loaded.truncation_side = side  # nobody asks for the other one: it is the model's
        return self._loaded.encode(
            text, add_special_tokens=add_special_tokens, truncation=most is not None, max_length=most
        )

    def make_lower(self) -> None:
        self._loaded.do_lower_case = True  # heard or not, as by sentence-transformers

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: Sequence[int], skip_special: bool, spaces_between_special: bool) -> str:
        return self._loaded.decode(
            list(ids),
            skip_special_tokens=skip_special,
            spaces_between_special_tokens=spaces_between_special,
            clean_up_tokenization_spaces=False,
        )

    def token(self, id: int) -> str | None:
        token = self._loaded.convert_ids_to_tokens(id)
        return token.decode("latin-1") if isinstance(token, bytes) else token

    def id(self, token: str) -> int | None:
        return self._loaded.convert_tokens_to_ids(token)


def open_file(file: Path) -> FastEngine:
    try:
        return FastEngine(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{file}: not a readable tokenizer ({error})") from None


def open_with_transformers(folder: Path, mode: str, trust_remote_code: bool) -> Engine:
    """Formats without a tokenizer.json (sentencepiece or tiktoken files), `--tokenizer-mode slow`, remote code."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ConfigError(
            f"{folder}: this tokenizer needs the transformers package; pip install transformers"
        ) from None
    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), use_fast=mode != "slow", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # whatever a tokenizer's own code raises
        hint = "" if trust_remote_code else " (its own Python code runs only with --trust-remote-code)"
        why = " ".join(str(error).split())
        raise ConfigError(f"{folder}: no tokenizer can be loaded: {why}{hint}") from None
    fast = getattr(loaded, "backend_tokenizer", None)
    return PythonEngine(loaded) if fast is None else FastEngine(fast)
