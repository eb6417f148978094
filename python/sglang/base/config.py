"""ServerConfig: every server flag is one field here. `resolve()` computes what is derived and refuses what cannot be.

After `resolve` nobody writes to it; a room is handed the few values it needs, not the record.
"""

import argparse
import dataclasses
import math
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from sglang.base.errors import ConfigError
from sglang.base.known_flags import ALWAYS

MOST_THREADS = 1024  # OpenMP gives each a stack before it asks whether there is room
DEMO_MODEL = Path(__file__).parent.parent / "assets" / "demo"


def flag(default: Any, help: str, *aliases: str, metavar: str | None = None) -> Any:
    """A field that is a flag: its default, its help line, further spellings."""
    return field(default=default, metadata={"help": help, "aliases": aliases, "metavar": metavar})


@dataclass(frozen=True)
class ServerConfig:
    # The model
    model_path: str = flag("", "Folder or hub id of the model. Without it the built-in demo model.", "--model")
    tokenizer_path: str = flag("", "Folder or hub id of the tokenizer; the model's own by default.")
    tokenizer_mode: Literal["auto", "slow"] = flag("auto", "slow: the reference tokenizer instead of the fast one.")
    load_format: Literal["auto", "safetensors", "pt", "gguf", "dummy"] = flag(
        "auto",
        "Weight files to read. dummy: random weights, no file is read. pt: loaded with weights_only. gguf: one file.",
    )
    model_impl: Literal["auto", "sglang", "transformers"] = flag(
        "auto", "Whose code computes the model: transformers' over our attention where auto finds no family of ours."
    )
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = flag(
        "auto", "Type of weights and activations. auto: the checkpoint's (fp32 checkpoints: fp16 on CUDA, fp32 on CPU)."
    )
    trust_remote_code: bool = flag(False, "Run Python code that a model folder brings. Off unless you trust it.")
    context_length: int | None = flag(None, "Longest sequence in tokens; the model's own limit by default.")
    quantization: str | None = flag(
        None, "int8, int4 (CPU) or fp8 (CUDA): round the weights while they load. Else the checkpoint's own format."
    )
    is_embedding: bool = flag(False, "Serve vectors of texts (/v1/embeddings, /encode) instead of generated text.")
    chat_template: str | None = flag(None, "Built-in name, .jinja or .json file; the tokenizer's own by default.")
    tool_call_parser: Literal["hermes", "qwen", "qwen25", "mistral", "llama3"] | None = flag(
        None, "How the model writes tool calls; by its chat template where not given."
    )
    served_model_name: str | None = flag(None, "Name the API shows; the model path by default.")
    revision: str | None = flag(None, "Branch, tag or commit of a hub model.")
    download_dir: str | None = flag(None, "Where hub files are kept; Hugging Face's cache by default.")
    json_model_override_args: str = flag("{}", "JSON object merged into the model's config.json.")

    # HTTP
    host: str = flag("127.0.0.1", "Address to listen on. 0.0.0.0 for every interface.")
    port: int = flag(30000, "Port to listen on; where it is taken, the next free one, with a warning.")
    api_key: str | None = flag(None, "Key that requests must carry (Authorization: Bearer or X-API-Key).")
    admin_api_key: str | None = flag(
        None, "Key that /flush_cache and /abort_request must carry instead. It opens everything else too."
    )
    ssl_keyfile: str | None = flag(None, "TLS private key; with --ssl-certfile the server speaks HTTPS.")
    ssl_certfile: str | None = flag(None, "TLS certificate chain.")
    ssl_ca_certs: str | None = flag(None, "CA file: clients must show a certificate that it vouches for.")
    ssl_keyfile_password: str | None = flag(None, "Password of the TLS private key.")
    log_level: Literal["debug", "info", "warning", "error"] = flag("info", "How much is logged.")
    log_level_http: Literal["debug", "info", "warning", "error"] | None = flag(None, "Same for HTTP; as --log-level.")
    log_requests: bool = flag(False, "Log input and output of every request.")
    enable_cache_report: bool = flag(False, "Report cached prompt tokens in OpenAI usage.")
    stream_interval: int = flag(1, "Tokens between two events of a stream; the first and the last always come.")
    incremental_streaming_output: bool = flag(
        False, "/generate streams what is new in each event, instead of all that there is so far."
    )
    sampling_defaults: Literal["model", "openai"] = flag(
        "model", "Chats that say nothing are sampled as the model's generation_config.json says, or as OpenAI does."
    )
    allow_auto_truncate: bool = flag(
        False, "Cut a prompt that is too long at its end, with a warning, instead of refusing it."
    )
    skip_server_warmup: bool = flag(False, "Do not answer a first request of our own before reporting ready.")
    drain_timeout: float = flag(30.0, "Seconds that running requests get to finish after SIGTERM.", metavar="S")
    watchdog_timeout: float = flag(300.0, "Seconds one step may take before the server gives up.", metavar="S")

    # Scheduling and memory
    device: Literal["auto", "cpu", "cuda"] = flag("auto", "auto: cuda where there is one.")
    mem_fraction_static: float | None = flag(
        None, "Share of device memory for weights and KV pool (CUDA 0.88; CPU: of free RAM, 0.5).", metavar="F"
    )
    max_total_tokens: int | None = flag(None, "Size of the KV pool in tokens, whatever memory would allow.")
    max_running_requests: int | None = flag(None, "Most sequences computed at a time (256 on CPU, 512 on CUDA).")
    max_queued_requests: int = flag(4096, "Most requests waiting; more are answered 503.")
    max_prefill_tokens: int = flag(16384, "Most prompt tokens admitted in one step; never less than the chunk size.")
    chunked_prefill_size: int | None = flag(None, "Most prompt tokens computed in a step; -1: no chunking.")
    page_size: int = flag(1, "KV cells per page; prefixes are shared in whole pages.")
    schedule_policy: Literal["lpm", "dfs-weight", "fcfs", "random", "lof"] = flag(
        "lpm",
        "Order of the queue: longest cached prefix, tree order, arrival, random, longest output.",
        "--schedule-heuristic",
    )
    schedule_conservativeness: float = flag(1.0, "Above 1 reserves more memory per request: fewer retractions.")
    disable_radix_cache: bool = flag(False, "Share no prefixes between requests.")
    disable_regex_jump_forward: bool = flag(
        False, "Draw every token, also of text that a constraint forces.", "--disable-jump-forward"
    )
    automata_memory_mib: int = flag(
        512, "CUDA: memory for constraints that are followed there; masks of others come from the host.", metavar="MIB"
    )
    grammar_cache_dir: str = flag(
        "", "Folder where compiled constraints are kept for later starts; nobody else may write into it.", metavar="DIR"
    )
    disable_overlap_schedule: bool = flag(False, "CUDA: plan a step only after the last one's tokens are known.")
    random_seed: int | None = flag(None, "Seed of everything random that a request does not seed itself.")
    decode_log_interval: int = flag(40, "Decode steps between two status lines.")

    # The device
    attention_backend: Literal["auto", "torch", "triton", "flashinfer"] = flag(
        "auto",
        "Attention kernels. triton: CUDA, the default there. torch: runs anywhere. flashinfer: an extra, compiled "
        "while triton serves; auto takes it for long prompts where it is installed.",
    )
    kv_cache_dtype: Literal["auto", "fp8_e4m3", "fp8_e5m2"] = flag(
        "auto", "Type that keys and values are kept in; auto: that of the activations. 8 bits: twice as many, rounded."
    )
    disable_flashinfer: bool = flag(False, "Do without FlashInfer, also where it is installed.")
    disable_cuda_graph: bool = flag(False, "CUDA: launch every kernel of a decode step by itself.")
    disable_cascade_attention: bool = flag(False, "CUDA: decodes read a prefix that they share once for each of them.")
    cuda_graph_max_bs: int | None = flag(None, "CUDA: rows of the largest decode step that becomes a graph; all.")
    cpu_threads: int | None = flag(None, "Threads of the CPU engine; by default all cores, fewer for a small model.")

    # Scale-out
    tp_size: int = flag(1, "Ranks that split each layer.", "--tp", "--tensor-parallel-size")
    dp_size: int = flag(1, "Replicas of the model.", "--dp", "--data-parallel-size")
    nnodes: int = flag(1, "Machines that serve one model together.")
    node_rank: int = flag(0, "This machine's number, 0 .. nnodes - 1.")
    nccl_init_addr: str | None = flag(None, "HOST:PORT of node 0.", "--nccl-init", "--dist-init-addr")
    load_balance_method: Literal["round_robin", "shortest_queue"] = flag("round_robin", "How replicas share requests.")
    enable_p2p_check: bool = flag(False, "Check GPU peer access instead of assuming it.")

    @classmethod
    def of(cls, **settings: Any) -> "ServerConfig":
        """Fields by any name that their flags have: `disable_jump_forward` is --disable-jump-forward."""
        known = {
            alias[2:].replace("-", "_"): f.name for f in dataclasses.fields(cls) for alias in f.metadata["aliases"]
        }
        return cls(**{known.get(name, name): value for name, value in settings.items()})

    @property
    def model_name(self) -> str:
        return self.served_model_name or ("demo" if self.model_path == str(DEMO_MODEL) else self.model_path)

    def resolve(self) -> "ServerConfig":
        """A record in which every derived value is filled in. Raises ConfigError: the flag, and what would work."""
        self._check_types()
        new: dict[str, Any] = {}
        if not self.model_path:
            new["model_path"] = str(DEMO_MODEL)
        if not self.tokenizer_path:
            new["tokenizer_path"] = new.get("model_path", self.model_path)
        if self.random_seed is None:
            new["random_seed"] = secrets.randbits(31)
        chunk = self.chunked_prefill_size
        if chunk is not None and chunk != -1 and chunk < 1:
            raise ConfigError(f"--chunked-prefill-size must be -1 (off) or at least 1, got {chunk}")
        for name in (
            "page_size", "max_queued_requests", "max_prefill_tokens", "stream_interval", "decode_log_interval",
            "context_length", "max_total_tokens", "max_running_requests", "cpu_threads", "cuda_graph_max_bs",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{spell(name)} must be at least 1, got {value}")
        if (self.cpu_threads or 1) > MOST_THREADS:
            raise ConfigError(f"--cpu-threads must be in [1, {MOST_THREADS}], got {self.cpu_threads}")
        if self.automata_memory_mib < 0:
            raise ConfigError(f"--automata-memory-mib must be at least 0, got {self.automata_memory_mib}")
        if not 0 < self.port < 65536:
            raise ConfigError(f"--port must be in [1, 65535], got {self.port}")
        if self.mem_fraction_static is not None and not 0 < self.mem_fraction_static < 1:
            raise ConfigError(f"--mem-fraction-static must be in (0, 1), got {self.mem_fraction_static}; try 0.8")
        for name, low in (("schedule_conservativeness", 0.01), ("drain_timeout", 0), ("watchdog_timeout", 1)):
            if not low <= getattr(self, name) < math.inf:  # NaN fails too
                raise ConfigError(f"{spell(name)} must be at least {low}, got {getattr(self, name)}")
        if self.random_seed is not None and not 0 <= self.random_seed < 2**63:
            raise ConfigError(f"--random-seed must be in [0, 2^63), got {self.random_seed}")
        if not 0 <= self.node_rank < max(self.nnodes, 1):
            raise ConfigError(f"--node-rank must be in [0, --nnodes = {self.nnodes}), got {self.node_rank}")
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise ConfigError("--ssl-keyfile and --ssl-certfile go together")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ConfigError("--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile")
        if self.disable_flashinfer and self.attention_backend == "flashinfer":
            raise ConfigError("--disable-flashinfer contradicts --attention-backend flashinfer; leave one of them out")
        self._refuse_what_is_not_built()
        return dataclasses.replace(self, **new)

    def _check_types(self) -> None:
        """What argparse checks of flags, for records built in Python."""
        for f in dataclasses.fields(self):
            value, kinds = getattr(self, f.name), kinds_of(f)
            choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            if choices and value not in (choices if None not in kinds else [*choices, None]):
                raise ConfigError(f"{spell(f.name)} must be one of {', '.join(choices)}; got {value!r}")
            if choices or (value is None and None in kinds):
                continue
            allowed = (int, float) if float in kinds else tuple(kind for kind in kinds if kind is not None)
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
                names = " or ".join("none" if kind is None else kind.__name__ for kind in kinds)
                raise ConfigError(f"{spell(f.name)} must be {names}, got {value!r}")

    def _refuse_what_is_not_built(self) -> None:
        for name in ("tp_size", "dp_size", "nnodes"):
            if getattr(self, name) != 1:
                raise ConfigError(f"{spell(name)} {getattr(self, name)} is not supported yet; leave it at 1")
        for name in ("nccl_init_addr", "enable_p2p_check"):
            if getattr(self, name):
                raise ConfigError(f"{spell(name)} is not supported yet")


def spell(name: str) -> str:
    return "--" + name.replace("_", "-")


def kinds_of(f: "dataclasses.Field[Any]") -> list[Any]:
    """The types a field allows: classes, Literals, None."""
    if get_origin(f.type) in (Union, UnionType):
        return [None if kind is NoneType else kind for kind in get_args(f.type)]
    return [f.type]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one flag per field. Unique prefixes of a flag are accepted, as argparse does."""
    for f in dataclasses.fields(ServerConfig):
        options: dict[str, Any] = {"help": f.metadata["help"], "default": f.default, "dest": f.name}
        [kind] = [kind for kind in kinds_of(f) if kind is not None]
        if kind is bool:
            options["action"] = "store_true"
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options["type"] = kind
            options["metavar"] = f.metadata["metavar"] or {int: "N", float: "F"}.get(kind, "TEXT")
        parser.add_argument(spell(f.name), *f.metadata["aliases"], **options)
    for name, why in ALWAYS.items():
        parser.add_argument(name, action="store_true", help=f"Accepted: {why}.", dest="always")


def from_args(args: argparse.Namespace) -> ServerConfig:
    """The record of parsed flags; flags of other programs in `args` are left alone."""
    return ServerConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ServerConfig)})


def fail(error: ConfigError) -> NoReturn:
    """One line, exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)
