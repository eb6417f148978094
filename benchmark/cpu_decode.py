"""Decode speed on a CPU beside others, in one process and in turns: `python benchmark/cpu_decode.py --model-path DIR`.

For each batch size: our engine (plans by hand, no server), transformers' `generate`, and llama.cpp where the packages
`llama-cpp-python` and `gguf` are installed (the weights are converted to F16; Qwen2 models only). `--formats int8,int4`
puts our weights of 8 and 4 bits, rounded while they load, beside llama.cpp's Q8_0 and Q4_0, made from the F16 file.
Every contestant gets the same prompt tokens and draws greedily. Printed per contestant: tokens per second, and the
share of the memory rate that reading all weights once a step amounts to, against the best read rate of the same run.
"""

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_file import add_flag, save

from sglang.base.config import ServerConfig
from sglang.base.plan import DRAWN, Plan, Seat
from sglang.base.sampling import SamplingParams
from sglang.engine.engine import Engine

Run = Callable[[list[list[int]], int], float]  # prompts, decode steps -> seconds of the steps


def ours(engine: Engine) -> Run:
    greedy = SamplingParams(temperature=0)

    def ints(values: Any) -> Any:
        return np.array(values, np.int32)

    def run(prompts: list[list[int]], steps: int) -> float:
        batch, length = len(prompts), len(prompts[0])
        width = length + steps + 1
        slots = np.arange(batch, dtype=np.int32)
        samples = np.ones(batch, np.bool_)
        table = [(b, i, b * width + i) for b in range(batch) for i in range(width)]
        entries = [ints(column) for column in zip(*table, strict=True)]
        seats = [Seat(b, greedy, length) for b in range(batch)]
        counts = ints([length] * batch)
        engine.launch(Plan(0, slots, counts * 0, counts, samples, ints(prompts).ravel(), *entries, seats)).wait()
        none, drawn, ones = ints([]), ints([DRAWN] * batch), ints([1] * batch)
        began = time.perf_counter()
        for i in range(steps):
            engine.launch(Plan(i, slots, counts + i, ones, samples, drawn, none, none, none)).wait()
        return time.perf_counter() - began

    return run


def transformers_generate(folder: Path, dtype: torch.dtype) -> Run:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def once(prompts: list[list[int]], n: int) -> float:
        ids = torch.tensor(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n, min_new_tokens=n
            )
        return time.perf_counter() - began

    return lambda prompts, steps: once(prompts, steps + 1) - once(prompts, 1)


def llama_cpp(path: Path, threads: int, tokens: int, extra: bool = True) -> Run:
    """tokens: most KV cells that will be needed. extra: weights may be laid out anew, as it does by itself."""
    import llama_cpp as ll

    ll.llama_backend_init()
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, None)
    loading = ll.llama_model_default_params()
    loading.use_extra_bufts = extra
    model = ll.llama_model_load_from_file(str(path).encode(), loading)
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = tokens, tokens, 512, 64
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """rows: token, position, sequence, wants a draw. Greedy tokens."""
        batch = ll.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, draws) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, draws
        if ll.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        found = [
            int(np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), (vocab,)).argmax())
            for i, row in enumerate(rows)
            if row[3]
        ]
        ll.llama_batch_free(batch)
        return found

    def run(prompts: list[list[int]], steps: int) -> float:
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        length = len(prompts[0])
        drawn = [decode([(t, i, s, i == length - 1) for i, t in enumerate(p)])[0] for s, p in enumerate(prompts)]
        began = time.perf_counter()
        for i in range(steps):
            drawn = decode([(token, length + i, s, True) for s, token in enumerate(drawn)])
        return time.perf_counter() - began

    run.keep = quiet  # type: ignore[attr-defined]  # the C side calls it for as long as it lives
    return run


