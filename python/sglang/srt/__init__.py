"""Entry points whose documented module names begin with `sglang.srt`. The runtime itself is in the rooms beside it."""
