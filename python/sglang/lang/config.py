"""global_config: what programs may set for the whole process."""

from dataclasses import dataclass
from typing import Any


@dataclass
class GlobalConfig:
    verbosity: int = 0  # 2: print the text of each run
    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    spaces_between_special_tokens_in_out: bool = True
    eager_fill_image: bool = False  # read and encode an image when it is appended, not when its turn comes
    enable_precache_with_tracing: bool = True  # run_batch sends the programs' common prefix once, first
    enable_fusion: bool = True  # gens that are not read in between travel as one request where the server can
    fusion_idle_s: float = 0.001  # how long a gen waits for others to travel with while its program does nothing

    # Programs set these by tradition and they change nothing: forks always run at the same time, join with
    # "concate_and_append" always concatenates, and the server has flags of its own.
    enable_parallel_encoding: bool = True
    enable_parallel_decoding: bool = True
    new_token_ratio: float = 0.4
    min_new_token_ratio: float = 0.2
    new_token_ratio_decay: float = 0.0001
    new_token_ratio_recovery: float = 0.05
    num_continue_decode_steps: int = 10
    flashinfer_workspace_size: int = 192 * 2**20


global_config = GlobalConfig()
