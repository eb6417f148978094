"""python -m sglang.launch_worker ADDRESS: a worker process, with the words of its tokenizer."""

import sys
from typing import TYPE_CHECKING

from sglang.base.config import ServerConfig
from sglang.worker.process import main

if TYPE_CHECKING:
    from sglang.worker.grammars import Lexicon


def lexicon(config: ServerConfig) -> "Lexicon":
    """What constraints need of the tokenizer. Raises ConfigError."""
    from sglang.offline import load_tokenizer
    from sglang.worker.grammars import Lexicon

    tokenizer = load_tokenizer(config)
    words = None
    if tokenizer.table(True) is not None:
        words = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    return Lexicon(words, tokenizer.special_ids, lambda text: tokenizer.encode(text, add_special_tokens=False))


if __name__ == "__main__":
    sys.exit(main(lexicon))
