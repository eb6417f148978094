"""python -m sglang.launch_worker ADDRESS: a worker process, with the words of its tokenizer and advice on memory."""

import os
import sys
from typing import TYPE_CHECKING

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError, NoRoom
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


def explain(config: ServerConfig, error: ConfigError) -> str:
    """What is wrong with a setting; where memory is too small, with flags that would help."""
    if not isinstance(error, NoRoom):
        return str(error)
    from sglang.plan_memory import advice

    try:
        return f"{error}; {advice(config, error.free)}"
    except Exception:  # the first cause is what must be told
        return str(error)


if __name__ == "__main__":
    # It tokenises a few words at a time here, for constraints: to share those out takes as long as the work.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(lexicon, explain))
