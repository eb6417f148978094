"""Part `table` of gpu_check.py: a server of a real shape under the workloads that other engines were measured with."""

import contextlib
import io
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import results_file
import workloads

ROOT = Path(__file__).parents[1]

TRAINED = 32000  # entries of a tokenizer that are found in text
PLAIN, TOTAL = 128000, 128256  # Llama 3's: entries, of which the last are special
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_COMMON: dict[str, Any] = {
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "bos_token_id": PLAIN, "eos_token_id": PLAIN + 1, "vocab_size": TOTAL,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama8b": {
        **_COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        **_COMMON, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "tie_word_embeddings": True,
    },
    "qwen1.5-moe": {
        **_COMMON, "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "norm_topk_prob": False,
        "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "vocab_size": 151936, "bos_token_id": 151643, "eos_token_id": 151644, "tie_word_embeddings": False,
    },
    "tiny": {
        **_COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "tie_word_embeddings": True,
    },
}  # fmt: skip
SHAPES["llama8b-awq"] = {
    **SHAPES["llama8b"],
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
}  # fmt: skip
ORDER = "A1,A2,B,D,F,G,E,I24,C,H,I48"  # the most telling first, since time may run out

# Figure of a workload, of other engines on one H200 with the 8B shape (vLLM 0.24.0, SGLang 0.5.15; docs/benchmarks.md),
# the hardware's floor, our goal. `more`: more is better.
PEERS: list[dict[str, Any]] = [
    {"load": "A1", "key": "itl_ms_p50", "unit": "ms", "vllm": 4.81, "sglang": 4.75, "floor": 3.47, "goal": 4.2},
    {"load": "A2", "key": "ttft_ms_p50", "unit": "ms", "vllm": 103, "sglang": 97, "floor": 80, "goal": 92},
    {"load": "B", "key": "output_tok_s", "unit": "token/s", "vllm": 4988, "sglang": 5119, "floor": 7250, "goal": 5600},
    {"load": "C", "key": "wall_s", "unit": "s", "vllm": 24.8, "sglang": 28.0, "floor": 19.4, "goal": 23},
    {"load": "D", "key": "wall_s", "unit": "s", "vllm": 4.22, "sglang": 4.31, "floor": 1.42, "goal": 2.0},
    {"load": "E", "key": "wall_s", "unit": "s", "vllm": 5.94, "sglang": 5.80, "floor": 4.34, "goal": 5.0},
    {"load": "F", "key": "wall_s", "unit": "s", "vllm": 4.90, "sglang": 6.34, "floor": 2.67, "goal": 3.3},
    {"load": "G", "key": "wall_s", "unit": "s", "vllm": 21.6, "sglang": 17.5, "floor": 1.5, "goal": 1.5},
    {"load": "G", "key": "time_of_free", "unit": "times", "goal": 1.03},
    {"load": "G", "key": "cold_first_s", "unit": "s", "vllm": 1.49, "sglang": 1.96, "goal": 0.8},
    {"load": "J", "key": "wall_s", "unit": "s"},
    {"load": "J", "key": "time_of_free", "unit": "times", "goal": 1.03},
    {"load": "H", "key": "wall_s", "unit": "s", "vllm": 8.57, "sglang": 8.39, "floor": 6.95, "goal": 8.2},
    {"load": "H", "key": "itl_ms_p99", "unit": "ms", "goal": 100},
    {"load": "I24", "key": "ttft_ms_p50", "unit": "ms", "vllm": 39, "sglang": 25, "goal": 25},
    {"load": "I24", "key": "ttft_ms_p99", "unit": "ms", "vllm": 89, "sglang": 501, "goal": 60},
    {"load": "I48", "key": "ttft_ms_p50", "unit": "ms", "vllm": 81, "sglang": 41, "goal": 40},
    {"load": "I48", "key": "ttft_ms_p99", "unit": "ms", "vllm": 178, "sglang": 641, "goal": 120},
    {"load": "I48", "key": "itl_ms_p50", "unit": "ms", "vllm": 16.5, "sglang": 13.1, "goal": 13},
    {"load": "I48", "key": "itl_ms_p99", "unit": "ms", "vllm": 58, "sglang": 133, "goal": 40},
    {"load": "start", "key": "ready_s", "unit": "s", "vllm": 177, "sglang": 123, "goal": 20},
]  # fmt: skip
PEERS_FP8: list[dict[str, Any]] = [
    {"load": "A1", "key": "itl_ms_p50", "unit": "ms", "vllm": 3.44, "sglang": 3.49, "floor": 1.85, "goal": 2.7},
    {"load": "A2", "key": "ttft_ms_p50", "unit": "ms", "vllm": 70, "sglang": 65},
    {"load": "B", "key": "output_tok_s", "unit": "token/s", "vllm": 6216, "sglang": 6858, "goal": 7500},
    {"load": "C", "key": "output_tok_s", "unit": "token/s", "vllm": 12104, "sglang": 13450, "goal": 14500},
]
PEERS_AWQ: list[dict[str, Any]] = [
    {"load": "A1", "key": "itl_ms_p50", "unit": "ms", "vllm": 3.91, "floor": 1.08, "goal": 2.4},
    {"load": "A2", "key": "ttft_ms_p50", "unit": "ms", "vllm": 104},
    {"load": "B", "key": "output_tok_s", "unit": "token/s", "vllm": 5656, "goal": 6500},
]
# C with C_REQUESTS.
PEERS_MOE: list[dict[str, Any]] = [
    {"load": "A1", "key": "itl_ms_p50", "unit": "ms", "vllm": 2.53, "sglang": 2.86, "floor": 1.08, "goal": 2.0},
    {"load": "B", "key": "itl_ms_p50", "unit": "ms", "vllm": 8.3, "sglang": 7.9, "goal": 7.5},
    {"load": "C", "key": "output_tok_s", "unit": "token/s", "vllm": 8188, "sglang": 7780, "goal": 9000},
]
C_REQUESTS = {"qwen1.5-moe": 256, "qwen3-0.6b": 256}
# Without a peer's figure: shown all the same.
USUAL = {"A1": "itl_ms_p50", "A2": "ttft_ms_p50", "B": "output_tok_s", "I8": "ttft_ms_p50", "start": "ready_s"}