def write_gguf(folder: Path, out: Path) -> None:
    """The weights of a Qwen2 folder as an F16 GGUF file without a vocabulary."""
    import gguf
    from safetensors import safe_open

    c = json.loads((folder / "config.json").read_text())
    w = gguf.GGUFWriter(out, "qwen2")
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_tokenizer_model("no_vocab")
    w.add_vocab_size(c["vocab_size"])
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                stem, _, kind = name.rpartition(".")
                if stem in top:
                    target = top[stem]
                else:
                    _, _, number, part = stem.split(".", 3)
                    target = f"blk.{number}.{names[part]}"
                tensor = opened.get_tensor(name)
                half = tensor.dim() > 1
                w.add_tensor(f"{target}.{kind}", tensor.to(torch.float16 if half else torch.float32).numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# Our formats, and llama.cpp's of as many bits with their numbers there.
RIVALS = {"plain": ("F16", 1), "int8": ("Q8_0", 7), "int4": ("Q4_0", 2)}


def requantize(path: Path, out: Path, ftype: int) -> Path:
    import llama_cpp as ll

    params = ll.llama_model_quantize_default_params()
    params.ftype = ftype
    if ll.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not quantise {path}")
    return out


def read_rate() -> float:
    """Best bytes per second of a few sums over 512 MiB."""
    big = torch.ones(2**27)
    best = 0.0
    for _ in range(4):
        began = time.perf_counter()
        big.sum()
        best = max(best, big.numel() * 4 / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="A Qwen2 folder with weights.")
    parser.add_argument("--formats", default="plain", help=f"Of {', '.join(RIVALS)}, comma-separated.")
    parser.add_argument("--batch", default="1,16", help="Batch sizes, comma-separated.")
    parser.add_argument("--prompt", type=int, default=128, help="Prompt tokens per sequence.")
    parser.add_argument("--tokens", type=int, default=32, help="Decode steps per measurement.")
    parser.add_argument("--rounds", type=int, default=5, help="Turns of each contestant; the median counts.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--no-repack",
        action="store_true",
        help="llama.cpp: weights as they are in the file; where its AMX code meets a CPU without, it would die.",
    )
    add_flag(parser, "cpu_decode")
    args = parser.parse_args()
    folder = Path(args.model_path)
    batches = [int(b) for b in args.batch.split(",")]
    cells = max(batches) * (args.prompt + args.tokens + 1)
    torch.set_num_threads(args.threads)
    formats = args.formats.split(",")
    engines = {}
    for name in formats:
        quantization = None if name == "plain" else name
        config = ServerConfig(
            model_path=args.model_path, device="cpu", cpu_threads=args.threads, max_total_tokens=cells,
            quantization=quantization,
        ).resolve()  # fmt: skip
        engines[name] = Engine.load(config)
    engine = engines[formats[0]]
    called = {name: "sglang" if name == "plain" else f"sglang {name}" for name in formats}
    runs: dict[str, Run] = {called[name]: ours(one) for name, one in engines.items()}
    weights = {called[name]: one.ready.weight_bytes for name, one in engines.items()}
    beside = {name: name for name in called.values()}  # who each is compared with
    if "plain" in formats:
        runs["transformers"] = transformers_generate(folder, getattr(torch, engine.ready.dtype))
        weights["transformers"], beside["transformers"] = engine.ready.weight_bytes, "sglang"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            write_gguf(folder, whole := Path(scratch) / "f16.gguf")
            for name in formats:
                kind, number = RIVALS[name]
                path = whole if name == "plain" else requantize(whole, Path(scratch) / f"{kind}.gguf", number)
                runs[f"llama.cpp {kind}"] = llama_cpp(path, args.threads, cells + 256, not args.no_repack)
                weights[f"llama.cpp {kind}"], beside[f"llama.cpp {kind}"] = path.stat().st_size, called[name]
        except ImportError as error:
            print(f"llama.cpp left out: {error}")
        rng = np.random.default_rng(0)
        seconds: dict[tuple[int, str], list[float]] = {(b, name): [] for b in batches for name in runs}
        rate = 0.0
        for turn in range(args.rounds):
            rate = max(rate, read_rate())
            for batch in batches:
                prompts = rng.integers(3, engine.ready.vocab_size, (batch, args.prompt)).tolist()
                for name, run in list(runs.items())[:: 1 - turn % 2 * 2]:  # who is first, takes turns too
                    seconds[batch, name].append(run(prompts, args.tokens) / args.tokens)
    sizes = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in weights.items())
    print(f"\nread rate {rate / 1e9:.1f} GB/s; weights: {sizes}; activations {engine.ready.dtype}; "
          f"{args.threads} threads, prompt {args.prompt}, {args.tokens} steps, {args.rounds} rounds\n")  # fmt: skip
    print("| batch | engine | ms/step median | best | tok/s median | ours is faster by | weights/s of read rate |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for (batch, name), found in seconds.items():
        median, best = statistics.median(found), min(found)
        # Round by round, since what disturbs one contestant of a round disturbs its neighbours.
        ratio = statistics.median(x / y for x, y in zip(found, seconds[batch, beside[name]], strict=True))
        share = weights[name] / best / rate
        print(f"| {batch} | {name} | {median * 1e3:.1f} | {best * 1e3:.1f} | {batch / median:.1f} | {ratio:.2f} | "
              f"{share:.0%} |")  # fmt: skip
        rows.append({"batch": batch, "engine": name, "step, median": median * 1e3, "step, best": best * 1e3,
                     "output": batch / median, "sglang is faster by": ratio,
                     "weights per step, of read rate": 100 * share})  # fmt: skip
    if args.save:
        note = (
            f"Weights: {sizes}; activations {engine.ready.dtype}; prompt {args.prompt}, "
            f"{args.tokens} steps, {args.threads} threads; read rate {rate / 1e9:.1f} GB/s. In turns, {args.rounds} "
            f"rounds; ratios are medians of rounds."
        )
        units = {"step, median": "ms", "step, best": "ms", "output": "token/s", "weights per step, of read rate": "%"}
        plots = [{"x": "batch", "y": "output", "by": "engine"}]
        save(args.save, rows, title="Decode on a CPU", units=units, note=note, plots=plots)


if __name__ == "__main__":
    main()
