"""The `sglang` command: what it starts, what it says about mistakes, and that its help costs nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sglang import check_env, cli, launch_server
from sglang.base import known_flags
from sglang.base.config import ServerConfig

PACKAGE_ROOT = Path(__file__).parents[2] / "python"
OTHER_RELEASES = """
--model-path --model --tokenizer-path --host --port --additional-ports --tokenizer-mode --load-format --dtype
--trust-remote-code --context-length --quantization --chat-template --mem-fraction-static --max-prefill-tokens
--max-running-requests --schedule-heuristic --schedule-policy --schedule-conservativeness --tp-size --tp
--tensor-parallel-size --stream-interval --random-seed --log-level --log-level-http --log-requests --show-time-cost
--api-key --dp-size --dp --data-parallel-size --load-balance-method --nccl-init-addr --nccl-init --dist-init-addr
--nnodes --node-rank --disable-flashinfer --disable-radix-cache --disable-regex-jump-forward --disable-cuda-graph
--disable-disk-cache --attention-reduce-in-fp32 --enable-p2p-check --efficient-weight-load --enable-torch-compile
--pp-size --ep-size --chunked-prefill-size --max-total-tokens --max-queued-requests --page-size --kv-cache-dtype
--attention-backend --sampling-backend --grammar-backend --disable-overlap-schedule --enable-mixed-chunk
--radix-eviction-policy --enable-metrics --enable-cache-report --tool-call-parser --reasoning-parser
--served-model-name --revision --download-dir --json-model-override-args --is-embedding --skip-tokenizer-init
--skip-server-warmup --sampling-defaults --allow-auto-truncate --incremental-streaming-output --speculative-algorithm
--speculative-draft-model-path --speculative-num-steps --speculative-eagle-topk --speculative-num-draft-tokens
--enable-lora --lora-paths --max-loras-per-batch --torchao-config --cuda-graph-max-bs --enable-hierarchical-cache
--disaggregation-mode --enable-dp-attention --moe-a2a-backend --watchdog-timeout --decode-log-interval
--log-requests-level --device --base-gpu-id --admin-api-key --config --file-storage-path --enable-flashinfer
--disable-log-stats --log-stats-interval --model-overide-args --triton-attention-reduce-in-fp32
--disable-outlines-disk-cache
"""
HEAVY = ("torch", "transformers", "tokenizers", "numpy", "starlette", "uvicorn", "httpx", "zmq", "rich")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=120)


def parse(*words: str) -> ServerConfig:
    return launch_server.read_flags(launch_server.server_parser(), words)


@pytest.mark.parametrize(
    "words",
    [
        ("sglang", "--help"),
        ("sglang", "serve", "--help"),
        ("sglang", "chat", "--help"),
        ("sglang", "bench", "--help"),
        ("sglang", "bench", "serving", "--help"),
        ("sglang", "bench", "latency", "--help"),
        ("sglang", "explain", "--help"),
        ("sglang", "check-env", "--help"),
        ("sglang", "version"),
        ("sglang.launch_server", "--help"),
        ("sglang.srt.flush_cache", "--help"),
    ],
)
def test_help_imports_nothing_heavy(words: tuple[str, ...]):
    ran = run(*words)
    assert ran.returncode == 0 and ran.stdout and not ran.stderr
    code = (
        "import runpy, sys\n"
        f"sys.argv = {['sglang', *words[1:]]}\n"
        f"try: runpy.run_module({words[0]!r}, run_name='__main__')\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stderr == "[]\n"


def test_importing_sglang_imports_nothing_heavy():
    code = f"import sys, sglang; dir(sglang); print([name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("srve", "did you mean `sglang serve`?"),
        ("checkenv", "did you mean `sglang check-env`?"),
        ("zzzz", "there are serve, chat, bench, plan, explain, check-env, version"),
        ("bench servng", "did you mean `sglang bench serving`?"),
        ("version 3", "takes nothing more"),
        ("--modle x", "`sglang --modle` does not exist"),
        ("", "usage: sglang"),
        ("bench", "usage: sglang bench"),
    ],
)
def test_a_wrong_command_ends_with_code_2_and_a_hint(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert says in err and not out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--modle-path x", "unknown argument --modle-path; did you mean --model-path?"),
        ("x y", "unknown argument y"),
        ("x --model y", "the model is named twice: x and --model-path y"),
        ("--port http", "argument --port: invalid int value: 'http'"),
        ("--dtype int3", "argument --dtype: invalid choice: 'int3'"),
        ("--max 3", "ambiguous option: --max could match"),
        ("--speculative-algorithm EAGLE", "error: --speculative-algorithm is not supported"),
        ("--enable-lora --lora-paths a=b", "error: --enable-lora is not supported"),
        ("--log-stats-interval 3", "--log-stats-interval is not supported: use --decode-log-interval"),
        ("--load-format npcache", "argument --load-format: invalid choice: 'npcache'"),
        ("--config /nowhere.yaml", "argument --config: /nowhere.yaml: "),
    ],
)
def test_a_wrong_flag_is_said_in_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", *words.split()])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_flags_of_other_releases_are_had_or_refused_and_never_ignored():
    """The list of what people have in their start scripts; a flag here or its refusal must exist."""
    told = " ".join(server_parser_flags())
    for flag in OTHER_RELEASES.split():
        assert f"{flag} " in f"{told} " or known_flags.refusal(flag), flag
    for flag in known_flags.REFUSED:
        assert f"{flag} " not in f"{told} ", f"{flag} is built and refused"
        if match := re.search(r"use (--[a-z-]+)", known_flags.REFUSED[flag]):
            assert match[1] in told
    assert parse(*known_flags.ALWAYS) == ServerConfig()


def server_parser_flags() -> list[str]:
    return [flag for action in launch_server.server_parser()._actions for flag in action.option_strings]


def test_a_file_holds_flags_and_the_command_line_wins(tmp_path: Path):
    (tmp_path / "flags.yaml").write_text(
        "model-path: a/b\nport: 1234\nlog_requests: true\nenable-cache-report: false\n"
        "json-model-override-args: {num_hidden_layers: 2}\nmem-fraction-static: 0.5\n"
    )
    config = parse("--config", str(tmp_path / "flags.yaml"), "--port", "5")
    assert (config.model_path, config.port, config.log_requests, config.enable_cache_report) == ("a/b", 5, True, False)
    assert json.loads(config.json_model_override_args) == {"num_hidden_layers": 2}
    assert config.mem_fraction_static == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "must hold flags"),
        ("a: {", "expected"),
        ("nonsense: 3", "unknown argument --nonsense"),
        ("port: x", "--port"),
    ],
)
def test_a_file_of_flags_that_cannot_be_read_is_one_line(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "flags.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(tmp_path / "flags.yaml"))
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("words", ["folder/model", "--port 1234 folder/model", "folder/model --port 1234"])
def test_the_model_may_be_named_without_a_flag(words: str):
    config = parse(*words.split())
    assert config.model_path == "folder/model"
    assert config.port == (1234 if "1234" in words else 30000)


def test_no_model_is_the_demo_model():
    assert parse() == ServerConfig()


def test_check_env_tells_versions_devices_and_what_is_missing():
    ran = run("sglang.check_env")
    assert ran.returncode == 0, ran.stdout
    for word in ("Python", "torch ", "uvicorn", "CPU bfloat16", "kernels", "free memory", "Missing"):
        assert word in ran.stdout


def test_what_is_missing_comes_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch):
    lines = [
        "msgspec>=0.20",
        "numpy>=900",
        "no-such-package>=1; extra == 'openai'",
        "no-such-thing>=2",
        "not-on-this-system; sys_platform == 'no-such-system'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    [(numpy, outside), (thing, command)] = check_env.requirements(None)
    assert (numpy, thing) == ("numpy", "no-such-thing")
    assert "outside the tested range" in outside
    assert command == 'pip install "no-such-thing>=2"'
    assert list(check_env.extras()) == [
        ("no-such-package", 'programs on OpenAI models, the OpenAI client: pip install "sglang[openai]"')
    ]


def test_flush_cache_says_when_nobody_listens():
    ran = run("sglang.srt.flush_cache", "--url", "http://127.0.0.1:9")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: http://127.0.0.1:9/flush_cache: ")