def make_model(folder: Path, shape: str, text_mb: float = 8.0) -> None:
    """A model folder without weights: config.json and a byte-level BPE tokenizer of as many entries as it says.

    32,000 of them are trained on the standard library's sources; the rest are joined pairs of those, which no text is
    cut into and every drawn id decodes to, and special tokens. So constraints meet a vocabulary of real size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32768}
    words |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=1))
    if not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").write_text(
            _tokenizer(text_mb * 1e6, config["bos_token_id"], config["vocab_size"]), encoding="utf-8"
        )


def _tokenizer(most_bytes: float, plain: int, total: int) -> str:
    """plain: entries that are not special; the first that is begins a text, the next ends one."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])  # type: ignore[assignment]
    tok.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tok.train_from_iterator(_texts(most_bytes), trainer)
    spec = json.loads(tok.to_str())
    vocab = spec["model"]["vocab"]
    drawn = random.Random(0)
    words = sorted(w for w in vocab if w.isascii() and w.isalpha() and 2 <= len(w) <= 7)
    heads = sorted(w for w in vocab if w[0] == "\u0120" and w[1:].isascii() and w[1:].isalpha() and len(w) <= 8)
    while len(vocab) < plain:
        vocab.setdefault(drawn.choice(heads if drawn.random() < 0.55 else words) + drawn.choice(words), len(vocab))
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(total - plain - 2))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec["added_tokens"] = [{"id": plain + i, "content": name, **flags} for i, name in enumerate(names)]
    return json.dumps(spec, ensure_ascii=False)


def _texts(most_bytes: float) -> Iterator[str]:
    total = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")[:200_000]
        except (OSError, UnicodeDecodeError):
            continue
        total += len(text)
        yield text
        if total > most_bytes:
            return


