"""Scales that a checkpoint was calibrated with, for keys and values that are kept in 8 bits."""

import logging
import math
import re
from pathlib import Path

from safetensors import safe_open

from sglang.base.errors import ConfigError
from sglang.models.checkpoint import weight_files

log = logging.getLogger("sglang.models")
# model.layers.3.self_attn.k_scale, ....k_proj.k_scale, ....attn.k_scale, ....k_proj.output_scale; kv_scale is for both
NAME = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\..*\b(?:(k|v|kv)_scale|(k|v)_proj\.output_scale)$")


def kv_scales(folder: Path, load_format: str, layers: int) -> list[tuple[float, float]]:
    """Of each layer, what its keys and its values are divided by before they are kept: 1, and a warning, where no file
    says anything.

    Raises ConfigError.
    """
    found: list[dict[str, float]] = [{} for _ in range(layers)]
    for file in weight_files(folder, load_format) if load_format != "dummy" else ():
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                match = NAME.search(name)
                if match is None or int(match[1]) >= layers:
                    continue
                tensor = opened.get_tensor(name)
                value = float(tensor) if tensor.numel() == 1 else math.nan
                if not 0 < value < math.inf:
                    raise ConfigError(
                        f"{file.name}: {name} is not one number above 0; --kv-cache-dtype auto needs none"
                    )
                found[int(match[1])] |= dict.fromkeys(match[2] or match[3], value)
    without = sum(len(one) < 2 for one in found)
    if without and load_format != "dummy":
        log.warning(
            "Keys and values of %d of %d layers are kept in 8 bits as they are: the checkpoint has no scales for them, "
            "and answers may be worse",
            without,
            layers,
        )
    return [(one.get("k", 1.0), one.get("v", 1.0)) for one in found]
