"""Check the engine on a GPU in one command: numerics against the CPU first, then figures, as a markdown table.

    python scripts/gpu_check.py demo                      # same text as the CPU and under other flags, up to near-ties
    python scripts/gpu_check.py kernels                   # each kernel against float64, then its time
    python scripts/gpu_check.py attention                 # ours on 16 and 8 bits, FlashInfer's: against float64, timed
    python scripts/gpu_check.py long                      # attention of long rows by cuDNN and by tiles: both, timed
    python scripts/gpu_check.py graphs                    # steps of an 8B model: graphs on and off, time by batch
    python scripts/gpu_check.py profile                   # kernels of steps of that model, by their time
    python scripts/gpu_check.py loop                      # the device's pauses between steps; time by batch, by context
    python scripts/gpu_check.py idle                      # what is prepared while nobody waits, and how soon it is left
    python scripts/gpu_check.py stream                    # what lies between products: one kernel, and step by step
    python scripts/gpu_check.py few                       # layers and products of a few rows beside what they replace
    python scripts/gpu_check.py quant                     # products of 4 and 8 bits against float64, then their time
    python scripts/gpu_check.py moe                       # experts against float64, then their time beside the floor
    python scripts/gpu_check.py constraints               # automata on the device against the CPU's, then their time
    python scripts/gpu_check.py table --out-dir DIR       # a server of that shape under every workload, beside others
    python scripts/gpu_check.py parity                    # every family in bfloat16 beside its reference
    python scripts/gpu_check.py serve --model-path DIR    # a server with dummy weights: correctness and first figures

Each part ends in a table and exits non-zero where a bound is broken. `--out FILE` keeps the figures as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benchmark")]

COUNTRIES = [
    "France",
    "Germany",
    "Italy",
    "Spain",
    "Portugal",
    "Japan",
    "China",
    "India",
    "Brazil",
    "Canada",
    "Mexico",
    "Egypt",
    "Kenya",
    "Norway",
    "Sweden",
    "Finland",
    "Poland",
    "Greece",
    "Turkey",
    "Peru",
    "Chile",
    "Cuba",
    "Iran",
    "Iraq",
    "Nepal",
    "Austria",
    "Belgium",
    "Denmark",
    "Ireland",
    "Iceland",
    "Hungary",
    "Romania",
]
PROMPTS = [
    *(f"The capital of {c} is" for c in COUNTRIES),
    *(f"Q: What is the capital of {c}?\nA:" for c in COUNTRIES),
    *(f"{c} is a country in" for c in COUNTRIES),
    *(f"The people of {c} speak" for c in COUNTRIES),
    *(f"My friend comes from {c} and" for c in COUNTRIES),
    *(f"{n} plus {n * 7 % 10} is" for n in range(1, 35)),
    "Once upon a time,",
    "Today is a sunny day and I like",
    "Q: What is the IP address of the Google DNS servers?\nA: ",
    "To answer this question: What is 7 times 6?. I need to use a",
    "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\nNow, expand tip 1 into a "
    "paragraph:\n",
    "Hermione Granger is a character in Harry Potter. Please fill in the following information about this character.\n",
]
FEW = 4  # of the prompts one in so many is tried under each other flag
# Two tokens whose log-probabilities are this close may change places: rounding of one type against another over the
# demo model's 8 layers. float32: order of summation only; bfloat16: 8 bits of mantissa.
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.3}


# What must not change a text: flags of the engine, and the prompts to try them with. The shared ones begin alike for so
# long that reading that once is worth it.
EIGHT_BITS = {"kv_cache_dtype": "fp8_e4m3"}  # compared with themselves
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no graphs": ("plain", {"disable_cuda_graph": True}),
    "no overlap": ("plain", {"disable_overlap_schedule": True}),
    "chunks of 16": ("plain", {"chunked_prefill_size": 16}),
    "chunks of 100": ("plain", {"chunked_prefill_size": 100}),
    "no prefix cache": ("plain", {"disable_radix_cache": True}),
    "pages of 16": ("plain", {"page_size": 16}),
    "attention by torch": ("plain", {"attention_backend": "torch"}),
    "shared prefix, no cascade": ("shared", {"disable_cascade_attention": True}),
    "shared prefix, no graphs": ("shared", {"disable_cuda_graph": True}),
    "8 bits, no graphs": ("plain", {"disable_cuda_graph": True, **EIGHT_BITS}),
    "8 bits, chunks of 16": ("plain", {"chunked_prefill_size": 16, **EIGHT_BITS}),
    "8 bits, no prefix cache": ("plain", {"disable_radix_cache": True, **EIGHT_BITS}),
    "8 bits, attention by torch": ("plain", {"attention_backend": "torch", **EIGHT_BITS}),
    "8 bits, shared prefix, no cascade": ("shared", {"disable_cascade_attention": True, **EIGHT_BITS}),
}


def demo(device: str = "cuda") -> dict[str, Any]:
    """Greedy text of the demo model: CPU float32 against CUDA in both types, then CUDA bfloat16 against itself under
    other flags."""
    from sglang.launch import ThreadWorker
    from sglang.offline import Engine

    assert len(PROMPTS) == 200
    greedy = {"temperature": 0, "max_new_tokens": 32}
    ask: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": 2}
    prefix = "".join(f"Q: What is the capital of {c}?\nA: It is a city.\n" for c in COUNTRIES)
    some = PROMPTS[::FEW]
    prompts = {"all": PROMPTS, "plain": some, "shared": [prefix + prompt for prompt in some]}

    def run(on: str, dtype: str, *sets: str, **flags: Any) -> dict[str, list[dict[str, Any]]]:
        began = time.monotonic()
        settings = {"max_total_tokens": 32768, "log_level": "error", **flags}
        with Engine(worker=ThreadWorker, device=on, dtype=dtype, **settings) as e:
            found = {name: e.generate(prompts[name], greedy, **ask) for name in sets}
        print(f"{on} {dtype} {flags or ''}: {time.monotonic() - began:.1f} s", flush=True)
        return found

    rows: dict[str, Any] = {}
    expected = run("cpu", "float32", "all")
    rows["float32"] = compare(expected["all"], run(device, "float32", "all")["all"], NEAR_TIE["float32"])
    base = run(device, "bfloat16", "all", "plain", "shared")
    rows["bfloat16"] = compare(expected["all"], base["all"], NEAR_TIE["bfloat16"])
    rounded = run(device, "bfloat16", "plain", "shared", **EIGHT_BITS)
    for name, (which, flags) in VARIANTS.items():
        wanted = (rounded if "kv_cache_dtype" in flags else base)[which]
        try:
            got = run(device, "bfloat16", which, **flags)[which]
        except Exception as error:  # the others are still worth knowing
            rows[name] = {
                "prompts": len(prompts[which]),
                "same": 0,
                "near_ties": 0,
                "worst_logprob_difference": 0.0,
                "broken": [repr(error)],
            }
            continue
        rows[name] = compare(wanted, got, NEAR_TIE["bfloat16"])
        print(name, {key: rows[name][key] for key in ("same", "near_ties")}, len(rows[name]["broken"]), flush=True)
    print("\n| CUDA | same text | near-ties | worst log-probability difference | broken |\n|---|---|---|---|---|")
    for name, row in rows.items():
        counts = f"{row['same']} of {row['prompts']} | {row['near_ties']}"
        print(f"| {name} | {counts} | {row['worst_logprob_difference']:.2e} | {len(row['broken'])} |")
    for name, row in rows.items():
        for case in row["broken"]:
            print("BROKEN", name, json.dumps(case), file=sys.stderr)
    return {**rows, "ok": not any(row["broken"] for row in rows.values())}


def compare(wanted: list[dict[str, Any]], got: list[dict[str, Any]], bound: float) -> dict[str, Any]:
    """Texts that are the same, that part where the two likeliest tokens are within `bound`, and that part elsewhere."""
    same = ties = 0
    worst = 0.0
    broken = []
    for want, have in zip(wanted, got, strict=True):
        a, b = want["output_ids"], have["output_ids"]
        fork = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        scores = [answer["meta_info"]["output_token_logprobs"][:fork] for answer in (want, have)]
        worst = max([worst, *(abs(x[0] - y[0]) for x, y in zip(*scores, strict=True))])
        if a == b:
            same += 1
            continue
        top = want["meta_info"]["output_top_logprobs"][min(fork, len(a) - 1)]
        gap = top[0][0] - top[1][0]
        if gap <= bound:
            ties += 1
        else:
            broken.append({"gap": gap, "wanted": want["text"], "got": have["text"]})
    return {
        "prompts": len(wanted),
        "same": same,
        "near_ties": ties,
        "worst_logprob_difference": worst,
        "broken": broken,
    }


def serve(model_path: str, port: int = 30411) -> dict[str, Any]:
    """A real server with random weights of a real shape: does it answer, the same twice, and how fast."""
    import torch

    began = time.monotonic()
    log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115 - read after the process ends
    flags = ["--model-path", model_path, "--load-format", "dummy", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "sglang.launch_server", *flags], stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        while "ready to roll" not in Path(log.name).read_text():
            if server.poll() is not None or time.monotonic() - began > 240:
                raise SystemExit("the server did not start:\n" + Path(log.name).read_text()[-4000:])
            time.sleep(0.1)
        start_s = time.monotonic() - began

        def generate(ids: list[int], n: int) -> tuple[list[int], float]:
            body = {
                "input_ids": ids,
                "sampling_params": {"temperature": 0, "max_new_tokens": n, "ignore_eos": True},
            }
            request = urllib.request.Request(
                base + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            t = time.monotonic()
            answer = json.load(urllib.request.urlopen(request, timeout=300))
            return answer["output_ids"], time.monotonic() - t

        prompt = [(i * 7919) % 30000 for i in range(256)]
        first, _ = generate(prompt, 32)
        again, _ = generate(prompt, 32)  # this time from the prefix cache
        _, short = generate(prompt, 1)
        _, long = generate(prompt, 129)
        bench = subprocess.run(
            [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang", "--port", str(port), "--host",
             "127.0.0.1", "--dataset-name", "random-ids", "--num-prompts", "32", "--random-input-len", "256",
             "--random-output-len", "128", "--random-range-ratio", "1", "--output-file", log.name + ".jsonl",
             "--disable-tqdm"],
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        print(bench.stdout[-3000:], bench.stderr[-2000:] if bench.returncode else "")
        lines = Path(log.name + ".jsonl").read_text().splitlines() if bench.returncode == 0 else []
        figures = json.loads(lines[-1]) if lines else {}
    finally:
        server.terminate()
        server.wait(60)
    row = {
        "device": torch.cuda.get_device_name(),
        "start_s": start_s,
        "same_from_cache": first == again,
        "decode_ms_per_token": 1000 * (long - short) / 128,
        "output_tok_s_32_at_once": figures.get("output_throughput"),
        "ok": first == again and len(first) == 32 and bool(figures),
    }
    print("\n| " + " | ".join(row) + " |\n|" + "---|" * len(row) + "\n| " + " | ".join(map(str, row.values())) + " |")
    return row


def table(rows: list[dict[str, Any]]) -> None:
    """A markdown table; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        shown = (row.get(c, "") for c in columns)
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown) + " |")


