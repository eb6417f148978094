"""Configuration -> (scheduler state, engine): the two halves of a worker, sized for each other."""

from sglang import schedule
from sglang.base.config import ServerConfig
from sglang.engine.engine import Engine


def build(config: ServerConfig) -> tuple[schedule.State, Engine]:
    """Load the model and make the scheduler's state for the pool it left room for. Raises ConfigError."""
    engine = Engine.load(config)
    return schedule.State(budget(config, engine)), engine


def budget(config: ServerConfig, engine: Engine) -> schedule.Budget:
    assert config.random_seed is not None, "resolve() draws one"
    return schedule.Budget(
        pages=engine.pages,
        page_size=engine.page_size,
        slots=engine.slots,
        context_length=engine.context_length,
        chunk_tokens=engine.chunk_tokens,
        max_prefill_tokens=max(config.max_prefill_tokens, engine.chunk_tokens),
        policy=config.schedule_policy,
        conservativeness=config.schedule_conservativeness,
        radix=not config.disable_radix_cache,
        max_queued=config.max_queued_requests,
        eos_ids=engine.eos_ids,
        seed=config.random_seed,
    )
