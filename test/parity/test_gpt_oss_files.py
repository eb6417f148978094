"""GPT-OSS as it is released: experts in MXFP4, block by block."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_driver import Driver, load
from family_cases import CASES, TOKENS, Make, known
from safetensors.torch import load_file, save_file

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.engine import engine as engines
from sglang.layers.moe import ExpertMlp
from sglang.models import quantized
from sglang.models.decoder import Model
from sglang.plan_memory import GIB, Planner
from sglang.quant.formats import Format, chosen

GRID = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def packed(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[experts, inputs, rows] -> blocks, scales, and what they stand for in that layout."""
    groups = whole.transpose(1, 2).unflatten(-1, (-1, 32))  # [experts, rows, inputs / 32, 32]
    exponents = (groups.abs().amax(-1, keepdim=True) / 6).log2().ceil()
    nearest = (groups[..., None].abs() / exponents.exp2()[..., None] - GRID).abs().argmin(-1)
    codes = (nearest + 8 * (groups < 0)).to(torch.uint8)
    values = (GRID[nearest] * groups.sign() * exponents.exp2()).flatten(2).transpose(1, 2)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents[..., 0] + 127).to(torch.uint8), values


@pytest.fixture(scope="module")
def released(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A folder in the released layout, and the log-probabilities of its values."""
    family, changes = CASES["gpt-oss"]
    source, model = make(family, **changes, intermediate_size=64)
    tensors, values = load_file(source / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales, values[name] = packed(tensors.pop(name))
        tensors |= {name + "_blocks": blocks, name + "_scales": scales}
    folder = tmp_path_factory.mktemp("mxfp4")
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
        expected = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
        for name, p in model.named_parameters():
            p.copy_(before[name])
    return folder, expected


def test_experts_in_mxfp4_are_unpacked_as_they_are_loaded(released: tuple[Path, torch.Tensor]) -> None:
    folder, expected = released
    assert (known(Driver(load(folder)), 0, TOKENS, [9]) - expected).abs().max() < 1e-4


def test_scales_that_are_missing_or_misshaped_are_named(released: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.down_proj_scales"
    folder = shutil.copytree(released[0], tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    scales = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"1 tensors are missing: {name}"):
        load(folder)
    save_file(tensors | {name: scales[:, 1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.mlp\.experts\.down_proj_blocks has shape"):
        load(folder)


def test_experts_stay_packed_where_a_device_multiplies_them(
    released: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Triton's interpreter: from the files to the log-probabilities, and the memory that is told of."""
    pytest.importorskip("triton")
    folder, expected = released
    device = torch.device("cuda")

    def as_there(model: Model, kind: str, form: Format | None) -> Counter[str]:
        assert kind == "none" and chosen({"quant_method": "mxfp4"}, None, "cuda", ("mxfp4",)) == ("mxfp4", None)
        return quantized.quantize(model, "mxfp4", form, device)

    monkeypatch.setattr(engines, "quantize", as_there)
    monkeypatch.setattr(quantized, "PACKED_TYPES", (torch.float32,))
    monkeypatch.setattr(ExpertMlp, "finish", lambda self: setattr(self, "fused", True))
    engine = load(folder)
    assert (known(Driver(engine), 0, TOKENS, [9]) - expected).abs().max() < 1e-4
    config = replace(ServerConfig(model_path=str(folder), dtype="float32").resolve(), max_total_tokens=64)
    planner = Planner(config, "cuda", GIB)
    assert planner.plan.kind == "mxfp4" and planner.need(config).weights == engine.ready.weight_bytes
    plain = 4 * engine.ready.parameters
    experts = [one for _, one in quantized.experts(engine._model)]  # type: ignore[arg-type]
    held = sum(one.packed.bytes for one in experts if one.packed is not None)
    assert held and engine.ready.weight_bytes == plain - sum(one.saved for one in experts)
