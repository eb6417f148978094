"""What the worker tells people while it runs: status lines, and the stacks when a step hangs.

The lines keep the words that operators grep for (`#queue-req`, `token usage`, `gen throughput (token/s)`).
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from sglang import schedule
from sglang.base.plan import Plan

log = logging.getLogger("sglang.worker")


class Report:
    """Counts steps; logs prefills as they come and decodes every `interval` steps; watches for a step that hangs."""

    def __init__(self, interval: int, watchdog_s: float = 300.0, on_hang: Callable[[str], None] | None = None):
        self._interval = interval
        self._decodes = 0
        self._since: tuple[float, int] | None = None  # time and generated tokens at the last decode line
        self._retractions = 0
        self._cached = 0  # prompt tokens that the cache had given by the last prefill line
        self._beat = time.monotonic()
        self._busy = False
        if on_hang is not None:
            threading.Thread(target=self._watch, args=(watchdog_s, on_hang), daemon=True, name="watchdog").start()

    def beat(self, busy: bool) -> None:
        self._beat = time.monotonic()
        self._busy = busy

    def step(self, plan: Plan, state: schedule.State, now: float, took_s: float | None = None) -> None:
        """took_s: of the device; None: that is not known."""
        stats = state.stats()
        if log.isEnabledFor(logging.DEBUG):
            single = int((plan.counts == 1).sum())
            log.debug(
                "step at %.4f: %d decodes, %d tokens of %d prompts, device ms: %s, #queue-req: %d",
                now,
                single,
                len(plan.tokens) - single,
                len(plan.slots) - single,
                "not known" if took_s is None else f"{1000 * took_s:.2f}",
                stats.waiting,
            )
        if stats.retractions > self._retractions:
            log.warning(
                "decode out of memory happened, #retracted_reqs: %d, #new_token_ratio: %.4f",
                stats.retractions - self._retractions,
                state.new_token_ratio,
            )
            self._retractions = stats.retractions
        prefill = len(plan.tokens) - int((plan.counts == 1).sum())
        if prefill > 0 and log.isEnabledFor(logging.INFO):
            share = stats.prompt_cached_tokens / max(stats.prompt_tokens, 1)
            log.info(
                "Prefill batch. #new-seq: %d, #new-token: %d, #cached-token: %d, cache hit rate: %.2f%%, "
                "#running-req: %d, #queue-req: %d",
                len(plan.seats),
                prefill,
                stats.prompt_cached_tokens - self._cached,
                100 * share,
                stats.running,
                stats.waiting,
            )
            self._cached = stats.prompt_cached_tokens
            return
        self._decodes += 1
        if self._decodes % self._interval:
            return
        if self._since is not None:
            seconds = max(now - self._since[0], 1e-9)
            log.info(
                "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, gen throughput (token/s): %.2f, "
                "#queue-req: %d",
                stats.running,
                stats.used_tokens,
                stats.used_tokens / max(stats.total_tokens, 1),
                (stats.generated_tokens - self._since[1]) / seconds,
                stats.waiting,
            )
        self._since = (now, stats.generated_tokens)

    def _watch(self, limit_s: float, on_hang: Callable[[str], None]) -> None:
        while True:
            time.sleep(min(1.0, limit_s / 4))
            still = time.monotonic() - self._beat
            if self._busy and still > limit_s:
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                on_hang(f"a step took more than --watchdog-timeout {limit_s:g} s")
                time.sleep(0.3)  # let the last words leave
                os._exit(1)
