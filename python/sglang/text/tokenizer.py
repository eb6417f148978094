"""A model's tokenizer: text -> ids, ids -> text, chats -> prompts.

`tokenizer.json` is read by the `tokenizers` library alone; transformers (a second's import) is asked only for formats
that need it: sentencepiece or tiktoken files without a tokenizer.json, `--tokenizer-mode slow`, remote code.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Fast
from tokenizers.decoders import ByteLevel

from sglang.base.errors import ConfigError, FieldError
from sglang.text.templates import Messages, choose

FILES = ["tokenizer*", "special_tokens_map.json", "*.model", "*.tiktoken", "*.jinja", "chat_template.json",
         "config.json", "generation_config.json", "added_tokens.json", "vocab*", "merges.txt"]  # fmt: skip


def load(
    path: str,
    *,
    mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    chat_template: str | None = None,
    model_path: str = "",
) -> "Tokenizer":
    """The tokenizer of a local folder or hub id. model_path: what templates are matched by. Raises ConfigError."""
    folder = _folder(path, revision, download_dir)
    config = _json(folder / "tokenizer_config.json")
    file = folder / "tokenizer.json"
    if mode == "auto" and file.is_file():
        try:
            engine: Any = Fast.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{file}: not a readable tokenizer ({error})") from None
        engine.no_truncation()
        engine.no_padding()
        slow = None
    else:
        engine, slow = _through_transformers(folder, mode, trust_remote_code)
    return Tokenizer(folder, config, engine, slow, chat_template, model_path or path)


class Tokenizer:
    """Thread-safe; one for the whole process."""

    def __init__(
        self, folder: Path, config: dict[str, Any], fast: Any, slow: Any, chat_template: str | None, model_path: str
    ):
        self._fast: Fast = fast
        self._slow = slow  # a transformers tokenizer, where the fast one is not the one to use
        self.vocab_size: int = fast.get_vocab_size(with_added_tokens=True) if slow is None else len(slow)
        special = {k: _content(config.get(k)) for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
        variables = {k: v for k, v in special.items() if v is not None}
        self.bos_id = self._id(special["bos_token"])
        ids = [self._id(special["eos_token"])]
        for source in (_json(folder / "generation_config.json"), _json(folder / "config.json")):
            value = source.get("eos_token_id")
            ids += value if isinstance(value, list) else [value]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))
        if slow is None:
            self.special_ids = frozenset(i for i, t in fast.get_added_tokens_decoder().items() if t.special)
        else:
            self.special_ids = frozenset(slow.all_special_ids)
        self.byte_level = slow is None and isinstance(fast.decoder, ByteLevel)
        self._bytes: list[bytes | None] = [None] * self.vocab_size if self.byte_level else []
        self._template = choose(chat_template, folder, config, variables, model_path)
        self.chat_stop_strings: tuple[str, ...] = self._template.stop

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._slow is not None:
            return self._slow.encode(text, add_special_tokens=add_special_tokens)
        return self._fast.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        if self._slow is not None:
            return [self.encode(text, add_special_tokens) for text in texts]
        return [e.ids for e in self._fast.encode_batch(list(texts), add_special_tokens=add_special_tokens)]

    def encode_chat(self, rendered: str) -> list[int]:
        """A rendered chat: the template wrote the special tokens, none is added a second time."""
        ids = self.encode(rendered, add_special_tokens=False)
        if self._writes_bos or self.bos_id is None:
            return ids
        # A template that names no BOS leaves it to the tokenizer.
        whole = self.encode(rendered)
        return whole if whole[:1] == [self.bos_id] and ids[:1] != [self.bos_id] else ids

    @property
    def _writes_bos(self) -> bool:
        from sglang.text.templates import JinjaTemplate

        return isinstance(self._template, JinjaTemplate)

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Ids as text. `spaces_between_special_tokens` is heard by slow tokenizers; fast ones never add any."""
        if self._slow is not None:
            return self._slow.decode(
                list(ids),
                skip_special_tokens=skip_special_tokens,
                spaces_between_special_tokens=spaces_between_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, id: int) -> str:
        """One token as text, for people: special tokens by name, a blank before a word kept."""
        return self._raw(id).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """Exactly the bytes a token stands for; none for special tokens."""
        return b"" if id in self.special_ids else self._raw(id)

    def is_word(self, id: int) -> bool:
        """Whether a token is visible text by itself: not special, not a blank, not a part of a character."""
        raw = self.token_bytes(id)
        try:
            return bool(raw.decode().strip()) and not (len(raw) == 1 and self._is_byte(id))
        except UnicodeDecodeError:
            return False

    def _is_byte(self, id: int) -> bool:
        token = self._slow.convert_ids_to_tokens(id) if self._slow is not None else self._fast.id_to_token(id)
        return len(token or "") == 6 and token.startswith("<0x")

    def _raw(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            return b""
        if self.byte_level:
            known = self._bytes[id]
            if known is None:
                known = self._bytes[id] = _byte_level(self._fast.id_to_token(id) or "")
            return known
        token = self._slow.convert_ids_to_tokens(id) if self._slow is not None else self._fast.id_to_token(id)
        if token is None:
            return b""
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """The prompt of a chat. continue_final_message: the last message is left open for the model to go on.

        Raises FieldError("messages") for what the template cannot say. May take long: call it in a thread.
        """
        plain = [_flat(message) for message in messages]
        if not plain:
            raise FieldError("messages", "messages must have at least one message")
        if not continue_final_message:
            return self._template.render(plain, add_generation_prompt, tools, extra or {})
        last = str(plain[-1].get("content") or "")
        text = self._template.render(plain, False, tools, extra or {})
        at = text.rfind(last.strip())
        if not last.strip() or at < 0:
            raise FieldError("continue_final_message", "the last message does not appear in the rendered chat")
        return text[:at] + last.strip()

    def _id(self, token: str | None) -> int | None:
        if token is None:
            return None
        if self._slow is not None:
            return self._slow.convert_tokens_to_ids(token)
        return self._fast.token_to_id(token)


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """Content given as parts -> one string; what is not text is refused."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise FieldError("messages", f"message parts of type {kind!r} are not supported by this model, only text")
        texts.append(str(part.get("text", "")))
    return {**message, "content": "".join(texts)}


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object around one."""
    return token.get("content") if isinstance(token, dict) else token


def _byte_table() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte; bytes that are none are moved beyond 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


_BYTES = _byte_table()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[c] for c in token])
    except KeyError:  # an added token that is plain text
        return token.encode()


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    return value if isinstance(value, dict) else {}


def _folder(path: str, revision: str | None, download_dir: str | None) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ConfigError(f"--tokenizer-path {path}: no such folder (and not a hub id such as org/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, cache_dir=download_dir, allow_patterns=FILES))
    except Exception as error:  # the hub's own errors share no base class with the network's
        raise ConfigError(f"--tokenizer-path {path}: not a folder, and the hub says: {error}") from None


def _through_transformers(folder: Path, mode: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """(fast engine or None, slow tokenizer or None)."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), use_fast=mode != "slow", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # whatever a tokenizer's own code raises
        hint = "" if trust_remote_code else " (its own Python code runs only with --trust-remote-code)"
        raise ConfigError(f"{folder}: no tokenizer can be loaded: {error}{hint}") from None
    fast = getattr(loaded, "backend_tokenizer", None)
    return (fast, None) if fast is not None and mode != "slow" else (fast, loaded)
