"""Decisions: who runs next, which tokens, which KV pages; what a step's tokens mean.

It knows ints and numpy: sequences, a radix tree over pages, a budget. It does not know text (`text`), the device
(`engine`), clocks or sockets (`worker`): time is an argument, randomness a seed.
Start with `state.py`, then `plan.py` (before a step) and `commit.py` (after it).
"""

from sglang.schedule.commit import commit
from sglang.schedule.intake import apply, flush
from sglang.schedule.plan import plan
from sglang.schedule.state import Budget, State

__all__ = ["Budget", "State", "apply", "commit", "flush", "plan"]