def kernels() -> dict[str, Any]:
    import gpu_kernels

    checks = gpu_kernels.numerics() + gpu_kernels.others()
    table(checks)
    times: dict[str, list[dict[str, Any]]] = {}
    for name, part in (("decode", gpu_kernels.decodes), ("extend", gpu_kernels.extends), ("small", gpu_kernels.small)):
        times[name] = part()
    for rows in times.values():
        table(rows)
    bad = [row for row in checks if not row["ok"]]
    print(f"\n{len(checks) - len(bad)} of {len(checks)} numeric checks within their bounds")
    table(bad)
    return {"checks": checks, **times, "ok": not bad}


def long() -> dict[str, Any]:
    import gpu_long

    found = gpu_long.run()
    for name in ("checks", "times"):
        table(found[name])
    return found


def attention() -> dict[str, Any]:
    import gpu_attention

    found = gpu_attention.run()
    for name in ("modules", "checks", "decodes", "prompts", "shared"):
        table(found[name])
    return found


def graphs() -> dict[str, Any]:
    import gpu_steps

    found = gpu_steps.run()
    for name in ("prefills", "steps"):
        table(found[name])
    return found


def profile() -> dict[str, Any]:
    import gpu_steps

    found = gpu_steps.profile()
    table(found["profile"])
    return found


