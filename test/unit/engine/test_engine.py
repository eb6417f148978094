"""The engine's own promises: facts, sizes, refusals, scores by block, per-slot state."""

import ctypes
import gc
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import DRAWN, Ask, Driver, PromptAsk, Row, load

from sglang.base.errors import ConfigError
from sglang.base.sampling import SamplingParams
from sglang.engine.scores import BLOCK
from sglang.layers.memory import free_bytes

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 256,
    "eos_token_id": 3,
    "torch_dtype": "bfloat16",
}
CELL = 2 * 2 * 2 * 16 * 4  # keys and values, layers, KV heads, head size, bytes of float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def dummy(folder: Path, **flags: Any) -> Any:
    return load(folder, load_format="dummy", **flags)


def test_facts_describe_what_was_loaded(folder: Path) -> None:
    engine = dummy(folder, max_total_tokens=160, page_size=16, max_running_requests=3)
    ready = engine.ready
    assert (ready.architecture, ready.model_type, ready.dtype, ready.device) == (
        "Qwen2ForCausalLM",
        "qwen2",
        "float32",
        "cpu",
    )
    assert (ready.vocab_size, ready.context_length, ready.eos_ids) == (400, 256, (3,))
    assert (ready.total_tokens, ready.page_size, ready.max_running, engine.pages) == (160, 16, 3, 10)
    assert ready.kv_bytes == 160 * CELL
    layer = 64 * (64 + 2 * 32) + (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert ready.parameters == 2 * 400 * 64 + 64 + 2 * layer
    assert ready.weight_bytes == 4 * ready.parameters


@pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
def test_keys_and_values_of_8_bits_take_a_quarter_of_those_of_32(folder: Path, kind: str) -> None:
    engine = dummy(folder, max_total_tokens=160, page_size=16, kv_cache_dtype=kind)
    assert engine.ready.kv_bytes == engine.kv_bytes == 160 * CELL // 4
    fraction = 64 * CELL / free_bytes(torch.device("cpu"))
    engine = dummy(folder, max_total_tokens=None, mem_fraction_static=fraction, kv_cache_dtype=kind)
    assert 4 * 48 <= engine.pages <= 4 * 80


def test_the_pool_is_never_larger_than_all_slots_can_use(folder: Path) -> None:
    engine = dummy(folder, max_total_tokens=None, max_running_requests=2)
    assert engine.pages == 2 * 256


def test_a_share_of_memory_bounds_the_pool(folder: Path) -> None:
    fraction = 64 * CELL / free_bytes(torch.device("cpu"))
    engine = dummy(folder, max_total_tokens=None, mem_fraction_static=fraction)
    assert 48 <= engine.pages <= 80  # free memory moves between the two looks at it


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_total_tokens": 10**12}, "--max-total-tokens 1000000000000 needs .* at most \\d+ fit"),
        ({"max_total_tokens": 8, "page_size": 16}, "--max-total-tokens 8 is less than a page; at least --page-size 16"),
        ({"max_total_tokens": None, "mem_fraction_static": 1e-9}, "--mem-fraction-static .* 0.01 is enough"),
    ],
    ids=str,
)
def test_impossible_sizes_name_the_flag_and_a_value_that_fits(flags: Any, words: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        dummy(folder, **flags)


def test_cuda_without_a_device_is_refused(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(ConfigError, match="--device cuda"):
        load(folder, "cuda")


def test_prompt_scores_are_the_same_in_one_block_or_many(folder: Path) -> None:
    engine = dummy(folder)
    tokens = np.random.default_rng(0).integers(0, 400, 2 * BLOCK + 9).tolist()
    driver = Driver(engine)
    ask = PromptAsk(0, 3, tokens[4:], 2, (1, 399))
    row = Row(0, 0, tokens, samples=False, scores=ask)
    scores = driver.step([row, Row(1, 0, tokens[:4], samples=False)]).prompt_scores[0]
    assert [s.token for s in scores] == tokens[4:]
    for at in (4, 4 + BLOCK, len(tokens) - 1):
        single = driver.step(
            [Row(2, 0, tokens[:at], scores=PromptAsk(0, at - 1, [tokens[at]], 2, (1, 399)))], [driver.seat(2, at)]
        ).prompt_scores[0][0]
        for got, wanted in zip(
            (scores[at - 4].logprob, *(v for _, v in scores[at - 4].top + scores[at - 4].ids)),
            (single.logprob, *(v for _, v in single.top + single.ids)),
            strict=True,
        ):
            assert got == pytest.approx(wanted, abs=1e-4)
        driver.table.pop(2)


def test_scores_of_drawn_tokens_belong_to_their_rows(folder: Path) -> None:
    driver = Driver(dummy(folder))
    rows = [
        Row(4, 0, [5, 6, 7], ask=Ask(0, 1, ())),
        Row(0, 0, [8, 9], samples=False),
        Row(2, 0, [10, 11, 12, 13]),
        Row(1, 0, [14], ask=Ask(0, 2, (0,))),
    ]
    result = driver.step(rows, [driver.seat(r.slot, len(r.tokens)) for r in rows])
    assert set(result.scores) == {0, 3}
    assert result.tokens[1] == -1 and (result.tokens[[0, 2, 3]] >= 0).all()
    for row in (0, 3):
        best = result.scores[row].top[0]
        assert (result.scores[row].token, result.scores[row].logprob) == (result.tokens[row], pytest.approx(best[1]))
        assert best[0] == result.tokens[row]


def test_scores_are_raw_whatever_the_sampling_does(folder: Path) -> None:
    hot = SamplingParams(temperature=3.0, logit_bias={17: 100.0}, seed=1, repetition_penalty=2.0)
    driver = Driver(dummy(folder))
    everything = Ask(0, 0, tuple(range(400)))
    plain = driver.step([Row(0, 0, [5, 6, 7], ask=everything)], [driver.seat(0, 3)]).scores[0]
    seat = driver.seat(1, 3, hot, prompt=[5, 6, 7])
    biased = driver.step([Row(1, 0, [5, 6, 7], ask=everything)], [seat]).scores[0]
    assert biased.token == 17
    assert [v for _, v in biased.ids] == pytest.approx([v for _, v in plain.ids], abs=1e-5)
    assert math.fsum(math.exp(v) for _, v in plain.ids) == pytest.approx(1, abs=1e-4)


def test_a_resumed_sequence_draws_what_it_would_have_drawn(folder: Path) -> None:
    p = SamplingParams(seed=5, temperature=1.3, top_p=0.95, frequency_penalty=0.7, repetition_penalty=1.3)
    prompt = [7, 8, 9, 10]
    driver = Driver(dummy(folder))
    drawn = [int(driver.step([Row(0, 0, prompt)], [driver.seat(0, 4, p, prompt=prompt)]).tokens[0])]
    for i in range(9):
        drawn.append(int(driver.step([Row(0, 4 + i, [DRAWN])]).tokens[0]))
    # Taken off its slot after five tokens, computed again elsewhere, with others beside it.
    seat = driver.seat(6, 4, p, prompt=prompt, drawn=drawn[:5])
    again = [
        int(driver.step([Row(3, 0, [1, 2, 3]), Row(6, 0, prompt + drawn[:5])], [driver.seat(3, 3), seat]).tokens[1])
    ]
    for i in range(4):
        rows = [Row(6, 9 + i, [DRAWN]), Row(3, 3 + i, [DRAWN])]
        again.append(int(driver.step(rows).tokens[0]))
    assert drawn[5:] == again


def test_the_type_of_a_checkpoint_is_kept_where_the_cpu_computes_in_it(folder: Path) -> None:
    from sglang.layers.linear import bfloat16_arithmetic

    expected = "bfloat16" if bfloat16_arithmetic() else "float32"
    assert dummy(folder, dtype="auto").ready.dtype == expected


def test_a_small_model_takes_no_more_threads_than_have_something_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        dummy(folder)
        assert torch.get_num_threads() == 1
        dummy(folder, cpu_threads=2)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr("sglang.engine.engine.THREAD_BYTES", 1000)
        dummy(folder)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def used_mib() -> float:
    """Memory of this process, what was freed not counted."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_steps_of_lengths_that_were_never_met_take_no_more_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 1024}))
    engine = dummy(tmp_path, dtype="bfloat16", max_total_tokens=4608, max_running_requests=8)

    def steps(less: int) -> None:
        """A whole prompt, the last part of one with scores, short parts side by side; some tokens `less` than even."""
        for even in range(64, 513, 32):
            Driver(engine).step([Row(0, 0, [7] * (even - less))])
            ask = PromptAsk(0, 0, [9] * (64 - less), 0, ())
            Driver(engine).step([Row(0, even - less, [7] * (64 + even % 96 - less), scores=ask)])
            Driver(engine).step([Row(slot, even - less - 15, [7] * 15) for slot in range(8)])

    steps(0)
    before = used_mib()
    for less in (1, 2, 3):
        steps(less)
    # What is kept for each length: 180 MiB where products are not rounded, 12 where the attention alone is not.
    assert used_mib() - before < 5
