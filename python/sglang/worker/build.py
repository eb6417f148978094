"""Configuration -> scheduler state, engine, constraints: the parts of a worker, sized for each other."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from sglang import schedule
from sglang.base.config import ServerConfig
from sglang.engine.engine import Engine
from sglang.grammar.shelf import Shelf
from sglang.grammar.vocab import Vocabulary
from sglang.schedule.residents import Residents
from sglang.worker.grammars import Grammars, Lexicon, in_thread


def build(config: ServerConfig, read: Callable[[], Lexicon]) -> tuple[schedule.State, Engine, Grammars]:
    """Load the model, make the scheduler's state for the pool it left room for, prepare to constrain.

    read: the tokenizer's words, called in a thread while the model loads. Raises ConfigError.
    """
    shelf = Shelf(Path(config.grammar_cache_dir)) if config.grammar_cache_dir else None
    lexicon = in_thread(read)
    jumps = not config.disable_regex_jump_forward
    loaded: Future[tuple[schedule.State, Engine]] = Future()
    begun: list[Grammars] = []

    def learn(vocabulary: Vocabulary) -> None:
        state, engine = loaded.result()
        state.words = vocabulary.bytes
        first, rows = engine.learn(vocabulary.bytes, vocabulary.eos_ids)
        state.residents = Residents(first, rows) if rows else None

    def begin(eos_ids: tuple[int, ...], vocab: int) -> None:
        """The library holds the interpreter for half a second: better while the model loads than under requests."""
        most = config.max_queued_requests
        begun.append(Grammars(lexicon, eos_ids, vocab, jumps=jumps, most=most, shelf=shelf, learn=learn))

    try:
        engine = Engine.load(config, told=begin)
    except BaseException as error:
        loaded.set_exception(error)
        raise
    state = schedule.State(budget(config, engine))
    [grammars] = begun
    state.jump = grammars.jump if jumps else None
    loaded.set_result((state, engine))
    return state, engine, grammars


def budget(config: ServerConfig, engine: Engine) -> schedule.Budget:
    assert config.random_seed is not None, "resolve() draws one"
    pooler = engine.pooler
    return schedule.Budget(
        pages=engine.pages,
        page_size=engine.page_size,
        slots=engine.slots,
        # Where nothing is generated, a text may be as long as the context.
        context_length=engine.context_length + (pooler is not None),
        chunk_tokens=engine.chunk_tokens,
        max_prefill_tokens=max(config.max_prefill_tokens, engine.chunk_tokens),
        policy=config.schedule_policy,
        conservativeness=config.schedule_conservativeness,
        radix=not config.disable_radix_cache and (pooler is None or pooler.caches),
        max_queued=config.max_queued_requests,
        eos_ids=engine.eos_ids,
        seed=config.random_seed,
        embeds=pooler is not None,
        whole=not engine.causal,
        beside_tokens=engine.beside_tokens,
        grain=engine.grain if pooler is None else 1,
    )
