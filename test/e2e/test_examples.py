"""Every script of examples/ as a user runs it: local ones on the demo model, those of API models over the wire."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from wire_model import Scripted
from wire_server import WireServer, wire_server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.e2e

# What a script prints, with the demo model at temperature 0.
LOCAL = {
    "quick_start/srt_example_chat.py": ["Washington, D.C.", "Paris", "Tokyo", "Rome"],
    "usage/readme_examples.py": [
        "I need to use a calculator. The math expression is 7 + 8",
        "I need to use a search engine. The key word to search is president of France",
        "Tip 1:A balanced diet", "A: 8.8.8.8", " London", " Paris", " Tokyo",
    ],
    "usage/json_decode.py": ['"house": "Gryffindor"', "name='Japan' capital='Tokyo'"],
    "usage/choices_logprob.py": [
        "What is 7 + 8? -> calculator  (token_length_normalized)",
        "Who is the president of France? -> search engine  (token_length_normalized)",
        "What is 7 + 8? -> calculator  (unconditional_likelihood_normalized)",
    ],
    "usage/async_io.py": ["The capital of France is Paris", "|", "Oslo", "Santiago"],
    "usage/streaming.py": ["Once upon a time, there", "answer_1: The capital of Japan is Tokyo.", "answer_2: 1. "],
    "usage/batching.py": ["Japan: Tokyo", "Norway: Oslo", "8 programs in"],
    "usage/parallel_sample.py": ["most say"],
    "usage/parallelism.py": ["1. Sleep enough", "Sleep enough is important."],
    "usage/chat.py": ["assistant: Nice to meet you, Tom!", "assistant: Your name is Tom."],
    "usage/tree_of_thought.py": ["Answer: 7"],
    "usage/react.py": ["Observation 2: The capital of Germany is Berlin.", "-> Berlin", "-> Tokyo"],
    "usage/llm_judge.py": ["user : Clarity:", "grade: "],
    "usage/retrieval.py": ["Where does Tom live? -> Tom lives in London.", "-> Maria works as a doctor."],
    "usage/cot_decoding.py": ["The answer is 7."],
}  # fmt: skip
CHAT = ["assistant : Washington, D.C.", "1. The White House\n2. The Lincoln Memorial"]
COMPLETE = ["Washington, D.C.\n", "the United Kingdom : London", "France : Paris", "Japan : Tokyo"]
CARD = ["Grace Hopper", "December 9, 1906", "Computer scientist"]
API = {
    **{f"quick_start/{name}_example_chat.py": CHAT
       for name in ("openai", "azure_openai", "anthropic", "gemini", "together", "openrouter", "litellm")},
    **{f"quick_start/{name}_example_complete.py": COMPLETE for name in ("openai", "anthropic", "gemini", "together")},
    "usage/openai_speculative.py": CARD,
    "usage/openai_chat_speculative.py": CARD,
}  # fmt: skip
ITS_OWN_SERVER = "quick_start/srt_example_complete.py"
PICTURES = {
    "quick_start/srt_example_llava.py", "quick_start/srt_example_yi_vl.py", "usage/llava_video/srt_example_llava_v.py",
}  # fmt: skip
SDKS = {"anthropic": "anthropic", "gemini": "google.genai", "litellm": "litellm"}
ANSWERS = {
    "capital of the United States?": "Washington, D.C.",
    "two local attractions": "1. The White House\n2. The Lincoln Memorial",
    "capital of the United States?\nA:": " Washington, D.C.\nQ:",
    "capital of the United Kingdom?\nA:": " London\nQ:",
    "capital of France?\nA:": " Paris\nQ:",
    "capital of Japan?\nA:": " Tokyo\nQ:",
    "Birthday and Job.\nName:": " Grace Hopper.\nBirthday: December 9, 1906.\nJob: Computer scientist.\n",
    "Grace Hopper.\nBirthday:": " December 9, 1906.\nJob: Computer scientist.\n",
    "December 9, 1906.\nJob:": " Computer scientist.\n",
    "Job: ...": "Name: Grace Hopper\nBirthday: December 9, 1906\nJob: Computer scientist",
}


def start(script: str, environment: dict[str, str], *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *words],
        env={**inherited, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "2", **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=250,
    )


def run(script: str, environment: dict[str, str], stdin: str = "") -> str:
    """What the script prints; it must end well."""
    done = start(script, environment, stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expect(printed: str, parts: list[str]) -> None:
    joined = printed.replace("|", "")  # between pieces of a stream: how many come together nobody knows
    for part in parts:
        assert part in printed or part in joined, f"{part!r} is not in:\n{printed}"


@pytest.fixture(scope="module")
def vendors() -> Iterator[WireServer]:
    with wire_server(Scripted(ANSWERS)) as server:
        yield server


@pytest.fixture(scope="module")
def environment(vendors: WireServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What leads every vendor's SDK to the server of this test, and nothing outside."""
    variables = {
        "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": vendors.url + "/v1",
        "AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": vendors.url,
        "ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": vendors.url,
        "TOGETHER_API_KEY": "k", "TOGETHER_BASE_URL": vendors.url + "/v1",
        "OPENROUTER_API_KEY": "k", "OPENROUTER_BASE_URL": vendors.url + "/v1",
        "GCP_PROJECT_ID": "acme", "GOOGLE_VERTEX_BASE_URL": vendors.url,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody listens: no vocabulary or price list is fetched
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    if find_spec("google") and find_spec("google.genai"):
        account = tmp_path_factory.mktemp("google") / "account.json"
        account.write_text(json.dumps(service_account(vendors.url + "/token")))
        variables["GOOGLE_APPLICATION_CREDENTIALS"] = str(account)
    return variables


def service_account(token_uri: str) -> dict[str, str]:
    """A made-up account whose tokens the test's own server gives out."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account", "project_id": "acme", "private_key": pem.decode(), "private_key_id": "1",
        "client_email": "test@acme.example", "token_uri": token_uri,
    }  # fmt: skip


@pytest.mark.parametrize("script", LOCAL)
def test_an_example_on_the_demo_model(served, script: str):
    stdin = "My name is Tom.\nWhat is my name?\n" if script.endswith("chat.py") else ""
    expect(run(script, {"SGLANG_URL": served.url}, stdin), LOCAL[script])


def test_an_example_that_starts_its_own_server():
    expect(run(ITS_OWN_SERVER, {}), ["Washington, D.C.", "Madrid", "Japan : Tokyo", "Kenya : Nairobi"])


@pytest.mark.parametrize("script", API)
def test_an_example_of_an_api_model(environment: dict[str, str], script: str):
    sdk = SDKS.get(Path(script).name.split("_")[0], "openai")
    if find_spec(sdk.split(".")[0]) is None or find_spec(sdk) is None:
        pytest.skip(f"{sdk} is an extra")
    expect(run(script, environment), API[script])


def test_speculation_saves_what_its_example_says(environment: dict[str, str]):
    paid = [
        int(line.split(":")[1])
        for line in run("usage/openai_speculative.py", environment).splitlines()
        if "paid" in line
    ]
    assert paid[1] * 2 < paid[0]


@pytest.mark.parametrize("script", sorted(PICTURES))
def test_an_example_with_a_picture_ends_with_the_servers_refusal(served, script: str, tmp_path: Path):
    from PIL import Image

    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    done = start(script, {"SGLANG_URL": served.url}, str(tmp_path / "moving.gif"))
    assert done.returncode == 1
    assert "image_data is not supported by this server" in done.stderr
    assert f"{Path(script).name}" in done.stderr and "s += sgl.assistant(sgl.gen(" in done.stderr, "the program's line"


def test_no_example_is_forgotten_and_all_say_how_they_are_run():
    scripts = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert scripts == LOCAL.keys() | API.keys() | PICTURES | {ITS_OWN_SERVER}
    for script in scripts:
        doc = ast.get_docstring(ast.parse((EXAMPLES / script).read_text())) or ""
        assert f"python examples/{script}" in doc
