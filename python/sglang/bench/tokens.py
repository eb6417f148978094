"""The tokenizer that prompts are made with: from a folder or the hub, or the server's own through its API."""

import string
from typing import Any

import httpx
import numpy as np

from sglang.bench.datasets import DataError
from sglang.text.tokenizer import Tokenizer


class LocalTokens:
    """A tokenizer of this process. Ordinary: whole characters that can be shown, no special tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        ids = range(tokenizer.vocab_size)
        self.ordinary = [i for i in ids if i not in tokenizer.special_ids and _shows(tokenizer.token_bytes(i))]
        if not self.ordinary:
            raise DataError("--tokenizer: it has no token that is plain text")

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer.encode_batch(texts, add_special_tokens=False)

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [self.tokenizer.decode(one) for one in ids]


def _shows(spelled: bytes) -> bool:
    try:
        text = spelled.decode()
    except UnicodeDecodeError:
        return False
    return text.strip() != "" and text.isprintable()


class ServerTokens:
    """/tokenize and /detokenize, as this server and vLLM have them. Ordinary: the some hundreds of tokens that random
    words are made of. Raises httpx.HTTPError, DataError.
    """

    def __init__(self, http: httpx.Client, model: str):
        self._http = http
        self._model = model
        rng = np.random.default_rng(0)
        letters = np.array(list(string.ascii_lowercase))
        words = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 9, 4000)]
        [ids] = self.encode([" ".join(words)])
        self.ordinary = sorted(set(ids))

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [self._ask("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"] for text in texts]

    def decode(self, ids: list[list[int]]) -> list[str]:
        answers = [self._ask("/detokenize", {"tokens": one}) for one in ids]
        return [answer["text"] if "text" in answer else answer["prompt"] for answer in answers]

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._http.post(path, json={"model": self._model, **body})
        if answer.status_code == 404:
            raise DataError(f"the server has no {path}: name its tokenizer with --tokenizer")
        return answer.raise_for_status().json()
