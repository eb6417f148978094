"""The package: its metadata, and its wheel in an environment where nothing of this repository is found."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang import check_env

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
START_S = 120
WHEEL_MIB = 20


def test_documented_extras_exist():
    assert {"all", "srt", "openai", "anthropic", "litellm", "vertexai", "cuda", "dev"} <= PROJECT[
        "optional-dependencies"
    ].keys()


def test_check_env_knows_what_every_extra_is_for():
    assert check_env.EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - {"all", "cuda", "dev", "srt"}


def test_every_package_has_a_range_and_a_reason():
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    for line in PROJECT["dependencies"]:
        name, _, range = line.partition(">=")
        assert "," in range and "<" in range, line
        assert name in reasons, f"docs/dependencies.md does not say what {name} is for"


def test_the_package_brings_the_repositorys_licence():
    assert (ROOT / "python" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build writes into its source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT / "python", folder / "python", ignore=ignore)
    command = [sys.executable, "-m", "build", "--wheel", str(folder / "python"), "-o", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel, and with our dependencies but not our source."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, timeout=120)
    # A path in a .pth file is searched, but .pth files there (as of an editable install) are not read.
    [site] = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture
def served(installed: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path / "log"
    command = [installed / "python", "-m", "sglang.launch_server", "--port", str(port), "--max-total-tokens", "4000"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=empty, stdout=out, stderr=out, env=clean_environment())
    try:
        deadline = time.monotonic() + START_S
        while b"ready to roll" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


@pytest.mark.slow
def test_the_wheel_holds_what_it_should(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        [metadata] = [file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    sources = {str(path.relative_to(ROOT / "python")) for path in (ROOT / "python" / "sglang").rglob("*.py")}
    assert sources <= names, "modules are missing"
    assert {f"sglang/assets/demo/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} <= names
    assert "sglang/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith(".pyc") or not name.startswith(("sglang/", "sglang-"))]
    assert f"Requires-Python: {PROJECT['requires-python']}" in metadata
    assert wheel.stat().st_size < WHEEL_MIB * 2**20


@pytest.mark.slow
def test_the_installed_command_finds_its_own_package(installed: Path, tmp_path: Path):
    def run(*words: str) -> str:
        command = [str(installed / words[0]), *words[1:]]
        ran = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout.strip()

    assert run("sglang", "version") == PROJECT["version"]
    where = run("python", "-c", "import sglang.base.config as c; print(c.__file__); print(c.DEMO_MODEL)")
    assert all(line.startswith(str(installed.parent)) for line in where.splitlines())
    assert "usage: sglang serve" in run("sglang", "serve", "--help")


@pytest.mark.slow
def test_the_installed_server_answers_with_the_demo_model(served: str):
    body = {"text": "The capital of France is", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    request = urllib.request.Request(
        served + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "Paris" in json.load(answer)["text"]
