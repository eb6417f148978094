"""Scales of keys and values: where a checkpoint has them, and that a pool of 8 bits is filed with them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sglang.base.errors import ConfigError
from sglang.models.kv_scales import kv_scales


def written(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file({name.replace("__", "."): t for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def test_every_spelling_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(
        tmp_path,
        model__layers__0__self_attn__k_scale=torch.tensor(0.5),
        model__layers__0__self_attn__q_proj__output_scale=torch.tensor(9.0),
        model__layers__0__self_attn__v_proj__output_scale=torch.tensor(4.0),
        model__layers__1__self_attn__k_proj__k_scale=torch.tensor([0.25], dtype=torch.bfloat16),
        model__layers__1__self_attn__v_proj__v_scale=torch.tensor([[2.0]]),
        model__layers__2__self_attn__kv_scale=torch.tensor(0.125),
        model__layers__4__self_attn__k_scale=torch.tensor(7.0),
    )
    assert kv_scales(tmp_path, "auto", 4) == [(0.5, 4.0), (0.25, 2.0), (0.125, 0.125), (1.0, 1.0)]
    assert "of 1 of 4 layers" in caplog.text
    caplog.clear()
    assert kv_scales(tmp_path, "dummy", 1) == [(1.0, 1.0)]
    assert kv_scales(tmp_path, "auto", 3)[2] == (0.125, 0.125)
    assert not caplog.text


@pytest.mark.parametrize("value", [[0.0], [-1.0], [float("nan")], [0.5, 0.5]], ids=str)
def test_what_is_no_scale_is_refused(tmp_path: Path, value: list[float]) -> None:
    written(tmp_path, model__layers__0__attn__k_scale=torch.tensor(value))
    with pytest.raises(ConfigError, match=r"model.safetensors: model.layers.0.attn.k_scale is not one number above 0"):
        kv_scales(tmp_path, "auto", 1)