def loop() -> dict[str, Any]:
    import gpu_loop

    found = gpu_loop.run()
    for name in ("gaps", "batches", "contexts"):
        table(found[name])
    return found


def idle() -> dict[str, Any]:
    import gpu_idle

    found = gpu_idle.run()
    for name in ("left", "times", "same", "captured"):
        table(found[name])
    return found


def constraints() -> dict[str, Any]:
    import gpu_constraints

    found = gpu_constraints.run()
    for name in ("checks", "times", "demo"):
        table(found[name])
    return found


def stream() -> dict[str, Any]:
    import gpu_stream

    found = gpu_stream.run()
    for name in ("checks", "times", "warps", "layers"):
        table(found[name])
    return found


def few() -> dict[str, Any]:
    import gpu_few

    found = gpu_few.run()
    for name in ("checks", "layers", "wide", "products"):
        table(found[name])
    return found


def quant() -> dict[str, Any]:
    import gpu_quant

    found = gpu_quant.run()
    for name in ("checks", "times", "prompts", "tiles"):
        table(found[name])
    return found


def moe() -> dict[str, Any]:
    import gpu_moe
    import gpu_moe_packed

    found, packed = gpu_moe.run(), gpu_moe_packed.run()
    found |= packed | {"ok": found["ok"] and packed["ok"]}
    for rows in found.values():
        if isinstance(rows, list):
            table(rows)
    return found


