"""What is documented under names that begin with `sglang.srt`. The runtime itself is in the rooms beside it."""
