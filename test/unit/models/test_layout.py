"""Packed checkpoint tensors, taken apart."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang.models.checkpoint import name_of, place_of
from sglang.models.layout import Packed, experts, grouped, listed, mxfp4, stacked, transposed
from sglang.quant.base import Mxfp4

SPEC: Any = SimpleNamespace(heads=4, kv_heads=2, head_dim=3, experts=SimpleNamespace(routing=SimpleNamespace(count=2)))
WHOLE = torch.arange(24 * 5).view(24, 5)


def apart(packed: Packed, found: list[torch.Tensor], *shapes: tuple[int, ...]) -> list[list[Any]]:
    parts = packed.cut(found, [torch.Size(s) for s in shapes], SPEC)
    assert [tuple(p.shape) for p in parts] == list(shapes)
    return [p.tolist() for p in parts]


def test_stacked_and_transposed_rows() -> None:
    q, k = apart(stacked("q", "k"), [WHOLE], (16, 5), (8, 5))
    assert q == WHOLE[:16].tolist() and k == WHOLE[16:].tolist()
    q, k = apart(transposed("q", "k"), [WHOLE.T], (16, 5), (8, 5))
    assert q == WHOLE[:16].tolist() and k == WHOLE[16:].tolist()
    assert apart(transposed("q", "k"), [WHOLE[:, 0]], (16,), (8,))[1] == WHOLE[16:, 0].tolist()


def test_groups_hold_their_queries_then_key_then_value() -> None:
    q, k, v = apart(grouped("q", "k", "v"), [WHOLE], (12, 5), (6, 5), (6, 5))
    assert q == WHOLE[[0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]].tolist()
    assert k == WHOLE[[6, 7, 8, 18, 19, 20]].tolist()
    assert v == WHOLE[[9, 10, 11, 21, 22, 23]].tolist()
    assert (
        apart(grouped("q", "k", "v"), [WHOLE[:, 1]], (12,), (6,), (6,))[1] == WHOLE[[6, 7, 8, 18, 19, 20], 1].tolist()
    )


def test_experts_in_one_tensor_in_every_order_of_dimensions() -> None:
    three = WHOLE.view(2, 12, 5)
    expected = [three[0, :6], three[1, :6], three[0, 6:], three[1, 6:]]
    sizes = [(6, 5)] * 4
    assert apart(experts("gate", "up"), [three], *sizes) == [e.tolist() for e in expected]
    assert apart(experts("gate", "up", inputs_first=True), [three.mT], *sizes) == [e.tolist() for e in expected]
    assert apart(experts("gate", "up", flat=True), [WHOLE], *sizes) == [e.tolist() for e in expected]
    mixed = [three[0, 0::2], three[1, 0::2], three[0, 1::2], three[1, 1::2]]
    assert apart(experts("gate", "up", interleaved=True), [three], *sizes) == [e.tolist() for e in mixed]
    biases = apart(experts("gate", "up", interleaved=True), [three[..., 0]], (6,), (6,), (6,), (6,))
    assert biases == [e[:, 0].tolist() for e in mixed]
    down = torch.arange(2 * 4 * 5).view(8, 5)  # [experts * inputs, rows]
    flat = apart(experts("down", flat=True, inputs_first=True), [down], (5, 4), (5, 4))
    assert flat == [down[:4].T.tolist(), down[4:].T.tolist()]


def test_mxfp4_codes_mean_what_the_format_says() -> None:
    codes = torch.arange(16).repeat(2)  # one block of 32: all values twice
    blocks = (codes[0::2] | codes[1::2] << 4).to(torch.uint8).view(1, 1, 1, 16).expand(2, 1, 1, 16)
    scales = torch.tensor([127, 130], dtype=torch.uint8).view(2, 1, 1)
    first, second = mxfp4("down").cut([blocks, scales], [], SPEC)
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert isinstance(first, Mxfp4) and isinstance(second, Mxfp4)
    assert first.dense()[0].tolist() == (positive + [-v for v in positive]) * 2
    assert torch.equal(second.dense(), first.dense() * 8)
    with pytest.raises(ValueError, match="have exponents"):
        mxfp4("down").cut([blocks, scales[:, :, :0]], [], SPEC)


NAMES: dict[str, str | Packed] = {
    "model.embed": "embed",
    "m.*.mlp.experts.*.w1": "layers.*.experts.*.gate",
    "m.*.q_norm.norms.*": "layers.*.q_norm.*",
    "m.*.k_norm": listed("layers.*.k_norm.*"),
    "m.*.qkv": stacked("layers.*.qkv.q", "layers.*.qkv.k"),
    "m.*.sinks": "layers.*.sinks",
}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.embed.weight", "embed.weight"),
        ("m.12.mlp.experts.3.w1.weight", "layers.12.experts.3.gate.weight"),
        ("m.0.q_norm.norms.7.weight", "layers.0.q_norm.7.weight"),
        ("m.4.sinks", "layers.4.sinks"),
    ],
)
def test_numbers_go_from_names_to_places_and_back(name: str, place: str) -> None:
    assert place_of(name, NAMES) == place
    assert name_of(place, NAMES) == name


def test_packed_places_get_the_layers_number_and_keep_the_experts_star() -> None:
    found = place_of("m.3.qkv.bias", NAMES)
    assert isinstance(found, Packed) and found.places == ("layers.3.qkv.q.bias", "layers.3.qkv.k.bias")
    found = place_of("m.3.k_norm.weight", NAMES)
    assert isinstance(found, Packed) and found.places == ("layers.3.k_norm.*.weight",)
    assert name_of("layers.3.k_norm.5.weight", NAMES) == "m.3.k_norm.weight"
    assert place_of("m.3.other.weight", NAMES) is None
    assert place_of("m.3.qkv.zeros", NAMES) is None