def parity(device: str) -> dict[str, Any]:
    import gpu_parity

    found = gpu_parity.run(device)
    table(found["rows"])
    return found


def save(figures: dict[str, Any], name: str, part: str, folder: Path) -> None:
    """Each table of flat rows as folder/NAME_TABLE.json."""
    import results_file

    flat = [{"CUDA": key, **row} for key, row in figures.items() if isinstance(row, dict)]
    tables = {key: rows for key, rows in figures.items() if isinstance(rows, list)} | ({"rows": flat} if flat else {})
    for key, rows in tables.items():
        simple = [{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
        if simple:
            results_file.save(f"{name}_{key}".replace(" ", "_"), simple, title=f"GPU: {part}, {key}", folder=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part",
        choices=[
            "demo",
            "kernels",
            "attention",
            "long",
            "graphs",
            "profile",
            "loop",
            "idle",
            "stream",
            "few",
            "quant",
            "moe",
            "constraints",
            "parity",
            "serve",
            "table",
        ],
    )
    parser.add_argument("--model-path", default="", help="Folder with config.json and tokenizer (parts serve, table).")
    parser.add_argument("--out", help="Write the figures here as JSON.")
    parser.add_argument(
        "--save", metavar="NAME", help="Write each table into --out-dir, as docs/benchmarks.md reads it."
    )
    parser.add_argument("--device", default="cuda", help="cpu: to try parts demo and parity where there is no GPU.")
    more = parser.add_argument_group("part table")
    more.add_argument("--out-dir", type=Path, default=Path("table"), help="Folder for figures and log.")
    more.add_argument("--name", default="h200_llama8b_bf16", help="Of the files in it, and of the result.")
    more.add_argument("--commit", default="", help="Of the checkout, for the result, where git cannot say.")
    more.add_argument(
        "--shape", default="llama8b", help="Of the model: llama8b, llama8b-awq, qwen1.5-moe, qwen3-0.6b, tiny."
    )
    more.add_argument("--workloads", default="", help="Which, in this order; all by default.")
    more.add_argument("--server-flags", default="", help='More flags for the server, e.g. "--quantization fp8".')
    more.add_argument("--total-s", type=float, default=420, help="Seconds for all of it.")
    more.add_argument("--each-s", type=float, default=60, help="Seconds for one workload.")
    more.add_argument("--scale", type=float, default=1, help="Of lengths and numbers of requests.")
    more.add_argument("--processes", type=int, default=min(8, max(1, (os.cpu_count() or 2) // 2)))
    args = parser.parse_args()
    if args.commit:
        import results_file

        results_file.commit = lambda: args.commit
    match args.part:
        case "demo":
            figures = demo(args.device)
        case "kernels":
            figures = kernels()
        case "attention":
            figures = attention()
        case "long":
            figures = long()
        case "stream":
            figures = stream()
        case "few":
            figures = few()
        case "quant":
            figures = quant()
        case "moe":
            figures = moe()
        case "constraints":
            figures = constraints()
        case "parity":
            figures = parity(args.device)
        case "profile":
            figures = profile()
        case "loop":
            figures = loop()
        case "idle":
            figures = idle()
        case "graphs":
            figures = graphs()
        case "table":
            import gpu_table

            names = [name for name in (args.workloads or gpu_table.ORDER).split(",") if name]
            figures = gpu_table.run(
                args.model_path, args.shape, args.server_flags, names, args.out_dir, args.name, args.total_s,
                args.each_s, args.scale, args.processes,
            )  # fmt: skip
        case _:
            figures = serve(args.model_path)
    if args.out:
        Path(args.out).write_text(json.dumps(figures, indent=1))
    if args.save:
        save(figures, args.save, args.part, args.out_dir)
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
