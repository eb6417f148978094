"""sgl.Engine: the runtime without HTTP."""

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import ENDLESS, HANG_S

import sglang as sgl
from sglang.base.errors import FieldError, WorkerDied
from sglang.launch import ThreadWorker
from sglang.offline import Engine

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_new_tokens": 8}
FAR: dict[str, Any] = {"context_length": 20_000, "max_total_tokens": 20_000}
PACKAGE = Path(__file__).parents[2] / "python"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(worker=ThreadWorker, dtype="float32", max_total_tokens=8000, log_level="error") as engine:
        yield engine


def test_it_is_what_the_package_calls_engine() -> None:
    assert sgl.Engine is Engine


def test_a_prompt_a_list_and_samples(engine: Engine) -> None:
    one = engine.generate(PROMPT, GREEDY)
    assert one["text"].startswith(" Paris")
    assert [a["text"] for a in engine.generate([PROMPT] * 3, GREEDY)] == [one["text"]] * 3
    samples = engine.generate(PROMPT, {"n": 3, "temperature": 1.0, "max_new_tokens": 8, "seed": 5})
    assert len(samples) == 3
    ids = engine.get_tokenizer().encode(PROMPT)
    assert engine.generate(input_ids=ids, sampling_params=GREEDY)["text"] == one["text"]


def test_a_stream_grows_to_the_whole(engine: Engine) -> None:
    long = {**GREEDY, "max_new_tokens": 400, "ignore_eos": True}  # a reader that is behind gets several tokens at once
    texts = [answer["text"] for answer in engine.generate(PROMPT, long, stream=True)]
    assert len(texts) > 2
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert texts[-1] == engine.generate(PROMPT, long)["text"]


def test_a_stream_that_is_dropped_frees_its_place(engine: Engine) -> None:
    stream = engine.generate(PROMPT, {"max_new_tokens": 900, "ignore_eos": True}, stream=True)
    next(stream)
    stream.close()
    engine.generate(PROMPT, GREEDY)
    assert engine.get_server_info()["internal_states"][0]["running"] <= 1
    assert engine.flush_cache()


def test_it_serves_event_loops_and_threads_at_once(engine: Engine) -> None:
    expected = engine.generate(PROMPT, GREEDY)["text"]

    async def several() -> list[str]:
        answers = await asyncio.gather(*(engine.async_generate(PROMPT, GREEDY) for _ in range(4)))
        streamed = [a async for a in await engine.async_generate(PROMPT, GREEDY, stream=True)]
        return [*(a["text"] for a in answers), streamed[-1]["text"]]

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(asyncio.run(several()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert found == [expected] * 15


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": PROMPT, "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"prompt": PROMPT, "temperature": 0}, "temperature"),
        ({"prompt": 5}, "text"),
        ({}, "text"),
        ({"prompt": PROMPT, "input_ids": [1]}, "text"),
    ],
)
def test_a_bad_argument_is_named(engine: Engine, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        engine.generate(**arguments)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.field.removeprefix("sampling_params.") == field.removeprefix("sampling_params.")


SCRIPT = """
import sglang as sgl
engine = sgl.Engine(max_total_tokens=4000, log_level="error")
print(engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 4})["text"])
%s
"""


@pytest.mark.parametrize("end", ["engine.shutdown()", "engine.shutdown(); engine.shutdown()", ""])
def test_a_script_ends_with_its_worker(end: str) -> None:
    """Also one that forgets to shut down, and with no `if __name__` guard."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % end], capture_output=True, text=True, timeout=2 * HANG_S, cwd=PACKAGE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("Paris")


def test_an_engine_that_was_shut_down_says_so() -> None:
    @sgl.function
    def program(s, most):
        s += PROMPT + sgl.gen("a", max_tokens=most, ignore_eos=True)

    with Engine(worker=ThreadWorker, **FAR, log_level="error") as engine:
        begun = program.run(ENDLESS["max_new_tokens"], backend=engine, stream=True)
        next(begun.text_iter("a"))
    assert isinstance(begun.error(), WorkerDied)
    assert "has been shut down" in str(program.run(4, backend=engine).error())
    for stream in (False, True):
        with pytest.raises(RuntimeError, match="has been shut down"):
            list(engine.generate(PROMPT, GREEDY, stream=stream))


def test_a_worker_that_dies_says_so() -> None:
    with Engine(**FAR, log_level="error") as engine:
        stream = engine.generate(PROMPT, ENDLESS, stream=True)
        next(stream)
        engine._worker.process.kill()  # type: ignore[attr-defined]  # a worker process
        with pytest.raises(WorkerDied, match="signal 9"):
            list(stream)
        with pytest.raises(WorkerDied):
            engine.generate(PROMPT, GREEDY)
