"""The body of a worker process (`launch_worker.py`): an address as argument, configuration as JSON on standard input.

Standard input stays open for as long as the front lives: its end means nobody is left to serve.
"""

import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.base.age import age
from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.base.link import connect
from sglang.engine.early import compilers

if TYPE_CHECKING:
    from sglang.worker.grammars import Lexicon

log = logging.getLogger("sglang.worker")

COLLECT = (20_000, 10, 20)  # allocations between two collections of the young; of these, and so on


def main(lexicon: Callable[[ServerConfig], "Lexicon"], explain: Callable[[ServerConfig, ConfigError], str]) -> int:
    """lexicon: reads the tokenizer's words, which constraints need. explain: says what is wrong with a setting."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's: it stops us when its requests are done
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    address = sys.argv[1]
    config = ServerConfig(**json.loads(sys.stdin.readline()))
    logging.basicConfig(
        level=config.log_level.upper(), format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    threading.Thread(target=_leave_with_the_front, daemon=True).start()
    link = connect(address)
    from sglang.worker.loop import last_words, serve
    from sglang.worker.report import Report

    try:
        with compilers(config.device):
            # Torch is imported only here: the process exists, and its link waits, within milliseconds.
            from sglang.worker.build import build

            log.info("start: worker with its imports %.1f s", age())
            state, engine, grammars = build(config, lambda: lexicon(config))
        report = Report(config.decode_log_interval, config.watchdog_timeout, lambda why: last_words(link, why))
        link.send(engine.ready)
        # A walk of the garbage collector over all that was loaded would hold up a step, and the lists of each step's
        # rows and pieces would soon bring on the next.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)
        serve(link, state, engine, report, overlap=not config.disable_overlap_schedule, grammars=grammars)
        return 0
    except ConfigError as error:
        last_words(link, explain(config, error), setting=True)
        return 2
    except BaseException as error:
        traceback.print_exc()
        last_words(link, f"{type(error).__name__}: {error}")
        return 1
    finally:
        link.close()


def _leave_with_the_front() -> None:
    while sys.stdin.read(4096):
        pass
    os._exit(0)


def encode_config(config: ServerConfig) -> bytes:
    """The line that `main` reads."""
    return json.dumps(dataclasses.asdict(config)).encode() + b"\n"
