"""The `sglang` command: what it starts, what it says about mistakes, and that its help costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from sglang import check_env, cli, launch_server
from sglang.base.config import ServerConfig

PACKAGE_ROOT = Path(__file__).parents[2] / "python"
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
        ("zzzz", "there are serve, chat, bench, explain, check-env, version"),
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
    ],
)
def test_a_wrong_flag_is_said_in_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", *words.split()])
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
