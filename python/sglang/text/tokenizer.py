"""A model's tokenizer: text -> ids, ids -> text, chats -> prompts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.base.errors import ConfigError, FieldError
from sglang.base.messages import Side
from sglang.text.engines import Engine, FastEngine, open_file, open_with_transformers
from sglang.text.pieces import Table
from sglang.text.released import open_released
from sglang.text.templates import Messages, Template, choose

FILES = ["tokenizer*", "special_tokens_map.json", "*.model", "*.tiktoken", "*.jinja", "chat_template.json",
         "config.json", "generation_config.json", "added_tokens.json", "vocab*", "merges.txt"]  # fmt: skip
CODE = [*FILES, "*.py"]
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
    flag = "--model-path" if path == model_path else "--tokenizer-path"
    folder = _folder(flag, path, revision, download_dir, CODE if trust_remote_code else FILES)
    if folder.is_file():
        return _of_file(folder, chat_template, model_path or path)
    config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    special = {name: token for name in TOKENS if (token := _content(config.get(name))) is not None}
    file = folder / "tokenizer.json"
    engine: Engine
    if mode == "auto" and file.is_file():
        engine = open_file(file)
    elif mode == "auto" and not trust_remote_code and (released := open_released(folder, config)) is not None:
        engine = released
    else:
        engine = open_with_transformers(folder, mode, trust_remote_code)
    if isinstance(engine, FastEngine):
        engine.frame(special.get("bos_token"), special.get("eos_token"), config)
    template = choose(chat_template, folder, config, special, model_path or path)
    return Tokenizer(engine, template, special, _model_ids(folder))


def _of_file(path: Path, chat_template: str | None, model_path: str) -> "Tokenizer":
    """What a GGUF file brings itself."""
    from sglang.text.gguf import open_gguf

    engine, config, ids = open_gguf(path)
    special = {name: config[name] for name in TOKENS if name in config}
    return Tokenizer(engine, choose(chat_template, path, config, special, model_path), special, ids)


class Tokenizer:
    """Safe to use from several threads; one for the whole process.

    `special` names tokens (bos_token, eos_token …); `model_ids`: bos_token_id and eos_token_id of the model's configs.
    """

    def __init__(
        self,
        engine: Engine,
        template: Template,
        special: dict[str, str],
        model_ids: dict[str, list[int]] | None = None,
    ):
        self._engine = engine
        self._template = template
        self.vocab_size: int = engine.vocab_size
        self.special_ids: frozenset[int] = engine.special_ids
        ids: dict[str, list[int]] = {"bos": [], "eos": []}
        for name, known in ids.items():
            token = special.get(f"{name}_token")
            own = engine.id(token) if token is not None else None
            known += [own] if own is not None else []
            known += (model_ids or {}).get(name, [])
        self.bos_id: int | None = next(iter(ids["bos"]), None)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ids["eos"]))
        self.chat_stop_strings: tuple[str, ...] = template.stop
        self.chat_template: str = template.source  # as Jinja; "" where it is none
        self.renders_tools: bool = template.tools
        pieces = engine.pieces
        self.errors: str = "replace" if pieces is None else pieces.errors
        self._all = Table(self._spell)
        self._shown = Table(lambda id: b"" if id in self.special_ids else self._all[id])

    def encode(
        self, text: str, add_special_tokens: bool = True, most: int | None = None, side: Side = "right"
    ) -> list[int]:
        """most: ids, the special ones among them, for which the text is cut off on `side`."""
        return self._engine.encode(text, add_special_tokens, most, side)

    def make_lower(self) -> None:
        """From now on texts have no capitals."""
        self._engine.make_lower()

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        return self._engine.encode_batch(texts, add_special_tokens)

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        continues: bool = False,
    ) -> str:
        """Ids as text. continues: as it stands after other text; else the blank that some tokenizers put before the
        first word is taken off. Ids that the tokenizer does not know are nothing.

        `spaces_between_special_tokens` is heard by tokenizers written in Python; the others never put any.
        """
        table, pieces = self.table(skip_special_tokens), self._engine.pieces
        if table is None or pieces is None:
            return self._engine.decode(ids, skip_special_tokens, spaces_between_special_tokens)
        parts = [table[id] for id in ids]
        if not continues and pieces.head == "token":
            hidden = self.special_ids if skip_special_tokens else ()
            for i, id in enumerate(ids):
                token = None if id in hidden else self._engine.token(id)
                if token is not None:
                    parts[i] = pieces.first(token)
                    break
        text = b"".join(parts).decode("utf-8", self.errors)
        return text.removeprefix(" ") if not continues and pieces.head == "strip" else text

    def table(self, skip_special_tokens: bool) -> Table | None:
        """id -> bytes inside a text; None where a token's text depends on its neighbours."""
        if self._engine.pieces is None:
            return None
        return self._shown if skip_special_tokens else self._all

    def token_text(self, id: int) -> str:
        """One token as text, for people: special tokens by name, a blank before a word kept."""
        return self._all[id].decode("utf-8", self.errors)

    def token_bytes(self, id: int) -> bytes:
        """Exactly the bytes a token stands for inside a text; none for special tokens."""
        return self._shown[id]

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """The prompt of a chat. continue_final_message: the last message is left open for the model to go on.

        `extra`: more variables for a Jinja template. Raises FieldError("messages") for what the template cannot say.
        May take long: call it in a thread.
        """
        turns = [_flat(i, message) for i, message in enumerate(messages)]
        if not turns:
            raise FieldError("messages", "messages must have at least one message")
        if not continue_final_message:
            return self._template.render(turns, add_generation_prompt, tools, extra or {})
        last = turns[-1].get("content") or ""
        text = self._template.render(turns, False, tools, extra or {})
        at = text.rfind(last.strip())
        if not last.strip() or at < 0:
            raise FieldError("continue_final_message", "the last message does not appear in the rendered chat")
        # Templates may strip a message: what they left of it is where the model goes on.
        kept = last.lstrip()
        return text[: at + len(kept)] if text.startswith(kept, at) else text[: at + len(last.strip())]

    def encode_chat(self, rendered: str) -> list[int]:
        """A rendered chat as ids. A Jinja template has written the special tokens: none is added a second time."""
        if self._template.complete:
            return self.encode(rendered, add_special_tokens=False)
        ids = self.encode(rendered)
        return ids[1:] if self.bos_id is not None and ids[:2] == [self.bos_id] * 2 else ids

    def _spell(self, id: int) -> bytes:
        token = self._engine.token(id) if 0 <= id < 1 << 31 else None
        if token is None:
            return b""
        if self._engine.pieces is None:
            return self._engine.decode([id], False, False).encode()
        return self._engine.pieces.spell(token)


