"""What cannot be measured is refused in one line, exit code 2, before anything is sent."""

import argparse
import subprocess
import sys

import pytest

from sglang import bench_latency, bench_serving


def parse(*words: str) -> argparse.Namespace:
    args = bench_serving.parser().parse_args(words)
    bench_serving.check(args)
    return args


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["--random-output-len", "-3"], "--random-output-len must be at least 1"),
        (["--random-range-ratio", "1.5"], "--random-range-ratio must be in [0, 1]"),
        (["--request-rate", "0"], "--request-rate must be above 0"),
        (["--request-rate", "nan"], "--request-rate must be above 0"),
        (["--max-concurrency", "0"], "--max-concurrency must be at least 1"),
        (["--warmup-requests", "-1"], "--warmup-requests must be at least 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--port", "70000"], "--port must be in [1, 65535]"),
        (["--base-url", "localhost:30000"], "--base-url must be http://HOST"),
        (["--dataset-name", "sharegpt"], "--dataset-path"),
        (["--dataset-name", "random", "--dataset-path", "x.json"], "--dataset-name sharegpt"),
        (["--extra-request-body", "{"], "--extra-request-body is not JSON"),
        (["--extra-request-body", "[1]"], "--extra-request-body must be a JSON object"),
        (["--multi", "--request-rate-range", "5,1,1"], "--request-rate-range"),
        (["--multi", "--request-rate-range", "x"], "--request-rate-range"),
        (["--multi", "--plot", "a.png"], "--plot draws one run"),
        (["--disable-stream", "--plot", "a.png"], "--plot draws when tokens came"),
        (["--plot", "a.jpeg"], "--plot must end in .png"),
        (["--output-details"], "--output-details needs --output-file"),
        (["--output-file", "no/such/folder/x.jsonl"], "no folder"),
        (["--output-file", "/"], "--output-file /: is a folder"),
        (["--dataset-path", "no-such-file.json"], "--dataset-path no-such-file.json"),
        (["--backend", "nobody"], "invalid choice"),
        (["--no-such-flag"], "unknown argument --no-such-flag"),
    ],
)
def test_a_load_that_cannot_be_is_refused_in_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    try:
        code = bench_serving.main([*words, *([] if "--base-url" in words else ["--base-url", "http://127.0.0.1:1"])])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--input-len", "8", "0"], "--input-len must be at least 1"),
        (["--output-len", "0"], "--output-len must be at least 1"),
        (["--result-filename", "no/such/folder/x"], "no folder"),
        (["--profile", "no/such/folder/x"], "no folder"),
        (["--batch-size", "9", "--max-running-requests", "4"], "--max-running-requests 4 is less than"),
        (["--mem-fraction-static", "2"], "--mem-fraction-static must be in (0, 1)"),
        (["--model-path", "no/such/model/here"], "no/such/model/here"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert bench_latency.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_documented_abbreviations_are_flags():
    args = parse("--num-prompt", "10", "--random-input", "5", "--random-output", "6", "--disable-tqdm")
    assert (args.num_prompts, args.random_input_len, args.random_output_len) == (10, 5, 6)
    words = ["--model", "m", "--batch", "32", "--input-len", "256", "--output-len", "32", "--correct", "--tp", "2"]
    args = bench_latency.parser().parse_args(words)
    assert (args.model_path, args.batch_size, args.correctness_test, args.tp_size) == ("m", [32], True, 2)


def test_the_dataset_follows_from_the_file():
    assert parse().dataset_name == "random"
    assert parse("--dataset-path", __file__).dataset_name == "sharegpt"


def test_rates_are_a_series_that_ends_below_its_end():
    assert parse("--multi").rates == list(range(2, 34, 2))
    assert parse("--multi", "--request-rate-range", "0.5,2,0.5").rates == [0.5, 1, 1.5]
    assert parse("--request-rate", "3").rates == [3]


def test_addresses_follow_the_backend():
    assert bench_serving.base_url(parse()) == "http://127.0.0.1:30000"
    assert bench_serving.base_url(parse("--backend", "vllm", "--host", "box")) == "http://box:8000"
    assert bench_serving.base_url(parse("--backend", "lmdeploy", "--port", "1", "--host", "::1")) == "http://[::1]:1"
    assert bench_serving.base_url(parse("--base-url", "https://a.b/c/")) == "https://a.b/c"
    assert bench_serving.base_url(parse("--base-url", "http://a:1/v1/")) == "http://a:1"


@pytest.mark.parametrize("program", ["bench_serving", "bench_latency"])
def test_help_needs_neither_torch_nor_numpy(program: str):
    hidden = "import sys; sys.modules.update(torch=None, numpy=None)"
    code = f"{hidden}; from sglang.{program} import parser; parser().format_help()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