class Server:
    """launch_server with dummy weights, its output in a file."""

    def __init__(self, model: Path, log: Path, flags: list[str]):
        self._log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--load-format", "dummy",
                   "--port", str(port), "--served-model-name", "default", *flags]  # fmt: skip
        paths = [str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
        self.command = " ".join(["python", *command[1:3], *command[5:7], *flags])
        self._began = time.monotonic()
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def wait(self, seconds: float) -> float:
        """Seconds from the command to a /health that answers. Raises RuntimeError with the end of the log."""
        while time.monotonic() - self._began < seconds:
            if not self.alive:
                raise RuntimeError(f"the server ended with {self._process.returncode}:\n{self.tail()}")
            try:
                urllib.request.urlopen(self.url + "/health", timeout=2).close()
                return time.monotonic() - self._began
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"no answer within {seconds:.0f} s:\n{self.tail()}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def said(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()

    def tail(self, lines: int = 50) -> str:
        return "\n".join(line[:400] for line in self.said()[-lines:])

    def stop(self) -> None:
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(
    model_path: str, shape: str, flags: str, names: list[str], out: Path, name: str, total_s: float, each_s: float,
    scale: float, processes: int,
) -> dict[str, Any]:  # fmt: skip
    """Writes into the folder `out`: NAME.jsonl, a line as soon as there is a figure; NAME.json, the table (again after
    each workload, as benchmark/results_file.py has it); NAME.log, what the server said."""
    ends = time.monotonic() + total_s
    out.mkdir(parents=True, exist_ok=True)
    lines = out / f"{name}.jsonl"
    found: dict[str, dict[str, Any]] = {}
    peers = peers_of(shape, flags) if scale == 1 else []

    def keep(key: str, figures: dict[str, Any]) -> None:
        found[key] = figures
        with lines.open("a") as file:
            file.write(json.dumps({"workload": key, **figures}) + "\n")
        save(rows_of(found, peers), out, name, shape, server.command, flags)

    model = Path(model_path or Path(tempfile.gettempdir(), f"sglang-{shape}"))
    began = time.monotonic()
    if not model_path:
        make_model(model, shape)
        print(f"model folder: {time.monotonic() - began:.1f} s", flush=True)
    server = Server(model, out / f"{name}.log", shlex.split(flags))
    clients = None
    wrong = ""
    try:
        requests = C_REQUESTS.get(shape, 512)
        o = workloads.Options(server.url, scale=scale, processes=processes, c_requests=requests)
        clients = workloads.Clients(o)  # they start while the server does
        ready = server.wait(min(240.0, total_s))
        report = [line for line in server.said() if "[" in line]
        print("\n".join(report), flush=True)
        keep("start", {"ready_s": ready, "requests": 0, "errors": 0, "report": report})
        warmed = workloads.warm(clients, o, min(60.0, ends - time.monotonic()))
        print("warm-up", warmed, flush=True)
        keep("warm", {"requests": 0, **warmed})
        for load in names:
            left = ends - time.monotonic()
            if left < 2:
                print(f"{load:4} skipped: no time left of --total-s {total_s:g}", flush=True)
                continue
            if not server.alive:
                raise RuntimeError(f"the server is dead before {load}")
            figures = workloads.measure(load, clients, o, min(left, each_s))
            print(workloads.line(load, figures), flush=True)
            keep(load, figures)
            if not server.alive:
                raise RuntimeError(f"the server died during {load}")
    except (RuntimeError, OSError, EOFError, AssertionError) as error:
        wrong = f"{type(error).__name__}: {error}"
        with lines.open("a") as file:
            file.write(json.dumps({"workload": "died", "why": wrong, "log": server.tail(100)}) + "\n")
        print(f"WRONG: {wrong}\n{server.tail(60)}", flush=True)
    finally:
        server.stop()
        if clients is not None:
            clients.close()
    for line in markdown(rows_of(found, peers)):
        print(line, flush=True)
    warnings = [
        line for line in server.said() if "WARNING" in line or "warn" in line.lower() or "error" in line.lower()
    ]
    print("\n".join(["", "warnings and errors of the server:", *dict.fromkeys(w[:300] for w in warnings[:20])]))
    return {"ok": not wrong and not any(f.get("errors") for f in found.values()), "wrong": wrong, "figures": found}


def peers_of(shape: str, flags: str) -> list[dict[str, Any]]:
    """Others' figures for the same weights."""
    if shape == "llama8b":
        return PEERS_FP8 if "fp8" in shlex.split(flags) else PEERS
    if shape == "qwen1.5-moe":
        return [] if "fp8" in shlex.split(flags) else PEERS_MOE
    return PEERS_AWQ if shape == "llama8b-awq" else []


def rows_of(found: dict[str, dict[str, Any]], peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table: each figure beside those of others, in the order of the workloads."""
    known = {line["load"] for line in peers}
    others = [{"load": n, "key": USUAL.get(n, "wall_s"), "unit": ""} for n in found if n not in known and n != "warm"]
    rows = []
    for line in [*peers, *others]:
        figures = found.get(line["load"])
        if figures is None:
            continue
        ours = figures.get(line["key"])
        row = {"workload": line["load"], "figure": line["key"], "unit": line["unit"], "ours": ours}
        row |= {"vLLM 0.24.0": line.get("vllm"), "SGLang 0.5.15": line.get("sglang")}
        row |= {"floor": line.get("floor"), "goal": line.get("goal")}
        more = line["unit"] == "token/s"
        goal = line.get("goal")
        row["goal met"] = None if ours is None or goal is None else bool(ours >= goal if more else ours <= goal)
        row["errors"] = figures["errors"]
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["no figures"]
    shown = [
        ["-" if v is None else f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    return [
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *(f"| {' | '.join(r)} |" for r in shown),
    ]


def save(rows: list[dict[str, Any]], out: Path, name: str, shape: str, command: str, flags: str) -> None:
    if not rows:
        return
    note = (
        f"`{command}`. The workloads are those of `benchmark/workloads.py`. Other engines: their default settings, one "
    )
    note += "run each on one H200, 2026-11-23; a few percent is noise."
    title = f"Load of many kinds: {shape}, random weights{', ' + flags if flags else ''}"
    with contextlib.redirect_stderr(io.StringIO()):  # it says what it saved, each time
        results_file.save(name, rows, title=title, note=note, folder=out)