def _flat(i: int, message: dict[str, Any]) -> dict[str, Any]:
    """Content given as parts -> one string; what is not text is refused."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    where = f"messages[{i}].content"
    if not isinstance(content, list):
        raise FieldError(where, f"{where} must be a string or a list of parts, got {type(content).__name__}")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise FieldError(where, f"{where} has a part of type {kind!r}: only text is supported yet, not images")
        texts.append(str(part.get("text", "")))
    return {**message, "content": "".join(texts)}


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object around one."""
    return token.get("content") if isinstance(token, dict) else token


def _model_ids(folder: Path) -> dict[str, list[int]]:
    """bos and eos ids that the model's own configs name, generation_config.json first."""
    found: dict[str, list[int]] = {"bos": [], "eos": []}
    for name in ("generation_config.json", "config.json"):
        config = _json(folder / name)
        for key, known in found.items():
            value = config.get(f"{key}_token_id")
            known += [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    return value if isinstance(value, dict) else {}


def _folder(flag: str, path: str, revision: str | None, download_dir: str | None, files: list[str]) -> Path:
    folder = Path(path).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        # Beside a file may lie the tokenizer that its own was made from: that one is exact.
        return folder.parent if (folder.parent / "tokenizer.json").is_file() else folder
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ConfigError(f"{flag} {path}: no such folder (and not a hub id such as org/name)")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, revision=revision, cache_dir=download_dir, allow_patterns=files))
    except Exception as error:  # the hub's own errors share no base class with the network's
        raise ConfigError(f"{flag} {path}: not a folder, and the hub says: {error}") from None
