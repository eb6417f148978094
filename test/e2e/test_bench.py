"""The load tool against a real server, and the latency tool, as users start them."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import HANG_S

pytestmark = pytest.mark.e2e

PACKAGE_ROOT = Path(__file__).parents[2] / "python"


def run(program: str, *words: str, code: int = 0) -> str:
    """What `python -m sglang.PROGRAM` prints; it must end with `code`."""
    environment = dict(
        os.environ, PYTHONPATH=str(PACKAGE_ROOT), OMP_NUM_THREADS="1"
    )  # several processes share the machine
    command = [sys.executable, "-m", f"sglang.{program}", *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def load(server: Any, folder: Path, *words: str) -> dict[str, Any]:
    """The result of a small run."""
    out = folder / "result.jsonl"
    small = ("--random-input-len", "24", "--random-output-len", "8", "--num-prompts", "6", "--disable-tqdm")
    text = run("bench_serving", "--base-url", server.url, "--output-file", str(out), *small, *words)
    result = json.loads(out.read_text().splitlines()[-1])
    assert f"Successful requests:                     {result['completed']}" in text
    return result


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("sglang", []),
        ("sglang", ["--disable-stream"]),
        ("sglang-oai", ["--request-rate", "50"]),
        ("vllm", ["--prompt-format", "text", "--max-concurrency", "2"]),
        ("openai", ["--disable-stream"]),
        ("sglang-oai-chat", []),
    ],
)
def test_every_api_is_measured_with_exact_counts(served: Any, tmp_path: Path, backend: str, words: list[str]) -> None:
    result = load(
        served, tmp_path, "--backend", backend, "--flush-cache" if backend == "sglang" else "--seed=5", *words
    )
    assert (result["completed"], result["failed"], result["backend"]) == (6, 0, backend)
    if backend != "openai":  # plain OpenAI knows no ignore_eos
        assert (result["total_output_tokens"], result["short_answers"]) == (48, 0)
    if backend == "sglang-oai-chat":
        assert result["total_input_tokens"] > 6 * 24, "the template's tokens count too"
    else:
        assert result["total_input_tokens"] == 6 * 24
    assert 0 < result["median_e2e_latency_ms"] <= result["p99_e2e_latency_ms"] <= 1e3 * result["duration"]
    if "--disable-stream" in words:
        assert result["median_ttft_ms"] is None
    else:
        assert 0 < result["median_ttft_ms"] <= result["p99_e2e_latency_ms"]
        assert result["mean_itl_ms"] >= 0  # a starved client may read two events at once
        assert result["tokens_per_event"] >= 0.9
    if "--max-concurrency" in words:
        assert result["concurrency"] <= 2.01


def test_shared_prefixes_are_found_in_the_cache(served: Any, tmp_path: Path) -> None:
    words = ["--gsp-num-groups", "2", "--gsp-prompts-per-group", "3", "--gsp-system-prompt-len", "64",
             "--gsp-question-len", "8", "--gsp-output-len", "4", "--max-concurrency", "1", "--flush-cache"]  # fmt: skip
    result = load(served, tmp_path, "--dataset-name", "generated-shared-prefix", *words)
    assert result["total_input_tokens"] == 6 * 72
    assert result["cached_tokens"] == 4 * 64, "two of three requests of each group find its prefix"


def test_a_sharegpt_file_is_replayed_with_details_and_a_plot(served: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    question, reply = "What is the capital of France, please?", "It is Paris, the city of light."
    talk = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}
    data, plot = tmp_path / "share.json", tmp_path / "run.png"
    data.write_text(json.dumps([talk] * 8))
    words = ["--dataset-path", str(data), "--apply-chat-template", "--output-details", "--plot", str(plot)]
    result = load(served, tmp_path, *words)
    assert result["dataset_name"] == "sharegpt"
    assert len(result["generated_texts"]) == len(result["ttfts"]) == len(result["itls"]) == 6
    assert all("Paris" in text for text in result["generated_texts"]), "asked in the model's chat template"
    assert [len(gaps) for gaps in result["itls"]] == [length - 1 for length in result["output_lens"]]
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_a_series_of_rates_is_a_line_each(served: Any, tmp_path: Path) -> None:
    load(served, tmp_path, "--multi", "--request-rate-range", "50,151,50", "--warmup-requests", "0")
    results = [json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines()]
    assert [(r["request_rate"], r["completed"]) for r in results] == [(50, 6), (100, 6), (150, 6)]


def test_a_server_that_names_no_local_tokenizer_is_asked_for_its_tokens(served: Any) -> None:
    from sglang.bench.datasets import random_jobs
    from sglang.bench.tokens import ServerTokens

    with httpx.Client(base_url=served.url, timeout=HANG_S) as http:
        tokens = ServerTokens(http, "demo")
        texts = [str(job.prompt) for job in random_jobs(tokens, 3, 20, 4, 1.0, 0, as_text=True)]
        assert [len(ids) for ids in tokens.encode(texts)] == [20, 20, 20]
        assert tokens.decode(tokens.encode(texts)) == texts


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["--random-input-len", "4000"], "4008 tokens long, the model takes 2048", 2),
        (["--profile"], "--profile: this server cannot profile itself", 2),
        (["--backend", "openai", "--flush-cache"], "--flush-cache", 2),
        (["--backend", "sglang-oai-chat", "--prompt-format", "ids"], "chat messages", 2),
        (["--backend", "sglang-oai-chat", "--apply-chat-template"], "the server does that", 2),
        (["--tokenizer", "no/such/folder/here"], "no such folder", 2),
        (["--extra-request-body", '{"sampling_params": {"top_p": 9}}'], "top_p", 2),
        (["--gsp-num-groups", "1", "--dataset-name", "shared-prefix", "--num-prompts", "99"], "99 is more than", 2),
    ],
)
def test_what_this_server_cannot_do_is_said(served: Any, words: list[str], says: str, code: int) -> None:
    if "--profile" in words and httpx.post(served.url + "/start_profile", timeout=HANG_S).status_code != 404:
        pytest.skip("this server can profile itself")
    small = ["--random-output-len", "8", "--num-prompts", "4", "--disable-tqdm"]
    text = run("bench_serving", "--base-url", served.url, *small, *words, code=code)
    assert text.startswith("error: ")
    assert says in text
    assert text.count("\n") == 1


def test_no_server_is_said_in_one_line() -> None:
    text = run("bench_serving", "--base-url", "http://127.0.0.1:1", code=1)
    assert text.startswith("error: http://127.0.0.1:1")
    assert text.count("\n") == 1


def test_a_key_is_taken_from_the_environment(start_server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with start_server("--api-key", "sesame") as server:
        assert "OPENAI_API_KEY" in run("bench_serving", "--base-url", server.url, code=2)
        monkeypatch.setenv("OPENAI_API_KEY", "sesame")
        assert load(server, tmp_path)["completed"] == 6


def test_a_static_batch_is_measured_stage_by_stage(tmp_path: Path) -> None:
    out = tmp_path / "latency.jsonl"
    text = run("bench_latency", "--batch", "1", "3", "--input-len", "40", "--output-len", "6",
               "--result-filename", str(out), "--run-name", "mine", "--chunked-prefill-size", "32",
               "--profile", str(tmp_path / "trace"))  # fmt: skip
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["run_name"], r["batch_size"], r["input_len"], r["output_len"]) for r in results] == [
        ("mine", 1, 40, 6), ("mine", 3, 40, 6)
    ]  # fmt: skip
    for r in results:
        steps = 5 * r["avg_decode_latency"]
        assert r["total_latency"] == pytest.approx(r["prefill_latency"] + steps)
        assert r["prefill_throughput"] == pytest.approx(r["batch_size"] * 40 / r["prefill_latency"])
        assert r["median_decode_throughput"] == pytest.approx(r["batch_size"] / r["median_decode_latency"])
        assert r["overall_throughput"] == pytest.approx(r["batch_size"] * 46 / r["total_latency"])
    assert text.count("Prefill. latency:") == 4, "a warm-up and a measurement each"
    assert text.count("Decode.  latency:") == 2 * (4 + 5)
    trace = json.loads(gzip.decompress((tmp_path / "trace_b3_i40_o6.trace.json.gz").read_bytes()))
    assert any(event.get("cat") == "cpu_op" for event in trace["traceEvents"])


def test_the_correctness_test_shows_what_the_model_answers() -> None:
    text = run("bench_latency", "--correct", "--output-len", "4", "--dtype", "float32", "--page-size", "4")
    assert "The capital of France is| Paris" in text
    difference = float(text.partition("computing the prompts whole: ")[2].split()[0])
    assert difference < 1e-3


def test_a_batch_that_does_not_fit_is_refused() -> None:
    text = run("bench_latency", "--batch", "4", "--input-len", "40", "--max-total-tokens", "100", code=2)
    assert "does not fit the KV pool; 2 fit" in text


def test_an_interrupted_run_tells_what_it_has_seen(served: Any) -> None:
    command = [sys.executable, "-m", "sglang.bench_serving", "--base-url", served.url, "--random-input-len", "8",
               "--random-output-len", "4", "--num-prompts", "5000", "--max-concurrency", "4"]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE_ROOT))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    shown = b""
    while b"tok/s" not in shown:  # the bar has moved
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, shown
        shown += piece
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert b"Failed requests" not in out
    assert b"Successful requests:" in out
    assert b"of 5000 requests had ended" in err
    assert b"Traceback" not in err
