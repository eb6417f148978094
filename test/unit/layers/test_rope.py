"""Rotary embedding by its definition; the scalings are compared with transformers in test/parity."""

import cmath
import math

import pytest
import torch

from sglang.layers.rope import Rope, Turn, frequencies, rotate, tables

CPU = torch.device("cpu")


def test_pairs_turn_by_position_times_frequency() -> None:
    rope = Rope(dim=8, theta=100.0)
    cos, sin = tables(rope, 50, CPU, torch.float32)
    x = torch.randn(3, 2, 8)
    positions = torch.tensor([0, 7, 49])
    out = rotate(x, cos[positions][:, None], sin[positions][:, None])
    for t, position in enumerate(positions.tolist()):
        for head in range(2):
            for j in range(4):  # pairs (j, j + 4)
                pair = complex(x[t, head, j], x[t, head, j + 4])
                turned = pair * cmath.exp(1j * position * 100.0 ** (-2 * j / 8))
                assert out[t, head, j].item() == pytest.approx(turned.real, abs=1e-5)
                assert out[t, head, j + 4].item() == pytest.approx(turned.imag, abs=1e-5)


def test_neighbours_turn_together_where_they_are_interleaved() -> None:
    cos, sin = tables(Rope(dim=8, theta=100.0, interleaved=True), 50, CPU, torch.float32)
    x = torch.randn(3, 2, 12)
    positions = torch.tensor([0, 7, 49])
    out = Turn(cos[positions][:, None], sin[positions][:, None], True)(x)
    for t, position in enumerate(positions.tolist()):
        pairs = torch.view_as_complex(x[t, :, :8].unflatten(-1, (-1, 2)).contiguous())
        angles = torch.tensor([position * 100.0 ** (-2 * j / 8) for j in range(4)])
        wanted = torch.view_as_real(pairs * torch.polar(torch.ones(4), angles)).flatten(-2)
        assert torch.allclose(out[t, :, :8], wanted, atol=1e-5)
    assert torch.equal(out[..., 8:], x[..., 8:])


def test_dims_beyond_the_rotated_part_pass_through() -> None:
    cos, sin = tables(Rope(dim=4), 10, CPU, torch.float32)
    x = torch.randn(10, 1, 12)
    out = rotate(x, cos[:, None], sin[:, None])
    assert torch.equal(out[..., 4:], x[..., 4:])
    assert not torch.equal(out[1:, :, :4], x[1:, :, :4])


def test_products_depend_on_distance_only() -> None:
    cos, sin = tables(Rope(dim=16), 100, CPU, torch.float32)
    q, k = torch.randn(1, 1, 16).expand(100, 1, 16), torch.randn(1, 1, 16).expand(100, 1, 16)
    q, k = rotate(q, cos[:, None], sin[:, None])[:, 0], rotate(k, cos[:, None], sin[:, None])[:, 0]
    products = q @ k.T
    for distance in (0, 5, 40):
        line = products.diagonal(distance)
        assert (line - line[0]).abs().max() < 1e-4


def test_llama3_keeps_high_frequencies_and_divides_low_ones() -> None:
    rope = Rope(dim=64, theta=500000.0, kind="llama3", factor=8.0, original=8192)
    plain, _ = frequencies(Rope(dim=64, theta=500000.0), 1)
    scaled, scale = frequencies(rope, 131072)
    ratio = plain / scaled
    assert scale == 1.0
    assert ratio[0] == 1.0 and ratio[-1] == pytest.approx(8.0)
    assert bool((ratio[1:] - ratio[:-1] >= -1e-6).all()), "the change is gradual"


def test_yarn_stretches_and_sharpens() -> None:
    rope = Rope(dim=64, kind="yarn", factor=4.0, original=4096, positions=16384)
    plain, _ = frequencies(Rope(dim=64), 1)
    scaled, scale = frequencies(rope, 16384)
    assert scale == pytest.approx(0.1 * math.log(4) + 1)
    assert scaled[0] == plain[0] and scaled[-1] == pytest.approx(plain[-1].item() / 4)


def test_dynamic_changes_nothing_within_the_trained_length() -> None:
    rope = Rope(dim=32, kind="dynamic", factor=4.0, positions=2048)
    plain, _ = frequencies(Rope(dim=32), 1)
    assert torch.allclose(frequencies(rope, 2048)[0], plain)
    assert frequencies(rope, 8192)[0][-1] < plain[-1]
