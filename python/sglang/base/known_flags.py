"""Flags that other releases of SGLang have and this one has not, so that a command line of theirs is told the truth."""

# What the flag asks for is always so: it is accepted, and there is nothing to do.
ALWAYS = {
    "--enable-metrics": "/metrics is always there",
    "--enable-mixed-chunk": "prompts and decodes always share steps",
    "--efficient-weight-load": "weights are always quantised layer by layer",
    "--attention-reduce-in-fp32": "attention always sums in float32",
    "--triton-attention-reduce-in-fp32": "attention always sums in float32",
    "--disable-disk-cache": "compiled constraints go to a disk only with --grammar-cache-dir",
    "--disable-outlines-disk-cache": "compiled constraints go to a disk only with --grammar-cache-dir",
}
# What the flag asks for cannot be had: it is refused with these words.
REFUSED = {
    "--additional-ports": "processes here talk over Unix sockets and need no ports",
    "--base-gpu-id": "choose devices with CUDA_VISIBLE_DEVICES",
    "--disable-log-stats": "use --log-level warning",
    "--disaggregation-mode": "prompts and decodes run in one server",
    "--enable-dp-attention": "",
    "--enable-flashinfer": "it is used where it is installed; see --attention-backend",
    "--enable-hierarchical-cache": "the prefix cache is in device memory only",
    "--enable-lora": "",
    "--enable-torch-compile": "",
    "--ep-size": "",
    "--expert-parallel-size": "",
    "--file-storage-path": "there are no /v1/files",
    "--grammar-backend": "constraints are compiled by this package",
    "--log-requests-level": "--log-requests shows all of a request",
    "--log-stats-interval": "use --decode-log-interval",
    "--lora-paths": "",
    "--max-loras-per-batch": "",
    "--model-overide-args": "use --json-model-override-args",
    "--moe-a2a-backend": "",
    "--pipeline-parallel-size": "",
    "--pp-size": "",
    "--radix-eviction-policy": "what was used least recently goes first",
    "--reasoning-parser": "",
    "--sampling-backend": "tokens are drawn by this package's kernels",
    "--show-time-cost": "see /metrics and python -m sglang.bench_latency --profile",
    "--skip-tokenizer-init": "",
    "--speculative-algorithm": "",
    "--speculative-draft-model-path": "",
    "--speculative-eagle-topk": "",
    "--speculative-num-draft-tokens": "",
    "--speculative-num-steps": "",
    "--torchao-config": "see --quantization",
}


def refusal(flag: str) -> str | None:
    """What to say of a flag that is known and not built; None where it is neither."""
    if flag not in REFUSED:
        return None
    return f"{flag} is not supported" + (f": {REFUSED[flag]}" if REFUSED[flag] else "")
